"""A memory of features of each class, the same however a step is split into micro-batches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gmix.nn.losses import check_count
from gmix.runtime.collectives import gather

__all__ = ["FeatureBank"]


class FeatureBank(nn.Module):
    """Keep the newest features of each class, in a ring.

    What a step draws from is what was there at its start, and the features of its own call: micro-batches do not depend
    on each other. The ring has twice the size, so that what a step adds does not overwrite what it draws from.

    Args:
        classes: Number of rings.
        size: Features of a class to draw from, at least 8. A step should not add more.
        width: Length of a feature.

    Examples:
        >>> bank = FeatureBank(classes=1, size=8, width=2)
        >>> bank.add(torch.ones(1, 3, 2), torch.tensor([[True, True, False]]))
        >>> bank.written.item(), bank.held.item()  # held from the next step on
        (2, 0)
        >>> bank.start_step()
        >>> bank.held.item()
        2
    """

    def __init__(self, classes: int, size: int, width: int) -> None:
        super().__init__()
        check_count("bank", size, least=8)
        self.size = size
        self.ring: Tensor
        self.written: Tensor
        self.begun: Tensor
        self.register_buffer("ring", torch.zeros(classes, 2 * size, width))
        self.register_buffer("written", torch.zeros(classes, dtype=torch.int64))
        self.register_buffer("begun", torch.zeros(classes, dtype=torch.int64))

    @property
    def held(self) -> Tensor:
        """Return how many features of each class this step can draw: `(K,)`."""
        return self.begun.clamp(max=self.size)

    def start_step(self) -> None:
        """Begin a step: draw from what is there now."""
        self.begun.copy_(self.written)

    def columns(self, drawn: Tensor) -> Tensor:
        """Find drawn features `(K, Q)`, the newest first and after them fresh ones, in `cat([ring, fresh], 1)`."""
        ring, held = self.ring.shape[1], self.held[:, None]
        return torch.where(
            drawn < held, (self.begun[:, None] - 1 - drawn) % ring, ring + drawn - held
        )

    @torch.no_grad()
    def add(self, fresh: Tensor, counted: Tensor) -> None:
        """Add features `(K, S, D)`, of all processes; the counted ones `(K, S)` come first in each row."""
        classes = len(self.ring)
        for keys, new in zip(
            torch.split(gather(fresh), classes), torch.split(gather(counted), classes), strict=True
        ):
            places = torch.arange(keys.shape[1], device=keys.device)
            index = ((self.written[:, None] + places) % self.ring.shape[1])[..., None]
            index = index.expand_as(keys)
            kept = torch.where(new[..., None], keys, self.ring.gather(1, index))
            self.ring.scatter_(1, index, kept)
            self.written += new.sum(1)
