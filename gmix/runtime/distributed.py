"""Processes that train together: started by `torchrun` or `accelerate launch`, joined by accelerate."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")

__all__ = ["SINGLE_PROCESS", "Processes", "start_processes"]


class Processes:
    """A single process, which waits for nobody and exchanges nothing; base class for several.

    Attributes:
        rank: Rank of this process; rank 0 writes and prints for all.
        count: Number of processes.
        device: Device of this process; None if `--device` decides.
    """

    rank = 0
    count = 1
    device: str | None = None

    @property
    def first(self) -> bool:
        """Return whether this is the main process, which writes files."""
        return self.rank == 0

    def micro_batches(self, accumulate: int) -> int:
        """Return the micro-batches of a step: the least common multiple of `accumulate` and `count`.

        Examples:
            >>> SINGLE_PROCESS.micro_batches(3)
            3
        """
        return math.lcm(accumulate, self.count)

    def shard(self, length: int, block: int = 1) -> range:
        """Return the indices below `length` that this process handles, in contiguous blocks.

        Examples:
            >>> SINGLE_PROCESS.shard(3)
            range(0, 3)
        """
        blocks = -(-length // block)
        first, end = (rank * blocks // self.count for rank in (self.rank, self.rank + 1))
        return range(block * first, min(block * end, length))

    def wrap(self, method: nn.Module) -> Callable[..., dict[str, Tensor]]:
        """Wrap the method after the backward pass of the first step; call the result from then on.

        Gradients are averaged over all processes, including those of the first step.
        """
        return method

    def exchange(self, model: Any, *, last: bool) -> AbstractContextManager[Any]:
        """Return the context for a micro-batch: gradients accumulate and are exchanged with the last one."""
        return nullcontext()

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Average each tensor over the processes."""
        return list(tensors)

    def any(self, asked: bool) -> bool:
        """Return whether `asked` is true in any process; all processes get the same answer."""
        return asked

    def together(self, work: Callable[[], T]) -> T:
        """Run `work` in all processes and return its result; if it fails in one, all raise.

        Otherwise the other processes would hang in their next collective operation.
        """
        return work()

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """Run the body in the main process before the others, which then find what it wrote to disk.

        Raises:
            SystemExit: In the other processes, if the main process failed.
        """
        yield


SINGLE_PROCESS = Processes()


class DistributedProcesses(Processes):
    """Several processes, each with a copy of the network in `DistributedDataParallel`.

    Args:
        accelerator: An `Accelerator` of accelerate, which has set up their communication.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.rank = accelerator.process_index
        self.count = accelerator.num_processes
        # accelerate gives the CPU an index, which safetensors does not accept.
        self.device = "cpu" if accelerator.device.type == "cpu" else str(accelerator.device)
        # Communication between hosts must not wait for their devices.
        self._hosts: Any = distributed.new_group(backend="gloo")

    def wrap(self, method: nn.Module) -> Callable[..., dict[str, Tensor]]:
        if hasattr(method, "set_requires_gradient_sync"):  # torch's `fully_shard` has been there
            return method
        learned = [p for p in method.parameters() if p.requires_grad]
        gradients = [p.grad for p in learned if p.grad is not None]
        for gradient, mean in zip(gradients, self.mean(gradients), strict=True):
            gradient.copy_(mean)
        # Encoders may have layers that the decoder does not use. Looking for unused ones where there are none costs
        # time and prints a warning that Python cannot filter, so the first step decides.
        self.accelerator.ddp_handler.find_unused_parameters = len(gradients) < len(learned)
        with warnings.catch_warnings():
            # Older versions of torch lack the replacement.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            wrapped: Callable[..., dict[str, Tensor]] = self.accelerator.prepare_model(method)
        return wrapped

    def exchange(self, model: Any, *, last: bool) -> AbstractContextManager[Any]:
        if isinstance(model, DistributedDataParallel):
            return nullcontext() if last else model.no_sync()
        if hasattr(model, "set_requires_gradient_sync"):
            model.set_requires_gradient_sync(last)
        return nullcontext()

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        if not tensors:
            return []
        flat = torch.cat([tensor.flatten() for tensor in tensors])  # one message, not hundreds
        distributed.all_reduce(flat)
        pieces = torch.split(flat / self.count, [tensor.numel() for tensor in tensors])
        return [p.view_as(tensor) for p, tensor in zip(pieces, tensors, strict=True)]

    def any(self, asked: bool) -> bool:
        answer = torch.tensor(int(asked))
        distributed.all_reduce(answer, group=self._hosts)
        return bool(answer)

    def together(self, work: Callable[[], T]) -> T:
        failure: Exception | None = None
        try:
            found = work()
        except Exception as error:
            failure = error
        if self.any(failure is not None):
            raise failure or ValueError("another process failed and says why")
        return found

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        if not self.first:
            if self.any(False):
                raise SystemExit(1)  # the main process has printed the reason
            yield
            return
        failed = True
        try:
            yield
            failed = False
        finally:
            self.any(failed)


def start_processes(device: str = "auto") -> Processes:
    """Join the processes that `torchrun` or `accelerate launch` started; a single process joins none.

    Args:
        device: Value of `--device`: "cpu" keeps all processes off the GPUs, "auto" gives each its own.

    Raises:
        ValueError: If the processes cannot share the device, or the launcher asks for an unsupported setup.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return SINGLE_PROCESS
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(
            f"--device {device} cannot be the device of {os.environ['WORLD_SIZE']} processes: leave "
            "it out, and each takes a GPU of its own, or use --device cpu"
        )
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    # `fit` averages BatchNorm's statistics over all processes; DDP would broadcast those of process 0.
    settings = DistributedDataParallelKwargs(broadcast_buffers=False)
    # `mixed_precision` handles the precision.
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no", kwargs_handlers=[settings])
    kind = accelerator.distributed_type.value
    if kind not in ("MULTI_CPU", "MULTI_GPU"):
        raise ValueError(
            f"gmix train runs copies of the whole network in its processes, accelerate is set up for {kind}: "
            "launch it with torchrun, or see docs/scaling.md for a loop of your own"
        )
    return DistributedProcesses(accelerator)
