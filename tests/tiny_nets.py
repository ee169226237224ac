"""A network, a batch and an encoder that take milliseconds: what the method tests run on."""

import copy
from functools import cache
from typing import Any, NamedTuple

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from gmix import GuidedMixNet


class Labeled(NamedTuple):
    x_labeled: Tensor
    y_labeled: Tensor
    x_unlabeled: Tensor


def tiny_net(classes: int = 3, *, mitrans: bool = False, seed: int = 0) -> GuidedMixNet:
    """Build each network once; a copy is what building it again gives, the state of the random numbers too."""
    if torch.get_default_device().type != "cpu":  # with fake tensors, which are of one test
        return _built.__wrapped__(classes, mitrans, seed)[0]
    net, random = _built(classes, mitrans, seed)
    torch.set_rng_state(random)
    return copy.deepcopy(net)


@cache
def _built(classes: int, mitrans: bool, seed: int) -> tuple[GuidedMixNet, Tensor]:
    torch.manual_seed(seed)
    shape = {"encoder_depth": 3, "decoder_channels": (16, 8, 8), "classes": classes}
    model = smp.Unet("tu-test_resnet", encoder_weights=None, **shape)
    net = GuidedMixNet(model, mitrans=mitrans)
    # As after some steps: residual branches and MITrans no longer start at zero.
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    if net.mitrans is not None:
        nn.init.normal_(net.mitrans.out.weight, std=0.2)
    return net, torch.get_rng_state()


def small_net(*, mitrans: bool = False, seed: int = 0) -> GuidedMixNet:
    """Five convolutions, for what traces or loops over layers: tiny_net has ninety modules."""
    model: Any = tiny_net(seed=seed).model
    model.encoder, model.decoder = Strided(), Joined()
    model.segmentation_head[0] = nn.Conv2d(8, 3, 3, padding=1)
    net = GuidedMixNet(model, mitrans=mitrans)
    if net.mitrans is not None:
        nn.init.normal_(net.mitrans.out.weight, std=0.2)
    return net


def convolved(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inside, outside, 3, stride, 1)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU())


class Strided(nn.Module):
    """An encoder with maps at strides 1, 2 and 4."""

    out_channels, output_stride = (3, 8, 16), 4

    def __init__(self) -> None:
        super().__init__()
        self.finer, self.deeper = convolved(3, 8, 2), convolved(8, 16, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        finer = self.finer(x)
        return [x, finer, self.deeper(finer)]


class Joined(nn.Module):
    """The decoder to it."""

    def __init__(self) -> None:
        super().__init__()
        self.deeper, self.finer = convolved(16, 8), convolved(8, 8)

    def forward(self, maps: list[Tensor]) -> Tensor:
        _, finer, deepest = maps
        double = nn.functional.interpolate(self.deeper(deepest), scale_factor=2.0)
        return nn.functional.interpolate(self.finer(double + finer), scale_factor=2.0)


def unused_layers_net() -> GuidedMixNet:
    """Its encoder has blocks that this decoder does not look at: they get no gradient."""
    torch.manual_seed(0)
    return GuidedMixNet(
        smp.Unet(
            "tu-test_efficientnet",
            encoder_weights=None,
            encoder_depth=3,
            decoder_channels=(16, 8, 8),
            classes=3,
        )
    )


def tiny_batch(
    labeled: int = 3, unlabeled: int = 4, classes: int = 3, *, size: int = 32, seed: int = 0
) -> Labeled:
    """Random images; the masks' first rows are ignored."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(max(classes, 2), (labeled, size, size), generator=g)
    y[:, : size // 8] = 255
    return Labeled(
        torch.randn(labeled, 3, size, size, generator=g),
        y,
        torch.randn(unlabeled, 3, size, size, generator=g),
    )


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class AverageEncoder(nn.Module):
    """An encoder whose features can be worked out by hand: local means at strides 2 and 4."""

    out_channels = (3, 3, 2)
    output_stride = 4

    def forward(self, x: Tensor) -> list[Tensor]:
        return [
            x,
            nn.functional.avg_pool2d(x, 2),
            nn.functional.avg_pool2d(x[:, :2], 4) ** 2,
        ]
