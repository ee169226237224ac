"""A slow copy of a network whose predictions serve as targets."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

from gmix.functional.shapes import within
from gmix.nn.given import remember_given

__all__ = ["EMATeacher"]

Net = TypeVar("Net", bound=nn.Module)


class EMATeacher(nn.Module, Generic[Net]):
    r"""The exponential moving average of a student's weights: $\theta' \leftarrow d\,\theta' + (1-d)\,\theta$.

    Always in eval mode and without gradients, so looking at mixed images never disturbs a BatchNorm statistic.
    Early on the decay is $\min(d, (1+t)/(10+t))$: the teacher averages about the last tenth of the steps so far. A
    mean over weights that are far apart, as that of all first steps, is a poor network.
    The first update copies the student: weights that were loaded after the teacher was built reach it.
    BatchNorm statistics and other buffers are copied: they are averages already.

    Args:
        student: The network to follow; it is deep-copied.
        decay: $d$, in [0, 1).

    Raises:
        ValueError: `decay` out of range.

    Reference:
        Tarvainen & Valpola, "Mean teachers are better role models", 2017; early decay as in TensorFlow's
        `ExponentialMovingAverage(num_updates=t)`.

    Examples:
        >>> student = nn.Linear(1, 1, bias=False)
        >>> teacher = EMATeacher(student, decay=0.5)
        >>> with torch.no_grad():
        ...     _ = student.weight.fill_(1.0), teacher.net.weight.fill_(0.0), teacher.step.fill_(99)
        >>> teacher.update(student)
        >>> teacher.net.weight.item()
        0.5
    """

    @remember_given
    def __init__(self, student: Net, decay: float = 0.99) -> None:
        super().__init__()
        if not (within(decay, 0, 1) and decay < 1):
            raise ValueError(f"`decay` must be in [0, 1), got {decay}")
        self.decay = decay
        self.net: Net = copy.deepcopy(student).requires_grad_(False)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.step: torch.Tensor
        self.eval()

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Move one step towards `student`."""
        # A tensor, not a Python number: reading it would wait for the GPU.
        keep = ((1 + self.step) / (10 + self.step)).clamp(max=self.decay)
        # Before its first step it knows nothing of its own: weights may have been loaded since it was built.
        keep = torch.where(self.step == 0, 0.0, keep)
        for mean, new in zip(self.net.parameters(), student.parameters(), strict=True):
            mean.lerp_(new, 1 - keep)
        for own, other in zip(self.net.buffers(), student.buffers(), strict=True):
            own.copy_(other)
        self.step += 1

    @torch.no_grad()
    def catch_up(self, student: nn.Module) -> None:
        """Copy the student if no step was taken yet, for who asks before the first `update`; a GPU is waited for."""
        if not self.step:
            self.net.load_state_dict(student.state_dict())

    def train(self, mode: bool = True) -> EMATeacher[Net]:
        """A teacher never trains, whatever its owner does."""
        return super().train(False)

    def extra_repr(self) -> str:
        return f"decay={self.decay}"
