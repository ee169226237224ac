"""Cross pseudo supervision: two students teach each other."""

from __future__ import annotations

import torch
from torch import Tensor

from gmix.methods.method import Step
from gmix.methods.students import TwoStudents
from gmix.nn.given import Options, make_part
from gmix.nn.losses import check_weight
from gmix.nn.modes import forget_casts
from gmix.nn.network import GuidedMixNet
from gmix.nn.pseudo import PseudoMask
from gmix.nn.views import CutMix
from gmix.protocols import BoxSampler, SupervisedLoss

__all__ = ["CPS"]

CUTMIX = {"p": 1.0, "area": (0.25, 0.5), "aspect": 2.0}


class CPS(TwoStudents):
    r"""Train two networks with different initialisations; each learns the other's labels, on all images.

    $$L = \sum_i L_{sup}(\hat y_i) + w \sum_{i \ne j} \mathrm{CE}(\hat y_i, \arg\max \hat y_j)$$

    With `cutmix`, each learns on pasted unlabeled images what the other predicts on the images that were pasted:

    $$L = \sum_i L_{sup}(\hat y_i) + w \sum_{i \ne j}
    \mathrm{CE}(\hat y_i(\mathrm{paste}(x_u)), \mathrm{paste}(\arg\max \hat y_j(x_u)))$$

    Labeled images then have no cross loss, as in the authors' code. The labels come from both networks in train mode,
    as there, without gradients. One box covers 25 % to 50 % of an image; theirs are three, together as large.

    The second student is a copy whose decoder and head are initialised again. The first is deployed.
    The first step copies the encoder again: weights that were loaded after the method was built reach both. A
    second student that was given its own weights keeps them, as one that is passed as `other` does.

    Args:
        net: The network to train.
        cross: $w$. By default that of the authors' code for VOC: 1.5, with `cutmix` 1. On Cityscapes: 6, with `cutmix`
            5.
        cutmix: Draws the boxes, a part or a mapping of its options, `{}` for those above; None pastes nothing.
        other: The second student, a network of other weights; None makes it. A model whose decoder cannot be
            initialised again needs it, and so does a network of your own.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method].
        ignore_index: Mask value without a class.

    Returns:
        `supervised` and `cross` (sums over both students) and `total`.

    Reference:
        Chen, Yuan, Zeng, Wang, "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision", CVPR 2021;
        https://github.com/charlesCXK/TorchSemiSeg.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> method = CPS(GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3)), cutmix={})
        >>> x_l, y_l, x_u = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)), torch.randn(4, 3, 64, 64)
        >>> sorted(method(x_l, y_l, x_u))
        ['cross', 'supervised', 'total']
    """

    multilabel = True
    needs_progress = False

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        cross: float | None = None,
        cutmix: BoxSampler | Options | None = None,
        other: GuidedMixNet | None = None,
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(net, other=other, supervised=supervised, ignore_index=ignore_index)
        self.cutmix: BoxSampler | None = None
        if cutmix is not None:
            self.cutmix = make_part("cutmix", CutMix, CUTMIX, cutmix)
        if cross is None:
            cross = 1.5 if cutmix is None else 1.0
        check_weight("cross", cross)
        self.weight = cross

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the supervised and the cross losses of both students."""
        x_labeled, y_labeled, x_unlabeled, _, valid, generator = step
        n = len(x_labeled)
        if self.cutmix is None:
            x = torch.cat([x_labeled, x_unlabeled])
            if valid is not None:
                valid = torch.cat([valid.new_ones(n, *valid.shape[1:]), valid])
            one, other = self.net(x), self.other(x)
            first, second = (PseudoMask.of(p, valid, self.ignore_index) for p in (one, other))
            crossed = one, other
        else:
            pasted = self.cutmix(x_unlabeled, generator)
            with torch.no_grad():
                told = self.net(x_unlabeled), self.other(x_unlabeled)
            forget_casts()
            pseudo = (PseudoMask.of(p, valid, self.ignore_index) for p in told)
            first, second = (p.paste(pasted) for p in pseudo)
            x = torch.cat([x_labeled, pasted.apply(x_unlabeled)])
            one, other = self.net(x), self.other(x)
            crossed = one[n:], other[n:]
        supervised = self.supervised(one[:n], y_labeled) + self.supervised(other[:n], y_labeled)
        cross = second.loss(crossed[0], ignore_index=self.ignore_index)
        cross = cross + first.loss(crossed[1], ignore_index=self.ignore_index)
        return {"supervised": supervised, "cross": cross, "total": supervised + self.weight * cross}
