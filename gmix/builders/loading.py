"""Batches, each fetched before the step that learns from it: what goes wrong with one costs no step."""

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
PREFETCH = 2  # batches a loader process makes ahead, as torch has it


class Loader:
    """Iterates over the batches of a stream, made by as many processes as the flags say.

    Args:
        config: The flags.
        stream: Its items are the batches.
        steps: Which of them.
        device: Which they are for; they are not put there.
        waiting: Around each wait for a batch; may end it with `CutShort`.
        tell: Called with what a person should know.
        known: Names of the images that were left out before; grows.

    Attributes:
        error: Why the next batch cannot be made, if so.
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
        """Make sure that the next batch, if there is one, is there, or that `error` says why not.

        Neither is so if `waiting` ended the wait.
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
        except Exception as error:  # of anybody's transform, or of torch
            self.error = BatchError(explain(error), "mend that")
            self.error.__cause__ = error

    def close(self) -> None:
        """End the loader processes."""
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
        except OSError as error:  # semaphores are in shared memory as well
            raise BatchError(
                f"cannot start loader processes: {explain(error)}",
                f"make room in {SHARED_MEMORY}, or use --workers 0",
            ) from error
        return source


class Made(NamedTuple):
    """What a loader process hands over."""

    batch: Any
    left_out: dict[str, str]  # by it, so far


class Attempts(Dataset[Any]):
    """Item t is batch t, or a sentence that says why it cannot be made.

    Args:
        stream: Its items are the batches.
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
    """Make a batch ready for the way to another process, its masks as bytes.

    The move into shared memory is made here: where `multiprocessing` makes it, in a thread, an error would be
    lost, and the batch waited for in vain. What has no room there becomes arrays, which travel through a pipe.
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
    """Return a batch of tensors, which `Batch.to` makes what it was."""
    return Batch(*(torch.from_numpy(t) if isinstance(t, np.ndarray) else t for t in packed))


def as_is(made: Any) -> Any:
    """Hand over what was made: torch's own function would make tensors of numbers and lists."""
    return made


@contextmanager
def deaths_wait() -> Iterator[None]:
    """Keep torch from raising an error when a loader process dies, in the middle of a step even.

    Whoever waits for its batch finds out within seconds, when no step is half done.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield  # torch does the same
        return
    before = signal.getsignal(signal.SIGCHLD)
    yield
    if _is_torchs(signal.getsignal(signal.SIGCHLD)):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if _is_torchs(before) else before)


def _is_torchs(handler: Any) -> bool:
    return str(getattr(handler, "__module__", "")).startswith("torch.utils.data")


def shortage(config: TrainConfig, stream: TwoStream) -> str | None:
    """What to say if shared memory has no room for the batches of the loader processes, as Docker's 64 MB.

    Args:
        config: The flags.
        stream: Its items are the batches.
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
    """Return the bytes of a packed batch: float32 images, and a byte a pixel beside them.

    Images cannot travel as bytes without other numbers: resampling and colour changes leave fractions.
    """
    height, width = config.crop_size()
    unlabeled = 0 if stream.unlabeled is None else stream.batch_unlabeled
    images = (stream.batch_labeled + unlabeled) // stream.shard_count
    return images * height * width * (4 * config.channels + 1)


def free_shared_memory() -> float:
    """Return the bytes that are free where processes share memory; infinite where nothing limits it."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:  # not Linux
        return math.inf
