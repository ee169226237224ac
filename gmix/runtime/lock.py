"""Lock that allows one training at a time in a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gmix.runtime.atomic import cannot_write

NAME = ".gmix-lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder against trainings of other processes until this one is done or has died.

    There is no lock on Windows, nor on network drives without lock support.

    Raises:
        ValueError: If another process is training there.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     with locked(Path(name)):
        ...         pass  # write into it
        ...     os.listdir(name)
        []
    """
    if os.name == "nt":
        yield
        return
    path = folder / NAME
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
    """Check, before any work, that no other process is training in a folder; nothing is created.

    Raises:
        ValueError: If another process is training there.
    """
    try:
        file = (folder / NAME).open("r+b")
    except OSError:  # no lock file, or one that other checks report better
        return
    with file:
        _lock(file, folder / NAME)


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
