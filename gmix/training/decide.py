"""The last thing done to a network before it is tested and saved: what its decisions are best for."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from gmix import functional as G
from gmix.data import Batch
from gmix.functional.masks import of_all_classes
from gmix.nn.modes import eval_mode
from gmix.nn.network import GuidedMixNet

__all__ = ["DECIDING", "decide_for_miou", "unlabeled_pixels"]

DECIDING = 10
"""Of how many batches of unlabeled images the decision is made."""

PIXELS = 2**17
"""Of at most so many pixels the decision is made, as many of each batch."""


def decide_for_miou(net: GuidedMixNet, probs: Tensor) -> GuidedMixNet:
    """Copy a network so that its most probable class is the decision of the largest expected mIoU.

    The class biases ([`miou_biases`][gmix.functional.miou_biases]) are added to the bias of its last layer. They are
    part of the weights, then: whatever saves, exports or predicts knows nothing of them.

    Args:
        net: The network.
        probs: `(P, K)` what it says of pixels of unlabeled images, as `unlabeled_pixels` gives them.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> net = GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=2))
        >>> probs = torch.tensor([[0.9, 0.1]] * 6 + [[0.55, 0.45]] * 4)
        >>> decided = decide_for_miou(net, probs)
        >>> (decided.last_layer.bias - net.last_layer.bias).tolist()
        [-0.5, 0.0]
    """
    biases = G.miou_biases(probs)
    decided = copy.deepcopy(net)
    bias = decided.last_layer.bias
    assert bias is not None  # SMP's heads have one
    with torch.no_grad():
        bias += biases[1:] - biases[:1] if net.classes == 1 else biases
    return decided


@torch.no_grad()
def unlabeled_pixels(net: GuidedMixNet, batches: Iterable[Batch], seed: int = 0) -> Tensor:
    """Predict the unlabeled images of some batches as they are, and draw pixels of them.

    Args:
        net: The network; it runs in eval mode.
        batches: On its device; padding is left out.
        seed: Of the draw.

    Returns:
        `(P, max(K, 2))` probabilities, of at most 13,107 pixels a batch.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    with eval_mode(net):
        # Batch by batch: all pixels of all batches would be gigabytes at real sizes.
        for probs in _pixels(net, batches):
            order = torch.randperm(len(probs), generator=generator)[: PIXELS // DECIDING]
            drawn.append(probs[order.to(probs.device)])
    return torch.cat(drawn)


def _pixels(net: GuidedMixNet, batches: Iterable[Batch]) -> Iterator[Tensor]:
    for batch in batches:
        x, valid = batch.x_unlabeled, batch.valid_unlabeled
        assert x is not None and valid is not None
        probs = of_all_classes(G.probabilities(net(x)))
        yield probs.permute(0, 2, 3, 1)[valid]
