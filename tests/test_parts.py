"""The small modules: their settings, and that each computes what its functional twin computes."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_nets import seeded

import gmix
from gmix import functional as G
from gmix.nn.mixer import LabeledUnlabeledMixer
from gmix.nn.pairing import RandomPairSelector, SimilarPairSelector

seeds = st.integers(0, 2**31 - 1)


def test_every_public_name_is_there() -> None:
    assert sorted(gmix.__all__) == gmix.__all__
    assert all(hasattr(gmix, name) for name in gmix.__all__)


@given(seeds, st.sampled_from([0.5, 1.0, 3.0]), st.sampled_from([0.1, 0.3, 0.5]))
def test_mixer_draws_a_lambda_per_image_and_mixes(seed: int, alpha: float, cap: float) -> None:
    x_l, x_u = torch.randn(2, 5, 3, 4, 6, generator=seeded(seed))
    mixed = LabeledUnlabeledMixer(alpha, cap)(x_l, x_u, generator=seeded(seed))
    lam = G.sample_lambda(5, alpha=alpha, max_lambda=cap, generator=seeded(seed))
    assert torch.equal(mixed.lam, lam) and lam.unique().numel() == 5
    for image, weight, a, b in zip(mixed.image, lam, x_l, x_u, strict=True):
        torch.testing.assert_close(image, weight * a + (1 - weight) * b, atol=1e-5, rtol=1e-5)


def test_mixer_takes_the_lambda_it_is_given() -> None:
    x_l, x_u = torch.randn(2, 3, 1, 4, 4)
    lam = torch.tensor([0.0, 0.25, 1.0])
    mixed = LabeledUnlabeledMixer()(x_l, x_u, lam)
    assert mixed.lam is lam
    assert torch.equal(mixed.image, G.mix(x_l, x_u, lam))
    assert torch.equal(mixed.image[0], x_u[0]) and torch.equal(mixed.image[2], x_l[2])


@given(seeds, st.sampled_from(["euclidean", "cosine"]), st.booleans())
def test_similar_selector_is_nearest(seed: int, metric: Any, exclude_self: bool) -> None:
    query = torch.randn(6, 4, generator=seeded(seed))
    key = query if exclude_self else torch.randn(7, 4, generator=seeded(seed + 1))
    out = SimilarPairSelector(metric)(query, key, exclude_self)
    assert torch.equal(out, G.nearest(query, key, metric=metric, exclude_self=exclude_self))


@pytest.mark.parametrize("exclude_self", [False, True])
def test_random_selector_is_uniform(exclude_self: bool) -> None:
    n, rounds = 5, 4000
    select, g = RandomPairSelector(), seeded(0)
    counts = torch.zeros(n, n)
    for _ in range(rounds):
        index = select(torch.zeros(n, 2), torch.zeros(n, 2), exclude_self, g)
        counts[torch.arange(n), index] += 1
    share = counts / rounds
    expected = torch.full((n, n), 1 / n)
    if exclude_self:
        expected = (1 - torch.eye(n)) / (n - 1)
        assert not share.diagonal().any()
    # 4.5 standard deviations of a binomial share
    torch.testing.assert_close(share, expected, atol=4.5 * math.sqrt(0.25 * 0.75 / rounds), rtol=0)


@given(seeds, st.integers(1, 6), st.integers(1, 6))
def test_random_selector_needs_no_equal_counts_and_follows_its_generator(
    seed: int, n: int, m: int
) -> None:
    query, key = torch.zeros(n, 3), torch.zeros(m, 2)  # embeddings only say how many there are
    index = RandomPairSelector()(query, key, generator=seeded(seed))
    assert index.shape == (n,) and index.dtype == torch.int64
    assert index.min() >= 0 and index.max() < m
    assert torch.equal(index, RandomPairSelector()(query, key, generator=seeded(seed)))


@given(
    seeds,
    st.sampled_from(
        [
            ("soft", "renormalize"),
            ("soft", "rescale"),
            ("soft", "none"),
            ("hard", "renormalize"),
            ("hard", "none"),
        ]
    ),
    st.integers(1, 4),
)
def test_decoupler_is_decouple(seed: int, options: tuple[Any, Any], k: int) -> None:
    mode, normalize = options
    mixed, labeled = torch.rand(2, 3, k, 2, 2, generator=seeded(seed))
    lam = torch.rand(3, generator=seeded(seed)) / 2
    out = gmix.SoftDecoupler(mode, normalize)(mixed, labeled, lam)
    assert torch.equal(out, G.decouple(mixed, labeled, lam, mode=mode, normalize=normalize))


def test_the_defaults_are_the_papers_soft_decoupling_on_the_simplex() -> None:
    decoupler = gmix.SoftDecoupler()
    assert (decoupler.mode, decoupler.normalize) == ("soft", "renormalize")
    mixer = LabeledUnlabeledMixer()
    assert (mixer.alpha, mixer.max_lambda) == (1.0, 0.5)
    assert SimilarPairSelector().metric == "euclidean"


def test_the_parts_hold_no_weights_and_print_their_settings() -> None:
    parts = [LabeledUnlabeledMixer(), SimilarPairSelector(), RandomPairSelector()]
    for part in [*parts, gmix.SoftDecoupler(), gmix.GuidedMixLoss(), gmix.CutMix()]:
        assert not part.state_dict()
    assert "max_lambda=0.3" in repr(LabeledUnlabeledMixer(max_lambda=0.3))
    assert "metric='cosine'" in repr(SimilarPairSelector("cosine"))
    assert "mode='hard'" in repr(gmix.SoftDecoupler("hard"))
    assert "threshold=0.9" in repr(gmix.GuidedMixLoss(threshold=0.9))


images = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: LabeledUnlabeledMixer(alpha=-1), "`alpha` must be above 0, got -1"),
        (
            lambda: LabeledUnlabeledMixer(max_lambda=0.7),
            "`max_lambda` must be in (0, 0.5], got 0.7",
        ),
        (lambda: LabeledUnlabeledMixer()(images, images[:1]), "(2, 3, 4, 4) and (1, 3, 4, 4)"),
        (
            lambda: LabeledUnlabeledMixer()(images, images, torch.tensor(0.5)),
            "`lam` must hold one value per image, shape (2,), got ()",
        ),
        (lambda: SimilarPairSelector("manhattan"), "'euclidean' or 'cosine', got 'manhattan'"),  # type: ignore[arg-type]
        (lambda: SimilarPairSelector()(torch.zeros(2, 3), torch.zeros(0, 3)), "M > 0"),
        (
            lambda: SimilarPairSelector()(torch.zeros(2, 3), torch.zeros(3, 3), True),
            "the same two or more images, got 2 and 3",
        ),
        (
            lambda: RandomPairSelector()(torch.zeros(1, 3), torch.zeros(1, 3), True),
            "at least 2 labeled images, got 1",
        ),
        (
            lambda: RandomPairSelector()(torch.zeros(1, 3), torch.zeros(0, 3)),
            "at least 1 labeled images, got 0",
        ),
        (lambda: gmix.SoftDecoupler("softer"), "'soft' or 'hard', got 'softer'"),  # type: ignore[arg-type]
        (lambda: gmix.SoftDecoupler(normalize="sum"), "`normalize` must be"),  # type: ignore[arg-type]
        (lambda: gmix.SoftDecoupler("hard", "rescale"), "cannot be rescaled"),
        (
            lambda: gmix.SoftDecoupler()(images, images[:, :2], torch.zeros(2)),
            "(2, 3, 4, 4) and (2, 2, 4, 4)",
        ),
    ],
)
def test_bad_settings_and_shapes_are_refused_in_one_sentence(
    call: Callable[[], object], words: str
) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)
