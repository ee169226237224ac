"""Losses that are 0, not NaN, if no pixel counts, and the ramp of their weight (Eq. 1, 9, 10)."""

from __future__ import annotations

from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor

from gmix.functional.shapes import class_targets, per_pixel, same_shape, within

__all__ = [
    "cross_entropy",
    "cross_entropy_per_pixel",
    "mean_of_labeled",
    "ramp_up",
    "sigmoid_focal_loss",
    "soft_cross_entropy",
    "squared_error",
]


@overload
def ramp_up(progress: float, length: float = 1.0) -> float: ...
@overload
def ramp_up(progress: Tensor, length: float = 1.0) -> Tensor: ...
def ramp_up(progress: float | Tensor, length: float = 1.0) -> float | Tensor:
    r"""Compute the Gaussian ramp of Laine & Aila: $\exp(-5 (1 - t/T)^2)$, 1 from `length` on.

    Args:
        progress: The share of the training that is done, in [0, 1]. A tensor gives a tensor: `torch.compile`
            compiles one graph for all values of a tensor, but one graph for each number.
        length: The share of the training after which the ramp is 1; 0 switches the ramp off.

    Raises:
        ValueError: If `progress` is outside [0, 1]; tensors are not checked on a GPU or while compiling.

    Reference:
        Laine & Aila, "Temporal Ensembling for Semi-Supervised Learning", Sec. 3; GuidedMix-Net, Eq. 9.

    Examples:
        >>> [round(ramp_up(t, length=0.5), 4) for t in (0.0, 0.25, 0.5, 1.0)]
        [0.0067, 0.2865, 1.0, 1.0]
    """
    check_progress(progress)
    if isinstance(progress, Tensor):
        left = 1 - progress / length if length > 0 else torch.zeros_like(progress)
        return torch.exp(-5 * left.clamp(0, 1).square())
    if length <= 0:
        return 1.0
    return float(torch.e ** (-5 * (1 - min(progress / length, 1.0)) ** 2))


def check_progress(progress: float | Tensor) -> None:
    """Refuse a share of the training outside [0, 1]; tensors are not checked on a GPU or while compiling."""
    if isinstance(progress, Tensor) and not progress.dim():
        if torch.compiler.is_compiling() or progress.device.type != "cpu":
            return
        inside = bool((progress >= 0) & (progress <= 1))
    else:
        inside = within(progress, 0, 1)
    if not inside:
        raise ValueError(
            "`progress` is the share of the training that is done, in [0, 1]: pass step / steps, at most 1, "
            f"got {progress!r}"
        )


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
) -> Tensor:
    r"""Compute the mean of $-\log \hat y_{target}$ over the pixels that have a class; 0, not NaN, if none has.

    With class weights $w$ the mean is weighted, as in `torch.nn.CrossEntropyLoss(weight=w)`:

    $$\frac{\sum_{p \in \Omega} w_{y_p} (-\log \hat y_{p, y_p})}{\sum_{p \in \Omega} w_{y_p}}$$

    Args:
        logits: `(N, K, H, W)`; K = 1 is binary, one sigmoid channel.
        target: `(N, H, W)` of any integer type, in `[0, K)` (`{0, 1}` if binary) or `ignore_index`.
        weight: `(N, H, W)`, optional: the weight of each pixel. The mean is still over all pixels with a class, so
            weights lower the loss rather than shift it to other pixels.
        class_weights: `(max(K, 2),)`, optional: the weight of each class, above 0. They shift the loss to other pixels:
            the same factor on all of them changes nothing.
        ignore_index: The value of pixels without a class.

    Returns:
        A float32 scalar.

    Raises:
        TypeError: If `target` is no tensor of an integer type.
        ValueError: If the shapes do not fit, or, on a CPU, if `target` has other values.

    Reference:
        GuidedMix-Net, Eq. 1 (its printed arguments are swapped).

    Examples:
        >>> cross_entropy(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 255]]]))
        tensor(0.6931)
        >>> logits = torch.tensor([2.0, 2.0, 0.0, 0.0]).view(1, 2, 1, 2)  # class 0 is likely for both pixels
        >>> cross_entropy(logits, torch.tensor([[[0, 1]]]), class_weights=torch.tensor([1.0, 3.0]))
        tensor(1.6269)
    """
    target = class_targets(logits, target, ignore_index)
    loss, keep = cross_entropy_per_pixel(logits, target, ignore_index=ignore_index)
    if weight is not None:
        per_pixel(weight, logits, "weight")
        loss = loss * weight
    return mean_of_labeled(loss, keep, logits, target, class_weights)


