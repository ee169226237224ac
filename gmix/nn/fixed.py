"""A teacher that stays as it is: for training in stages, each of which learns the labels of the one before."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

from torch import nn

__all__ = ["FixedTeacher"]

Net = TypeVar("Net", bound=nn.Module)


class FixedTeacher(nn.Module, Generic[Net]):
    """Label unlabeled images with a network trained before, which does not follow the student.

    `FixMatch(net, threshold=0.0, teacher=FixedTeacher(trained))` is self-training with strong views: the student learns
    all labels of `trained`. Repeated with a new student, it is the later stages of ST++ (`examples/st_plus_plus.py`).

    Args:
        net: The trained network; it is deep-copied, and stays in eval mode and without gradients.

    Reference:
        Yang, Zhuo, Qi, Shi, Gao, "ST++: Make Self-training Work Better for Semi-supervised Semantic Segmentation", CVPR
        2022.

    Examples:
        >>> trained, student = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> teacher = FixedTeacher(trained)
        >>> teacher.update(student)
        >>> bool(teacher.net.weight == trained.weight), teacher.train().training
        (True, False)
    """

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net: Net = copy.deepcopy(net).requires_grad_(False)
        self.eval()

    def update(self, student: nn.Module) -> None:
        """Do nothing: this teacher does not follow."""

    def train(self, mode: bool = True) -> FixedTeacher[Net]:
        """Stay in eval mode, whatever mode the owner sets."""
        return super().train(False)
