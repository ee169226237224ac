"""One training at a time in a folder."""

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
    """Keep the trainings of other processes out of a folder, until this one is done or has died.

    Nothing is kept out on Windows, nor on network drives that know no locks.

    Raises:
        ValueError: If another process trains there.

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
    """Find out before any work that another process trains in a folder; nothing is made.

    Raises:
        ValueError: If one does.
    """
    try:
        file = (folder / NAME).open("r+b")
    except OSError:  # there is none; or nothing can be written, which others say better
        return
    with file:
        _lock(file, folder / NAME)


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        # Unlike those of `flock`, no loader process inherits it, to outlive a training that is killed.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it may have removed the file in between.
        ours = os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        ours = False
    except OSError:  # some network drives know no locks
        return
    if not ours:
        raise ValueError(
            f"another process is training in {path.parent}: wait for its end, or choose another --out"
        )
