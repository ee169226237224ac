"""Take the labeled part out of a mixed prediction (Eq. 6-8)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gmix import functional as G
from gmix.functional.mixing import Mode, Normalize
from gmix.nn.given import remember_given
from gmix.protocols import Decoupler

__all__ = ["SoftDecoupler"]


class SoftDecoupler(nn.Module):
    r"""Subtract the labeled image's prediction from the mixed one, in probability space.

    $D = P_{mix} - \lambda P_l$ (`mode="soft"`) or $P_{mix} - P_l$ (`"hard"`, for the ablation), then normalised
    to a distribution. See [`decouple`][gmix.functional.decouple], its functional twin, for every detail.

    Args:
        mode: `"soft"` (Eq. 8) or `"hard"` (Eq. 7).
        normalize: `"renormalize"` (clamp at 0, sum 1; default), `"rescale"` (divide by $1-\lambda$, signed) or
            `"none"` (as printed).

    Shape:
        - `probs_mixed`, `probs_labeled`: `(N, K, H, W)` probabilities; `lam`: `(N,)`.
        - Output: float32 `(N, K, H, W)`.

    Raises:
        ValueError: If an option is unknown, or shapes differ.

    Reference:
        GuidedMix-Net, Sec. 3.3, Eq. 6-8.

    Examples:
        >>> p_l, p_u = torch.tensor([0.7, 0.3]).view(1, 2, 1, 1), torch.tensor([0.1, 0.9]).view(1, 2, 1, 1)
        >>> SoftDecoupler()(0.4 * p_l + 0.6 * p_u, p_l, torch.tensor([0.4])).flatten()
        tensor([0.1000, 0.9000])
    """

    __call__: Decoupler

    @remember_given
    def __init__(self, mode: Mode = "soft", normalize: Normalize = "renormalize") -> None:
        super().__init__()
        # Decouple an empty batch, to refuse bad options now, not at the first step.
        nothing = torch.zeros(0, 2, 1, 1)
        G.decouple(nothing, nothing, torch.zeros(0), mode=mode, normalize=normalize)
        self.mode: Mode = mode
        self.normalize: Normalize = normalize

    def forward(self, probs_mixed: Tensor, probs_labeled: Tensor, lam: Tensor) -> Tensor:
        """Decouple the mixed prediction."""
        return G.decouple(probs_mixed, probs_labeled, lam, mode=self.mode, normalize=self.normalize)

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return f"mode={self.mode!r}, normalize={self.normalize!r}"
