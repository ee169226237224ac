"""Embeddings of all labeled images: the partner is the nearest in the data set, not only in the batch."""

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
    """The nearest entries of a bank, nearest first; ties are sorted by index."""

    indices: Tensor  # (N, k) int64
    distances: Tensor  # (N, k) float32, euclidean


class FeatureBank(nn.Module):
    r"""Store embeddings by index and find the $k$ nearest to a query: $\arg\min_j \lVert q - e_j \rVert_2$.

    Does for a whole data set what [`nearest`][gmix.functional.nearest] does for a batch, with the same result.
    Distances are computed in blocks, so memory does not grow with the data set. Embeddings of a network in training go
    stale: add those of an image again whenever it passes through the network. Those of a frozen encoder stay valid.
    For cosine similarity, add and query embeddings of length 1. The `state_dict` holds all embeddings.

    Args:
        images: Number of images; indices are below it.
        dim: D, the length of an embedding.

    Raises:
        ValueError: If shapes do not fit, an index is out of range, or there are fewer than k entries.

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
        """Store the embeddings `(N, D)` of the images `index` `(N,)`, each at most once; overwrites earlier ones."""
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
        """Find the k nearest entries of each query.

        Args:
            query: `(N, D)`.
            k: Number of entries.
            exclude: `(N,)`, an index that each query must not get: its own, if it is in the bank.
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
            # Earlier entries come first, so that they win ties.
            index = torch.cat([index, places[near.indices]], 1)
            distance = torch.cat([distance, near.distances], 1)
            place, distance = smallest(distance, k)
            index = index.gather(1, place)
        return Neighbors(index, distance)

    def check(self, query: Tensor, k: int, exclude: Tensor | None) -> Tensor:
        """Check a query and return it with the type and device of the bank."""
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
        """Return the options that `repr` shows."""
        images, dim = self.embeddings.shape
        return f"images={images}, dim={dim}"


class ApproximateSearch:
    """Search a bank through a graph: the interface of the bank, much faster with 10^5 entries, and rarely wrong.

    The graph (HNSW, from the package `usearch`) proposes entries, and the bank's own embeddings decide among them:
    distances are exact, and only entries that the graph does not propose are missed. Entries added to the bank later
    are not proposed, and overwritten ones are proposed by their old embedding; build a new graph from time to time.

    Needs the extra `gmix[bank]`. Runs on the CPU, wherever the bank is.

    Args:
        bank: The bank, with all its entries.
        candidates: Number of entries proposed beyond the requested k.
        connectivity: Edges per entry in the graph.
        expansion_add: Entries visited to insert an entry.
        expansion_search: Entries visited for a query.
        threads: Number of CPU threads. With 1 the graph is the same every time.

    Raises:
        ImportError: If `usearch` is not installed.

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
        # Without the mean, two bytes hold the differences even where all embeddings have much in common.
        known = bank.known.nonzero().flatten()
        self.center = bank.embeddings.sum(0) / max(len(known), 1)
        for some in torch.split(known, 65_536):
            entries = (bank.embeddings[some] - self.center).cpu().numpy()
            self.index.add(some.cpu().numpy(), entries, threads=threads)

    @torch.no_grad()
    def nearest(self, query: Tensor, k: int = 1, exclude: Tensor | None = None) -> Neighbors:
        """Find the nearest entries as [`FeatureBank.nearest`][gmix.FeatureBank.nearest] does; may miss some."""
        query = self.bank.check(query, k, exclude)
        asked = min(k + self.candidates + (exclude is not None), len(self.index))
        entries = (query - self.center).cpu().numpy()
        proposed = self.index.search(entries, asked, threads=self.threads)
        if np.isnan(proposed.distances).any():  # fewer than requested
            return self.bank.nearest(query, k, exclude)
        # Sorted by index, so that the lowest wins ties.
        keys = torch.from_numpy(proposed.keys.astype(np.int64)).view(len(query), asked)
        index = keys.to(query.device).sort(1).values
        distance = pairwise(query[:, None], self.bank.embeddings[index])[:, 0]
        if exclude is not None:
            distance.masked_fill_(exclude.to(query.device)[:, None] == index, torch.inf)
        place, distance = smallest(distance, k)
        return Neighbors(index.gather(1, place), distance)


def smallest(values: Tensor, k: int) -> Neighbors:
    """Find the places of the k smallest values of each row, ties in order of place; overwrites `values`.

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
