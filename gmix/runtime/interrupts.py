"""Stopping politely."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from gmix.errors import CutShort

STOP_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class Interrupts:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a request; a second one ends the process at once.

    What the process was told to ignore, as `nohup` does with SIGHUP, stays ignored.

    Attributes:
        asked: Whether somebody wants the training to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._waiting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            for number in STOP_SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        self._restore()
        if self._waiting:
            raise CutShort

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a wait that a request ends.

        Raises:
            CutShort: When it does.
        """
        try:
            self._waiting = not self.asked
            yield
        finally:
            self._waiting = False

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def leave_to_parent(worker: int) -> None:
    """For loader processes: Ctrl-C, a closed terminal and what a scheduler sends reach them too, but the parent
    still wants their batch. When it does not any more, it says so itself."""
    for number in set(STOP_SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    # On Linux: elsewhere nothing tells who sent a signal.
    if parent is not None and hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_heed, args=(parent.pid,), daemon=True).start()


def _heed(parent: int | None) -> None:
    """End with the first SIGTERM of this process."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
