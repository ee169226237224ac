"""The equations, against naive loops, other libraries and what must always hold."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny_nets import seeded, tiny_net
from torch import Tensor

import gmix
from gmix import functional as G
from gmix.evaluation import ConfusionMatrix
from gmix.nn.reference import class_shares

seeds = st.integers(0, 2**31 - 1)


def random_probs(seed: int, n: int = 2, k: int = 4, h: int = 3, w: int = 5) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, h, w, generator=g, dtype=torch.float64).mul(3).softmax(1)


# --- Eq. 2: mix -------------------------------------------------------------------------------


@given(seeds)
def test_mix_is_the_equation(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 3, 2, 4, 5, generator=g)
    lam = torch.rand(3, generator=g)
    before = a.clone(), b.clone()
    out = G.mix(a, b, lam)
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])
    for i in range(3):
        expected = lam[i].item() * a[i].numpy() + (1 - lam[i].item()) * b[i].numpy()
        np.testing.assert_allclose(out[i].numpy(), expected, atol=1e-6)


def test_lambda_at_alpha_1_has_the_distribution_of_redrawing_until_below_the_cap() -> None:
    rng = np.random.default_rng(0)
    redrawn: list[float] = []
    while len(redrawn) < 20000:
        b = rng.beta(1, 1)
        lam = min(b, 1 - b)
        if lam < 0.3:
            redrawn.append(lam)
    drawn = G.sample_lambda(20000, max_lambda=0.3, generator=torch.Generator().manual_seed(0))
    quantiles = np.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(
        np.quantile(drawn.numpy(), quantiles), np.quantile(redrawn, quantiles), atol=0.006
    )


@given(seeds, st.sampled_from([0.2, 0.5, 1.0, 4.0]), st.sampled_from([0.1, 0.3, 0.5]))
def test_lambda_stays_under_its_cap_and_follows_its_generator(
    seed: int, alpha: float, cap: float
) -> None:
    def draw() -> Tensor:
        g = torch.Generator().manual_seed(seed)
        return G.sample_lambda(50, alpha=alpha, max_lambda=cap, generator=g)

    lam = draw()
    assert lam.shape == (50,) and lam.min() >= 0 and lam.max() <= cap
    assert torch.equal(lam, draw())


# --- Eq. 3: pairs -----------------------------------------------------------------------------


@given(seeds, st.sampled_from(["euclidean", "cosine"]), st.booleans())
def test_nearest_is_the_double_loop(seed: int, metric: str, exclude_self: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    key = torch.randn(6, 4, generator=g)
    query = key if exclude_self else torch.randn(5, 4, generator=g)
    index = G.nearest(query, key, metric=metric, exclude_self=exclude_self)  # type: ignore[arg-type]
    for i, q in enumerate(query):
        distances = []
        for j, k in enumerate(key):
            d = (q - k).norm() if metric == "euclidean" else 1 - F.cosine_similarity(q, k, dim=0)
            distances.append(math.inf if exclude_self and i == j else d.item())
        assert index[i] == int(np.argmin(distances))


def test_nearest_tells_neighbours_apart_far_from_the_origin() -> None:
    key = 1000 + torch.arange(32.0)[:, None] / 8
    assert G.nearest(key + 0.01, key).tolist() == list(range(32))


def test_nearest_carries_no_gradient() -> None:
    query = torch.randn(2, 3, requires_grad=True)
    assert not G.nearest(query, torch.randn(2, 3)).requires_grad


# --- Eq. 6-8: decoupling ----------------------------------------------------------------------


@given(seeds)
def test_decoupling_a_linear_predictor_gives_the_unlabeled_prediction(seed: int) -> None:
    p_l, p_u = random_probs(seed), random_probs(seed + 1)
    lam = torch.rand(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / 2
    p_mix = G.mix(p_l, p_u, lam)
    for normalize in ("renormalize", "rescale"):
        out = G.decouple(p_mix, p_l, lam, normalize=normalize)  # type: ignore[arg-type]
        torch.testing.assert_close(out, p_u.float(), atol=1e-5, rtol=1e-4)
    literal = G.decouple(p_mix, p_l, lam, normalize="none")
    torch.testing.assert_close(literal, ((1 - lam).view(2, 1, 1, 1) * p_u).float())


@given(seeds, st.sampled_from(["soft", "hard"]))
def test_renormalised_decoupling_is_always_a_distribution(seed: int, mode: str) -> None:
    lam = torch.tensor([0.0, 0.5])
    out = G.decouple(random_probs(seed), random_probs(seed + 1), lam, mode=mode)  # type: ignore[arg-type]
    assert out.min() >= 0
    torch.testing.assert_close(out.sum(1), torch.ones(2, 3, 5))


@given(seeds)
def test_renormalised_decoupling_is_the_naive_loop(seed: int) -> None:
    p_mix, p_l = random_probs(seed), random_probs(seed + 1)
    lam = [0.1, 0.45]
    out = G.decouple(p_mix, p_l, torch.tensor(lam))
    for n in range(2):
        for y in range(3):
            for x in range(5):
                left = [
                    max(p_mix[n, k, y, x].item() - lam[n] * p_l[n, k, y, x].item(), 0)
                    for k in range(4)
                ]
                expected = torch.tensor([v / sum(left) for v in left])
                torch.testing.assert_close(out[n, :, y, x], expected, atol=1e-5, rtol=1e-4)


@given(seeds, st.sampled_from(["soft", "hard"]), st.sampled_from(["none", "renormalize"]))
def test_binary_decoupling_is_the_two_class_case(seed: int, mode: str, normalize: str) -> None:
    a, b = random_probs(seed, k=2), random_probs(seed + 1, k=2)
    lam = torch.tensor([0.2, 0.5])
    options = {"mode": mode, "normalize": normalize}
    two = G.decouple(a, b, lam, **options)  # type: ignore[arg-type]
    one = G.decouple(a[:, 1:], b[:, 1:], lam, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(one, two[:, 1:])


def test_literal_hard_decoupling_sums_to_0_and_equal_images_leave_a_uniform_target() -> None:
    a, b = random_probs(0), random_probs(1)
    lam = torch.tensor([0.2, 0.5])
    literal = G.decouple(a, b, lam, mode="hard", normalize="none")
    torch.testing.assert_close(literal.sum(1), torch.zeros(2, 3, 5), atol=1e-6, rtol=0)
    same = G.decouple(a, a, lam, mode="hard")
    torch.testing.assert_close(same, torch.full_like(same, 0.25))


# --- losses -----------------------------------------------------------------------------------


@given(seeds)
def test_cross_entropy_is_the_naive_loop(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 4, 4, generator=g)
    target = torch.randint(4, (2, 4, 4), generator=g)
    target[target == 3] = 255
    weight = torch.rand(2, 4, 4, generator=g)
    total, weighted, count = 0.0, 0.0, 0
    for n, y, x in np.ndindex(2, 4, 4):
        if target[n, y, x] != 255:
            loss = -logits[n, :, y, x].log_softmax(0)[target[n, y, x]].item()
            total, weighted = total + loss, weighted + loss * weight[n, y, x].item()
            count += 1
    assert G.cross_entropy(logits, target).item() == pytest.approx(total / count, rel=1e-5)
    assert G.cross_entropy(logits, target, weight=weight).item() == pytest.approx(
        weighted / count, rel=1e-5
    )


@pytest.mark.parametrize("channels", [1, 3])
def test_nothing_to_learn_from_gives_0_and_a_zero_gradient(channels: int) -> None:
    logits = torch.randn(2, channels, 4, 4, requires_grad=True)
    loss = G.cross_entropy(logits, torch.full((2, 4, 4), 255))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()
    nothing = torch.zeros(2, 4, 4, dtype=torch.bool)
    assert G.squared_error(logits.detach(), logits.detach() + 1, valid=nothing).item() == 0


@given(seeds)
def test_binary_cross_entropy_is_the_two_class_case(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logit = torch.randn(2, 1, 4, 4, generator=g)
    target = torch.tensor([0, 1, 255])[torch.randint(3, (2, 4, 4), generator=g)]
    two = torch.cat([torch.zeros_like(logit), logit], 1)
    torch.testing.assert_close(G.cross_entropy(logit, target), G.cross_entropy(two, target))


@given(seeds, st.integers(1, 4))
def test_soft_cross_entropy_is_torchs_own_for_distributions(seed: int, k: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits, target = torch.randn(2, max(k, 2), 3, 5, generator=g), random_probs(seed, k=max(k, 2))
    weight = torch.rand(2, 3, 5, generator=g)
    if k == 1:  # binary is the two-class case with a background logit of 0
        logits[:, 0] = 0
    pixels = F.cross_entropy(logits, target.float(), reduction="none")
    if k == 1:
        logits, target = logits[:, 1:], target[:, 1:]
    torch.testing.assert_close(G.soft_cross_entropy(logits, target), pixels.mean())
    weighted = G.soft_cross_entropy(logits, target, weight=weight)
    torch.testing.assert_close(weighted, (pixels * weight).mean())


@given(seeds)
def test_squared_error_skips_padding_and_treats_binary_as_two_classes(seed: int) -> None:
    a, b = random_probs(seed, k=2), random_probs(seed + 1, k=2)
    valid = torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(seed)) < 0.5
    values = [
        ((a[n, :, y, x] - b[n, :, y, x]) ** 2).sum().item()
        for n, y, x in np.ndindex(2, 3, 5)
        if valid[n, y, x]
    ]
    expected = sum(values) / max(len(values), 1)
    assert G.squared_error(a, b, valid=valid).item() == pytest.approx(expected, rel=1e-5)
    one = G.squared_error(a[:, 1:], b[:, 1:], valid=valid)
    assert one.item() == pytest.approx(expected, rel=1e-5)


@given(seeds)
def test_present_classes_is_a_set(seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    mask = torch.randint(7, (3, 2, 2), generator=g)
    mask[mask == 6] = 255
    out = G.present_classes(mask, 6)
    for n in range(3):
        expected = set(mask[n].flatten().tolist()) - {255}
        assert set(out[n].nonzero().flatten().tolist()) == expected
    binary = torch.tensor([[[0, 0]], [[1, 0]], [[255, 255]]])
    assert G.present_classes(binary, 1).tolist() == [[0.0], [1.0], [0.0]]


def test_ramp_up_is_laine_and_aila() -> None:
    for t in (0.0, 0.1, 0.29):
        expected = pytest.approx(math.exp(-5 * (1 - t / 0.3) ** 2))
        assert G.ramp_up(t, 0.3) == expected and G.ramp_up(torch.tensor(t), 0.3).item() == expected
    for t, length in ((0.3, 0.3), (1.0, 0.3), (0.0, 0.0)):
        assert G.ramp_up(t, length) == G.ramp_up(torch.tensor(t), length) == 1.0


@given(seeds, st.integers(1, 4))
def test_reweigh_is_bayes(seed: int, k: int) -> None:
    probs = random_probs(seed, k=max(k, 2))
    weights = torch.rand(2, max(k, 2), 3, 5, generator=torch.Generator().manual_seed(seed)) + 0.1
    out = G.reweigh(probs if k > 1 else probs[:, 1:], weights)
    p, w = probs.numpy(), weights.numpy()
    expected = p * w / (p * w).sum(1, keepdims=True)
    np.testing.assert_allclose(out.numpy(), expected if k > 1 else expected[:, 1:], rtol=1e-4)


def test_reweigh_is_finite_where_float32_has_no_products() -> None:
    probs = torch.tensor([1e-30, 0.0]).view(1, 2, 1, 1).requires_grad_()
    out = G.reweigh(probs, torch.tensor([1e-30, 1.0]).view(1, 2, 1, 1))
    assert torch.equal(out, torch.zeros_like(out))
    out.sum().backward()
    assert probs.grad is not None and probs.grad.isfinite().all()


@given(seeds, st.integers(1, 4))
def test_certainty_is_what_torchs_entropy_leaves(seed: int, k: int) -> None:
    probs = random_probs(seed, k=max(k, 2))
    entropy = torch.distributions.Categorical(probs.movedim(1, -1)).entropy()
    expected = 1 - entropy / math.log(max(k, 2))
    out = G.certainty(probs if k > 1 else probs[:, 1:])
    torch.testing.assert_close(out, expected.float(), atol=1e-5, rtol=1e-4)


def test_certainty_stays_in_its_range() -> None:
    for k in (2, 3, 7):
        sure = torch.eye(k).view(k, k, 1, 1)
        assert G.certainty(sure).eq(1).all()
        same = G.certainty(torch.full((1, k, 1, 1), 1 / k))
        assert 0 <= same.item() < 1e-6


def test_fill_in_and_most_probable() -> None:
    p = random_probs(0, n=1, k=3, h=1, w=3)
    mask = torch.tensor([[[2, 255, 0]]])
    filled = G.fill_in(p, mask)
    assert filled[0, :, 0, 0].tolist() == [0, 0, 1] and filled[0, :, 0, 2].tolist() == [1, 0, 0]
    assert torch.equal(filled[0, :, 0, 1], p[0, :, 0, 1])
    binary = G.fill_in(
        torch.tensor([0.3, 0.6, 0.9]).view(1, 1, 1, 3), torch.tensor([[[0, 1, 255]]])
    )
    torch.testing.assert_close(binary.flatten(), torch.tensor([0.0, 1.0, 0.9]))
    confidence, labels = G.most_probable(torch.tensor([0.3, 0.6]).view(1, 1, 1, 2))
    torch.testing.assert_close(confidence.flatten(), torch.tensor([0.7, 0.6]))
    assert labels.flatten().tolist() == [0, 1]


# --- all of them ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(2, 3, 4, 4)
    half = logits.to(dtype)
    target = torch.randint(3, (2, 4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        probs = G.probabilities(half)
        assert probs.dtype == torch.float32
        torch.testing.assert_close(probs, half.float().softmax(1))
        out = G.decouple(probs.to(dtype), probs.to(dtype), torch.tensor([0.1, 0.2]))
        assert out.dtype == torch.float32
        assert G.cross_entropy(half, target).dtype == torch.float32
        assert G.squared_error(probs.to(dtype), out).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: G.mix(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 5), torch.zeros(2)), "shape"),
        (lambda: G.mix(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), torch.zeros(1)), "`lam`"),
        (lambda: G.nearest(torch.zeros(2, 3), torch.zeros(2, 4)), "length"),
        (lambda: G.nearest(torch.zeros(1, 3), torch.zeros(1, 3), exclude_self=True), "two or more"),
        (lambda: G.nearest(torch.zeros(1, 3), torch.zeros(1, 3), metric="l1"), "`metric`"),  # type: ignore[arg-type]
        (lambda: G.sample_lambda(1, max_lambda=0.6), "`max_lambda`"),
        (lambda: G.sample_lambda(1, alpha=0), "`alpha`"),
        (lambda: G.cross_entropy(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 5)), "`target`"),
        (lambda: G.squared_error(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4)), "`probs`"),
        (
            lambda: G.cross_entropy(
                torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4).long(), weight=torch.ones(4)
            ),
            "`weight` must have shape (1, 4, 4)",
        ),
        (
            lambda: G.squared_error(
                torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4), valid=torch.ones(1, 1, 4, 4)
            ),
            "`valid` must have shape (1, 4, 4)",
        ),
        (lambda: G.reweigh(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3, 4, 4)), "`weights`"),
        (
            lambda: G.decouple(torch.zeros(2, 21, 8, 8), torch.zeros(2, 19, 8, 8), torch.zeros(2)),
            "(2, 21, 8, 8) and (2, 19, 8, 8)",
        ),
        (
            lambda: G.decouple(
                torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1), torch.zeros(1),
                mode="hard", normalize="rescale",
            ),
            "cannot be rescaled",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_one_sentence(call, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)


@given(st.integers(0, 2**31 - 1), st.integers(2, 6))
def test_pixels_of_classes_are_those_numpy_counts(seed: int, classes: int) -> None:
    g = torch.Generator().manual_seed(seed)
    mask = torch.randint(-1, classes + 1, (3, 5, 4), generator=g)
    mask = torch.where(mask == classes, 255, mask)
    expected = [int((mask.numpy() == k).sum()) for k in range(classes)]
    assert G.pixels_of_classes(mask, classes).tolist() == expected


def test_255_is_no_class_by_default_so_more_than_255_classes_need_another_number() -> None:
    """Else class 255 would be neither learned nor scored."""
    logits = torch.randn(1, 300, 2, 3)
    y = torch.tensor([[[0, 255, 299], [254, 255, -1]]])
    calls: dict[str, Any] = {
        "cross_entropy": lambda **to: G.cross_entropy(logits, y, **to),
        "fill_in": lambda **to: G.fill_in(G.probabilities(logits), y, **to)[0, 255],
        "present_classes": lambda **to: G.present_classes(y, 300, **to)[0, 250:],
        "class_shares": lambda **to: class_shares(y, 300, (2, 3), **to)[0, 255],
        "supervised": lambda **to: gmix.methods.Supervised(tiny_net(300), **to)(
            torch.randn(2, 3, 64, 64), torch.full((2, 64, 64), 255)
        )["supervised"],
        "confusion": lambda **to: counted(y.clamp(min=0), y, **to),
    }

    def counted(pred: Tensor, target: Tensor, **to: int) -> Tensor:
        matrix = ConfusionMatrix(300, **to)
        matrix.update(pred, target)
        return matrix.counts.diagonal()

    found = {}
    for name, call in calls.items():
        with pytest.raises(ValueError, match=r"of 300 classes 255 is one.*ignore_index=-1"):
            call()
        found[name] = call(ignore_index=-1)
    kept = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    chances = [logits[0, :, i, j].log_softmax(0)[y[0, i, j]] for i, j in kept]
    torch.testing.assert_close(found["cross_entropy"], -torch.stack(chances).mean())
    assert found["class_shares"].tolist() == (y[0] == 255).float().tolist()
    assert found["fill_in"][y[0] >= 0].tolist() == (y[0] == 255)[y[0] >= 0].float().tolist()
    assert found["present_classes"].nonzero().flatten().tolist() == [4, 5, 49]
    assert found["confusion"][[0, 254, 255, 299]].tolist() == [1, 1, 2, 1]
    assert found["supervised"] > 0


def adjusted(mask: Tensor, logits: Tensor) -> Tensor:
    adjustment = gmix.LogitAdjustment(logits.shape[1])
    adjustment.add(mask)
    return adjustment.pixels


def criterion(mask: Tensor, logits: Tensor) -> Tensor:
    losses = gmix.GuidedMixLoss()(logits, mask, class_logits=logits.mean((2, 3)))
    return torch.stack([*losses.values()])


# Everything that is called with masks and logits; of these, the last three count other values for no class.
TAKE_MASKS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "cross_entropy": lambda y, z: G.cross_entropy(z, y),
    "class_weights": lambda y, z: G.cross_entropy(z, y, class_weights=torch.arange(1.0, 1 + max(z.shape[1], 2))),
    "sigmoid_focal_loss": lambda y, z: G.sigmoid_focal_loss(z, y),
    "ohem_cross_entropy": lambda y, z: G.ohem_cross_entropy(z, y),
    "focal_loss": lambda y, z: G.focal_loss(z, y, class_weights=torch.ones(max(z.shape[1], 2))),
    "dice_loss": lambda y, z: G.dice_loss(z, y),
    "lovasz_softmax": lambda y, z: G.lovasz_softmax(z, y),
    "fill_in": lambda y, z: G.fill_in(G.probabilities(z), y),
    "present_classes": lambda y, z: G.present_classes(y, z.shape[1]),
    "GuidedMixLoss": criterion,
    "pixels_of_classes": lambda y, z: G.pixels_of_classes(y, max(z.shape[1], 2)),
    "LogitAdjustment": adjusted,
    "ClassPaste": lambda y, z: gmix.ClassPaste(z.shape[1], p=1.0)(y, generator=seeded(0)),
}  # fmt: skip
take_masks = pytest.mark.parametrize("name", TAKE_MASKS)


def masks_and_logits(channels: int) -> tuple[Tensor, Tensor]:
    """Two masks with more pixels than small types count to, and logits of them."""
    y = torch.randint(max(channels, 2), (2, 40, 50), generator=seeded(1))
    y[:, 0, :9] = 255
    return y, torch.randn(2, channels, 40, 50, generator=seeded(2))


@take_masks
@pytest.mark.parametrize("channels", [1, 3])
def test_masks_of_any_integer_type_count_alike(name: str, channels: int) -> None:
    y, logits = masks_and_logits(channels)
    expected = TAKE_MASKS[name](y, logits)
    for kind in (torch.uint8, torch.int16, torch.int32, torch.uint16, torch.uint32):
        assert torch.equal(TAKE_MASKS[name](y.to(kind), logits), expected), kind


@take_masks
@pytest.mark.parametrize("channels", [1, 3])
def test_what_is_no_mask_is_refused_in_one_sentence(name: str, channels: int) -> None:
    y, logits = masks_and_logits(channels)
    wrong: list[tuple[Any, str]] = [
        (y.float(), r"must hold one class per pixel as an integer, got torch.float32: pass \w+.long\(\)$"),
        (y.numpy(), r"must be a tensor, got ndarray: pass torch.as_tensor\(\w+\)$"),
    ]  # fmt: skip
    if name not in [*TAKE_MASKS][-3:]:
        other = torch.where(y == 1, 3, y)
        wrong += [(other, "`(target|mask)` must hold classes 0 to [12], or 255 .*, got 3$")]
        wrong += [(torch.where(y == 1, -1, y), "got -1$")]
    for bad, words in wrong:
        with pytest.raises((TypeError, ValueError), match=words):
            TAKE_MASKS[name](bad, logits)


@pytest.mark.parametrize("name", [*TAKE_MASKS][:8])
def test_one_hot_masks_are_named_and_a_channel_of_one_is_dropped(name: str) -> None:
    y, logits = masks_and_logits(3)
    call = TAKE_MASKS[name]
    assert torch.equal(call(y[:, None], logits), call(y, logits))
    with pytest.raises(
        ValueError, match=r"got \(2, 3, 40, 50\): pass one-hot masks as \w+.argmax\(1\)$"
    ):
        call(y[:, None].expand(-1, 3, -1, -1), logits)
