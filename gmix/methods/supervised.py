"""Learn from the labeled images alone: the baseline of every table."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gmix import functional as G
from gmix.network import GuidedMixNet

__all__ = ["Supervised"]


class Supervised(nn.Module):
    """Cross-entropy on the labeled images; called like every other method.

    Args:
        net: The network to train.
        ignore_index: Mask value without a class.

    Returns:
        `{"supervised": ..., "total": ...}`, two equal scalars.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> net = GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3))
        >>> losses = Supervised(net)(torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)))
        >>> sorted(losses)
        ['supervised', 'total']
    """

    def __init__(self, net: GuidedMixNet, *, ignore_index: int = 255) -> None:
        super().__init__()
        self.net = net
        self.ignore_index = ignore_index
        # It takes no part here, and a parameter without a gradient must not be trained.
        net.classifier.requires_grad_(False)

    def forward(
        self,
        x_labeled: Tensor,
        y_labeled: Tensor,
        x_unlabeled: Tensor | None = None,
        *,
        progress: float = 1.0,
        valid_unlabeled: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        loss = G.cross_entropy(self.net(x_labeled), y_labeled, ignore_index=self.ignore_index)
        return {"supervised": loss, "total": loss}
