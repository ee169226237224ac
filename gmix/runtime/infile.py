"""Files of others: none is waited for, or is more than it may be; importing this costs nothing."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MOST_TEXT = 2**26  # bytes; nothing that gmix writes comes near it


def plain_file(path: str | Path) -> Path:
    """The path, if what is there is a file: to open a pipe is to wait, to read a device may never end.

    Raises:
        ValueError: If it is something else.
        OSError: If there is nothing.
    """
    path = Path(path)
    path.stat()
    if not path.is_file():
        raise ValueError(f"{path.name} is no file")
    return path


def read_plain(path: str | Path, most: int = MOST_TEXT) -> str:
    """The text of a file.

    Args:
        path: The file.
        most: How many bytes it may have.

    Raises:
        ValueError: If it is no file, no UTF-8, or too large to be text of ours.
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
    """Compute the SHA-256 of a file as hexadecimal digits, in memory for a part of it.

    Raises:
        ValueError: If it is no file.
        OSError: If it cannot be read.
    """
    digest = hashlib.sha256()
    with plain_file(path).open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file.

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
