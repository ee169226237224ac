"""Mean Teacher: agree with an average of the network's own weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gmix import functional as G
from gmix.methods.method import Method, Step
from gmix.nn.ema import EMATeacher
from gmix.nn.losses import check_unit_interval, check_weight
from gmix.nn.network import GuidedMixNet
from gmix.nn.views import StrongColor
from gmix.protocols import SupervisedLoss

__all__ = ["MeanTeacher"]


class MeanTeacher(Method):
    r"""Learn, on a changed image, the prediction of an EMA teacher for the unchanged image.

    $$L = L_{sup} + w\,\omega(t)\,\lVert \hat y(\mathrm{view}(x_u)) - \hat y'(x_u) \rVert^2$$

    The paper disturbs both inputs with noise, shifts and flips. For segmentation the second view must not move pixels,
    so it changes colours strongly, as in the mean teacher that French et al. compare with.

    Args:
        net: The network to train.
        unsupervised: $w$.
        decay: Decay of the teacher.
        ramp_length: Share of the training during which $\omega$ rises to 1. The paper: 5 of 60 epochs.
        mean: Mean per channel that the images (in 0..1) were normalised with.
        std: Standard deviation per channel that they were normalised with. The strong colours (`color`) use both.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method].
        ignore_index: Mask value without a class.

    Returns:
        `supervised`, `unsupervised` and `total`.

    Raises:
        ValueError: If `ramp_length` is outside [0, 1].

    Reference:
        Tarvainen & Valpola, "Mean teachers are better role models", 2017; for segmentation French et al., 2020.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> method = MeanTeacher(GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3)))
        >>> x_l, y_l, x_u = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)), torch.randn(4, 3, 64, 64)
        >>> sorted(method(x_l, y_l, x_u, progress=0.5))
        ['supervised', 'total', 'unsupervised']
    """

    multilabel = True

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        unsupervised: float = 1.0,
        decay: float = 0.99,
        ramp_length: float = 0.08,
        mean: Sequence[float] | float = (0.485, 0.456, 0.406),
        std: Sequence[float] | float = (0.229, 0.224, 0.225),
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(net, supervised=supervised, ignore_index=ignore_index)
        self.teacher = EMATeacher(net, decay)
        self.color = StrongColor(mean=mean, std=std)
        check_weight("unsupervised", unsupervised)
        self.weight = unsupervised
        check_unit_interval("ramp_length", ramp_length)
        self.ramp_length = ramp_length

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the supervised loss, and the squared error against the teacher."""
        x_labeled, y_labeled, x_unlabeled, progress, valid, generator = step
        with torch.no_grad():
            target = G.probabilities(self.teacher.net(x_unlabeled))
        view = self.color(x_unlabeled, generator)
        logits = self.net(torch.cat([x_labeled, view]))
        labeled, unlabeled = torch.split(logits, [len(x_labeled), len(view)])
        supervised = self.supervised(labeled, y_labeled)
        unsupervised = G.squared_error(G.probabilities(unlabeled), target, valid=valid)
        omega = G.ramp_up(progress, self.ramp_length)
        total = supervised + self.weight * omega * unsupervised
        return {"supervised": supervised, "unsupervised": unsupervised, "total": total}
