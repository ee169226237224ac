"""A bank finds what a search in the whole set finds, however large it is and in whatever order it was filled."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gmix
import gmix.nn.bank
from gmix import ApproximateSearch, FeatureBank
from gmix import functional as G


def filled(embeddings: torch.Tensor) -> FeatureBank:
    bank = FeatureBank(*embeddings.shape)
    bank.add(range(len(embeddings)), embeddings)
    return bank


def naive(
    query: torch.Tensor, keys: dict[int, torch.Tensor], k: int, exclude: list[int] | None
) -> tuple[list[list[int]], list[list[float]]]:
    """Every distance in float64, in a loop; of equals the lowest index first."""
    indices, distances = [], []
    for i, one in enumerate(query.double().numpy()):
        order = sorted(
            (float(np.sqrt(((one - key.double().numpy()) ** 2).sum())), j)
            for j, key in keys.items()
            if exclude is None or j != exclude[i]
        )
        indices.append([j for _, j in order[:k]])
        distances.append([distance for distance, _ in order[:k]])
    return indices, distances


@given(
    seed=st.integers(0, 2**31),
    images=st.integers(2, 40),
    dim=st.integers(1, 5),
    k=st.integers(1, 4),
    excluding=st.booleans(),
    pairs=st.sampled_from([1, 12, 2**23]),  # blocks of one entry, of a few, of all
)
def test_the_bank_is_a_naive_loop_over_all_it_knows(
    seed: int, images: int, dim: int, k: int, excluding: bool, pairs: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Small whole numbers: float32 is exact, and there are many ties.
    keys = torch.randint(-1, 2, (images, dim), generator=generator).float()
    query = torch.randint(-1, 2, (4, dim), generator=generator).float()
    known = torch.randperm(images, generator=generator)[: max(images // 2, 2)]
    exclude = torch.randint(images, (4,), generator=generator) if excluding else None
    k = min(k, len(known) - excluding)
    bank = FeatureBank(images, dim)
    bank.add(known, torch.zeros(len(known), dim))
    bank.add(known, keys[known])  # over what was there
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gmix.nn.bank, "PAIRS", pairs)
        found = bank.nearest(query, k, exclude)
    index, distance = naive(
        query, {int(j): keys[j] for j in known}, k, exclude.tolist() if excluding else None
    )
    assert found.indices.tolist() == index
    assert torch.allclose(found.distances.double(), torch.tensor(distance).double().view(4, k))


@pytest.mark.parametrize("pairs", [64, 2**23])
def test_the_first_is_what_nearest_chooses(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gmix.nn.bank, "PAIRS", pairs)
    torch.manual_seed(0)
    # Far from 0 and close together, where a matrix product would cancel.
    keys, query = 100 + 1e-3 * torch.randn(50, 16), 100 + 1e-3 * torch.randn(7, 16)
    bank = filled(keys)
    assert torch.equal(bank.nearest(query).indices[:, 0], G.nearest(query, keys))
    own = bank.nearest(keys, exclude=torch.arange(50)).indices[:, 0]
    assert torch.equal(own, G.nearest(keys, keys, exclude_self=True))


def test_a_state_dict_has_everything() -> None:
    torch.manual_seed(0)
    bank, other = FeatureBank(9, 4), FeatureBank(9, 4)
    bank.add([1, 7, 3], torch.randn(3, 4, requires_grad=True))
    other.load_state_dict(bank.state_dict())
    query = torch.randn(5, 4)
    for a, b in zip(bank.nearest(query, 3), other.nearest(query, 3), strict=True):
        assert torch.equal(a, b)
    assert not list(bank.parameters()) and not bank.embeddings.requires_grad


def test_embeddings_of_half_precision_and_no_query() -> None:
    bank = filled(torch.tensor([[1.0], [4.0]]).bfloat16())
    assert bank.nearest(torch.tensor([[3.0]]).bfloat16()).indices.tolist() == [[1]]
    assert bank.nearest(torch.zeros(0, 1), 2).indices.shape == (0, 2)


def test_what_cannot_be_found_is_refused() -> None:
    bank = FeatureBank(4, 2)
    bank.add([0, 2], torch.zeros(2, 2))
    for call, message in (
        (lambda: FeatureBank(0, 2), "`images` and `dim` must be at least 1, got 0 and 2"),
        (lambda: FeatureBank(2, 0), "`images` and `dim` must be at least 1, got 2 and 0"),
        (lambda: bank.add([4], torch.zeros(1, 2)), "`index` must lie in 0 to 3, got 4 to 4"),
        (lambda: bank.add([-1], torch.zeros(1, 2)), "`index` must lie in 0 to 3, got -1 to -1"),
        (lambda: bank.add([1], torch.zeros(2, 2)), r"embeddings \(N, 2\), got \(1,\) and \(2, 2\)"),
        (
            lambda: bank.add(torch.tensor([[1]]), torch.zeros(1, 1, 2)),
            r"an index \(N,\) and .* got \(1, 1\) and \(1, 1, 2\)",
        ),
        (lambda: bank.nearest(torch.zeros(1, 3)), r"shape \(N, 2\), got \(1, 3\)"),
        (lambda: bank.nearest(torch.zeros(1, 2), 0), "2 entries known so far, got 0"),
        (lambda: bank.nearest(torch.zeros(1, 2), 3), "2 entries known so far, got 3"),
        (
            lambda: bank.nearest(torch.zeros(1, 2), 2, torch.tensor([0])),
            "less the excluded one, got 2",
        ),
        (lambda: bank.nearest(torch.zeros(2, 2), 1, torch.tensor([0])), r"shape \(2,\), got \(1,"),
    ):
        with pytest.raises(ValueError, match=message):
            call()  # type: ignore[no-untyped-call]


def test_the_graph_proposes_and_the_bank_decides() -> None:
    pytest.importorskip("usearch")
    torch.manual_seed(0)
    # So far from 0 that two bytes tell them apart by what they have not in common only.
    keys, query = 1000 + torch.randn(2000, 16), 1000 + torch.randn(200, 16)
    bank = FeatureBank(4000, 16)  # half of it is not known yet
    bank.add(range(2000), keys)
    fast, exact = ApproximateSearch(bank).nearest(query, 3), bank.nearest(query, 3)
    assert (fast.indices == exact.indices).float().mean() > 0.98
    same = fast.indices == exact.indices
    assert torch.equal(fast.distances[same], exact.distances[same])
    again = ApproximateSearch(bank).nearest(query, 3)
    assert torch.equal(again.indices, fast.indices)
    own = torch.arange(50)
    for candidates in (0, 8):
        found = ApproximateSearch(bank, candidates=candidates).nearest(keys[:50], exclude=own)
        assert not (found.indices[:, 0] == own).any() and found.distances.isfinite().all()
    one = ApproximateSearch(bank).nearest(query[:1])
    assert one.indices.tolist() == exact.indices[:1, :1].tolist()


@given(st.integers(0, 2**31), st.integers(2, 30), st.integers(1, 3))
def test_of_a_small_bank_the_graph_proposes_everything(seed: int, images: int, k: int) -> None:
    pytest.importorskip("usearch")
    generator = torch.Generator().manual_seed(seed)
    bank = FeatureBank(images + 3, 2)
    bank.add(range(2, images + 2), torch.randint(-1, 2, (images, 2), generator=generator).float())
    query = torch.randint(-1, 2, (3, 2), generator=generator).float()
    exclude, k = torch.full((3,), 2), min(k, images - 1)
    fast = ApproximateSearch(bank, candidates=images).nearest(query, k, exclude)
    for a, b in zip(fast, bank.nearest(query, k, exclude), strict=True):
        assert torch.equal(a, b)


def test_where_the_graph_proposes_too_few_the_bank_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = pytest.importorskip("usearch.index")
    bank = filled(torch.arange(9.0)[:, None])
    fast, query = ApproximateSearch(bank, candidates=2), torch.tensor([[7.2], [0.9]])
    few = SimpleNamespace(distances=np.full((2, 3), np.nan), keys=np.zeros((2, 3), np.uint64))
    monkeypatch.setattr(index.Index, "search", lambda *_, **__: few)
    assert fast.nearest(query).indices.tolist() == [[7], [1]]


def test_without_usearch_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    bank = filled(torch.zeros(2, 1))
    with pytest.raises(ImportError, match=r'run `pip install "gmix\[bank\]"`'):
        ApproximateSearch(bank)
