"""A network, a batch and an encoder that take milliseconds: what the method tests run on."""

from typing import NamedTuple

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from gmix import GuidedMixNet


class Labeled(NamedTuple):
    x_labeled: Tensor
    y_labeled: Tensor
    x_unlabeled: Tensor


def tiny_net(classes: int = 3, *, mitrans: bool = False, seed: int = 0) -> GuidedMixNet:
    torch.manual_seed(seed)
    net = GuidedMixNet(
        smp.Unet(
            "tu-test_resnet",
            encoder_weights=None,
            encoder_depth=3,
            decoder_channels=(16, 8, 8),
            classes=classes,
        ),
        mitrans=mitrans,
    )
    # As after some steps: residual branches and MITrans no longer start at zero.
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    if net.mitrans is not None:
        nn.init.normal_(net.mitrans.out.weight, std=0.2)
    return net


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
