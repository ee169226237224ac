"""Masks as probabilities, as classes, and as counts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gmix.functional.shapes import (
    check_classes_on_cpu,
    check_ignore_index,
    check_integers,
    class_targets,
    same_shape,
)

__all__ = [
    "certainty",
    "fill_in",
    "most_probable",
    "pixels_of_classes",
    "present_classes",
    "probabilities",
    "reweigh",
]


def probabilities(logits: Tensor) -> Tensor:
    """Compute class probabilities in float32: softmax over K channels, sigmoid for one.

    Examples:
        >>> probabilities(torch.zeros(1, 2, 1, 1)).flatten()
        tensor([0.5000, 0.5000])
    """
    return logits.float().sigmoid() if logits.shape[1] == 1 else logits.float().softmax(1)


def fill_in(probs: Tensor, mask: Tensor, ignore_index: int = 255) -> Tensor:
    """Turn a mask into probabilities: one-hot where it has a class, `probs` where it has none.

    Args:
        probs: `(N, K, H, W)` probabilities; K = 1 holds the foreground.
        mask: `(N, H, W)`, of any integer type.
        ignore_index: The value of pixels without a class.

    Raises:
        TypeError: If `mask` is no tensor of an integer type.
        ValueError: If the shapes do not fit, or, on a CPU, if `mask` has other values.

    Examples:
        >>> p = torch.full((1, 2, 1, 2), 0.5)
        >>> fill_in(p, torch.tensor([[[1, 255]]])).tolist()
        [[[[0.0, 0.5]], [[1.0, 0.5]]]]
    """
    mask = class_targets(probs, mask, ignore_index, ("mask", "probs"))
    classes = torch.arange(probs.shape[1], device=probs.device).view(1, -1, 1, 1)
    if probs.shape[1] == 1:
        classes = classes + 1
    mask = mask.unsqueeze(1)
    return torch.where(mask == ignore_index, probs, (mask == classes).to(probs.dtype))


def of_all_classes(probs: Tensor) -> Tensor:
    """Return `(N, max(K, 2), H, W)` probabilities: in the binary case, add the background as first channel.

    Examples:
        >>> of_all_classes(torch.tensor([0.25]).view(1, 1, 1, 1)).flatten().tolist()
        [0.75, 0.25]
    """
    return torch.cat([1 - probs, probs], 1) if probs.shape[1] == 1 else probs


def most_probable(probs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the confidence and class of each pixel: `(N, K, H, W)` -> two `(N, H, W)`; K = 1 is the foreground.

    Examples:
        >>> confidence, labels = most_probable(torch.tensor([0.2, 0.8]).view(1, 2, 1, 1))
        >>> confidence.item(), labels.item()
        (0.800000011920929, 1)
        >>> confidence, labels = most_probable(torch.tensor([0.25]).view(1, 1, 1, 1))
        >>> confidence.item(), labels.item()
        (0.75, 0)
    """
    confidence, labels = of_all_classes(probs).max(1)
    return confidence, labels


def certainty(probs: Tensor) -> Tensor:
    r"""Compute the certainty of each pixel: $1 - H(p) / \log K$.

    It is 1 if a class has probability 1, and 0 if all classes are equally probable. Unlike the probability of the most
    probable class, it distinguishes two possible classes from many.

    Args:
        probs: `(N, K, H, W)` probabilities; K = 1 holds the foreground.

    Returns:
        A float32 tensor `(N, H, W)` with values in [0, 1].

    Examples:
        >>> certainty(torch.tensor([[1.0, 0.5, 0.25], [0.0, 0.5, 0.75]]).view(1, 2, 1, 3)).flatten()
        tensor([1.0000, 0.0000, 0.1887])
    """
    probs = probs.float()
    entropy: Tensor = torch.special.entr(probs).sum(1)
    if probs.shape[1] == 1:
        entropy = entropy + torch.special.entr(1 - probs[:, 0])
    return (1 - entropy / math.log(max(probs.shape[1], 2))).clamp(0, 1)


def reweigh(probs: Tensor, weights: Tensor) -> Tensor:
    r"""Multiply class probabilities by weights and normalise: $P'_k = w_k P_k / \sum_i w_i P_i$.

    Args:
        probs: `(N, K, H, W)` probabilities; K = 1 holds the foreground.
        weights: `(N, max(K, 2), H, W)`, positive; in the binary case background, foreground.

    Returns:
        A float32 tensor `(N, K, H, W)`, a distribution per pixel. Its sum is below 1, at worst 0, where float32 cannot
        hold the products.

    Raises:
        ValueError: If the shapes do not fit.

    Examples:
        >>> reweigh(torch.tensor([0.5, 0.5]).view(1, 2, 1, 1), torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)).flatten()
        tensor([0.2500, 0.7500])
    """
    binary = probs.shape[1] == 1
    probs = of_all_classes(probs.float())
    same_shape(probs, weights, "`probs` and `weights`", "(N, max(K, 2), H, W)")
    weighed = probs * weights
    weighed = weighed / weighed.sum(1, keepdim=True).clamp(min=torch.finfo(weighed.dtype).tiny)
    return weighed[:, 1:] if binary else weighed


def present_classes(mask: Tensor, classes: int, *, ignore_index: int = 255) -> Tensor:
    """Find the classes that occur in each mask: the multi-label target of the image-level classifier.

    Args:
        mask: `(N, H, W)`, of any integer type.
        classes: Number of logit channels K; with 1 (binary) the only entry says whether class 1 occurs.
        ignore_index: The value of pixels without a class.

    Returns:
        A float32 tensor `(N, K)` of zeros and ones.

    Raises:
        TypeError: If `mask` is no tensor of an integer type.
        ValueError: If 255 is both a class and `ignore_index`, or, on a CPU, if `mask` has other values.

    Reference:
        GuidedMix-Net, Sec. 3.1.1.

    Examples:
        >>> present_classes(torch.tensor([[[0, 2, 255]]]), classes=4)
        tensor([[1., 0., 1., 0.]])
    """
    check_ignore_index(classes, ignore_index)
    check_integers("mask", mask)
    mask = mask.long()
    check_classes_on_cpu("mask", mask, max(classes, 2), ignore_index)
    # An extra slot collects ignored pixels, so that no shape depends on the data.
    n_slots = max(classes, 2) + 1
    slots = torch.where(mask == ignore_index, n_slots - 1, mask).flatten(1)
    present = torch.zeros(len(mask), n_slots, device=mask.device).scatter_(1, slots, 1.0)
    return present[:, 1:2] if classes == 1 else present[:, :classes]


def pixels_of_classes(mask: Tensor, classes: int) -> Tensor:
    """Count the pixels of each class over all masks; other values (255) are not counted.

    Args:
        mask: Any shape, of any integer type.
        classes: Number of classes; 2 in the binary case.

    Returns:
        An int64 tensor `(classes,)`.

    Raises:
        TypeError: If `mask` is no tensor of an integer type.

    Examples:
        >>> pixels_of_classes(torch.tensor([[[0, 2, 2, 255]]]), classes=3)
        tensor([1, 0, 2])
    """
    check_integers("mask", mask)
    mask = mask.long()  # the counts may not fit the caller's type
    # An extra slot collects pixels without a class, so that no shape depends on the data.
    slots = torch.where((mask >= 0) & (mask < classes), mask, classes).flatten()
    return slots.new_zeros(classes + 1).scatter_add_(0, slots, torch.ones_like(slots))[:classes]
