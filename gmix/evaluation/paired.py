"""The gain of a network over another on the same images, with a confidence interval."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Gain", "paired_gain", "tallies"]


class Gain(NamedTuple):
    """A difference of two mIoUs, in -1..1, with the bounds of 95 % of the resampled sets of images."""

    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Return the conclusion from the interval, as words.

        Examples:
            >>> Gain(0.04, 0.02, 0.06).verdict, Gain(0.01, -0.01, 0.03).verdict
            ('helped', 'made no difference that these images can show')
        """
        if self.low > 0:
            return "helped"
        return "hurt" if self.high < 0 else "made no difference that these images can show"


def tallies(counts: Tensor) -> Tensor:
    """Reduce confusion matrices `(..., K, K)` to `(..., 3, K)`: right, true and predicted pixels, as IoU needs."""
    return torch.stack([counts.diagonal(dim1=-2, dim2=-1), counts.sum(-1), counts.sum(-2)], -2)


def paired_gain(first: Tensor, second: Tensor, *, resamples: int = 2000, seed: int = 0) -> Gain:
    r"""Compute the mIoU of the second network minus that of the first, with a 95 % interval over images.

    Images are drawn with replacement, the same for both networks (the paired bootstrap): images that are hard for both
    cancel. The interval covers other images of the same kind, but not other seeds of the training.

    Args:
        first: `(n, 3, K)`, [`tallies`][gmix.evaluation.paired.tallies] of each image under the first network.
        second: The same for the second network.
        resamples: Number of drawn sets of images.
        seed: Seed of the draws.

    Raises:
        ValueError: If the two are not of the same images and classes, or there is no image.

    Reference:
        Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile interval).

    Examples:
        >>> perfect = tallies(torch.tensor([[[8, 0], [0, 8]]] * 3))
        >>> wrong = tallies(torch.tensor([[[0, 8], [8, 0]]] * 3))
        >>> paired_gain(wrong, perfect)
        Gain(difference=1.0, low=1.0, high=1.0)
    """
    if first.shape != second.shape or len(first) == 0:
        raise ValueError(
            "expected tallies (n, 3, K) of the same n images, at least one, under both networks, "
            f"got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    draws = torch.randint(
        len(first), (resamples, len(first)), generator=torch.Generator().manual_seed(seed)
    )
    times = torch.zeros(resamples, len(first), dtype=torch.float64)
    times.scatter_add_(1, draws, torch.ones_like(draws, dtype=torch.float64))
    every = torch.cat([torch.ones(1, len(first), dtype=torch.float64), times])
    miou = [_miou(torch.einsum("bn,ntk->btk", every, found.double())) for found in (first, second)]
    gain = miou[1] - miou[0]
    low, high = torch.quantile(gain[1:], torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Gain(gain[0].item(), low, high)


def _miou(found: Tensor) -> Tensor:
    """Average IoU over the classes that occur: `(B, 3, K)` -> `(B,)`."""
    right, true, predicted = found.unbind(-2)
    return (right / (true + predicted - right)).nanmean(-1)  # 0 / 0 for a class that does not occur
