"""Losses of labeled images besides cross-entropy, and class weights; all are 0, not NaN, if no pixel has a class."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gmix.functional.losses import cross_entropy_per_pixel, mean_of_labeled
from gmix.functional.masks import of_all_classes, probabilities
from gmix.functional.shapes import class_targets

__all__ = ["balanced_weights", "dice_loss", "focal_loss", "lovasz_softmax", "ohem_cross_entropy"]


def balanced_weights(pixels: Tensor, *, cap: float = 10.0) -> Tensor:
    r"""Compute class weights from how frequent the classes are: $w_k = \min(c, 1 / (K' \pi_k))$.

    $\pi_k$ is the share of class k among all labeled pixels, and $K'$ the number of classes that occur. Without the
    cap $c$, each class has the same share of the loss; with it, a class of a few pixels does not outweigh all others.
    A class that does not occur has the weight 1; no labeled pixel uses it.

    Args:
        pixels: `(K,)`: the number of labeled pixels of each class; two in the binary case.
        cap: $c$, above 0.

    Returns:
        A float32 tensor `(K,)`.

    Raises:
        ValueError: If `cap` is not above 0, or no class has a pixel.

    Reference:
        Inverse frequency as scikit-learn's `class_weight="balanced"`; the cap is ours.

    Examples:
        >>> balanced_weights(torch.tensor([900, 90, 10, 0]))
        tensor([ 0.3704,  3.7037, 10.0000,  1.0000])
    """
    if not cap > 0:
        raise ValueError(f"`cap` must be above 0, got {cap}")
    occurring = pixels > 0
    if not occurring.any():
        raise ValueError("class weights need labeled pixels: no pixel has a class")
    shares = pixels.double() / pixels.sum()
    weights = (1 / (occurring.sum() * shares)).clamp(max=cap)
    return torch.where(occurring, weights, 1.0).float()


def ohem_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    threshold: float = 0.7,
    min_kept: float = 0.1,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
) -> Tensor:
    r"""Compute the cross-entropy of the hard pixels alone (online hard example mining).

    $$\frac{1}{|S|} \sum_{p \in S} -\log \hat y_{p, y_p}, \qquad
    S = \{p \in \Omega : \hat y_{p, y_p} \le \max(\theta, t_m)\}$$

    $\Omega$ are the pixels of the batch that have a class, and $t_m$ is the m-th smallest probability $\hat y_{p, y_p}$
    among them: at least m pixels are learned, and pixels as hard as the m-th are, too. If fewer than m pixels have a
    class, all are learned. With class weights the mean is weighted; they do not decide which pixels are hard.

    Args:
        logits: `(N, K, H, W)`; K = 1 is binary, one sigmoid channel.
        target: `(N, H, W)` of any integer type, in `[0, K)` (`{0, 1}` if binary) or `ignore_index`.
        threshold: $\theta$, in (0, 1]: pixels are hard whose class has at most this probability.
        min_kept: m, above 0: a number of pixels, or below 1 their share of $\Omega$, which means the same for every
            crop and batch size. The authors give 50,000 pixels per crop of 800 x 800 (CPS, a share of 0.08) and 100,000
            for one of 769 x 769 (UniMatch, 0.17), both on Cityscapes.
        class_weights: `(max(K, 2),)`, optional: the weight of each class, above 0.
        ignore_index: The value of pixels without a class.

    Returns:
        A float32 scalar.

    Raises:
        TypeError: If `target` is no tensor of an integer type.
        ValueError: If the shapes or, on a CPU, the values of `target` do not fit, `threshold` is outside (0, 1], or
            `min_kept` is not above 0.

    Reference:
        Shrivastava et al., "Training Region-based Object Detectors with Online Hard Example Mining", CVPR 2016;
        `ProbOhemCrossEntropy2d` of TorchSemiSeg (CPS), as in UniMatch.

    Examples:
        >>> logits = torch.tensor([3.0, 1.0, -1.0]).view(1, 1, 1, 3)  # probabilities 0.95, 0.73, 0.27
        >>> ohem_cross_entropy(logits, torch.ones(1, 1, 3).long(), min_kept=1)
        tensor(1.3133)
        >>> ohem_cross_entropy(logits, torch.ones(1, 1, 3).long(), min_kept=2)
        tensor(0.8133)
    """
    check_hard(threshold, min_kept)
    target = class_targets(logits, target, ignore_index)
    loss, keep = cross_entropy_per_pixel(logits, target, ignore_index=ignore_index)
    # The losses rank pixels as their probabilities do, and do not saturate. Ignored pixels are last: where fewer
    # pixels have a class than must be kept, the bound is -inf.
    ranked = loss.detach().masked_fill(~keep, -math.inf).flatten().sort(descending=True).values
    share = min_kept < 1
    least = (
        (keep.sum() * min_kept).ceil().long() if share else torch.full_like(keep.sum(), min_kept)
    )
    bound = ranked.gather(0, least.clamp(1, ranked.numel()).view(1) - 1)
    hard = keep & (loss.detach() >= bound.clamp(max=-math.log(threshold)))
    return mean_of_labeled(loss * hard, hard, logits, target, class_weights)


def check_hard(threshold: float, min_kept: float) -> None:
    """Refuse settings of `ohem_cross_entropy` that are out of range.

    Raises:
        ValueError: If one is.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"`threshold` must be in (0, 1], got {threshold}")
    if not 0 < min_kept < math.inf:
        raise ValueError(
            f"`min_kept` must be a number of pixels above 0, or below 1 a share of them, got {min_kept}"
        )


def focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    class_weights: Tensor | None = None,
    ignore_index: int = 255,
) -> Tensor:
    r"""Compute the mean of $-(1 - \hat y_{target})^\gamma \log \hat y_{target}$ over the pixels that have a class.

    The factor lowers the loss of pixels that are right already. With $\gamma = 0$ it is cross-entropy; with class
    weights (the paper's $\alpha_t$) the mean is weighted as there.

    `smp.losses.FocalLoss` is another loss: for K classes it is the mean of K binary losses, each of the *sigmoid* of a
    logit, while everything else here takes the softmax of the logits. If all pixels are ignored, it is NaN.

    Args:
        logits: `(N, K, H, W)`; K = 1 is binary, one sigmoid channel.
        target: `(N, H, W)` of any integer type, in `[0, K)` (`{0, 1}` if binary) or `ignore_index`.
        gamma: $\gamma$, at least 0.
        class_weights: `(max(K, 2),)`, optional: the weight of each class, above 0.
        ignore_index: The value of pixels without a class.

    Returns:
        A float32 scalar.

    Raises:
        TypeError: If `target` is no tensor of an integer type.
        ValueError: If the shapes or, on a CPU, the values of `target` do not fit, or `gamma` is negative.

    Reference:
        Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, Eq. 4.

    Examples:
        >>> focal_loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 255]]]))  # a quarter of log 2
        tensor(0.1733)
    """
    check_gamma(gamma)
    target = class_targets(logits, target, ignore_index)
    loss, keep = cross_entropy_per_pixel(logits, target, ignore_index=ignore_index)
    # The clamp gives a pixel that is learned perfectly the gradient 0, not 0 times infinity (gamma below 1).
    wrong = (-torch.expm1(-loss)).clamp(min=torch.finfo(torch.float32).tiny)
    return mean_of_labeled(loss * wrong**gamma, keep, logits, target, class_weights)


