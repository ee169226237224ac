"""Files and folders that are whole or absent: written aside, then renamed into place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Hand out an empty folder to write into, which then takes the place of `final`.

    A process killed at any moment leaves what was there before, or all of what is new. Two folders cannot
    change places in one go: what was there is called `.NAME.old` for a moment, and `sweep` knows.

    Raises:
        ValueError: if it cannot be written, in one sentence; what was there stays.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     with whole_folder(Path(name) / "new") as aside:
        ...         _ = (aside / "file").write_text("text")
        ...     [path.name for path in Path(name).rglob("*")]
        ['new', 'file']
    """
    aside, old = (final.with_name(f".{final.name}.{end}") for end in ("part", "old"))
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        for remains in (aside, old):
            shutil.rmtree(remains, ignore_errors=True)
        aside.mkdir()
        yield aside
        for path in (*aside.rglob("*"), aside):
            _flush(path)
        if final.exists():
            final.rename(old)
        aside.rename(final)
        _flush(final.parent)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:
        shutil.rmtree(aside, ignore_errors=True)  # a full disk needs the room
        raise cannot_write(final, error) from error


def write_whole(final: Path, text: str) -> None:
    """Write a text file, replacing the one that is there at once.

    Raises:
        ValueError: if it cannot be written, in one sentence; the one that is there stays.
    """
    aside = final.with_name(f".{final.name}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        _flush(aside)
        aside.replace(final)
        _flush(final.parent)
    except OSError as error:
        raise cannot_write(final, error) from error


def remove_whole(folder: Path) -> None:
    """Remove a folder such that no part of it is ever found under its name."""
    gone = folder.with_name(f".{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)


def sweep(folder: Path) -> None:
    """Finish what a process that was killed left half done in a folder."""
    for old in folder.glob(".*.old"):  # killed between two renames
        final = old.with_name(old.name[1:].removesuffix(".old"))
        if not final.exists():
            old.rename(final)
    for end in ("part", "old", "gone"):
        for remains in folder.glob(f".*.{end}"):
            if remains.is_dir():
                shutil.rmtree(remains)
            else:
                remains.unlink()


def refuse_unwritable(folder: Path) -> None:
    """Find out before hours of work that nothing can be written; nothing is made.

    Raises:
        ValueError: if the folder, or the one it would be made in, is read-only or no folder.
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"cannot write into {folder}: {there} is a file; choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write into {folder}: {there} is read-only; choose another folder")


def cannot_write(path: Path, error: Exception) -> ValueError:
    """What to say of a failed write; errors of a full disk do not name the file.

    Examples:
        >>> cannot_write(Path("model"), OSError(28, "No space left on device"))
        ValueError('cannot write model: No space left on device')
    """
    said: BaseException | None = error
    while said is not None and not isinstance(said, OSError):  # torch says less than the system did
        said = said.__context__
    reason = said.strerror if isinstance(said, OSError) else None
    return ValueError(f"cannot write {path}: {' '.join((reason or str(error)).split())}")


def _flush(path: Path) -> None:
    """Make the kernel write a file, or a folder's entries, to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
