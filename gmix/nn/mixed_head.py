"""A second head, which predicts mixed features: the branch of the code that the authors of GuidedMix-Net released."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gmix.nn.given import remember_given
from gmix.nn.losses import check_unit_interval
from gmix.nn.network import GuidedMixNet
from gmix.nn.views import drop_channels

__all__ = ["MixedHead"]


class MixedHead(nn.Module):
    """Predict mixed maps of a network's decoder: a 3x3 convolution, BatchNorm, ReLU, and a head like the network's.

    It belongs to a method and is not deployed. Attaching it behind the decoder works for every architecture; in the
    authors' code, whose decoder is ASPP, it includes the convolution that joins the branches of ASPP.

    Args:
        net: The network whose maps it gets; its head is copied and initialised again.
        drop: Share of channels that are dropped before the head in training, as in the authors' code.

    Shape:
        - Input: `(N, D', h, w)`, mixes of `net.decoder_map(features)`.
        - Output: `(N, K, H, W)` logits of the padded images.

    Raises:
        ValueError: If `drop` is outside [0, 1].

    Reference:
        https://github.com/yh-pengtu/GuidedMix-Net, `decode_head_mix`.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> net = GuidedMixNet(smp.DeepLabV3("resnet18", encoder_weights=None, classes=3))
        >>> maps = net.decoder_map(net.encode(torch.ones(2, 3, 64, 64)))
        >>> MixedHead(net)(maps).shape
        torch.Size([2, 3, 64, 64])
    """

    __call__: Callable[..., Tensor]

    @remember_given
    def __init__(self, net: GuidedMixNet, drop: float = 0.1) -> None:
        super().__init__()
        check_unit_interval("drop", drop)
        layers = (m for m in net.head.modules() if isinstance(m, nn.Conv2d))
        channels, device = next(layers).in_channels, net.last_layer.weight.device
        self.join = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device),
            nn.BatchNorm2d(channels, device=device),
            nn.ReLU(),
        )
        self.head = net.new_head()
        self.drop = drop

    def forward(self, maps: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Predict the maps."""
        joined: Tensor = self.join(maps)
        if self.training and self.drop > 0:
            joined = drop_channels(joined, self.drop, generator)
        logits: Tensor = self.head(joined)
        return logits

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return f"drop={self.drop}"