def check_gamma(gamma: float) -> None:
    """Refuse a negative exponent of `focal_loss`.

    Raises:
        ValueError: If it is negative, or no number.
    """
    if not 0 <= gamma < math.inf:
        raise ValueError(f"`gamma` must be at least 0, got {gamma}")


def dice_loss(logits: Tensor, target: Tensor, *, ignore_index: int = 255) -> Tensor:
    r"""Compute one minus the soft Dice coefficient of each class over the batch, averaged over the classes.

    $$\frac{1}{K} \sum_{k\,\mathrm{occurs}} \left(1 -
    \frac{2 \sum_{p \in \Omega} \hat y_{pk} [y_p = k]}{\sum_{p \in \Omega} \hat y_{pk} + [y_p = k]}\right)$$

    $\Omega$ are the pixels of the batch that have a class. This is `smp.losses.DiceLoss`, in float32. A class that no
    pixel of the batch has counts 0 in a mean over all K, so the loss is larger the more classes occur. K = 1 is the
    Dice loss of the foreground; a batch without foreground teaches nothing, so add cross-entropy.

    Args:
        logits: `(N, K, H, W)`; K = 1 is binary, one sigmoid channel.
        target: `(N, H, W)` of any integer type, in `[0, K)` (`{0, 1}` if binary) or `ignore_index`.
        ignore_index: The value of pixels without a class.

    Returns:
        A float32 scalar in [0, 1].

    Raises:
        TypeError: If `target` is no tensor of an integer type.
        ValueError: If the shapes do not fit, or, on a CPU, if `target` has other values.

    Reference:
        Milletari et al., "V-Net", 3DV 2016, without its squares, as in segmentation-models-pytorch.

    Examples:
        >>> dice_loss(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]]))
        tensor(0.5000)
    """
    target = class_targets(logits, target, ignore_index)
    from segmentation_models_pytorch.losses import (
        DiceLoss,
    )  # takes seconds, which only this loss needs

    dice = DiceLoss("binary" if logits.shape[1] == 1 else "multiclass", ignore_index=ignore_index)
    with torch.autocast(logits.device.type, enabled=False):
        loss: Tensor = dice(logits.float(), target)
        return loss


