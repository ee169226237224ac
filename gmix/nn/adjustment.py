"""Logit adjustment: keep frequent classes from outvoting rare ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gmix import functional as G
from gmix.functional.shapes import check_ignore_index, check_integers, within
from gmix.nn.given import remember_given
from gmix.runtime.collectives import gather

__all__ = ["LogitAdjustment"]


class LogitAdjustment(nn.Module):
    r"""Add the log frequency of each class to the logits before the loss.

    $$z'_k = z_k + \tau \log \pi_k$$

    $\pi_k$ is the share of class k among all labeled pixels so far. The loss sees the frequencies in $z'$, so $z$ does
    not have to learn them: the network predicts as if all classes were equally frequent ($\tau = 1$), or half-way
    there ($\tau = 0.5$). In self-training this matters twice: a rare class that the teacher hardly ever predicts is
    soon not learned at all.

    Call it for labeled images only. Pseudo masks come from the unadjusted network and train the unadjusted network:
    adjusted again, their rare classes would grow from step to step.

    Args:
        classes: Number of logit channels K; 1 is binary, where $z' = z + \tau \log(\pi_1 / \pi_0)$.
        strength: $\tau$, at least 0.
        floor: Lower bound of $\pi_k$, above 0. A class that has not been seen yet is not adjusted.

    Shape:
        - `logits` `(N, K, H, W)`, `y` `(N, H, W)` int64; values outside the classes (255) are not counted.
          Nothing is counted in eval mode or without `y` (for callers that use `add`).
        - Output: `(N, K, H, W)`.

    Raises:
        ValueError: `strength` below 0 or `floor` outside (0, 1].

    Reference:
        Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, Eq. 10.

    Examples:
        >>> adjust = LogitAdjustment(classes=2, strength=1.0)
        >>> y = torch.tensor([[[0, 0, 0, 1]]])  # 3 in 4, 1 in 4
        >>> adjust(torch.zeros(1, 2, 1, 4), y)[0, :, 0, 0]
        tensor([-0.2877, -1.3863])
    """

    __call__: Callable[..., Tensor]

    @remember_given
    def __init__(self, classes: int, strength: float = 0.5, floor: float = 1e-3) -> None:
        super().__init__()
        if not within(strength, 0):
            raise ValueError(f"`strength` must be at least 0, got {strength}")
        if not (within(floor, 0, 1) and floor > 0):
            raise ValueError(f"`floor` is a share in (0, 1], got {floor}")
        self.classes = classes
        self.strength = strength
        self.floor = floor
        self.pixels: Tensor
        self.register_buffer("pixels", torch.zeros(max(classes, 2), dtype=torch.int64))

    def add(self, y: Tensor, *, ignore_index: int = 255) -> None:
        """Count the pixels of masks `(N, H, W)` that are not ignored, summed over all processes.

        Raises:
            TypeError: If `y` is no tensor of an integer type.
            ValueError: If 255 is both a class and `ignore_index`.
        """
        check_ignore_index(self.classes, ignore_index)
        check_integers("y", y)
        y = y.long()
        pixels = G.pixels_of_classes(y.masked_fill(y == ignore_index, -1), len(self.pixels))
        self.pixels += gather(pixels[None]).sum(0)

    def forward(self, logits: Tensor, y: Tensor | None = None) -> Tensor:
        """Add the class offsets to the logits; in train mode, count the masks `y` first."""
        if self.training and y is not None:
            self.add(y)
        share = self.pixels / self.pixels.sum().clamp(min=1)
        log = torch.where(self.pixels > 0, share.clamp(min=self.floor).log(), 0.0)
        offset = self.strength * (log[1:] - log[:1] if self.classes == 1 else log)
        return logits + offset[:, None, None]

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return f"strength={self.strength}, floor={self.floor}"
