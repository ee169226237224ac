"""A step that is worked through in parts, one after the other or by several processes at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["PartStatistics"]


class PartStatistics:
    """BatchNorm's running statistics in a step that is worked through in parts.

    Each part starts from the statistics the step began with, and in the end they are the mean over the parts: so
    it does not matter whether parts come one after the other or at the same time, and a step moves them once.

    Args:
        method: Whose layers, those that train.
        parts: In how many parts, those of other processes among them; one alone leaves nothing to do.
    """

    def __init__(self, method: nn.Module, parts: int) -> None:
        modules = method.modules() if parts > 1 else ()
        layers = [m for m in modules if isinstance(m, _BatchNorm) and m.training]
        tensors = [t for m in layers for t in (m.running_mean, m.running_var) if t is not None]
        counts = [m.num_batches_tracked for m in layers if m.num_batches_tracked is not None]
        self.running, self.sums = tensors, [torch.zeros_like(tensor) for tensor in tensors]
        self.before = [tensor.clone() for tensor in tensors]
        self.counts, self.counted = counts, [count + 1 for count in counts]
        self.parts = 0  # of this process

    @torch.no_grad()
    def end_part(self) -> None:
        """Note what a part came to, and go back to where it began."""
        self.parts += 1
        for running, before, total in zip(self.running, self.before, self.sums, strict=True):
            total += running
            running.copy_(before)

    @torch.no_grad()
    def end_step(self, mean: Callable[[list[Tensor]], list[Tensor]]) -> None:
        """Set the statistics to the mean over the parts, and that of all processes."""
        means = mean([total / self.parts for total in self.sums])
        for running, found in zip(self.running, means, strict=True):
            running.copy_(found)
        for count, counted in zip(self.counts, self.counted, strict=True):
            count.copy_(counted)
