"""The modes of a network: temporary eval mode, layers that do not train, weights cast by autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["eval_mode", "forget_casts", "freeze_statistics"]


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Put a network into eval mode for the duration of a block, then restore the mode of every module.

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


def freeze_statistics(module: nn.Module) -> None:
    """Put BatchNorm layers with frozen weights into eval mode, so that their statistics do not change either.

    Examples:
        >>> net = nn.Sequential(nn.BatchNorm2d(1).requires_grad_(False), nn.BatchNorm2d(1))
        >>> freeze_statistics(net)
        >>> [layer.training for layer in net]
        [False, True]
    """
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.training:
            weights = list(layer.parameters())
            if weights and not any(weight.requires_grad for weight in weights):
                layer.eval()


def forget_casts() -> None:
    """Let autocast cast the weights again: those cast without gradients would be used in the next step (torch 2.9).

    A compiled graph has no such cache, and older versions of torch cannot trace the call.
    """
    if not torch.compiler.is_compiling():
        torch.clear_autocast_cache()
