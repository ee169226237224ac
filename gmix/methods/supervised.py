"""Learn from the labeled images alone: the baseline of every table."""

from __future__ import annotations

from torch import Tensor

from gmix.methods.method import Method, Step

__all__ = ["Supervised"]


class Supervised(Method):
    """Cross-entropy on the labeled images; unlabeled ones are not looked at.

    Args:
        net: The network to train.
        ignore_index: Mask value without a class.

    Returns:
        `{"supervised": ..., "total": ...}`, two equal scalars.

    Examples:
        >>> import segmentation_models_pytorch as smp, torch
        >>> from gmix import GuidedMixNet
        >>> net = GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3))
        >>> losses = Supervised(net)(torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)))
        >>> sorted(losses)
        ['supervised', 'total']
    """

    needs_unlabeled = False

    def losses(self, step: Step) -> dict[str, Tensor]:
        loss = self.supervised(self.net(step.x_labeled), step.y_labeled)
        return {"supervised": loss, "total": loss}
