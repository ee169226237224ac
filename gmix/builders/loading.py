"""Loading of batches: each is fetched before its step starts, so that a failure never costs a step."""

from __future__ import annotations

import math
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from gmix.config.train_config import TrainConfig
from gmix.data import Batch, TwoStream
from gmix.data.damaged import left_out
from gmix.errors import BatchError, CutShort, Interrupted
from gmix.runtime.console import explain
from gmix.runtime.interrupts import leave_to_parent

SHARED_MEMORY = Path("/dev/shm")
PREFETCH = 2  # batches each loader process prefetches, torch's default


class Loader:
    """Iterator over the batches of a stream, prepared by `--workers` loader processes.

    Args:
        config: Configuration of the run.
        stream: Data set whose items are the batches.
        steps: Indices of the batches to load.
        device: Device they are meant for; they are not moved there.
        waiting: Makes a context for each wait for a batch; may end the wait with `CutShort`.
        tell: Called with messages for the user.
        known: Names of the images left out so far; the list is extended.

    Attributes:
        error: Reason why the next batch cannot be built, if any.
    """

    def __init__(
        self,
        config: TrainConfig,
        stream: TwoStream,
        steps: range,
        device: torch.device,
        *,
        waiting: Callable[[], AbstractContextManager[Any]] = nullcontext,
        tell: Callable[[str], None] = lambda text: None,
        known: list[str] | None = None,
    ) -> None:
        self.error: BatchError | None = None
        self._config = config
        self._stream = stream
        self._steps = steps
        self._next = steps.start
        self._device = device
        self._waiting = waiting
        self._tell = tell
        self._known = [] if known is None else known
        self._ready: Batch | None = None
        self._source: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Batch]:
        while self._next < self._steps.stop:
            self.fetch()
            if self.error is not None:
                raise self.error
            if self._ready is None:
                raise Interrupted(
                    f"stopped after step {self._next} of {self._steps.stop}: "
                    "repeat the command with --resume to go on"
                )
            batch, self._ready = self._ready, None
            self._next += 1
            yield batch

    def fetch(self) -> None:
        """Wait until the next batch is ready or `error` is set.

        If `waiting` ends the wait, neither is the case.
        """
        if self._ready is not None or self.error is not None or self._next >= self._steps.stop:
            return
        try:
            with self._waiting():
                self._ready = self._load()
        except CutShort:
            pass
        except BatchError as error:
            self.error = error
        except Exception as error:  # raised by a user's transform, or by torch
            self.error = BatchError(explain(error), "mend that")
            self.error.__cause__ = error

    def close(self) -> None:
        """Stop the loader processes."""
        self._source = self._ready = None

    def _load(self) -> Batch:
        if self._source is None:
            self._source = self._start()
        try:
            made = next(self._source)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise BatchError(
                "a loader process was killed, as happens when memory runs out",
                "use fewer --workers if that is why",
            ) from error
        if isinstance(made, str):
            raise BatchError(made, "mend the file, or leave it out with --skip-damaged N")
        for name, reason in made.left_out.items():
            self._leave_out(name, reason)
        return unpack(made.batch)

    def _leave_out(self, name: str, reason: str) -> None:
        if name in self._known:
            return
        allowed = self._config.skip_damaged
        if len(self._known) >= allowed:
            raise BatchError(
                f"{reason}; {allowed} were left out before",
                "mend the file, or raise --skip-damaged",
            )
        self._known.append(name)
        self._tell(f"left out: {reason}; the next image takes its place")

    def _start(self) -> Iterator[Any]:
        workers = self._config.workers
        loader = DataLoader(
            Attempts(self._stream, shared=shortage(self._config, self._stream) is None),
            batch_size=None,
            sampler=range(self._next, self._steps.stop),
            num_workers=workers,
            prefetch_factor=PREFETCH if workers else None,
            collate_fn=as_is,
            worker_init_fn=leave_to_parent,
            pin_memory=self._device.type == "cuda",
        )
        try:
            with deaths_wait():
                source = iter(loader)
        except OSError as error:  # semaphores need shared memory too
            raise BatchError(
                f"cannot start loader processes: {explain(error)}",
                f"make room in {SHARED_MEMORY}, or use --workers 0",
            ) from error
        return source


