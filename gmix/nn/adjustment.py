"""Logit adjustment: rare classes are not to be outvoted by frequent ones."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gmix import functional as G
from gmix.functional.shapes import check_ignore_index, within
from gmix.nn.given import remember_given
from gmix.runtime.collectives import gather

__all__ = ["LogitAdjustment"]


class LogitAdjustment(nn.Module):
    r"""Add the logarithm of how frequent each class is to logits before their loss is taken.

    $$z'_k = z_k + \tau \log \pi_k$$

    $\pi_k$ is the share of class k of all labeled pixels so far. What the loss then teaches $z'$ about frequency, $z$
    need not know: the predictions of the network are those for classes that are equally frequent ($\tau = 1$), or
    half-way there ($\tau = 0.5$). In self-training that matters twice: a rare class that the teacher hardly ever
    names is soon not learned at all.

    Call it for labeled images only. Pseudo masks come from the network as it is, and teach it as it is: adjusted
    once more, their rare classes would grow from step to step.

    Args:
        classes: Number of logit channels K; 1 is binary, where $z' = z + \tau \log(\pi_1 / \pi_0)$.
        strength: $\tau$, at least 0.
        floor: The least $\pi_k$ that is taken for true, above 0. A class not seen yet is not adjusted.

    Shape:
        - `logits` `(N, K, H, W)`, `y` `(N, H, W)` int64; values outside of the classes (255) are not counted, nor
          is anything without `y` (for those who call `add`) or in eval mode
        - output: `(N, K, H, W)`

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
        """Count the pixels of masks `(N, H, W)` that are not ignored; of several processes, those of all.

        Raises:
            ValueError: If there are so many classes that 255 is one, and is ignored.
        """
        check_ignore_index(self.classes, ignore_index)
        pixels = G.pixels_of_classes(y.long().masked_fill(y == ignore_index, -1), len(self.pixels))
        self.pixels += gather(pixels[None]).sum(0)

    def forward(self, logits: Tensor, y: Tensor | None = None) -> Tensor:
        if self.training and y is not None:
            self.add(y)
        share = self.pixels / self.pixels.sum().clamp(min=1)
        log = torch.where(self.pixels > 0, share.clamp(min=self.floor).log(), 0.0)
        offset = self.strength * (log[1:] - log[:1] if self.classes == 1 else log)
        return logits + offset[:, None, None]

    def extra_repr(self) -> str:
        return f"strength={self.strength}, floor={self.floor}"
