"""Mix unlabeled images with labeled ones (Eq. 2)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gmix import functional as G
from gmix.nn.given import remember_given
from gmix.protocols import Mixer

__all__ = ["LabeledUnlabeledMixer", "Mixed"]


class Mixed(NamedTuple):
    """The mixed images `(N, C, H, W)` and the lambda of each `(N,)`."""

    image: Tensor
    lam: Tensor


class LabeledUnlabeledMixer(nn.Module):
    r"""Mix each unlabeled image with a labeled partner: $x_{mix} = \lambda x_l + (1-\lambda) x_u$.

    $\lambda = 2c\min(b, 1-b)$, $b \sim \mathrm{Beta}(\alpha, \alpha)$, one value per image. Lambda is the
    weight of the **labeled** image, at most one half, so the unlabeled image dominates. Functional twins:
    [`mix`][gmix.functional.mix] and [`sample_lambda`][gmix.functional.sample_lambda].

    Args:
        alpha: Parameter of the Beta distribution, above 0.
        max_lambda: The cap $c$, in (0, 0.5]: 0.5 for VOC, 0.3 for Cityscapes, 0.4 for PASCAL Context.

    Shape:
        - `labeled`, `unlabeled`: `(N, C, H, W)`, mixed row by row.
        - `lam`: `(N,)`, drawn where it is not given.
        - Output: `Mixed(image (N, C, H, W), lam (N,))`.

    Raises:
        ValueError: If an option is out of range, or shapes differ.

    Reference:
        GuidedMix-Net, Sec. 3.1, Eq. 2.

    Examples:
        >>> mixer = LabeledUnlabeledMixer(max_lambda=0.3)
        >>> x_l, x_u = torch.ones(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
        >>> mixed = mixer(x_l, x_u, generator=torch.Generator().manual_seed(0))
        >>> mixed.image[:, 0, 0, 0]
        tensor([0.2978, 0.1391])
        >>> torch.equal(mixed.image[:, 0, 0, 0], mixed.lam)
        True
    """

    __call__: Mixer

    @remember_given
    def __init__(self, alpha: float = 1.0, max_lambda: float = 0.5) -> None:
        super().__init__()
        G.sample_lambda(0, alpha=alpha, max_lambda=max_lambda)  # refuses bad options now, not later
        self.alpha = alpha
        self.max_lambda = max_lambda

    def forward(
        self,
        labeled: Tensor,
        unlabeled: Tensor,
        lam: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Mixed:
        """Mix the images row by row, with a drawn lambda unless `lam` is given."""
        if lam is None:
            lam = G.sample_lambda(
                len(unlabeled),
                alpha=self.alpha,
                max_lambda=self.max_lambda,
                generator=generator,
                device=unlabeled.device,
            )
        return Mixed(G.mix(labeled, unlabeled, lam), lam)

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return f"alpha={self.alpha}, max_lambda={self.max_lambda}"
