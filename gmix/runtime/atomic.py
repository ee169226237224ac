"""Atomic writes: files and folders are written under a temporary name, then renamed into place."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EACCES
from pathlib import Path

# `remove_stale` must only remove files of gmix: a run may be written into a folder that holds other things.
PART, OLD, GONE = ".gmix-part", ".gmix-old", ".gmix-gone"


@contextmanager
def atomic_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder to write into, which then replaces `final`.

    A process killed at any moment leaves either the old contents or all of the new ones. Two folders cannot be swapped
    in one step: for a moment the old one is called `.NAME.gmix-old`, which `remove_stale` restores. Other files in the
    old folder are kept.

    Raises:
        ValueError: If it cannot be written; the old contents stay.

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
        shutil.rmtree(aside, ignore_errors=True)  # a full disk needs the space
        raise cannot_write(final, error) from error


@contextmanager
def atomic_write(final: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary file with the same suffix, which then replaces `final`.

    An existing target that is not a regular file, such as a link or `/dev/stdout`, is written to rather than replaced.
    So is a file in a folder where no other file can be created. A write-protected file is left unchanged.

    Args:
        final: File to write.
        flush: Whether to flush the file to disk, so that it survives a power cut; not worth the wait for hundreds of
            masks.

    Raises:
        ValueError: If it cannot be written; the old contents stay.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     with atomic_write(Path(name) / "new.txt") as aside:
        ...         _ = aside.write_text("text")
        ...     [path.name for path in Path(name).iterdir()], aside.suffix
        (['new.txt'], '.txt')
    """
    if final.exists() and not os.access(final, os.W_OK):  # renaming ignores this permission
        raise cannot_write(final, PermissionError(EACCES, os.strerror(EACCES)))
    replaced = not final.is_symlink() and (final.is_file() or not final.exists())
    replaced = replaced and os.access(final.parent, os.W_OK)
    # Short enough for any file system, and always the same: it overwrites what a killed process left behind.
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
    """Write a text file atomically, in UTF-8 with LF line ends.

    Raises:
        ValueError: If it cannot be written; the old contents stay.
    """
    with atomic_write(final) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def make_folder(folder: Path) -> None:
    """Create a folder to write into, with its parents, unless it exists.

    Raises:
        ValueError: If it cannot be written to.
    """
    check_writable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def remove_folder(folder: Path) -> None:
    """Remove a folder without ever leaving a partial one under its name."""
    gone = beside(folder, GONE)
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)


def remove_stale(folder: Path) -> None:
    """Clean up what a killed process left unfinished in a folder."""
    for old in folder.glob(f".*{OLD}"):
        _settle(old, old.with_name(old.name[1:].removesuffix(OLD)))
    for end in (PART, GONE):
        for remains in folder.glob(f".*{end}*"):
            if remains.is_dir():
                shutil.rmtree(remains)
            else:
                remains.unlink()


def beside(path: Path, end: str) -> Path:
    """Return the temporary name of a path before it is in place, or after it was replaced.

    Examples:
        >>> beside(Path("model"), PART).name
        '.model.gmix-part'
    """
    return path.with_name(f".{path.name}{end}")


def _settle(old: Path, final: Path) -> None:
    """Restore `final`, which was renamed to `old`, unless its replacement is in place."""
    if not final.exists():
        old.rename(final)
        return
    for path in old.iterdir():
        if not (final / path.name).exists():
            path.rename(final / path.name)
    shutil.rmtree(old)


def check_writable(folder: Path) -> None:
    """Check, before hours of work, that a folder can be written to; nothing is created.

    Raises:
        ValueError: If the path is not a folder, or it (or its closest existing parent) is read-only.
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise ValueError(f"cannot write into {folder}: {there} is a file; choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write into {folder}: {there} is read-only; choose another folder")


def cannot_write(path: Path, error: Exception) -> ValueError:
    """Return the error to raise for a failed write; errors of a full disk do not name the file.

    Examples:
        >>> cannot_write(Path("model"), OSError(28, "No space left on device"))
        ValueError('cannot write model: No space left on device')
    """
    said: BaseException | None = error
    while said is not None and not isinstance(said, OSError):  # torch's says less
        said = said.__context__
    reason = said.strerror if isinstance(said, OSError) else None
    return ValueError(f"cannot write {path}: {' '.join((reason or str(error)).split())}")


def _flush(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
