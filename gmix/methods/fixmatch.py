"""FixMatch for segmentation: sure labels of the weak view are learned on the strong view."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from gmix.methods.method import Method, Step
from gmix.nn.ema import EMATeacher
from gmix.nn.given import Options, optional_part
from gmix.nn.losses import check_weight
from gmix.nn.network import GuidedMixNet
from gmix.nn.pseudo import PseudoMask
from gmix.nn.views import StrongView
from gmix.protocols import SupervisedLoss, Teacher

__all__ = ["FixMatch"]


class FixMatch(Method):
    r"""Learn, on a strong view, the network's own sure labels for the weak view.

    $$L = L_{sup} + w\,\mathrm{CE}(\mathrm{strong}(x_u), \arg\max \hat y(x_u))\,[\max \hat y(x_u) \ge \tau]$$

    The mean is over all pixels: few sure pixels give a small loss.

    If there are few masks, the network's own labels soon are little but background. Learning the labels of a
    `teacher`, which is not in the papers, ends several points higher (`docs/results.md`); labeled images and strong
    views then pass through the network together.

    Args:
        net: The network to train.
        threshold: $\tau$.
        unsupervised: $w$.
        teacher: Labels the unlabeled images instead of the network itself; a teacher, or a mapping of its options.
        mean: Mean per channel that the images (in 0..1) were normalised with.
        std: Standard deviation per channel that they were normalised with. The strong view (`strong`) uses both.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method].
        ignore_index: Mask value without a class.

    Returns:
        `supervised`, `unsupervised` and `total`.

    Raises:
        ValueError: If `threshold` is outside [0, 1].

    Reference:
        Sohn et al., "FixMatch", 2020; as a method for segmentation with strong colours and CutMix: Yang et al.,
        "Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic Segmentation" (UniMatch), CVPR 2023.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> method = FixMatch(GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3)))
        >>> x_l, y_l, x_u = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)), torch.randn(4, 3, 64, 64)
        >>> sorted(method(x_l, y_l, x_u))
        ['supervised', 'total', 'unsupervised']
    """

    multilabel = True
    needs_progress = False

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        threshold: float = 0.95,
        unsupervised: float = 1.0,
        teacher: Teacher | Options | None = None,
        mean: Sequence[float] | float = (0.485, 0.456, 0.406),
        std: Sequence[float] | float = (0.229, 0.224, 0.225),
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(net, supervised=supervised, ignore_index=ignore_index, threshold=threshold)
        check_weight("unsupervised", unsupervised)
        self.teacher: Teacher | None = optional_part("teacher", partial(EMATeacher, net), teacher)
        self.strong = StrongView(mean=mean, std=std)
        self.weight = unsupervised

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the supervised loss, and the cross-entropy on the strong view."""
        x_labeled, y_labeled, x_unlabeled, _, valid, generator = step
        n, m = len(x_labeled), len(x_unlabeled)
        view, pasted = self.strong(x_unlabeled, generator)
        if self.teacher is None:
            labeled, weak = torch.split(self.net(torch.cat([x_labeled, x_unlabeled])), [n, m])
            strong = self.net(view)
        else:
            weak = self.teacher.net(x_unlabeled)
            labeled, strong = torch.split(self.net(torch.cat([x_labeled, view])), [n, m])
        pseudo = PseudoMask.of(weak, valid, self.ignore_index).paste(pasted)
        supervised = self.supervised(labeled, y_labeled)
        unsupervised = pseudo.loss(strong, self.threshold, self.ignore_index)
        total = supervised + self.weight * unsupervised
        return {"supervised": supervised, "unsupervised": unsupervised, "total": total}
