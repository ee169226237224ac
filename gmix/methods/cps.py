"""Cross pseudo supervision: two students teach each other."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from gmix.methods.method import Method, Step
from gmix.nn.frozen import checksum
from gmix.nn.losses import check_weight
from gmix.nn.network import GuidedMixNet
from gmix.nn.pseudo import PseudoMask
from gmix.protocols import SupervisedLoss

__all__ = ["CPS"]


class CPS(Method):
    r"""Train two networks with different initialisations; each learns the other's labels, on all images.

    $$L = \sum_i L_{sup}(\hat y_i) + w \sum_{i \ne j} \mathrm{CE}(\hat y_i, \arg\max \hat y_j)$$

    The second student is a copy whose decoder and head are initialised again. The first is deployed. The authors'
    variant with CutMix is not implemented.
    The first step copies the encoder again: weights that were loaded after the method was built reach both. A
    second student that was given its own weights keeps them, as one that is passed as `other` does.

    Args:
        net: The network to train.
        cross: $w$; 1.5 on VOC, 6 on Cityscapes.
        other: The second student, a network of other weights; None makes it. A model whose decoder cannot be
            initialised again needs it, and so does a network of your own.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method].
        ignore_index: Mask value without a class.

    Returns:
        `supervised` and `cross` (sums over both students) and `total`.

    Reference:
        Chen, Yuan, Zeng, Wang, "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision", CVPR 2021.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> method = CPS(GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3)))
        >>> x_l, y_l, x_u = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)), torch.randn(4, 3, 64, 64)
        >>> sorted(method(x_l, y_l, x_u))
        ['cross', 'supervised', 'total']
    """

    needs_progress = False

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        cross: float = 1.5,
        other: GuidedMixNet | None = None,
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(net, supervised=supervised, ignore_index=ignore_index)
        check_weight("cross", cross)
        self.weight = cross
        self.other = second_student(self, net) if other is None else check_second(net, other)
        self._as_made = checksum(start_of(self.other)) if other is None else None

    def on_step_start(self, x_labeled: Tensor, y_labeled: Tensor) -> None:
        """Begin a step; before the first, copy the encoder to the second student."""
        first = self.step_started_at is None and not torch.compiler.is_compiling()
        super().on_step_start(x_labeled, y_labeled)
        # Unchanged since it was built: weights may have been loaded into the network since.
        made = self._as_made
        if first and made is not None and torch.equal(checksum(start_of(self.other)), made):
            start_of(self.other).load_state_dict(start_of(self.net).state_dict())

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the supervised and the cross losses of both students."""
        x_labeled, y_labeled, x_unlabeled, _, valid, _ = step
        x, n = torch.cat([x_labeled, x_unlabeled]), len(x_labeled)
        if valid is not None:
            valid = torch.cat([valid.new_ones(n, *x.shape[2:]), valid])
        one, other = self.net(x), self.other(x)
        supervised = self.supervised(one[:n], y_labeled) + self.supervised(other[:n], y_labeled)
        first, second = (PseudoMask.of(p, valid, self.ignore_index) for p in (one, other))
        cross = second.loss(one, ignore_index=self.ignore_index)
        cross = cross + first.loss(other, ignore_index=self.ignore_index)
        return {"supervised": supervised, "cross": cross, "total": supervised + self.weight * cross}


def second_student(method: CPS, net: GuidedMixNet) -> GuidedMixNet:
    """Copy a network, and initialise its decoder again.

    Raises:
        TypeError: If the network is no GuidedMixNet.
        ValueError: If its decoder cannot be initialised again.
    """
    pass_it = "pass a second network of other weights, CPS(net, other=GuidedMixNet(second_model))"
    method.require("encoder", "mitrans", "reset_decoder", otherwise=pass_it)
    other = copy.deepcopy(net)
    try:
        other.reset_decoder()
    except ValueError as error:
        raise ValueError(f"CPS needs a second student, but {error}: {pass_it}") from error
    return other


def check_second(net: GuidedMixNet, other: GuidedMixNet) -> GuidedMixNet:
    """Refuse a second student that shares weights with the first, or has other classes.

    Raises:
        ValueError: If it does.
    """
    own = {id(p) for p in net.parameters()}
    if any(id(p) in own for p in other.parameters()):
        raise ValueError("`other` must be a second network, got one that shares weights with `net`")
    if other.classes != net.classes:
        raise ValueError(f"`other` must have {net.classes} classes, got {other.classes}")
    return other


def start_of(student: GuidedMixNet) -> nn.ModuleList:
    """Collect the modules that both students start with: all but the decoder and the head."""
    parts: tuple[nn.Module | None, ...] = (student.encoder, student.mitrans)
    return nn.ModuleList(part for part in parts if part is not None)
