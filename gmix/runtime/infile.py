"""Safe reading of files from elsewhere: no pipes, no devices, a limited size. Cheap to import."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MOST_TEXT = 2**26  # bytes; far more than any file gmix writes


def plain_file(path: str | Path) -> Path:
    """Return the path if it is a regular file: opening a pipe may block, reading a device may never end.

    Raises:
        ValueError: If it is not a regular file.
        OSError: If it does not exist.
    """
    path = Path(path)
    path.stat()
    if not path.is_file():
        raise ValueError(f"{path.name} is no file")
    return path


def read_plain(path: str | Path, most: int = MOST_TEXT) -> str:
    """Read the text of a file.

    Args:
        path: File to read.
        most: Largest size allowed, in bytes.

    Raises:
        ValueError: If it is not a regular file, is not UTF-8, or is larger than `most`.
        OSError: If it cannot be read.
    """
    path = plain_file(path)
    if path.stat().st_size > most:
        raise ValueError(f"{path.name} has more than {most >> 20} MiB")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is no UTF-8 text") from None


def sha256(path: str | Path) -> str:
    """Compute the SHA-256 of a file as hexadecimal digits, reading it in pieces.

    Raises:
        ValueError: If it is not a regular file.
        OSError: If it cannot be read.
    """
    digest = hashlib.sha256()
    with plain_file(path).open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def read_json(path: str | Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        ValueError: If it holds something else.
        OSError: If it cannot be read.
    """
    text = read_plain(path)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{Path(path).name} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{Path(path).name} must hold {{...}}, got a {type(found).__name__}")
    return found
