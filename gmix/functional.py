"""The maths of GuidedMix-Net as pure functions: no state, no modules, no randomness but what is passed in.

Shapes: images `(N, C, H, W)`, masks `(N, H, W)` int64, scores `(N, K, H, W)`, lambda `(N,)`. `K = 1` is the
binary case: one channel, the foreground. `probs` are probabilities, `logits` raw scores.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "cross_entropy",
    "decouple",
    "fill_in",
    "mix",
    "most_probable",
    "nearest",
    "pixels_of_classes",
    "present_classes",
    "probabilities",
    "ramp_up",
    "reweigh",
    "sample_lambda",
    "soft_cross_entropy",
    "squared_error",
]

Metric = Literal["euclidean", "cosine"]
Mode = Literal["soft", "hard"]
Normalize = Literal["none", "rescale", "renormalize"]


def _same_shape(a: Tensor, b: Tensor, names: str, shape: str) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"{names} must have the same shape {shape}, got {tuple(a.shape)} and {tuple(b.shape)}"
        )


def _per_image(values: Tensor, like: Tensor, name: str = "lam") -> Tensor:
    """`(N,)` -> `(N, 1, 1, 1)`, in the type of `like`."""
    if values.shape != like.shape[:1]:
        raise ValueError(
            f"`{name}` must hold one value per image, shape ({like.shape[0]},), "
            f"got {tuple(values.shape)}"
        )
    return values.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def _per_pixel(values: Tensor, scores: Tensor, name: str) -> None:
    expected = (scores.shape[0], *scores.shape[2:])
    if values.shape != expected:  # broadcasting would weigh the wrong pixels without a word
        raise ValueError(
            f"`{name}` must have shape {expected}, one value per pixel, got {tuple(values.shape)}"
        )


def sample_lambda(
    n: int,
    *,
    alpha: float = 1.0,
    max_lambda: float = 0.5,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Draw the weight of the labeled image, one value per image.

    $\lambda = 2c \min(b, 1-b)$ with $b \sim \mathrm{Beta}(\alpha, \alpha)$ and $c$ = `max_lambda`. At
    `alpha=1` this is uniform on $[0, c]$: the distribution of redrawing until below $c$ ("$\lambda < c$" in
    the paper's tables), without a loop.

    Args:
        n: Number of values.
        alpha: Parameter of the Beta distribution, above 0.
        max_lambda: The cap $c$, in (0, 0.5]: the unlabeled image always dominates.
        generator: Source of randomness, on `device`.
        device: Where the values are made.

    Returns:
        float32 tensor `(n,)` with values in `[0, max_lambda]`.

    Raises:
        ValueError: `alpha` or `max_lambda` out of range.

    Reference:
        GuidedMix-Net, Sec. 3.1, Eq. 2.

    Examples:
        >>> g = torch.Generator().manual_seed(0)
        >>> sample_lambda(3, max_lambda=0.3, generator=g)
        tensor([0.2978, 0.1391, 0.0531])
    """
    if alpha <= 0:
        raise ValueError(f"`alpha` must be above 0, got {alpha}")
    if not 0 < max_lambda <= 0.5:
        raise ValueError(f"`max_lambda` must be in (0, 0.5], got {max_lambda}")
    if alpha == 1.0:
        b = torch.rand(n, generator=generator, device=device)
    else:
        # torch.distributions takes no generator; a Beta is the share of one of two Gammas.
        gammas = torch._standard_gamma(
            torch.full((2, n), alpha, device=device), generator=generator
        )
        b = gammas[0] / gammas.sum(0).clamp(min=torch.finfo(gammas.dtype).tiny)
    return 2 * max_lambda * torch.minimum(b, 1 - b)