class Made(NamedTuple):
    """Result of a loader process for one batch."""

    batch: Any
    left_out: dict[str, str]  # by this process, so far


class Attempts(Dataset[Any]):
    """Data set whose item t is batch t, or the reason why it cannot be built.

    Args:
        stream: Data set whose items are the batches.
        shared: Whether loader processes hand batches over in shared memory.
    """

    def __init__(self, stream: TwoStream, shared: bool) -> None:
        self.stream = stream
        self.shared = shared

    def __getitem__(self, step: int) -> Made | str:
        try:
            batch: Any = self.stream[step]
        except ValueError as error:
            return str(error)
        if get_worker_info() is not None:
            batch = pack(batch, shared=self.shared)
        return Made(batch, left_out([self.stream.labeled, self.stream.unlabeled]))


def pack(batch: Batch, *, shared: bool) -> Any:
    """Prepare a batch for transfer to another process, with its masks as bytes.

    Tensors are moved into shared memory here: `multiprocessing` would do so in a thread, where an error gets lost and
    the batch is awaited in vain. Without room in shared memory, they become arrays and travel through a pipe.
    """
    packed = batch._replace(y_labeled=batch.y_labeled.byte())
    if shared:
        try:
            for tensor in packed:
                if tensor is not None:
                    tensor.share_memory_()  # type: ignore[no-untyped-call]
            return packed
        except RuntimeError:
            pass
    return tuple(None if t is None else t.numpy() for t in packed)


def unpack(packed: Any) -> Batch:
    """Convert a packed batch back to tensors; `Batch.to` restores the type of the masks."""
    return Batch(*(torch.from_numpy(t) if isinstance(t, np.ndarray) else t for t in packed))


def as_is(made: Any) -> Any:
    """Return the argument unchanged; torch's own collate function would convert numbers and lists to tensors."""
    return made


@contextmanager
def deaths_wait() -> Iterator[None]:
    """Keep torch from raising an error in the middle of a step when a loader process dies.

    Waiting for the next batch detects the death within seconds, when no step is half done.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield  # torch sets no handler here either
        return
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if _is_torchs(signal.getsignal(signal.SIGCHLD)):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if _is_torchs(before) else before)


def _is_torchs(handler: Any) -> bool:
    return str(getattr(handler, "__module__", "")).startswith("torch.utils.data")


def shortage(config: TrainConfig, stream: TwoStream) -> str | None:
    """Return a warning if shared memory is too small for the batches, as Docker's default 64 MB; else None.

    Args:
        config: Configuration of the run.
        stream: Data set whose items are the batches.
    """
    needed = (PREFETCH * config.workers + 2) * batch_bytes(config, stream)
    free = free_shared_memory()
    if config.workers == 0 or needed <= free:
        return None
    return (
        f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free, batches of {config.workers} loader processes need "
        f"{needed / 1e6:.0f} MB: they are copied through pipes instead, which may be slower "
        f"(more room: docker run --shm-size {math.ceil(2 * needed / 2**30)}g)"
    )


def batch_bytes(config: TrainConfig, stream: TwoStream) -> int:
    """Compute the size of a packed batch in bytes: float32 images, and one mask byte per pixel.

    Images cannot be sent as bytes without changing them: resampling and colour changes leave fractions.
    """
    height, width = config.crop_size()
    unlabeled = 0 if stream.unlabeled is None else stream.batch_unlabeled
    images = (stream.batch_labeled + unlabeled) // stream.shard_count
    return images * height * width * (4 * config.channels + 1)


def free_shared_memory() -> float:
    """Return the free shared memory in bytes; infinite if there is no limit."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:  # not Linux
        return math.inf