def lovasz_softmax(logits: Tensor, target: Tensor, *, ignore_index: int = 255) -> Tensor:
    r"""Compute the Lovász-Softmax loss: a surrogate of 1 - IoU, averaged over the classes that occur.

    With the errors $m_p = |[y_p = k] - \hat y_{pk}|$ of class k in descending order, and $J_i$ the Jaccard loss of the
    first i pixels being wrong, the loss of the class is

    $$\sum_i m_i (J_i - J_{i-1}), \qquad
    J_i = 1 - \frac{|F| - |F \cap \{1..i\}|}{|F \cup \{1..i\}|}, \quad F = \{p : y_p = k\}$$

    It is that of the batch, not of each image. K = 1 counts as two classes, and the value equals theirs.

    `smp.losses.LovaszLoss` has the same value for K classes in float32, but is no scalar if all pixels are ignored,
    fails with bfloat16 logits, and is the Lovász *hinge* if binary: that one is content with a logit of 1, a
    probability of 0.73, and no pseudo label would ever reach a threshold of 0.95.

    Args:
        logits: `(N, K, H, W)`; K = 1 is binary, one sigmoid channel.
        target: `(N, H, W)` of any integer type, in `[0, K)` (`{0, 1}` if binary) or `ignore_index`.
        ignore_index: The value of pixels without a class.

    Returns:
        A float32 scalar in [0, 1].

    Raises:
        TypeError: If `target` is no tensor of an integer type.
        ValueError: If the shapes do not fit, or, on a CPU, if `target` has other values.

    Reference:
        Berman, Rannen Triki, Blaschko, "The Lovász-Softmax loss", CVPR 2018, Eq. 8-12 and Algorithm 1.

    Examples:
        >>> lovasz_softmax(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]]))
        tensor(0.5000)
    """
    target = class_targets(logits, target, ignore_index)
    with torch.autocast(logits.device.type, enabled=False):
        probs = of_all_classes(probabilities(logits)).movedim(1, 0).flatten(1)
        keep, target = (target != ignore_index).flatten(), target.flatten()
        total, occurring = probs.new_zeros(()), probs.new_zeros(())
        for k, p in enumerate(probs):
            truth = keep & (target == k)
            size = truth.sum()
            # Ignored pixels are last, and their error is 0: the order before them is that without them.
            errors, order = ((truth.float() - p).abs() * keep).sort(descending=True)
            truth = truth[order]
            # Whole numbers are exact for any number of pixels, and on a GPU the same each time.
            missed, union = size - truth.cumsum(0), size + (~truth).cumsum(0)
            jaccard = 1 - missed / union.clamp(min=1)
            steps = torch.diff(jaccard, prepend=jaccard.new_zeros(1))
            occurs = (size > 0).float()
            total, occurring = total + occurs * (errors @ steps), occurring + occurs
        return total / occurring.clamp(min=1)
