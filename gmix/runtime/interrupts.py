"""Graceful stopping on signals."""

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
    """Handler that turns the first SIGINT, SIGTERM or SIGHUP into a request; a second one kills the process.

    Signals that the process ignores, such as SIGHUP under `nohup`, stay ignored.

    Attributes:
        asked: Whether the training was asked to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._waiting = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses
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
        """Mark a wait that a stop request interrupts.

        Raises:
            CutShort: If a request arrives during the wait.
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
    """Leave stop signals to the parent process; for loader processes.

    Ctrl-C, a closed terminal and the signals of a scheduler reach loader processes too, but the parent still needs
    their batch. It terminates them itself when it no longer does.
    """
    for number in set(STOP_SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    # Only on Linux: elsewhere the sender of a signal is unknown.
    if parent is not None and hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_heed, args=(parent.pid,), daemon=True).start()


def _heed(parent: int | None) -> None:
    """Exit at the first SIGTERM from the parent."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
