"""The processes that train together: `torchrun` or `accelerate launch` start them, accelerate joins them."""

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
    """One process: there is nobody to wait for, and nothing to exchange.

    Attributes:
        rank: Which of them this is, from 0; number 0 writes and speaks for all.
        count: How many there are.
        device: This one's; None where that is for `--device` to say.
    """

    rank = 0
    count = 1
    device: str | None = None

    @property
    def first(self) -> bool:
        """Whether this one writes."""
        return self.rank == 0

    def micro_batches(self, accumulate: int) -> int:
        """Count the micro-batches of a step: `accumulate`, or the next number that all can share.

        Examples:
            >>> SINGLE_PROCESS.micro_batches(3)
            3
        """
        return math.lcm(accumulate, self.count)

    def shard(self, length: int, block: int = 1) -> range:
        """The places this process takes of so many, in blocks that stay together.

        Examples:
            >>> SINGLE_PROCESS.shard(3)
            range(0, 3)
        """
        blocks = -(-length // block)
        first, end = (rank * blocks // self.count for rank in (self.rank, self.rank + 1))
        return range(block * first, min(block * end, length))

    def wrap(self, method: nn.Module) -> Callable[..., dict[str, Tensor]]:
        """After the backward pass of the first step: what to call from then on in place of the method.

        All learn from everybody's gradients, those of that step included.
        """
        return method

    def exchange(self, model: Any, *, last: bool) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch: gradients add up, and are exchanged with the last."""
        return nullcontext()

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The mean over the processes of each tensor."""
        return list(tensors)

    def any(self, asked: bool) -> bool:
        """Whether it is so in any process; the same answer in all."""
        return asked

    def together(self, work: Callable[[], T]) -> T:
        """What `work` returns, once it is done in all processes; what fails in one fails in all.

        Otherwise the others would wait in vain for what they are to exchange afterwards.
        """
        return work()

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The first goes before the others: what it makes on the disk is there for them.

        Raises:
            SystemExit: In the others, if the first failed.
        """
        yield


SINGLE_PROCESS = Processes()


class DistributedProcesses(Processes):
    """Several processes, each with a copy of the network, by `DistributedDataParallel`.

    Args:
        accelerator: accelerate's `Accelerator`, which has started their communication.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.rank = accelerator.process_index
        self.count = accelerator.num_processes
        # accelerate numbers the CPU, which safetensors does not know by a number.
        self.device = "cpu" if accelerator.device.type == "cpu" else str(accelerator.device)
        # What concerns the hosts only must not wait for their devices.
        self._hosts: Any = distributed.new_group(backend="gloo")

    def wrap(self, method: nn.Module) -> Callable[..., dict[str, Tensor]]:
        if hasattr(method, "set_requires_gradient_sync"):  # torch's `fully_shard` has been there
            return method
        learned = [p for p in method.parameters() if p.requires_grad]
        gradients = [p.grad for p in learned if p.grad is not None]
        for gradient, mean in zip(gradients, self.mean(gradients), strict=True):
            gradient.copy_(mean)
        # Encoders may have layers that a decoder leaves aside. To look for such where there are none costs time
        # and brings a warning that Python cannot filter, so a first step tells.
        self.accelerator.ddp_handler.find_unused_parameters = len(gradients) < len(learned)
        with warnings.catch_warnings():
            # Older versions of torch do not know what is to be used instead.
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
                raise SystemExit(1)  # the first has said why
            yield
            return
        failed = True
        try:
            yield
            failed = False
        finally:
            self.any(failed)


def start_processes(device: str = "auto") -> Processes:
    """Join the processes that `torchrun` or `accelerate launch` started; one process alone joins nobody.

    Args:
        device: As `--device`: "cpu" keeps them off the GPUs, "auto" gives each its own.

    Raises:
        ValueError: If the device cannot be everybody's, or the launcher asks for more than this.
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

    # BatchNorm's statistics are not those of process 0 but the mean of all: `fit` sees to that.
    settings = DistributedDataParallelKwargs(broadcast_buffers=False)
    # Precision is `mixed_precision`'s affair.
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no", kwargs_handlers=[settings])
    kind = accelerator.distributed_type.value
    if kind not in ("MULTI_CPU", "MULTI_GPU"):
        raise ValueError(
            f"gmix train runs copies of the whole network in its processes, accelerate is set up for {kind}: "
            "launch it with torchrun, or see docs/scaling.md for a loop of your own"
        )
    return DistributedProcesses(accelerator)
