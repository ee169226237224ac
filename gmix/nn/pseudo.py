"""Pseudo masks: the predicted class of each pixel, and its confidence."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gmix import functional as G
from gmix.nn.views import Pasted

__all__ = ["PseudoMask"]


class PseudoMask(NamedTuple):
    """The most probable class of each pixel, and its probability.

    Examples:
        >>> pseudo = PseudoMask.of(torch.tensor([0.0, 2.0]).view(1, 2, 1, 1))
        >>> pseudo.labels.item(), round(pseudo.confidence.item(), 3)
        (1, 0.881)
    """

    labels: Tensor  # (N, H, W) int64; `ignore_index` on padding
    confidence: Tensor  # (N, H, W) in [0, 1]; 0 on padding

    @classmethod
    @torch.no_grad()
    def of(cls, logits: Tensor, valid: Tensor | None = None, ignore_index: int = 255) -> PseudoMask:
        """Make a pseudo mask from logits `(N, K, H, W)`, without gradients; `valid` `(N, H, W)` is False on padding."""
        confidence, labels = G.most_probable(G.probabilities(logits))
        if valid is not None:
            labels = labels.masked_fill(~valid, ignore_index)
            confidence = confidence.masked_fill(~valid, 0.0)
        return cls(labels, confidence)

    def paste(self, pasted: Pasted) -> PseudoMask:
        """Paste the pseudo masks into each other in the same way as their images."""
        return PseudoMask(pasted.apply(self.labels), pasted.apply(self.confidence))

    def share(self, threshold: float, ignore_index: int = 255) -> Tensor:
        """Compute the share of the pixels, without padding, whose confidence is at least `threshold`."""
        inside = self.labels != ignore_index
        return ((self.confidence >= threshold) & inside).sum() / inside.sum().clamp(min=1)

    def loss(self, logits: Tensor, threshold: float = 0.0, ignore_index: int = 255) -> Tensor:
        """Compute the cross-entropy on pixels of confidence `threshold` or more; the mean is over all but padding."""
        sure = self.confidence >= threshold
        return G.cross_entropy(logits, self.labels, weight=sure, ignore_index=ignore_index)
