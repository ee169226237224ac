"""Paste a class of the labeled partner into the unlabeled image: a mix by region, with a mask known to be right."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gmix import functional as G
from gmix.nn.given import remember_given
from gmix.protocols import RegionSampler

__all__ = ["ClassPaste"]


class ClassPaste(nn.Module):
    r"""Choose the pixels of one class in each mask, rare classes as often as frequent ones.

    Pasted from a labeled image into an unlabeled one, they mix $x = m\,x_l + (1-m)\,x_u$ whose $\lambda$ is 0 or 1
    at every pixel. What is labeled in it need not be subtracted from a prediction: it is known where it is, and what.

    The class of a mask is drawn among those that occur in it, with a probability that is inverse to how many pixels
    it has in the batch: over many batches each class is pasted about equally much.

    Args:
        classes: Number of logit channels K; 1 is binary.
        p: Probability that a mask gets a region at all.

    Shape:
        - input: masks `(M, H, W)` int64, values outside of the classes (255) are never chosen; where another value is
          ignored, GuidedMix takes its pixels out of the region
        - output: `(M, H, W)` bool

    Raises:
        ValueError: `p` outside [0, 1].

    Reference:
        Classes cut out as in ClassMix (Olsson et al., 2021), there from one unlabeled image into another; of
        true masks as in "Simple Copy-Paste" (Ghiasi et al., 2021).

    Examples:
        >>> y = torch.tensor([[[0, 0, 0, 2, 255]]])
        >>> ClassPaste(classes=3, p=1.0)(y, generator=torch.Generator().manual_seed(2))
        tensor([[[False, False, False,  True, False]]])
    """

    __call__: RegionSampler

    @remember_given
    def __init__(self, classes: int, p: float = 0.5) -> None:
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"`p` is a probability in [0, 1], got {p}")
        self.classes = max(classes, 2)
        self.p = p

    def forward(self, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        slots = torch.where((y >= 0) & (y < self.classes), y, self.classes)
        present = G.present_classes(slots, self.classes, ignore_index=self.classes)
        weight = present / G.pixels_of_classes(y, self.classes).clamp(min=1)
        u = torch.rand(len(y), self.classes + 1, generator=generator, device=y.device)
        # The first of exponential clocks that run at these rates: a draw that needs no sum of the weights.
        chosen = (weight / -u[:, :-1].clamp(1e-6, 1 - 1e-6).log()).argmax(1)
        return (slots == chosen[:, None, None]) & (u[:, -1:, None] < self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
