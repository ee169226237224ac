"""Interpolation consistency training: predictions of a mix of images are the mix of their predictions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gmix import functional as G
from gmix.methods.method import Method, Step, inside_of
from gmix.nn.ema import EMATeacher
from gmix.nn.losses import check_positive, check_unit_interval, check_weight
from gmix.nn.network import GuidedMixNet
from gmix.nn.views import StrongColor
from gmix.protocols import SupervisedLoss

__all__ = ["ICT"]


class ICT(Method):
    r"""Learn, on a mix of two unlabeled images, the mix of the teacher's predictions for each of them.

    $$L = L_{sup} + w\,\omega(t)\,c\,\lVert \hat y(\mathrm{mix}_\lambda(x_u, x_v)) -
    \mathrm{mix}_\lambda(\hat y'(x_u), \hat y'(x_v)) \rVert^2$$

    $\lambda = \min(b, 1 - b)$ is the weight of $x_v$, another image of the batch, with
    $b \sim \mathrm{Beta}(\alpha, \alpha)$ for each image: which of the two is called the first does not matter, so here
    it is the heavier one. $c$ is the share of pixels on which the mix of the teacher's confidences is at least
    `threshold`. The student's images also have their colours changed. Only pixels valid in both images count.

    Settings are those of French et al. for VOC, who have no ramp; Verma et al. rise for a quarter of the training.
    The teacher is in eval mode, like all teachers; both papers have it in train mode.

    Args:
        net: The network to train.
        unsupervised: $w$.
        alpha: $\alpha$, above 0; the smaller, the less is mixed.
        threshold: Least confidence of a pixel that counts towards $c$; 0 switches $c$ off, as in Verma et al.
        decay: Decay of the teacher.
        ramp_length: Share of the training during which $\omega$ rises to 1; 0 switches the ramp off.
        mean: Mean per channel that the images (in 0..1) were normalised with.
        std: Standard deviation per channel that they were normalised with. The strong colours (`color`) use both.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method].
        ignore_index: Mask value without a class.

    Returns:
        `supervised`, `unsupervised` (including $c$) and `total`.

    Raises:
        ValueError: If `threshold` or `ramp_length` is outside [0, 1], or `alpha` is not above 0.

    Reference:
        Verma, Lamb, Kannala, Bengio, Lopez-Paz, "Interpolation Consistency Training for Semi-Supervised Learning",
        IJCAI 2019; for segmentation French et al., "Semi-supervised semantic segmentation needs strong, varied
        perturbations", BMVC 2020 (github.com/Britefury/cutmix-semisup-seg).

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> method = ICT(GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3)))
        >>> x_l, y_l, x_u = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)), torch.randn(4, 3, 64, 64)
        >>> sorted(method(x_l, y_l, x_u, progress=0.5))
        ['supervised', 'total', 'unsupervised']
    """

    multilabel = True

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        unsupervised: float = 0.01,
        alpha: float = 0.1,
        threshold: float = 0.97,
        decay: float = 0.99,
        ramp_length: float = 0.25,
        mean: Sequence[float] | float = (0.485, 0.456, 0.406),
        std: Sequence[float] | float = (0.229, 0.224, 0.225),
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(net, supervised=supervised, ignore_index=ignore_index, threshold=threshold)
        check_positive("alpha", alpha)
        check_weight("unsupervised", unsupervised)
        check_unit_interval("ramp_length", ramp_length)
        self.teacher = EMATeacher(net, decay)
        self.color = StrongColor(strength=0.4, mean=mean, std=std)
        self.weight = unsupervised
        self.alpha = alpha
        self.ramp_length = ramp_length

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the supervised loss, and the squared error on the mixed images."""
        x_labeled, y_labeled, x_unlabeled, progress, _, generator = step
        n, m, device = len(x_labeled), len(x_unlabeled), x_unlabeled.device
        lam = G.sample_lambda(m, alpha=self.alpha, generator=generator, device=device)

        def mixed(values: Tensor) -> Tensor:
            return G.mix(values.roll(1, 0), values, lam)

        view = mixed(self.color(x_unlabeled, generator))
        with torch.no_grad():
            probs = G.probabilities(self.teacher.net(x_unlabeled))
        inside = inside_of(step)
        inside = inside & inside.roll(1, 0)
        sure = mixed(G.most_probable(probs)[0]) >= self.threshold
        share = (sure & inside).sum() / inside.sum().clamp(min=1)
        labeled, unlabeled = torch.split(self.net(torch.cat([x_labeled, view])), [n, m])
        supervised = self.supervised(labeled, y_labeled)
        error = G.squared_error(G.probabilities(unlabeled), mixed(probs), valid=inside)
        unsupervised = share * error
        omega = G.ramp_up(progress, self.ramp_length)
        total = supervised + self.weight * omega * unsupervised
        return {"supervised": supervised, "unsupervised": unsupervised, "total": total}
