"""Two students: what methods share that train a second network beside the one that is deployed."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from gmix.methods.method import Method
from gmix.nn.frozen import checksum
from gmix.nn.network import GuidedMixNet
from gmix.protocols import SupervisedLoss

__all__ = ["TwoStudents"]


class TwoStudents(Method):
    """Train a second network, `other`: a copy whose decoder and head are initialised again. The first is deployed.

    The first step copies the encoder again: weights that were loaded after the method was built reach both. A
    second student that was given its own weights keeps them.

    Args:
        net: The network to train.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method].
        ignore_index: Mask value without a class.
        threshold: Least confidence of a pseudo label that is learned.
    """

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
        threshold: float | None = None,
    ) -> None:
        super().__init__(net, supervised=supervised, ignore_index=ignore_index, threshold=threshold)
        self.other = copy.deepcopy(net)
        self.other.reset_decoder()
        self._as_made = checksum(start_of(self.other))

    def on_step_start(self, x_labeled: Tensor, y_labeled: Tensor) -> None:
        """Begin a step; before the first, copy the encoder to the second student."""
        first = self.step_started_at is None and not torch.compiler.is_compiling()
        super().on_step_start(x_labeled, y_labeled)
        # Unchanged since it was built: weights may have been loaded into the network since.
        if first and torch.equal(checksum(start_of(self.other)), self._as_made):
            start_of(self.other).load_state_dict(start_of(self.net).state_dict())


def start_of(student: GuidedMixNet) -> nn.ModuleList:
    """Collect the modules that both students start with: all but the decoder and the head."""
    parts: tuple[nn.Module | None, ...] = (student.model.encoder, student.mitrans)
    return nn.ModuleList(part for part in parts if part is not None)