def mix(labeled: Tensor, unlabeled: Tensor, lam: Tensor) -> Tensor:
    r"""Mix two batches of images: $x_{mix} = \lambda x_l + (1 - \lambda) x_u$.

    Lambda weighs the **labeled** image (other libraries weigh the first argument of their mixup with
    $1-\lambda$). Written as an interpolation from `unlabeled`, so that lambda 0 returns it bit for bit.

    Args:
        labeled: `(N, C, H, W)`, the reference.
        unlabeled: `(N, C, H, W)`, the image to learn about.
        lam: `(N,)`, in [0, 1].

    Returns:
        `(N, C, H, W)`; the inputs are left as they are.

    Raises:
        ValueError: The shapes differ, or `lam` is not one value per image.

    Reference:
        GuidedMix-Net, Eq. 2.

    Examples:
        >>> mix(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), torch.tensor([0.25]))
        tensor([[[[0.2500, 0.2500]]]])
    """
    _same_shape(labeled, unlabeled, "`labeled` and `unlabeled`", "(N, C, H, W)")
    return torch.lerp(unlabeled, labeled, _per_image(lam, unlabeled))


def nearest(
    query: Tensor,
    key: Tensor,
    *,
    metric: Metric = "euclidean",
    exclude_self: bool = False,
) -> Tensor:
    r"""For each query, the index of the closest key: $j(i) = \arg\min_j d(q_i, k_j)$.

    Args:
        query: `(N, D)` embeddings, of the unlabeled images.
        key: `(M, D)` embeddings, of the labeled images. A key may be chosen by many queries.
        metric: `"euclidean"` (the paper) or `"cosine"`.
        exclude_self: `query` and `key` are the same images, and none may choose itself (Eq. 11).

    Returns:
        int64 tensor `(N,)` with values in `[0, M)`. No gradient flows.

    Raises:
        ValueError: The embeddings differ in length, there is no key, or `exclude_self` is asked of two sets of
            different sizes or of a single image.

    Reference:
        GuidedMix-Net, Sec. 3.1.1, Eq. 3.

    Examples:
        >>> nearest(torch.tensor([[0.0], [5.0]]), torch.tensor([[4.0], [1.0]]))
        tensor([1, 0])
    """
    if query.dim() != 2 or key.dim() != 2 or query.shape[1] != key.shape[1] or not len(key):
        raise ValueError(
            "`query` (N, D) and `key` (M, D), M > 0, must be embeddings of one length, "
            f"got {tuple(query.shape)} and {tuple(key.shape)}"
        )
    if exclude_self and (len(query) != len(key) or len(key) < 2):
        raise ValueError(
            "`exclude_self` needs `query` and `key` to be the same two or more images, "
            f"got {len(query)} and {len(key)}"
        )
    query, key = query.detach().float(), key.detach().float()
    if metric == "cosine":
        query, key = F.normalize(query, dim=1), F.normalize(key, dim=1)
    elif metric != "euclidean":
        raise ValueError(f"`metric` must be 'euclidean' or 'cosine', got {metric!r}")
    # Not through a matrix product: its cancellation can swap neighbours that are nearly equally far.
    distance = torch.cdist(query, key, compute_mode="donot_use_mm_for_euclid_dist")
    if exclude_self:
        self_mask = torch.eye(len(key), dtype=torch.bool, device=key.device)
        distance = distance.masked_fill(self_mask, torch.inf)
    return distance.argmin(1)


def probabilities(logits: Tensor) -> Tensor:
    """Class probabilities in float32: softmax over K channels, sigmoid for one.

    Examples:
        >>> probabilities(torch.zeros(1, 2, 1, 1)).flatten()
        tensor([0.5000, 0.5000])
    """
    return logits.float().sigmoid() if logits.shape[1] == 1 else logits.float().softmax(1)


def fill_in(probs: Tensor, mask: Tensor, ignore_index: int = 255) -> Tensor:
    """A mask as probabilities, one-hot where it has a class, `probs` where it has none.

    Args:
        probs: `(N, K, H, W)` probabilities; K = 1 is the foreground's.
        mask: `(N, H, W)` int64.
        ignore_index: The value of pixels without a class.

    Examples:
        >>> p = torch.full((1, 2, 1, 2), 0.5)
        >>> fill_in(p, torch.tensor([[[1, 255]]])).tolist()
        [[[[0.0, 0.5]], [[1.0, 0.5]]]]
    """
    classes = torch.arange(probs.shape[1], device=probs.device).view(1, -1, 1, 1)
    if probs.shape[1] == 1:
        classes = classes + 1
    mask = mask.unsqueeze(1)
    return torch.where(mask == ignore_index, probs, (mask == classes).to(probs.dtype))


