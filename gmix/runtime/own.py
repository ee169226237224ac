"""Record of the files that gmix wrote, so that it overwrites no others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gmix.runtime.atomic import atomic_write, cannot_write
from gmix.runtime.infile import sha256

RECORD = ".gmix-written"
"""Record in a folder gmix writes to: the SHA-256 of each file it wrote there, one per line."""


def check_own(paths: Iterable[Path], home: Path | None = None) -> None:
    """Check that overwriting these files loses only what gmix itself wrote.

    A file that was changed afterwards no longer counts as gmix's. Empty files, pipes and devices have nothing to lose.

    Args:
        paths: Files, which need not exist.
        home: Folder that holds the record; None for the folder of each file.

    Raises:
        ValueError: If a file would be lost, or a folder is in its place; the message names the first.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     path = Path(name) / "scores.json"
        ...     write_own(path, "{}")
        ...     check_own([path])  # says nothing
        ...     _ = path.write_text("mine")
        ...     check_own([path])
        Traceback (most recent call last):
        ValueError: ...scores.json was not written by gmix, or has been changed since: ...
    """
    records: dict[Path, set[str]] = {}
    for path in paths:
        if path.is_dir():
            raise ValueError(f"{path} is a folder, expected a file to write to: name a file in it")
        if not path.is_file() or path.stat().st_size == 0:
            continue
        folder = home or path.parent
        if folder not in records:
            records[folder] = _written(folder)
        if sha256(path) not in records[folder]:
            raise ValueError(
                f"{path} was not written by gmix, or has been changed since: move it away, or choose "
                "another place to write to"
            )


@contextmanager
def own_file(final: Path, home: Path | None = None, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary file like `atomic_write`, and record what was written.

    Call `check_own` before the work, not after it.

    Args:
        final: As in `atomic_write`.
        home: As in `check_own`.
        flush: As in `atomic_write`.

    Raises:
        ValueError: As in `atomic_write`.
    """
    with atomic_write(final, flush=flush) as aside:
        yield aside
        # Record it before it is in place: a process killed in between leaves no unrecorded file.
        remember(aside, final, home)


def write_own(final: Path, text: str) -> None:
    """Write a text file in UTF-8 with LF line ends, and record it like `own_file`.

    Raises:
        ValueError: As in `atomic_write`.
    """
    with own_file(final) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def remember(aside: Path, final: Path, home: Path | None = None) -> None:
    """Record that a file is gmix's, before it replaces `final`.

    Raises:
        ValueError: If the record cannot be written.
    """
    folder = home or final.parent
    # The target of a link or a device is not gmix's. The folder may be read-only even if the file can be written.
    if final.is_symlink() or not aside.is_file() or not os.access(folder, os.W_OK):
        return
    try:
        with (folder / RECORD).open("a", encoding="ascii") as file:
            file.write(sha256(aside) + "\n")
    except OSError as error:
        raise cannot_write(final, error) from error


def _written(folder: Path) -> set[str]:
    try:
        return set((folder / RECORD).read_text(encoding="ascii", errors="replace").split())
    except OSError:  # nothing has been written yet
        return set()
