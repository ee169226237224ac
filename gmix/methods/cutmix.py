"""CutMix for semi-supervised segmentation: a teacher's masks, cut and pasted like the images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gmix import functional as G
from gmix.methods.method import Method, Step
from gmix.nn.ema import EMATeacher
from gmix.nn.losses import check_weight
from gmix.nn.network import GuidedMixNet
from gmix.nn.pseudo import PseudoMask
from gmix.nn.views import CutMix, StrongColor
from gmix.protocols import SupervisedLoss

__all__ = ["CutMixSeg"]


class CutMixSeg(Method):
    r"""Learn to predict on two images pasted into one what the teacher predicts on each of them.

    $$L = L_{sup} + w\,c\,\lVert \hat y(\mathrm{paste}(x_u)) - \mathrm{paste}(\hat y'(x_u)) \rVert^2$$

    $c$ is the share of pixels on which the teacher is at least `threshold` sure. The box covers half of the image.

    The authors' teacher is in train mode; here it is in eval mode, like all teachers.

    Args:
        net: The network to train.
        threshold: Least confidence of a pixel that counts towards $c$.
        unsupervised: $w$.
        decay: Decay of the teacher.
        mean: Mean per channel that the images (in 0..1) were normalised with.
        std: Standard deviation per channel that they were normalised with. The strong colours (`color`) use both.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method].
        ignore_index: Mask value without a class.

    Returns:
        `supervised`, `unsupervised` (including $c$) and `total`.

    Raises:
        ValueError: If `threshold` is outside [0, 1].

    Reference:
        French, Laine, Aila, Mackiewicz, Finlayson, "Semi-supervised semantic segmentation needs strong, varied
        perturbations", BMVC 2020; settings of their VOC runs.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> method = CutMixSeg(GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3)))
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
        threshold: float = 0.97,
        unsupervised: float = 1.0,
        decay: float = 0.99,
        mean: Sequence[float] | float = (0.485, 0.456, 0.406),
        std: Sequence[float] | float = (0.229, 0.224, 0.225),
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(net, supervised=supervised, ignore_index=ignore_index, threshold=threshold)
        self.teacher = EMATeacher(net, decay)
        self.color = StrongColor(strength=0.4, mean=mean, std=std)
        self.cutmix = CutMix(p=1.0, area=(0.5, 0.5), aspect=2.0)
        check_weight("unsupervised", unsupervised)
        self.weight = unsupervised

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the supervised loss, and the squared error on the pasted images."""
        x_labeled, y_labeled, x_unlabeled, _, valid, generator = step
        pasted = self.cutmix(x_unlabeled, generator)
        view = pasted.apply(self.color(x_unlabeled, generator))
        with torch.no_grad():
            teacher = self.teacher.net(x_unlabeled)
        target = pasted.apply(G.probabilities(teacher))
        pseudo = PseudoMask.of(teacher, valid, self.ignore_index).paste(pasted)
        sure = pseudo.share(self.threshold, self.ignore_index)
        inside = None if valid is None else pasted.apply(valid)
        logits = self.net(torch.cat([x_labeled, view]))
        labeled, unlabeled = torch.split(logits, [len(x_labeled), len(view)])
        supervised = self.supervised(labeled, y_labeled)
        unsupervised = sure * G.squared_error(G.probabilities(unlabeled), target, valid=inside)
        total = supervised + self.weight * unsupervised
        return {"supervised": supervised, "unsupervised": unsupervised, "total": total}