def most_probable(probs: Tensor) -> tuple[Tensor, Tensor]:
    """Each pixel's confidence and class: `(N, K, H, W)` -> two `(N, H, W)`; K = 1 is the foreground's.

    Examples:
        >>> confidence, labels = most_probable(torch.tensor([0.2, 0.8]).view(1, 2, 1, 1))
        >>> confidence.item(), labels.item()
        (0.800000011920929, 1)
        >>> confidence, labels = most_probable(torch.tensor([0.25]).view(1, 1, 1, 1))
        >>> confidence.item(), labels.item()
        (0.75, 0)
    """
    if probs.shape[1] == 1:
        probs = torch.cat([1 - probs, probs], 1)
    confidence, labels = probs.max(1)
    return confidence, labels


def decouple(
    probs_mixed: Tensor,
    probs_labeled: Tensor,
    lam: Tensor,
    *,
    mode: Mode = "soft",
    normalize: Normalize = "renormalize",
) -> Tensor:
    r"""Take the labeled image's part out of a mixed prediction, in probability space.

    Soft: $D = P_{mix} - \lambda P_l$; hard: $D = P_{mix} - P_l$. For a predictor that is linear in the mix,
    $P_{mix} = \lambda P_l + (1-\lambda) P_u$, so the soft $D = (1-\lambda) P_u$. What becomes of its scale:

    - `"renormalize"`: negatives to 0, then sum 1 per pixel. Gives $P_u$ back, a distribution for any input;
    - `"rescale"`: $D / (1-\lambda)$, signed. Gives $P_u$ back, but may leave the simplex;
    - `"none"`: $D$ itself, Eq. 8 as printed. As a target for a squared error it acts as label smoothing with
      $\varepsilon = \lambda$.

    The hard $D$ sums to 0, so `"rescale"` has no meaning for it, and `"renormalize"` gives a uniform target
    where nothing is left.

    Args:
        probs_mixed: `(N, K, H, W)` probabilities of the mixed image; K = 1 is the foreground's.
        probs_labeled: `(N, K, H, W)` probabilities of the labeled partner, or its one-hot mask.
        lam: `(N,)`, the weight of the labeled image, in [0, 0.5].
        mode: `"soft"` or `"hard"`.
        normalize: `"renormalize"`, `"rescale"` or `"none"`.

    Returns:
        float32 `(N, K, H, W)`; gradients flow to both inputs: detach what should not learn.

    Raises:
        ValueError: The shapes differ, or an option is unknown or impossible.

    Reference:
        GuidedMix-Net, Sec. 3.3, Eq. 6-8.

    Examples:
        >>> p_l, p_u = torch.tensor([0.7, 0.3]), torch.tensor([0.1, 0.9])
        >>> lam = torch.tensor([0.4])
        >>> p_mix = 0.4 * p_l + 0.6 * p_u
        >>> decouple(p_mix.view(1, 2, 1, 1), p_l.view(1, 2, 1, 1), lam).flatten()
        tensor([0.1000, 0.9000])
    """
    _same_shape(probs_mixed, probs_labeled, "`probs_mixed` and `probs_labeled`", "(N, K, H, W)")
    if mode not in ("soft", "hard"):
        raise ValueError(f"`mode` must be 'soft' or 'hard', got {mode!r}")
    if normalize not in ("none", "rescale", "renormalize"):
        raise ValueError(
            f"`normalize` must be 'none', 'rescale' or 'renormalize', got {normalize!r}"
        )
    if mode == "hard" and normalize == "rescale":
        raise ValueError("`mode='hard'` cannot be rescaled: use normalize='renormalize' or 'none'")
    with torch.autocast(probs_mixed.device.type, enabled=False):
        mixed, labeled = probs_mixed.float(), probs_labeled.float()
        lam = _per_image(lam, mixed)
        share = lam if mode == "soft" else torch.ones_like(lam)
        left = mixed - share * labeled
        if normalize == "none":
            return left
        if normalize == "rescale":
            return left / (1 - lam)
        binary = left.shape[1] == 1
        if binary:
            # The background channel is implied; subtract there too, then normalise the pair.
            left = torch.cat([(1 - mixed) - share * (1 - labeled), left], dim=1)
        left = left.clamp(min=0)
        total = left.sum(1, keepdim=True)
        # Soft: total >= 1 - lambda. Only the hard mode can leave nothing: then the target is uniform.
        nothing = total <= torch.finfo(total.dtype).eps
        out = torch.where(nothing, 1 / left.shape[1], left / torch.where(nothing, 1, total))
        return out[:, 1:] if binary else out


