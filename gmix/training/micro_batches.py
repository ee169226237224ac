"""BatchNorm in a step of several micro-batches, one after the other or by several processes at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["MicroBatchStatistics"]


class MicroBatchStatistics:
    """Average BatchNorm's running statistics over the micro-batches of a step.

    Each micro-batch starts from the statistics of the step's start; at its end they are the mean over all of them. So
    it does not matter whether they come one after the other or at the same time, and a step moves them once.

    Args:
        method: Whose layers, those that train.
        count: How many micro-batches, those of other processes included; 1 leaves nothing to do.
    """

    def __init__(self, method: nn.Module, count: int) -> None:
        modules = method.modules() if count > 1 else ()
        layers = [m for m in modules if isinstance(m, _BatchNorm) and m.training]
        tensors = [t for m in layers for t in (m.running_mean, m.running_var) if t is not None]
        counts = [m.num_batches_tracked for m in layers if m.num_batches_tracked is not None]
        self.running, self.sums = tensors, [torch.zeros_like(tensor) for tensor in tensors]
        self.before = [tensor.clone() for tensor in tensors]
        self.counts, self.counted = counts, [count + 1 for count in counts]
        self.done = 0  # of this process

    @torch.no_grad()
    def end_micro_batch(self) -> None:
        """Add up the statistics of a micro-batch, and go back to those of the step's start."""
        self.done += 1
        for running, before, total in zip(self.running, self.before, self.sums, strict=True):
            total += running
            running.copy_(before)

    @torch.no_grad()
    def end_step(self, mean: Callable[[list[Tensor]], list[Tensor]]) -> None:
        """Set the statistics to the mean over the micro-batches, and that of all processes."""
        means = mean([total / self.done for total in self.sums])
        for running, found in zip(self.running, means, strict=True):
            running.copy_(found)
        for count, counted in zip(self.counts, self.counted, strict=True):
            count.copy_(counted)
