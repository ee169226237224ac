"""Looking at a network without disturbing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["eval_mode"]


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Puts a network into eval mode for a while; then every part is back in the mode it was in.

    Examples:
        >>> net = nn.Sequential(nn.BatchNorm2d(1).eval(), nn.ReLU())
        >>> with eval_mode(net):
        ...     print(net.training)
        False
        >>> net.training, net[0].training
        (True, False)
    """
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
