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
    r"""Average a student's weights exponentially: $\theta' \leftarrow d\,\theta' + (1-d)\,\theta$.

    The teacher is always in eval mode and without gradients, so mixed images never change its BatchNorm statistics.
    Early on the decay is $\min(d, (1+t)/(10+t))$: the teacher averages about the last tenth of the steps so far,
    because a mean over weights that are far apart, as in the first steps, is a poor network.
    The first update copies the student: weights that were loaded after the teacher was built reach it.
    BatchNorm statistics and other buffers are copied, because they are averages already.

    Args:
        student: The network to follow; it is deep-copied.
        decay: $d$, in [0, 1).

    Raises:
        ValueError: If `decay` is out of range.

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
        # The first step copies the student: its weights may have been loaded since the teacher was built.
        keep = torch.where(self.step == 0, 0.0, keep)
        for mean, new in zip(self.net.parameters(), student.parameters(), strict=True):
            mean.lerp_(new, 1 - keep)
        for own, other in zip(self.net.buffers(), student.buffers(), strict=True):
            own.copy_(other)
        self.step += 1

    @torch.no_grad()
    def catch_up(self, student: nn.Module) -> None:
        """Copy the student if there was no `update` yet, for callers that need predictions earlier; waits for a GPU."""
        if not self.step:
            self.net.load_state_dict(student.state_dict())

    def train(self, mode: bool = True) -> EMATeacher[Net]:
        """Stay in eval mode, whatever mode the owner sets."""
        return super().train(False)

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return f"decay={self.decay}"
