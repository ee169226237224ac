"""Which files gmix wrote itself: it writes over no others."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gmix.runtime.atomic import atomic_write, cannot_write
from gmix.runtime.infile import sha256

RECORD = ".gmix-written"
"""In a folder gmix writes into: the SHA-256 of every file it wrote there, one a line."""


def check_own(paths: Iterable[Path], home: Path | None = None) -> None:
    """Make sure that writing these files loses nothing but what gmix wrote itself.

    A file that somebody changed since is not gmix's any more. Empty files, pipes and devices have nothing to lose.

    Args:
        paths: Files, whether they are there or not.
        home: The folder that has the record; None: the one each file is in.

    Raises:
        ValueError: If one would be lost; names the first.

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
    """Hand out a file to write, as `atomic_write`, and remember what was written.

    Ask `check_own` first: before the work, not after it.

    Args:
        final: As for `atomic_write`.
        home: As for `check_own`.
        flush: As for `atomic_write`.

    Raises:
        ValueError: As `atomic_write`.
    """
    with atomic_write(final, flush=flush) as aside:
        yield aside
        # Before it is in its place: a process killed in between leaves no file that nobody wrote.
        remember(aside, final, home)


def write_own(final: Path, text: str) -> None:
    """Write a text file in UTF-8 with line ends of one byte, as `own_file` does.

    Raises:
        ValueError: As `atomic_write`.
    """
    with own_file(final) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def remember(aside: Path, final: Path, home: Path | None = None) -> None:
    """Note that a file is gmix's, before it takes the place of `final`.

    Raises:
        ValueError: If that cannot be written.
    """
    folder = home or final.parent
    # What a link or a device leads to is somebody else's; and the file alone may be what can be written.
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
    except OSError:  # nothing was written yet
        return set()
