"""Embeddings of all labeled images: a partner is the nearest of all, not of those in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["ApproximateSearch", "FeatureBank", "Neighbors"]

PAIRS = 2**23  # distances in memory at a time: 32 MB
# Not through a matrix product, as in `nearest`: its cancellation can swap neighbours that are nearly equally far.
pairwise = partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")


class Neighbors(NamedTuple):
    """The nearest entries of a bank, the nearest first; of those equally far, the lowest index first."""

    indices: Tensor  # (N, k) int64
    distances: Tensor  # (N, k) float32, euclidean


class FeatureBank(nn.Module):
    r"""Embeddings by index, and for a query the $k$ nearest of all of them: $\arg\min_j \lVert q - e_j \rVert_2$.

    What [`nearest`][gmix.functional.nearest] finds in a batch, found in a whole data set, in memory that does not
    grow with it: distances are taken a block at a time, and the same one is chosen. Embeddings of a network in
    training go stale; add those of an image anew whenever it passes. Those of a frozen encoder stay. For the cosine,
    add and ask for embeddings of length 1. A `state_dict` has everything.

    Args:
        images: How many there may be; an index is below it.
        dim: D, the length of an embedding.

    Raises:
        ValueError: Shapes that do not fit, an index out of range, or fewer than k entries to choose from.

    Reference:
        GuidedMix-Net, Sec. 3.1.1, Eq. 3; `docs/scaling.md` has sizes and times.

    Examples:
        >>> bank = FeatureBank(images=4, dim=1)
        >>> bank.add([3, 0, 1], torch.tensor([[5.0], [1.0], [2.0]]))
        >>> bank.nearest(torch.tensor([[1.75]]), k=2)
        Neighbors(indices=tensor([[1, 0]]), distances=tensor([[0.2500, 0.7500]]))
        >>> same = torch.tensor([0, 3])  # the images that ask are in the bank
        >>> bank.nearest(bank.embeddings[same], exclude=same).indices
        tensor([[1],
                [1]])
    """

    def __init__(self, images: int, dim: int) -> None:
        super().__init__()
        if min(images, dim) < 1:
            raise ValueError(f"`images` and `dim` must be at least 1, got {images} and {dim}")
        self.embeddings: Tensor
        self.known: Tensor
        self.register_buffer("embeddings", torch.zeros(images, dim))
        self.register_buffer("known", torch.zeros(images, dtype=torch.bool))

    @torch.no_grad()
    def add(self, index: Tensor | Sequence[int], embeddings: Tensor) -> None:
        """Write the embeddings `(N, D)` of the images `index` `(N,)`, each once, over what was there."""
        where = torch.as_tensor(index, dtype=torch.int64)
        images, dim = self.embeddings.shape
        if embeddings.shape != (*where.shape, dim) or where.dim() != 1:
            raise ValueError(
                f"expected an index (N,) and embeddings (N, {dim}), "
                f"got {tuple(where.shape)} and {tuple(embeddings.shape)}"
            )
        if len(where) and not 0 <= int(where.min()) <= int(where.max()) < images:
            span = f"{int(where.min())} to {int(where.max())}"
            raise ValueError(f"`index` must lie in 0 to {images - 1}, got {span}")
        where = where.to(self.known.device)
        self.embeddings[where] = embeddings.to(self.embeddings)
        self.known[where] = True

    @torch.no_grad()
    def nearest(self, query: Tensor, k: int = 1, exclude: Tensor | None = None) -> Neighbors:
        """The k nearest entries of each query.

        Args:
            query: `(N, D)`.
            k: How many.
            exclude: `(N,)`, an index that a query may not get: its own, if it is in the bank.
        """
        query = self.check(query, k, exclude)
        device = query.device
        distance = torch.full((len(query), k), torch.inf, device=device)
        index = torch.full((len(query), k), -1, device=device)
        rows = max(PAIRS // max(len(query), 1), 1)
        for first in range(0, len(self.known), rows):
            block = pairwise(query, self.embeddings[first : first + rows])
            block.masked_fill_(~self.known[first : first + rows], torch.inf)
            places = torch.arange(first, first + block.shape[1], device=device)
            if exclude is not None:
                block.masked_fill_(exclude.to(device)[:, None] == places, torch.inf)
            near = smallest(block, min(k, len(places)))
            # What was found earlier stands first, so that it stays where others are as far.
            index = torch.cat([index, places[near.indices]], 1)
            distance = torch.cat([distance, near.distances], 1)
            place, distance = smallest(distance, k)
            index = index.gather(1, place)
        return Neighbors(index, distance)

    def check(self, query: Tensor, k: int, exclude: Tensor | None) -> Tensor:
        """The query as it is compared, if there is an answer."""
        dim, known = self.embeddings.shape[1], int(self.known.sum())
        if query.dim() != 2 or query.shape[1] != dim:
            raise ValueError(f"`query` must have shape (N, {dim}), got {tuple(query.shape)}")
        if exclude is not None and exclude.shape != query.shape[:1]:
            raise ValueError(
                f"`exclude` must have shape ({len(query)},), got {tuple(exclude.shape)}"
            )
        if not 1 <= k <= known - (exclude is not None):
            raise ValueError(
                f"`k` must be at least 1 and no more than the {known} entries known so far"
                f"{', less the excluded one' if exclude is not None else ''}, got {k}"
            )
        return query.to(self.embeddings)

    def extra_repr(self) -> str:
        images, dim = self.embeddings.shape
        return f"images={images}, dim={dim}"


class ApproximateSearch:
    """A graph over the entries of a bank: asked like the bank, much faster where there are 10^5, and rarely wrong.

    The graph (HNSW, by the package `usearch`) proposes entries, and the bank's own embeddings decide among them: the
    distances are exact, and only what the graph does not propose is missed. What the bank is given later is not
    proposed, and what it overwrites is proposed by what it was; build another one from time to time.

    Needs the extra `gmix[bank]`. Runs on the CPU, wherever the bank is.

    Args:
        bank: With all its entries.
        candidates: Entries proposed beyond the k asked for.
        connectivity: Edges of an entry in the graph.
        expansion_add: Entries looked at to insert one.
        expansion_search: Entries looked at for a query.
        threads: Of the CPU. With 1 the same graph is built every time.

    Raises:
        ImportError: `usearch` is not installed.

    Reference:
        Malkov & Yashunin, "Efficient and robust approximate nearest neighbor search using Hierarchical Navigable
        Small World graphs", 2018.

    Examples:
        >>> _ = torch.manual_seed(0)
        >>> bank = FeatureBank(images=500, dim=8)
        >>> bank.add(range(500), torch.randn(500, 8))
        >>> query, fast = torch.randn(4, 8), ApproximateSearch(bank)
        >>> torch.equal(fast.nearest(query).indices, bank.nearest(query).indices)
        True
    """

    def __init__(
        self,
        bank: FeatureBank,
        *,
        candidates: int = 8,
        connectivity: int = 16,
        expansion_add: int = 32,
        expansion_search: int = 64,
        threads: int = 1,
    ) -> None:
        try:
            from usearch.index import Index
        except ImportError as error:
            raise ImportError(
                'ApproximateSearch needs the package usearch: run `pip install "gmix[bank]"`'
            ) from error
        self.bank = bank
        self.candidates = candidates
        self.threads = threads
        self.index = Index(
            ndim=bank.embeddings.shape[1],
            metric="l2sq",
            dtype="bf16",  # half the memory: it only proposes
            connectivity=connectivity,
            expansion_add=expansion_add,
            expansion_search=expansion_search,
        )
        # Where all embeddings have much in common, two bytes hold the differences only without it.
        known = bank.known.nonzero().flatten()
        self.center = bank.embeddings.sum(0) / max(len(known), 1)
        for some in torch.split(known, 65_536):
            entries = (bank.embeddings[some] - self.center).cpu().numpy()
            self.index.add(some.cpu().numpy(), entries, threads=threads)

    @torch.no_grad()
    def nearest(self, query: Tensor, k: int = 1, exclude: Tensor | None = None) -> Neighbors:
        """As [`FeatureBank.nearest`][gmix.FeatureBank.nearest], but for entries that are missed."""
        query = self.bank.check(query, k, exclude)
        asked = min(k + self.candidates + (exclude is not None), len(self.index))
        entries = (query - self.center).cpu().numpy()
        proposed = self.index.search(entries, asked, threads=self.threads)
        if np.isnan(proposed.distances).any():  # less than what was asked for
            return self.bank.nearest(query, k, exclude)
        # By index, so that of those equally far the lowest stands first.
        keys = torch.from_numpy(proposed.keys.astype(np.int64)).view(len(query), asked)
        index = keys.to(query.device).sort(1).values
        distance = pairwise(query[:, None], self.bank.embeddings[index])[:, 0]
        if exclude is not None:
            distance.masked_fill_(exclude.to(query.device)[:, None] == index, torch.inf)
        place, distance = smallest(distance, k)
        return Neighbors(index.gather(1, place), distance)


def smallest(values: Tensor, k: int) -> Neighbors:
    """The places of the k smallest values of each row, the first of equal ones first; overwrites `values`.

    Examples:
        >>> smallest(torch.tensor([[3.0, 1.0, 2.0, 1.0]]), 3).indices
        tensor([[1, 3, 2]])
    """
    places, found = [], []
    for _ in range(k):  # `topk` promises no order among equal ones
        place = values.argmin(1, keepdim=True)
        places.append(place)
        found.append(values.gather(1, place))
        values.scatter_(1, place, torch.inf)
    return Neighbors(torch.cat(places, 1), torch.cat(found, 1))
