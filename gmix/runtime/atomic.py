"""Files and folders that are whole or absent: written aside, then renamed into place."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EACCES
from pathlib import Path

# What `remove_stale` removes must be ours: a run may be written into a folder of other things.
PART, OLD, GONE = ".gmix-part", ".gmix-old", ".gmix-gone"


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """Hand out an empty folder to write into, which then takes the place of `final`.

    A process killed at any moment leaves what was there before, or all of what is new. Two folders cannot
    change places in one go: what was there is called `.NAME.gmix-old` for a moment, and `remove_stale` knows. Other
    files that were in it stay.

    Raises:
        ValueError: If it cannot be written, in one sentence; what was there stays.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     with atomic_folder(Path(name) / "new") as aside:
        ...         _ = (aside / "file").write_text("text")
        ...     [path.name for path in Path(name).rglob("*")]
        ['new', 'file']
    """
    aside, old = beside(final, PART), beside(final, OLD)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
        for path in (*aside.rglob("*"), aside):
            _flush(path)
        if final.exists():
            final.rename(old)
        aside.rename(final)
        _flush(final.parent)
        if old.exists():
            _settle(old, final)
    except Exception as error:
        shutil.rmtree(aside, ignore_errors=True)  # a full disk needs the room
        raise cannot_write(final, error) from error


@contextmanager
def atomic_write(final: Path, *, flush: bool = True) -> Iterator[Path]:
    """Hand out a file to write, of the same ending, which then takes the place of `final`.

    What is there and no plain file, such as a link or `/dev/stdout`, is not replaced but written, as is a file in
    a folder that takes no other. A file that is write-protected stays as it is.

    Args:
        final: The file.
        flush: Whether it is on the disk afterwards, power cut or not; hundreds of masks need no such wait.

    Raises:
        ValueError: If it cannot be written, in one sentence; what was there stays.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     with atomic_write(Path(name) / "new.txt") as aside:
        ...         _ = aside.write_text("text")
        ...     [path.name for path in Path(name).iterdir()], aside.suffix
        (['new.txt'], '.txt')
    """
    if final.exists() and not os.access(final, os.W_OK):  # which renaming would not ask
        raise cannot_write(final, PermissionError(EACCES, os.strerror(EACCES)))
    replaced = not final.is_symlink() and (final.is_file() or not final.exists())
    replaced = replaced and os.access(final.parent, os.W_OK)
    # As short as names have to be, and the same again: what a killed process left is written over.
    short = hashlib.sha256(os.fsencode(final.name)).hexdigest()[:12]
    aside = final.with_name(f".{short}{PART}{final.suffix}") if replaced else final
    try:
        yield aside
        if replaced:
            if flush:
                _flush(aside)
            aside.replace(final)
            if flush:
                _flush(final.parent)
    except BaseException as error:
        if replaced:
            with suppress(OSError):
                aside.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(aside), str(final.parent)):
            raise cannot_write(final, error) from error
        raise


def atomic_write_text(final: Path, text: str) -> None:
    """Write a text file in UTF-8 with line ends of one byte, replacing the one that is there at once.

    Raises:
        ValueError: If it cannot be written, in one sentence; the one that is there stays.
    """
    with atomic_write(final) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def make_folder(folder: Path) -> None:
    """Make a folder to write into, and those it is in, unless they are there.

    Raises:
        ValueError: If nothing can be written into it, in one sentence.
    """
    check_writable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def remove_folder(folder: Path) -> None:
    """Remove a folder such that no part of it is ever found under its name."""
    gone = beside(folder, GONE)
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)


def remove_stale(folder: Path) -> None:
    """Finish what a process that was killed left half done in a folder."""
    for old in folder.glob(f".*{OLD}"):
        _settle(old, old.with_name(old.name[1:].removesuffix(OLD)))
    for end in (PART, GONE):
        for remains in folder.glob(f".*{end}*"):
            if remains.is_dir():
                shutil.rmtree(remains)
            else:
                remains.unlink()


def beside(path: Path, end: str) -> Path:
    """What something is called until it is in its place, or once it is not any more.

    Examples:
        >>> beside(Path("model"), PART).name
        '.model.gmix-part'
    """
    return path.with_name(f".{path.name}{end}")


def _settle(old: Path, final: Path) -> None:
    """After `final` was renamed to `old`: it comes back, unless the new one took its place."""
    if not final.exists():
        old.rename(final)
        return
    for path in old.iterdir():
        if not (final / path.name).exists():
            path.rename(final / path.name)
    shutil.rmtree(old)


def check_writable(folder: Path) -> None:
    """Find out before hours of work that nothing can be written; nothing is made.

    Raises:
        ValueError: If the folder, or the one it would be made in, is read-only or no folder.
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