def reweigh(probs: Tensor, weights: Tensor) -> Tensor:
    r"""Multiply class probabilities by weights and normalise: $P'_k = w_k P_k / \sum_i w_i P_i$.

    Args:
        probs: `(N, K, H, W)` probabilities; K = 1 is the foreground's.
        weights: `(N, max(K, 2), H, W)`, positive; in the binary case background, foreground.

    Returns:
        float32 `(N, K, H, W)`, a distribution per pixel.

    Raises:
        ValueError: The shapes do not fit.

    Examples:
        >>> reweigh(torch.tensor([0.5, 0.5]).view(1, 2, 1, 1), torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)).flatten()
        tensor([0.2500, 0.7500])
    """
    binary = probs.shape[1] == 1
    probs = probs.float()
    if binary:
        probs = torch.cat([1 - probs, probs], 1)
    _same_shape(probs, weights, "`probs` and `weights`", "(N, max(K, 2), H, W)")
    weighed = probs * weights
    weighed = weighed / weighed.sum(1, keepdim=True).clamp(min=torch.finfo(weighed.dtype).tiny)
    return weighed[:, 1:] if binary else weighed


def ramp_up(progress: float, length: float = 1.0) -> float:
    r"""The Gaussian ramp of Laine & Aila: $\exp(-5 (1 - t/T)^2)$, 1 from `length` on.

    Args:
        progress: The share of the training that is done, in [0, 1].
        length: The share of the training after which the ramp is 1; 0 switches the ramp off.

    Reference:
        Laine & Aila, "Temporal Ensembling for Semi-Supervised Learning", Sec. 3; GuidedMix-Net, Eq. 9.

    Examples:
        >>> [round(ramp_up(t, length=0.5), 4) for t in (0.0, 0.25, 0.5, 1.0)]
        [0.0067, 0.2865, 1.0, 1.0]
    """
    if length <= 0:
        return 1.0
    return float(torch.e ** (-5 * (1 - min(max(progress / length, 0.0), 1.0)) ** 2))


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    ignore_index: int = 255,
) -> Tensor:
    r"""Mean of $-\log \hat y_{target}$ over the pixels that have a class; 0, not NaN, where none has.

    Args:
        logits: `(N, K, H, W)`; K = 1 is binary, one sigmoid channel.
        target: `(N, H, W)` int64, in `[0, K)` (`{0, 1}` if binary) or `ignore_index`.
        weight: `(N, H, W)`, optional: each pixel's weight. The mean stays over all pixels with a class, so
            weights lower the loss rather than shift it to other pixels.
        ignore_index: The value of pixels without a class.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: The shapes do not fit.

    Reference:
        GuidedMix-Net, Eq. 1 (its printed arguments are swapped).

    Examples:
        >>> cross_entropy(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 255]]]))
        tensor(0.6931)
    """
    if target.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            f"`target` must have shape (N, H, W) for `logits` (N, K, H, W), "
            f"got {tuple(target.shape)} and {tuple(logits.shape)}"
        )
    if weight is not None:
        _per_pixel(weight, logits, "weight")
    with torch.autocast(logits.device.type, enabled=False):
        keep = target != ignore_index
        if logits.shape[1] == 1:
            loss = F.binary_cross_entropy_with_logits(
                logits[:, 0].float(), (target == 1).float(), reduction="none"
            )
            loss = loss.masked_fill(~keep, 0.0)
        else:
            loss = F.cross_entropy(
                logits.float(), target, reduction="none", ignore_index=ignore_index
            )
        if weight is not None:
            loss = loss * weight
        return loss.sum() / keep.sum().clamp(min=1)


