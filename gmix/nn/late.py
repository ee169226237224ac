"""Copies of weights that are made when a method is built, and once more before it trains."""

from __future__ import annotations

import torch
from torch import nn

from gmix.nn.frozen import checksum

__all__ = ["LateCopy"]


class LateCopy:
    """Copy weights again: others may have been loaded into the source since the copy was made.

    Args:
        copied: The copy, as it was made. What has other weights by the time of `repeat` has been trained, or was
            given its own, and keeps them.

    Examples:
        >>> source, copied = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> late = LateCopy(copied)
        >>> late.repeat(copied, source)
        >>> torch.equal(copied.weight, source.weight)
        True
    """

    def __init__(self, copied: nn.Module) -> None:
        self.made = checksum(copied)

    def repeat(self, copied: nn.Module, source: nn.Module) -> None:
        """Copy the weights of `source`, unless the copy has changed since it was made."""
        if torch.equal(checksum(copied), self.made):
            copied.load_state_dict(source.state_dict())
