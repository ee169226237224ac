"""What adversarial methods share: slow convolutions that judge maps, and calls that train no weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmix import functional as G
from gmix.nn.views import drop_channels

__all__ = ["SlowConv2d", "SlowLinear", "StridedLayers", "call_constant", "score_loss"]

RATE = 0.1


class SlowConv2d(nn.Conv2d):
    """A convolution, 4x4 of stride 2 or 3x3 of stride 1, that learns at a tenth of the optimizer's rate.

    Its parameters are ten times the weights that it applies, so a step of AdamW, whose length does not depend on the
    gradient's, changes the weights by a tenth (a step of SGD: by a hundredth). One optimizer with one rate then trains
    a network and its discriminator, which authors give a lower rate.

    Examples:
        >>> layer = SlowConv2d(1, 1)
        >>> layer(torch.ones(1, 1, 4, 4)).shape, layer.weight.abs().max() > 1
        (torch.Size([1, 1, 2, 2]), tensor(True))
    """

    __call__: Callable[..., Tensor]

    def __init__(self, channels: int, out_channels: int, stride: Literal[1, 2] = 2) -> None:
        super().__init__(channels, out_channels, 2 + stride, stride=stride, padding=1)
        _enlarge(self)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        assert self.bias is not None
        return F.conv2d(x, RATE * self.weight, RATE * self.bias, self.stride, self.padding)


class SlowLinear(nn.Linear):
    """A linear layer that learns at a tenth of the optimizer's rate, as `SlowConv2d` does."""

    __call__: Callable[..., Tensor]

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels)
        _enlarge(self)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return F.linear(x, RATE * self.weight, RATE * self.bias)


def _enlarge(layer: nn.Module) -> None:
    with torch.no_grad():
        for p in layer.parameters():
            p.div_(RATE)


class StridedLayers(nn.Module):
    """Apply four `SlowConv2d`, each with a leaky ReLU of slope 0.2, to maps of any size.

    Maps are padded with zeros at the bottom and right, to a multiple of `multiple`.

    Args:
        channels: Channels of the maps.
        width: Channels after the first convolution, doubled by each of the others.
        multiple: 16, or more if another layer follows.

    Attributes:
        out_channels: Channels of the result, `8 * width`.

    Examples:
        >>> StridedLayers(3, width=2)(torch.ones(1, 3, 40, 17)).shape
        torch.Size([1, 16, 3, 2])
    """

    __call__: Callable[..., Tensor]

    def __init__(self, channels: int, width: int = 64, multiple: int = 16) -> None:
        super().__init__()
        widths = [channels, *(width * 2**i for i in range(4))]
        self.convolutions = nn.ModuleList(SlowConv2d(a, b) for a, b in pairwise(widths))
        self.out_channels = widths[-1]
        self.multiple = multiple

    def forward(
        self, maps: Tensor, drop: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Judge maps `(N, C, H, W)`; `drop` is the share of channels dropped between the convolutions."""
        height, width = maps.shape[2:]
        x = F.pad(maps, (0, -width % self.multiple, 0, -height % self.multiple))
        for number, convolution in enumerate(self.convolutions):
            if number and drop > 0:
                x = drop_channels(x, drop, generator)
            x = F.leaky_relu(convolution(x), 0.2)
        return x


def call_constant(module: nn.Module, *inputs: object) -> Tensor:
    """Call a module with its weights as constants: gradients reach its inputs, not its weights.

    One backward pass then serves two adversaries. The loss that should mislead a discriminator comes from this call,
    the discriminator's own loss from an ordinary call with detached inputs.

    Examples:
        >>> layer, x = nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
        >>> call_constant(layer, x).sum().backward()
        >>> x.grad is None, layer.weight.grad is None
        (False, True)
    """
    weights = {name: p.detach() for name, p in module.named_parameters()}
    found: Tensor = torch.func.functional_call(module, weights, inputs)
    return found


def score_loss(scores: Tensor, answer: int, counted: Tensor) -> Tensor:
    """Compute the mean binary cross-entropy of scores `(N, 1, H, W)` against one answer, over the counted pixels.

    Examples:
        >>> score_loss(torch.zeros(1, 1, 1, 2), 1, torch.tensor([[[True, False]]]))
        tensor(0.6931)
    """
    return G.cross_entropy(scores, torch.where(counted, answer, 255))
