"""ClassMix: paste half of an image's classes into another image."""

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
from gmix.nn.views import GaussianBlur, Pasted, StrongColor
from gmix.protocols import SupervisedLoss

__all__ = ["ClassMix"]


class ClassMix(Method):
    r"""Cut half of the teacher's classes out of an image, paste them into the next, and learn the joined mask.

    $$L = L_{sup} + w\,c\,\mathrm{CE}(\mathrm{paste}(x_u), \mathrm{paste}(\arg\max \hat y'(x_u)))$$

    $c$ is the share of pixels on which the teacher is at least `threshold` sure.

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
        Olsson, Tranheden, Pinto, Svensson, "ClassMix: Segmentation-Based Data Augmentation for Semi-Supervised
        Learning", WACV 2021.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> method = ClassMix(GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3)))
        >>> x_l, y_l, x_u = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)), torch.randn(4, 3, 64, 64)
        >>> sorted(method(x_l, y_l, x_u))
        ['supervised', 'total', 'unsupervised']
    """

    needs_progress = False

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        threshold: float = 0.968,
        unsupervised: float = 1.0,
        decay: float = 0.99,
        mean: Sequence[float] | float = (0.485, 0.456, 0.406),
        std: Sequence[float] | float = (0.229, 0.224, 0.225),
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(net, supervised=supervised, ignore_index=ignore_index, threshold=threshold)
        self.teacher = EMATeacher(net, decay)
        self.color = StrongColor(strength=0.25, grey=0.0, hue=0.25, mean=mean, std=std)
        self.blur = GaussianBlur(sigma=(0.15, 1.15))
        check_weight("unsupervised", unsupervised)
        self.weight = unsupervised

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the supervised loss, and the cross-entropy on the joined images."""
        x_labeled, y_labeled, x_unlabeled, _, valid, generator = step
        with torch.no_grad():
            teacher = self.teacher.net(x_unlabeled)
        pseudo = PseudoMask.of(teacher, valid, self.ignore_index)
        chosen = half_of_classes(pseudo.labels, max(self.net.classes, 2), generator)
        rest = Pasted(~chosen, torch.arange(len(chosen), device=chosen.device).roll(-1))
        pseudo = pseudo.paste(rest)
        view = self.blur(self.color(rest.apply(x_unlabeled), generator), generator)
        logits = self.net(torch.cat([x_labeled, view]))
        labeled, unlabeled = torch.split(logits, [len(x_labeled), len(view)])
        supervised = self.supervised(labeled, y_labeled)
        sure = pseudo.share(self.threshold, self.ignore_index)
        unsupervised = sure * pseudo.loss(unlabeled, ignore_index=self.ignore_index)
        total = supervised + self.weight * unsupervised
        return {"supervised": supervised, "unsupervised": unsupervised, "total": total}


def half_of_classes(
    labels: Tensor, classes: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw half of the classes of each mask, rounded down, and mark their pixels.

    Args:
        labels: `(N, H, W)` int64; values outside `[0, classes)` count for none.
        classes: Number of classes, 2 if binary.
        generator: Source of randomness, on the device of `labels`.

    Returns:
        `(N, H, W)` bool.

    Examples:
        >>> half_of_classes(torch.tensor([[[0, 0, 1, 255]]]), 2, torch.Generator().manual_seed(0))
        tensor([[[False, False,  True, False]]])
    """
    slots = torch.where((labels >= 0) & (labels < classes), labels, classes)
    present = G.present_classes(slots, classes, ignore_index=classes)
    draw = torch.rand(present.shape, generator=generator, device=labels.device)
    rank = (draw * present).argsort(1, descending=True).argsort(1)
    chosen = rank < present.sum(1, keepdim=True).div(2, rounding_mode="floor")
    # An extra column for the pixels without a class, which are never chosen.
    chosen = torch.cat([chosen, torch.zeros_like(chosen[:, :1])], 1)
    return chosen.gather(1, slots.flatten(1)).view_as(labels)
