"""Choose each unlabeled image's labeled partner (Eq. 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gmix import functional as G
from gmix.functional.mixing import Metric
from gmix.nn.given import remember_given
from gmix.protocols import PairSelector

__all__ = ["RandomPairSelector", "SimilarPairSelector"]


class SimilarPairSelector(nn.Module):
    r"""Choose the most similar key for each query embedding: $\arg\min_j \lVert q_i - k_j \rVert_2$.

    Queries are the unlabeled images, keys the labeled ones; several queries may get the same key. No gradient flows.
    Functional twin: [`nearest`][gmix.functional.nearest].

    Args:
        metric: `"euclidean"` (the paper) or `"cosine"`.

    Shape:
        - `query`: `(N, D)`; `key`: `(M, D)`.
        - Output: int64 `(N,)`, in `[0, M)`.

    Raises:
        ValueError: If embeddings differ in length, there is no key, or `exclude_self` has fewer than two images.

    Reference:
        GuidedMix-Net, Sec. 3.1.1, Eq. 3.

    Examples:
        >>> selector = SimilarPairSelector()
        >>> selector(torch.tensor([[0.0], [5.0]]), torch.tensor([[4.0], [1.0]]))
        tensor([1, 0])
        >>> same = torch.tensor([[0.0], [1.0], [5.0]])
        >>> selector(same, same, exclude_self=True)
        tensor([1, 0, 1])
    """

    __call__: PairSelector

    @remember_given
    def __init__(self, metric: Metric = "euclidean") -> None:
        super().__init__()
        if metric not in ("euclidean", "cosine"):
            raise ValueError(f"`metric` must be 'euclidean' or 'cosine', got {metric!r}")
        self.metric = metric

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        exclude_self: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the index of the nearest key of each query; `generator` is not used."""
        return G.nearest(query, key, metric=self.metric, exclude_self=exclude_self)

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return f"metric={self.metric!r}"


class RandomPairSelector(nn.Module):
    """Choose a random key for each query: the paper's choice on Cityscapes, and the control of its Table 2.

    Called like [`SimilarPairSelector`][gmix.SimilarPairSelector]; only the number of embeddings is used.

    Examples:
        >>> g = torch.Generator().manual_seed(0)
        >>> RandomPairSelector()(torch.zeros(4, 8), torch.zeros(3, 8), generator=g)
        tensor([2, 0, 2, 0])
    """

    __call__: PairSelector

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        exclude_self: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the index of a random key for each query; with `exclude_self` never its own."""
        n, m = len(query), len(key)
        if m < 1 + exclude_self:
            raise ValueError(f"a partner needs at least {1 + exclude_self} labeled images, got {m}")
        if not exclude_self:
            return torch.randint(m, (n,), generator=generator, device=query.device)
        # A random step of 1 to m-1 around the circle never returns to its start.
        step = torch.randint(1, m, (n,), generator=generator, device=query.device)
        return (torch.arange(n, device=query.device) + step) % m