def cross_entropy_per_pixel(
    logits: Tensor, target: Tensor, *, ignore_index: int = 255
) -> tuple[Tensor, Tensor]:
    r"""Compute $-\log \hat y_{target}$ of each pixel, 0 where there is no class, and which pixels have a class.

    Args:
        logits: `(N, K, H, W)`; K = 1 is binary, one sigmoid channel.
        target: `(N, H, W)` int64, as `class_targets` returns it: the losses that call this have checked it.
        ignore_index: The value of pixels without a class.

    Returns:
        The losses `(N, H, W)`, float32, and `(N, H, W)` bool.

    Examples:
        >>> losses, labeled = cross_entropy_per_pixel(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 255]]]))
        >>> losses, labeled
        (tensor([[[0.6931, 0.0000]]]), tensor([[[ True, False]]]))
    """
    with torch.autocast(logits.device.type, enabled=False):
        keep = target != ignore_index
        if logits.shape[1] == 1:
            loss = F.binary_cross_entropy_with_logits(
                logits[:, 0].float(), (target == 1).float(), reduction="none"
            )
            return loss.masked_fill(~keep, 0.0), keep
        loss = F.cross_entropy(logits.float(), target, reduction="none", ignore_index=ignore_index)
        return loss, keep


def mean_of_labeled(
    loss: Tensor, keep: Tensor, logits: Tensor, target: Tensor, class_weights: Tensor | None
) -> Tensor:
    r"""Average the losses of the pixels that count, weighted by their class; 0 if none counts.

    Args:
        loss: `(N, H, W)` float32: the losses; 0 where there is no class.
        keep: `(N, H, W)` bool: the pixels that count; all of them have a class.
        logits: `(N, K, H, W)`, for their K.
        target: `(N, H, W)` int64.
        class_weights: `(max(K, 2),)`; None is a weight of 1 for each class.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: If there is not one weight per class.

    Examples:
        >>> loss, target = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[0, 1]]])
        >>> mean_of_labeled(loss, target < 2, torch.zeros(1, 2, 1, 2), target, torch.tensor([3.0, 1.0]))
        tensor(1.5000)
    """
    if class_weights is None:
        return loss.sum() / keep.sum().clamp(min=1)
    classes = max(logits.shape[1], 2)
    if class_weights.shape != (classes,):
        raise ValueError(
            f"`class_weights` must hold one weight per class, shape ({classes},), got {tuple(class_weights.shape)}"
        )
    weights = class_weights.float()[target.masked_fill(~keep, 0)] * keep
    return (loss * weights).sum() / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)


def soft_cross_entropy(logits: Tensor, target: Tensor, *, weight: Tensor | None = None) -> Tensor:
    r"""Compute the mean over pixels of $-\sum_k q_k \log \hat y_k$: cross-entropy against a distribution.

    Unlike its most probable class, the distribution $q$ keeps the evidence of a pseudo mask for rare classes.

    Args:
        logits: `(N, K, H, W)`; K = 1 is binary, one sigmoid channel.
        target: `(N, K, H, W)` probabilities; the caller detaches pseudo masks.
        weight: `(N, H, W)`, optional: the weight of each pixel, for instance 0 on padding. The mean is over all pixels.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: If the shapes do not fit.

    Examples:
        >>> soft_cross_entropy(torch.zeros(1, 2, 1, 1), torch.tensor([[[[0.3]], [[0.7]]]]))
        tensor(0.6931)
    """
    same_shape(logits, target, "`logits` and `target`", "(N, K, H, W)")
    if weight is not None:
        per_pixel(weight, logits, "weight")
    with torch.autocast(logits.device.type, enabled=False):
        logits, target = logits.float(), target.float()
        if logits.shape[1] == 1:
            loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")[:, 0]
        else:
            loss = F.cross_entropy(logits, target, reduction="none")
        return (loss if weight is None else loss * weight).mean()


