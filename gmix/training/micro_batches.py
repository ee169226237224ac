"""Running statistics in a step of several micro-batches, one after the other or in several processes at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["MicroBatchStatistics"]


class MicroBatchStatistics:
    """Average running statistics over the micro-batches of a step: BatchNorm's, and those that a module names.

    A module names its buffers that are running means in `step_means`. Each micro-batch starts from the statistics at
    the start of the step; at the end of the step they are the mean over all micro-batches. The result is the same in
    sequence and in parallel, and a step updates the statistics once.

    Args:
        method: The module whose statistics, of layers in train mode, are averaged.
        count: Number of micro-batches, including those of other processes; with 1 nothing is done.
    """

    def __init__(self, method: nn.Module, count: int) -> None:
        modules = list(method.modules()) if count > 1 else []
        layers = [m for m in modules if isinstance(m, _BatchNorm) and m.training]
        tensors = [t for m in layers for t in (m.running_mean, m.running_var) if t is not None]
        named = [(m, name) for m in modules if m.training for name in getattr(m, "step_means", ())]
        tensors += [getattr(m, name) for m, name in named]
        counts = [m.num_batches_tracked for m in layers if m.num_batches_tracked is not None]
        self.running, self.sums = tensors, [torch.zeros_like(tensor) for tensor in tensors]
        self.before = [tensor.clone() for tensor in tensors]
        self.counts, self.counted = counts, [count + 1 for count in counts]
        self.done = 0  # in this process

    @torch.no_grad()
    def end_micro_batch(self) -> None:
        """Add up the statistics of a micro-batch, and restore those at the start of the step."""
        self.done += 1
        for running, before, total in zip(self.running, self.before, self.sums, strict=True):
            total += running
            running.copy_(before)

    @torch.no_grad()
    def end_step(self, mean: Callable[[list[Tensor]], list[Tensor]]) -> None:
        """Set the statistics to the mean over the micro-batches of all processes."""
        means = mean([total / self.done for total in self.sums])
        for running, found in zip(self.running, means, strict=True):
            running.copy_(found)
        for count, counted in zip(self.counts, self.counted, strict=True):
            count.copy_(counted)
