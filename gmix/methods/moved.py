"""Detection of weight changes: several calls of a method may belong to one step of an optimizer."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

__all__ = ["weights_version"]


class _Counter:
    """Count the steps of all optimizers of this process, from the first call of `read`."""

    def __init__(self) -> None:
        self.steps = 0
        self.hook: Any = None

    def count(self, *_: Any) -> None:
        """Count a step."""
        self.steps += 1

    def read(self) -> int:
        """Return the number of steps since the first call."""
        if self.hook is None:
            self.hook = register_optimizer_step_post_hook(self.count)
        return self.steps


_counter = _Counter()


def weights_version(module: nn.Module) -> tuple[int, int]:
    """Return a value that changes when an optimizer steps, or when the weights are changed by hand.

    The steps of optimizers are counted, because some write into `p.data` or past torch, which does not change the
    version of a tensor.

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
