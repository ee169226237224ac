"""Learn from the labeled images alone: the baseline of every table."""

from __future__ import annotations

from torch import Tensor

from gmix.adjustment import LogitAdjustment
from gmix.methods.method import Method, Step
from gmix.network import GuidedMixNet

__all__ = ["Supervised"]


class Supervised(Method):
    """Cross-entropy on the labeled images; unlabeled ones are not looked at.

    Args:
        net: The network to train.
        adjustment: Adjusts the logits before the loss for how frequent their classes are. GuidedMix has it by
            default; with it here, what the unlabeled images alone are worth can be told.
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

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        adjustment: LogitAdjustment | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(net, ignore_index=ignore_index)
        self.adjustment = adjustment

    def begin(self, x_labeled: Tensor, y_labeled: Tensor) -> None:
        """Count the classes of the labeled images."""
        super().begin(x_labeled, y_labeled)
        if self.adjustment is not None:
            self.adjustment.add(y_labeled, ignore_index=self.ignore_index)

    def losses(self, step: Step) -> dict[str, Tensor]:
        logits = self.net(step.x_labeled)
        if self.adjustment is not None:
            logits = self.adjustment(logits)
        loss = self.supervised(logits, step.y_labeled)
        return {"supervised": loss, "total": loss}
