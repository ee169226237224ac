"""Paste a class of the labeled partner into the unlabeled image: a mix by region whose mask is known."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gmix import functional as G
from gmix.functional.shapes import check_integers
from gmix.nn.given import remember_given
from gmix.protocols import RegionSampler

__all__ = ["ClassPaste"]


class ClassPaste(nn.Module):
    r"""Choose the pixels of one class in each mask, rare classes as often as frequent ones.

    Pasted from a labeled image into an unlabeled one, they give a mix $x = m\,x_l + (1-m)\,x_u$ with a $\lambda$ of 0
    or 1 at every pixel. The labeled part need not be subtracted from a prediction: its place and class are known.

    The class of a mask is drawn from those that occur in it, with a probability inversely proportional to its number
    of pixels in the batch: over many batches, all classes are pasted on about the same number of pixels.

    Args:
        classes: Number of logit channels K; 1 is binary.
        p: Probability that a mask gets a region.

    Shape:
        - Input: masks `(M, H, W)` of any integer type; values outside the classes (255) are never chosen. If another
          value is ignored, GuidedMix removes its pixels from the region.
        - Output: `(M, H, W)` bool.

    Raises:
        TypeError: If masks have no integer type.
        ValueError: If `p` is outside [0, 1].

    Reference:
        ClassMix (Olsson et al., 2021) cuts out classes, from one unlabeled image into another; "Simple
        Copy-Paste" (Ghiasi et al., 2021) uses true masks.

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
        """Draw a class in each mask and return its pixels."""
        check_integers("y", y)
        y = y.long()
        slots = torch.where((y >= 0) & (y < self.classes), y, self.classes)
        present = G.present_classes(slots, self.classes, ignore_index=self.classes)
        weight = present / G.pixels_of_classes(y, self.classes).clamp(min=1)
        u = torch.rand(len(y), self.classes + 1, generator=generator, device=y.device)
        # The first of exponential clocks with these rates: a draw without the sum of the weights.
        chosen = (weight / -u[:, :-1].clamp(1e-6, 1 - 1e-6).log()).argmax(1)
        return (slots == chosen[:, None, None]) & (u[:, -1:, None] < self.p)

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return f"p={self.p}"