def soft_cross_entropy(logits: Tensor, target: Tensor, *, weight: Tensor | None = None) -> Tensor:
    r"""Mean over pixels of $-\sum_k q_k \log \hat y_k$: cross-entropy towards a whole distribution.

    Unlike its most probable class, the distribution $q$ keeps what a pseudo mask knows of rare classes.

    Args:
        logits: `(N, K, H, W)`; K = 1 is binary, one sigmoid channel.
        target: `(N, K, H, W)` probabilities, detached by the caller where they are a pseudo mask.
        weight: `(N, H, W)`, optional: each pixel's weight, for instance 0 on padding. The mean stays over all pixels.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: The shapes do not fit.

    Examples:
        >>> soft_cross_entropy(torch.zeros(1, 2, 1, 1), torch.tensor([[[[0.3]], [[0.7]]]]))
        tensor(0.6931)
    """
    _same_shape(logits, target, "`logits` and `target`", "(N, K, H, W)")
    if weight is not None:
        _per_pixel(weight, logits, "weight")
    with torch.autocast(logits.device.type, enabled=False):
        logits, target = logits.float(), target.float()
        if logits.shape[1] == 1:
            loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")[:, 0]
        else:
            loss = -(target * logits.log_softmax(1)).sum(1)
        return (loss if weight is None else loss * weight).mean()


def squared_error(probs: Tensor, target: Tensor, *, valid: Tensor | None = None) -> Tensor:
    r"""$\frac{1}{|\Omega|} \sum_{p \in \Omega} \lVert \hat y_p - y_p \rVert^2$: summed over classes, mean over pixels.

    `torch.nn.functional.mse_loss` also divides by K: this is K times that value. In the binary case the implied
    background channel counts too, so that it equals the two-class case.

    Args:
        probs: `(N, K, H, W)` probabilities.
        target: `(N, K, H, W)`, detached by the caller where it is a pseudo mask.
        valid: `(N, H, W)` bool, optional: the pixels $\Omega$ that count; all of them if left out.

    Returns:
        A float32 scalar; 0 where no pixel counts.

    Raises:
        ValueError: The shapes differ.

    Reference:
        GuidedMix-Net, Eq. 10.

    Examples:
        >>> squared_error(torch.tensor([[[[1.0]], [[0.0]]]]), torch.tensor([[[[0.0]], [[1.0]]]]))
        tensor(2.)
    """
    _same_shape(probs, target, "`probs` and `target`", "(N, K, H, W)")
    if valid is not None:
        _per_pixel(valid, probs, "valid")
    with torch.autocast(probs.device.type, enabled=False):
        error = (probs.float() - target.float()).square().sum(1)
        if probs.shape[1] == 1:
            error = 2 * error
        if valid is None:
            return error.mean()
        return (error * valid).sum() / valid.sum().clamp(min=1)


def present_classes(mask: Tensor, classes: int, *, ignore_index: int = 255) -> Tensor:
    """Which classes occur in each mask: the multi-label target of the image-level classifier.

    Args:
        mask: `(N, H, W)` int64.
        classes: Number of logit channels K; with 1 (binary) the only entry says whether class 1 occurs.
        ignore_index: Pixels with this value count for no class.

    Returns:
        float32 `(N, K)` of zeros and ones.

    Reference:
        GuidedMix-Net, Sec. 3.1.1.

    Examples:
        >>> present_classes(torch.tensor([[[0, 2, 255]]]), classes=4)
        tensor([[1., 0., 1., 0.]])
    """
    # One slot more than the classes collects what is ignored, so nothing depends on the data's values.
    n_slots = max(classes, 2) + 1
    slots = torch.where(mask == ignore_index, n_slots - 1, mask).flatten(1)
    present = torch.zeros(len(mask), n_slots, device=mask.device).scatter_(1, slots, 1.0)
    return present[:, 1:2] if classes == 1 else present[:, :classes]


def pixels_of_classes(mask: Tensor, classes: int) -> Tensor:
    """How many pixels each class has, over all masks; other values (255) are not counted.

    Args:
        mask: int64, any shape.
        classes: How many there are; 2 in the binary case.

    Returns:
        int64 `(classes,)`.

    Examples:
        >>> pixels_of_classes(torch.tensor([[[0, 2, 2, 255]]]), classes=3)
        tensor([1, 0, 2])
    """
    # One slot more collects what has no class, so that no shape depends on the data.
    slots = torch.where((mask >= 0) & (mask < classes), mask, classes).flatten()
    return slots.new_zeros(classes + 1).scatter_add_(0, slots, torch.ones_like(slots))[:classes]
