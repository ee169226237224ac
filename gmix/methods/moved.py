"""Tell whether a network has learned since: several calls of a method may make one step of an optimizer."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

__all__ = ["weights_version"]


class _Counter:
    """Counts the steps of all optimizers of this process, from the first time it is asked."""

    def __init__(self) -> None:
        self.steps = 0
        self.hook: Any = None

    def count(self, *_: Any) -> None:
        self.steps += 1

    def read(self) -> int:
        if self.hook is None:
            self.hook = register_optimizer_step_post_hook(self.count)
        return self.steps


_counter = _Counter()


def weights_version(module: nn.Module) -> tuple[int, int]:
    """Return what is another value once an optimizer has stepped, or the weights were changed by hand.

    Optimizers are counted, because some write into `p.data` or past torch, which no version of a tensor shows.

    Examples:
        >>> import torch
        >>> layer = nn.Linear(1, 1)
        >>> before = weights_version(layer)
        >>> layer(torch.ones(1, 1)).sum().backward()
        >>> weights_version(layer) == before
        True
        >>> torch.optim.SGD(layer.parameters(), lr=0.1).step()
        >>> weights_version(layer) == before
        False
    """
    return _counter.read(), sum(p._version for p in module.parameters())
