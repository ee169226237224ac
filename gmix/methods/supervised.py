"""Learn from the labeled images alone: the baseline of every table."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from gmix.methods.method import Method, Step
from gmix.nn.adjustment import LogitAdjustment
from gmix.nn.given import Options, optional_part
from gmix.nn.network import GuidedMixNet
from gmix.protocols import LogitAdjuster, SupervisedLoss

__all__ = ["Supervised"]


class Supervised(Method):
    """Learn from the labeled images with cross-entropy; unlabeled images are not used.

    Args:
        net: The network to train.
        adjustment: Adjusts the logits for the frequency of their classes before the loss; the part, or a mapping of its
            options. With the same adjustment in GuidedMix, the difference is due to the unlabeled images alone.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method].
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

    multilabel = True
    needs_unlabeled = False
    needs_progress = False

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        adjustment: LogitAdjuster | Options | None = None,
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(net, supervised=supervised, ignore_index=ignore_index)
        if self.planes is not None and adjustment is not None:
            raise ValueError(
                "`adjustment` compares classes with each other, and those of a MultiLabelNet overlap: pass None"
            )
        make = partial(LogitAdjustment, net.classes)
        self.adjustment: LogitAdjuster | None = optional_part("adjustment", make, adjustment)

    def observe(self, x_labeled: Tensor, y_labeled: Tensor) -> None:
        """Count the classes of the labeled images."""
        if self.adjustment is not None:
            self.adjustment.add(y_labeled, ignore_index=self.ignore_index)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the loss of the labeled images."""
        logits = self.net(step.x_labeled)
        if self.adjustment is not None:
            logits = self.adjustment(logits)
        loss = self.supervised(logits, step.y_labeled)
        return {"supervised": loss, "total": loss}
