"""Mixing an unlabeled image with its most similar labeled one, and decoupling the result (Eq. 2, 3, 6-8)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gmix.functional.shapes import per_image, same_shape

__all__ = ["decouple", "mix", "nearest", "sample_lambda"]

Metric = Literal["euclidean", "cosine"]
Mode = Literal["soft", "hard"]
Normalize = Literal["none", "rescale", "renormalize"]


def sample_lambda(
    n: int,
    *,
    alpha: float = 1.0,
    max_lambda: float = 0.5,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Draw the weight of the labeled image, one value per image.

    $\lambda = 2c \min(b, 1-b)$ with $b \sim \mathrm{Beta}(\alpha, \alpha)$ and $c$ = `max_lambda`. With
    `alpha=1` it is uniform on $[0, c]$: the distribution of redrawing until the value is below $c$
    ("$\lambda < c$" in the paper's tables), without a loop.

    Args:
        n: Number of values.
        alpha: Parameter of the Beta distribution, above 0.
        max_lambda: The cap $c$, in (0, 0.5]: the unlabeled image always dominates.
        generator: Source of randomness, on `device`.
        device: Device of the values.

    Returns:
        A float32 tensor `(n,)` with values in `[0, max_lambda]`.

    Raises:
        ValueError: If `alpha` or `max_lambda` is out of range.

    Reference:
        GuidedMix-Net, Sec. 3.1, Eq. 2.

    Examples:
        >>> g = torch.Generator().manual_seed(0)
        >>> sample_lambda(3, max_lambda=0.3, generator=g)
        tensor([0.2978, 0.1391, 0.0531])
    """
    if not alpha > 0:
        raise ValueError(f"`alpha` must be above 0, got {alpha}")
    if not 0 < max_lambda <= 0.5:
        raise ValueError(f"`max_lambda` must be in (0, 0.5], got {max_lambda}")
    if alpha == 1.0:
        b = torch.rand(n, generator=generator, device=device)
    else:
        # torch.distributions takes no generator; a Beta variable is a Gamma divided by the sum of two.
        gammas = torch._standard_gamma(
            torch.full((2, n), alpha, device=device), generator=generator
        )
        b = gammas[0] / gammas.sum(0).clamp(min=torch.finfo(gammas.dtype).tiny)
    return 2 * max_lambda * torch.minimum(b, 1 - b)


def mix(labeled: Tensor, unlabeled: Tensor, lam: Tensor) -> Tensor:
    r"""Mix two batches of images: $x_{mix} = \lambda x_l + (1 - \lambda) x_u$.

    Lambda is the weight of the **labeled** image (the mixup of other libraries gives the first argument the weight
    $1-\lambda$). Computed as an interpolation from `unlabeled`, so lambda 0 returns it bit for bit.

    Args:
        labeled: `(N, C, H, W)`, the labeled images.
        unlabeled: `(N, C, H, W)`, the unlabeled images.
        lam: `(N,)`, in [0, 1].

    Returns:
        `(N, C, H, W)`; the inputs are not modified.

    Raises:
        ValueError: If the shapes differ, or `lam` is not one value per image.

    Reference:
        GuidedMix-Net, Eq. 2.

    Examples:
        >>> mix(torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1, 2), torch.tensor([0.25]))
        tensor([[[[0.2500, 0.2500]]]])
    """
    same_shape(labeled, unlabeled, "`labeled` and `unlabeled`", "(N, C, H, W)")
    return torch.lerp(unlabeled, labeled, per_image(lam, unlabeled))


def nearest(
    query: Tensor,
    key: Tensor,
    *,
    metric: Metric = "euclidean",
    exclude_self: bool = False,
) -> Tensor:
    r"""Find the index of the closest key for each query: $j(i) = \arg\min_j d(q_i, k_j)$.

    Args:
        query: `(N, D)` embeddings, of the unlabeled images.
        key: `(M, D)` embeddings, of the labeled images. Several queries may get the same key.
        metric: `"euclidean"` (the paper) or `"cosine"`.
        exclude_self: Whether `query` and `key` are the same images, and none may choose itself (Eq. 11).

    Returns:
        An int64 tensor `(N,)` with values in `[0, M)`. No gradient flows.

    Raises:
        ValueError: If the embeddings differ in length, there is no key, or `exclude_self` is used with two sets of
            different sizes or with a single image.

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


def decouple(
    probs_mixed: Tensor,
    probs_labeled: Tensor,
    lam: Tensor,
    *,
    mode: Mode = "soft",
    normalize: Normalize = "renormalize",
) -> Tensor:
    r"""Subtract the labeled image's part from a mixed prediction, in probability space.

    Soft: $D = P_{mix} - \lambda P_l$; hard: $D = P_{mix} - P_l$. For a predictor that is linear in the mix,
    $P_{mix} = \lambda P_l + (1-\lambda) P_u$, so the soft $D = (1-\lambda) P_u$.
    The scale of $D$ is corrected in one of three ways:

    - `"renormalize"`: set negatives to 0, then the sum per pixel to 1. Recovers $P_u$; a distribution for any input;
    - `"rescale"`: $D / (1-\lambda)$, signed. Recovers $P_u$, but may leave the simplex;
    - `"none"`: $D$ itself, Eq. 8 as printed. As a target for a squared error it acts as label smoothing with
      $\varepsilon = \lambda$.

    The hard $D$ sums to 0, so `"rescale"` has no meaning for it, and `"renormalize"` gives a uniform target
    where nothing is left.

    Args:
        probs_mixed: `(N, K, H, W)` probabilities of the mixed image; K = 1 holds the foreground.
        probs_labeled: `(N, K, H, W)` probabilities of the labeled partner, or its one-hot mask.
        lam: `(N,)`, the weight of the labeled image, in [0, 0.5].
        mode: `"soft"` or `"hard"`.
        normalize: `"renormalize"`, `"rescale"` or `"none"`.

    Returns:
        A float32 tensor `(N, K, H, W)`. Gradients flow to both inputs: detach the one that should not learn.

    Raises:
        ValueError: If the shapes differ, or an option is unknown or impossible.

    Reference:
        GuidedMix-Net, Sec. 3.3, Eq. 6-8.

    Examples:
        >>> p_l, p_u = torch.tensor([0.7, 0.3]), torch.tensor([0.1, 0.9])
        >>> lam = torch.tensor([0.4])
        >>> p_mix = 0.4 * p_l + 0.6 * p_u
        >>> decouple(p_mix.view(1, 2, 1, 1), p_l.view(1, 2, 1, 1), lam).flatten()
        tensor([0.1000, 0.9000])
    """
    same_shape(probs_mixed, probs_labeled, "`probs_mixed` and `probs_labeled`", "(N, K, H, W)")
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
        lam = per_image(lam, mixed)
        share = lam if mode == "soft" else torch.ones_like(lam)
        left = mixed - share * labeled
        if normalize == "none":
            return left
        if normalize == "rescale":
            return left / (1 - lam)
        binary = left.shape[1] == 1
        if binary:
            # The background channel is implied: subtract there too, then normalise the pair.
            left = torch.cat([(1 - mixed) - share * (1 - labeled), left], dim=1)
        left = left.clamp(min=0)
        total = left.sum(1, keepdim=True)
        # Soft: total >= 1 - lambda. Only the hard mode can leave nothing: then the target is uniform.
        nothing = total <= torch.finfo(total.dtype).eps
        out = torch.where(nothing, 1 / left.shape[1], left / torch.where(nothing, 1, total))
        return out[:, 1:] if binary else out
