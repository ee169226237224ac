"""Two students: what methods share that train a second network beside the one that is deployed."""

from __future__ import annotations

import copy

from torch import nn

from gmix.methods.method import Method
from gmix.nn.late import LateCopy
from gmix.nn.network import GuidedMixNet
from gmix.protocols import SupervisedLoss

__all__ = ["TwoStudents"]


class TwoStudents(Method):
    """Train a second network, `other`: a copy whose decoder and head are initialised again. The first is deployed.

    The first step copies the encoder again: weights that were loaded after the method was built reach both. A
    second student that was given its own weights keeps them, as one that is passed as `other` does.

    Args:
        net: The network to train.
        other: The second student, a network of other weights; None makes it. A model whose decoder cannot be
            initialised again needs it, and so does a network of your own.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method].
        ignore_index: Mask value without a class.
        threshold: Least confidence of a pseudo label that is learned.
    """

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        other: GuidedMixNet | None = None,
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
        threshold: float | None = None,
    ) -> None:
        super().__init__(net, supervised=supervised, ignore_index=ignore_index, threshold=threshold)
        self.other = self._second_student() if other is None else check_second(net, other)
        self._late = LateCopy(start_of(self.other)) if other is None else None

    def on_first_step(self) -> None:
        """Copy the encoder to the second student again."""
        if self._late is not None:
            self._late.repeat(start_of(self.other), start_of(self.net))

    def _second_student(self) -> GuidedMixNet:
        """Copy the network, and initialise the decoder of the copy again."""
        who = type(self).__name__
        pass_it = (
            f"pass a second network of other weights, {who}(net, other=GuidedMixNet(second_model))"
        )
        self.require("encoder", "mitrans", "reset_decoder", otherwise=pass_it)
        other = copy.deepcopy(self.net)
        try:
            other.reset_decoder()
        except ValueError as error:
            raise ValueError(f"{who} needs a second student, but {error}: {pass_it}") from error
        return other


def check_second(net: GuidedMixNet, other: GuidedMixNet) -> GuidedMixNet:
    """Refuse a second student that shares weights with the first, or has other classes.

    Raises:
        TypeError: If it is no network.
        ValueError: If it does.
    """
    if not isinstance(other, nn.Module):
        raise TypeError(f"`other` must be a second network, got {other!r}")
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
