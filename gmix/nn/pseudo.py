"""Pseudo masks: the class a network gives each pixel, and how sure it is."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gmix import functional as G
from gmix.nn.views import Pasted

__all__ = ["PseudoMask"]


class PseudoMask(NamedTuple):
    """Each pixel's most probable class, and its probability.

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
        """From logits `(N, K, H, W)`, without gradients; `valid` `(N, H, W)` is False on padding."""
        confidence, labels = G.most_probable(G.probabilities(logits))
        if valid is not None:
            labels = labels.masked_fill(~valid, ignore_index)
            confidence = confidence.masked_fill(~valid, 0.0)
        return cls(labels, confidence)

    def paste(self, pasted: Pasted) -> PseudoMask:
        """What becomes of it when its images are pasted into each other."""
        return PseudoMask(pasted.apply(self.labels), pasted.apply(self.confidence))

    def share(self, threshold: float, ignore_index: int = 255) -> Tensor:
        """Of the pixels that are not padding, the share of at least this confidence."""
        inside = self.labels != ignore_index
        return ((self.confidence >= threshold) & inside).sum() / inside.sum().clamp(min=1)

    def loss(self, logits: Tensor, threshold: float = 0.0, ignore_index: int = 255) -> Tensor:
        """Cross-entropy of `logits` on pixels of at least this confidence; the mean is over all but padding."""
        sure = self.confidence >= threshold
        return G.cross_entropy(logits, self.labels, weight=sure, ignore_index=ignore_index)
