"""Lock that allows one training at a time in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gmix.runtime.atomic import cannot_write

NAME = ".gmix-lock"

# `lockf` does not keep out the process that holds the lock; worse, a second look by it would let go of it.
_held: set[tuple[int, Path]] = set()  # by process, for a fork has a copy


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other trainings until this one is done or its process has died.

    On Windows, and on network drives without lock support, only trainings of this process are kept out.

    Raises:
        ValueError: If another training runs there.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     with locked(Path(name)):
        ...         pass  # write into it
        ...     os.listdir(name)
        []
    """
    place = os.getpid(), folder.resolve()
    _check_held(folder)
    _held.add(place)
    try:
        with _locked_file(folder / NAME):
            yield
    finally:
        _held.remove(place)


@contextmanager
def _locked_file(path: Path) -> Iterator[None]:
    if os.name == "nt":
        yield
        return
    try:
        file = path.open("ab")
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        _lock(file, path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def check_unlocked(folder: Path) -> None:
    """Check, before any work, that no other training runs in a folder; nothing is created.

    Raises:
        ValueError: If one does.
    """
    _check_held(folder)
    try:
        file = (folder / NAME).open("r+b")
    except OSError:  # no lock file, or one that other checks report better
        return
    with file:
        _lock(file, folder / NAME)


def _check_held(folder: Path) -> None:
    if (os.getpid(), folder.resolve()) in _held:
        raise ValueError(
            f"this process is training in {folder} already: wait for its end, or choose another --out"
        )


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        # Unlike a lock of `flock`, it is not inherited by loader processes, which may outlive a killed training.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The previous owner may have removed the file in between.
        ours = os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        ours = False
    except OSError:  # some network drives do not support locks
        return
    if not ours:
        raise ValueError(
            f"another process is training in {path.parent}: wait for its end, or choose another --out"
        )