def sigmoid_focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    ignore_index: int = 255,
) -> Tensor:
    r"""Compute a binary focal loss of the sigmoid of each logit, mean over classes and pixels.

    $$-\frac{1}{2K} \sum_k (1 - q_k)^\gamma \log q_k, \qquad q_k = \sigma(l_k) \text{ if } k = y,
    \text{ else } 1 - \sigma(l_k)$$

    The half is the $\alpha$ of Lin et al., the same for both answers. `focal_loss` is the usual one, of the softmax.

    Args:
        logits: `(N, K, H, W)`.
        target: `(N, H, W)` of any integer type, in `[0, K)` (`{0, 1}` if K = 1) or `ignore_index`.
        gamma: $\gamma$, at least 0.
        weight: `(N, H, W)`, optional: the weight of each pixel. The mean is still over all pixels with a class.
        ignore_index: The value of pixels without a class.

    Returns:
        A float32 scalar; 0 if no pixel has a class.

    Raises:
        TypeError: If `target` is no tensor of an integer type.
        ValueError: If the shapes do not fit, or, on a CPU, if `target` has other values.

    Reference:
        Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017; `FocalLoss` of mmsegmentation, with which
        GuidedMix-Net was released.

    Examples:
        >>> sigmoid_focal_loss(torch.zeros(1, 3, 1, 2), torch.tensor([[[0, 255]]]))  # an eighth of log 2
        tensor(0.0866)
    """
    target = class_targets(logits, target, ignore_index)
    with torch.autocast(logits.device.type, enabled=False):
        keep = target != ignore_index
        first = 1 if logits.shape[1] == 1 else 0
        classes = torch.arange(first, first + logits.shape[1], device=logits.device)
        answer = (target[:, None] == classes[:, None, None]).float()
        loss = F.binary_cross_entropy_with_logits(logits.float(), answer, reduction="none")
        # The clamp gives a perfect answer the gradient 0, not 0 times infinity (gamma below 1).
        wrong = (-torch.expm1(-loss)).clamp(min=torch.finfo(torch.float32).tiny)
        pixels = (loss * wrong**gamma).mean(1) / 2 * keep
        if weight is not None:
            per_pixel(weight, logits, "weight")
            pixels = pixels * weight
        return pixels.sum() / keep.sum().clamp(min=1)


def squared_error(probs: Tensor, target: Tensor, *, valid: Tensor | None = None) -> Tensor:
    r"""Compute the squared error, summed over classes and averaged over pixels.

    $$\frac{1}{|\Omega|} \sum_{p \in \Omega} \lVert \hat y_p - y_p \rVert^2$$

    `torch.nn.functional.mse_loss` also divides by K: this is K times that value. In the binary case the implied
    background channel counts too, so the value equals that of the two-class case.

    Args:
        probs: `(N, K, H, W)` probabilities.
        target: `(N, K, H, W)` probabilities; the caller detaches pseudo masks.
        valid: `(N, H, W)` bool, optional: the pixels $\Omega$ that count; by default all.

    Returns:
        A float32 scalar; 0 if no pixel counts.

    Raises:
        ValueError: If the shapes differ.

    Reference:
        GuidedMix-Net, Eq. 10.

    Examples:
        >>> squared_error(torch.tensor([[[[1.0]], [[0.0]]]]), torch.tensor([[[[0.0]], [[1.0]]]]))
        tensor(2.)
    """
    same_shape(probs, target, "`probs` and `target`", "(N, K, H, W)")
    if valid is not None:
        per_pixel(valid, probs, "valid")
    with torch.autocast(probs.device.type, enabled=False):
        error = (probs.float() - target.float()).square().sum(1)
        if probs.shape[1] == 1:
            error = 2 * error
        if valid is None:
            return error.mean()
        return (error * valid).sum() / valid.sum().clamp(min=1)
