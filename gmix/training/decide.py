"""The last change to a network before it is tested and saved: decisions for the best expected mIoU."""

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
"""Number of batches of unlabeled images that the decision is based on."""

PIXELS = 2**17
"""Largest number of pixels that the decision is based on, the same number from each batch."""


def decide_for_miou(net: GuidedMixNet, probs: Tensor) -> GuidedMixNet:
    """Copy a network so that its most probable class is the decision with the largest expected mIoU.

    The class biases ([`miou_biases`][gmix.functional.miou_biases]) are added to the bias of its last layer. They become
    part of the weights: code that saves, exports or predicts needs no change.

    Args:
        net: The network.
        probs: `(P, K)`, its probabilities of pixels of unlabeled images, from `unlabeled_pixels`.

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
    assert bias is not None  # SMP's heads have a bias
    with torch.no_grad():
        bias += biases[1:] - biases[:1] if net.classes == 1 else biases
    return decided


@torch.no_grad()
def unlabeled_pixels(net: GuidedMixNet, batches: Iterable[Batch], seed: int = 0) -> Tensor:
    """Predict the unchanged unlabeled images of some batches, and draw pixels from them.

    Args:
        net: The network; it runs in eval mode.
        batches: Batches on its device; padding is excluded.
        seed: Seed of the draw.

    Returns:
        `(P, max(K, 2))` probabilities, of at most 13,107 pixels per batch.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    with eval_mode(net):
        # Batch by batch: all pixels of all batches would take gigabytes for real images.
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
