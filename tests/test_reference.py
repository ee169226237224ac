"""LabeledReference against attention written as loops, and what a memory must never do."""

import math
from collections import deque
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from segmentation_models_pytorch.encoders import get_encoder
from tiny_nets import AverageEncoder, seeded, tiny_batch, tiny_net
from torch import Tensor, nn

from gmix import LabeledReference
from gmix.reference import class_shares, spread

SIZE, CELL = 8, 2  # images of 8 x 8, features on a grid of 4 x 4


def averages(classes: int, **settings: Any) -> LabeledReference:
    """A reference whose features are means of pixels, and which takes images as they are."""
    return LabeledReference(AverageEncoder(), classes, **{"shorter_side": 1, **settings})


class NaiveReference:
    """The docstring's three equations, one position and one memory entry at a time."""

    def __init__(self, classes: int, capacity: int, positions: int, temperature: float) -> None:
        self.slots = max(classes, 2)
        self.memory: deque[tuple[np.ndarray, np.ndarray]] = deque(maxlen=capacity)
        self.positions = positions
        self.temperature = temperature

    def features(self, image: Tensor) -> np.ndarray:
        finer = F.avg_pool2d(image, 2)
        deepest = F.avg_pool2d(image[None, :2], 4) ** 2
        deepest = F.interpolate(deepest, size=finer.shape[-2:], mode="bilinear")[0]
        return torch.cat([finer, deepest]).flatten(1).T.double().numpy()

    def add(self, x: Tensor, y: Tensor) -> None:
        grid = SIZE // CELL
        # Of more images than there is room for, the first ones.
        for image, mask in zip(x[: self.memory.maxlen], y, strict=False):
            features = self.features(image)
            keep = min(self.positions, len(features), max(self.memory.maxlen // len(x), 1))
            shares = []
            for r, c in np.ndindex(grid, grid):
                cell = mask[CELL * r : CELL * (r + 1), CELL * c : CELL * (c + 1)]
                cell = cell.flatten().tolist()
                shares.append([cell.count(k) / len(cell) for k in range(self.slots)])
            for position in spread(torch.tensor([shares]), keep)[0].tolist():
                self.memory.append((features[position], np.array(shares[position])))

    def likelihood(self, x: Tensor) -> np.ndarray:
        known = [(key, shares) for key, shares in self.memory if shares.sum() > 0]
        centre = sum(key for key, _ in known) / len(known)
        seen = sum(shares for _, shares in known)
        out = np.ones((len(x), (SIZE // CELL) ** 2, self.slots))
        for i, image in enumerate(x):
            for j, feature in enumerate(self.features(image)):
                scores = [
                    math.exp(similarity(feature - centre, key - centre) / self.temperature)
                    for key, _ in known
                ]
                attended = sum(s * y for s, (_, y) in zip(scores, known, strict=True))
                attended = attended / attended.sum()
                for k in range(self.slots):
                    if seen[k] > 0:  # a class never seen says nothing
                        out[i, j, k] = attended[k] / max(seen[k] / seen.sum(), 1e-3)
        return out.transpose(0, 2, 1).reshape(len(x), self.slots, SIZE // CELL, SIZE // CELL)


def naive_spread(shares: list[list[float]], keep: int) -> list[int]:
    """Walk along the weights in even steps and note where each one ends."""
    if keep >= len(shares):
        return list(range(len(shares)))
    count = [sum(row[k] for row in shares) for k in range(len(shares[0]))]
    weights = [
        sum(v / math.sqrt(n) for v, n in zip(row, count, strict=True) if n) + 1e-6 for row in shares
    ]
    kept = []
    for j in range(keep):
        left = (j + 0.5) / keep * sum(weights)
        position = 0
        while left > weights[position]:
            left -= weights[position]
            position += 1
        kept.append(position)
    return kept


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """The mean of the cosines of the finer map's channels (3) and of the deepest's (2)."""
    cosines = [
        float(u @ v / np.linalg.norm(u) / np.linalg.norm(v))
        for u, v in ((a[:3], b[:3]), (a[3:], b[3:]))
    ]
    return sum(cosines) / 2


def random_images(g: torch.Generator, n: int, classes: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 3, SIZE, SIZE, generator=g)
    y = torch.randint(classes + 1, (n, SIZE, SIZE), generator=g)
    y[y == classes] = 255
    y[:, :CELL, :CELL] = 255  # a position without any class
    return x, y


@settings(max_examples=8)
@given(
    st.integers(0, 999),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([(200, 16), (40, 5), (11, 16), (2, 16)]),
)
def test_likelihood_and_guidance_are_the_loops(
    seed: int, classes: int, memory: tuple[int, int]
) -> None:
    capacity, positions = memory
    g = seeded(seed)
    settings = {"capacity": capacity, "positions": positions, "temperature": 0.2}
    settings |= {"tolerance": 0.4, "strength": 0.7, "floor": 0.1}
    reference = averages(classes, **settings)
    naive = NaiveReference(classes, capacity, positions, 0.2)
    for n in (3, 2, 3):  # 8 images: more than the smaller memories hold
        x, y = random_images(g, n, max(classes, 2))
        reference.add(x, y)
        naive.add(x, y)
    if not any(shares.sum() for _, shares in naive.memory):
        return
    x = torch.randn(2, 3, SIZE, SIZE, generator=g)
    expected = naive.likelihood(x)
    np.testing.assert_allclose(reference.likelihood(x).numpy(), expected, atol=2e-3, rtol=2e-3)

    probs = torch.rand(2, max(classes, 2), SIZE, SIZE, generator=g)
    probs = probs / probs.sum(1, keepdim=True)
    ratio = F.interpolate(torch.from_numpy(expected), size=(SIZE, SIZE), mode="bilinear").numpy()
    weighed = np.zeros_like(ratio)
    for i, r, c in np.ndindex(len(x), SIZE, SIZE):
        likelihood = ratio[i, :, r, c] + 0.1
        enough = 0.4 * max(likelihood)
        for k in range(len(likelihood)):
            plausible = 1 if likelihood[k] >= enough else (likelihood[k] / enough) ** 0.7
            weighed[i, k, r, c] = probs[i, k, r, c].item() * plausible
    weighed = weighed / weighed.sum(1, keepdims=True)
    own = slice(1, 2) if classes == 1 else slice(None)
    guided = reference(probs[:, own], x)
    assert guided.dtype == torch.float32
    np.testing.assert_allclose(guided.numpy(), weighed[:, own], atol=2e-3)


@given(st.integers(0, 999), st.sampled_from([(4, 4), (2, 8), (1, 1)]))
def test_class_shares_count_pixels(seed: int, size: tuple[int, int]) -> None:
    _, y = random_images(seeded(seed), 2, 3)
    shares = class_shares(y, 3, size)
    h, w = SIZE // size[0], SIZE // size[1]
    for n, k, r, c in np.ndindex(2, 3, *size):
        cell = y[n, r * h : (r + 1) * h, c * w : (c + 1) * w]
        assert shares[n, k, r, c].item() == pytest.approx((cell == k).float().mean().item())


@given(st.integers(0, 999), st.sampled_from([255, -1, 1, 9]))
def test_class_shares_are_pooled_one_hot_masks_without_what_is_ignored(
    seed: int, ignore_index: int
) -> None:
    y = torch.randint(-1, 7, (2, 9, 14), generator=seeded(seed))  # classes 0 to 4, and others
    slots = torch.where((y < 0) | (y > 4) | (y == ignore_index), 5, y)
    one_hot = F.one_hot(slots, 6)[..., :5].permute(0, 3, 1, 2).float()
    expected = F.adaptive_avg_pool2d(one_hot, (2, 5))
    assert torch.equal(class_shares(y, 5, (2, 5), ignore_index), expected)


def test_the_oldest_are_overwritten() -> None:
    reference = averages(3, capacity=10, positions=4)
    for label in (0, 1, 2):  # one image of one class each time
        reference.add(torch.randn(1, 3, SIZE, SIZE), torch.full((1, SIZE, SIZE), label))
    held = reference.values.argmax(1).bincount(minlength=3)
    assert held.tolist() == [2, 4, 4] and reference.written == 12
    for _ in range(2):
        reference.add(torch.randn(1, 3, SIZE, SIZE), torch.full((1, SIZE, SIZE), 0))
    assert reference.values.argmax(1).bincount(minlength=3).tolist() == [8, 0, 2]


def test_more_images_than_the_memory_holds() -> None:
    reference = averages(2, capacity=3)
    reference.add(*random_images(seeded(0), 5, 2))
    assert (
        reference(torch.full((1, 2, SIZE, SIZE), 0.5), torch.randn(1, 3, SIZE, SIZE))
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("classes", [1, 3])
def test_nothing_remembered_leaves_probabilities_as_they_are(classes: int) -> None:
    reference = averages(classes)
    x = torch.randn(2, 3, SIZE, SIZE)
    probs = torch.rand(2, 3, SIZE, SIZE).softmax(1)[:, :classes]
    torch.testing.assert_close(reference(probs, x), probs)
    reference.add(x, torch.full((2, SIZE, SIZE), 255))  # nor do images without a class count
    assert torch.equal(reference.likelihood(x), torch.ones(2, max(classes, 2), 4, 4))
    torch.testing.assert_close(reference(probs, x), probs)


def test_a_class_never_seen_has_ratio_1() -> None:
    reference = averages(3)
    x, y = random_images(seeded(0), 2, 2)  # classes 0 and 1 of three
    reference.add(x, y)
    ratio = reference.likelihood(x)
    assert torch.equal(ratio[:, 2], torch.ones(2, 4, 4)) and ratio[:, :2].std() > 0.1


def test_ignored_pixels_are_not_remembered() -> None:
    x, y = random_images(seeded(0), 2, 3)
    y[:, : SIZE // 2] = 255
    whole, half = averages(3, positions=8), averages(3, positions=8)
    whole.add(x, y)
    half.add(x, torch.where(y == 255, 77, y), ignore_index=77)
    assert torch.equal(whole.values, half.values) and torch.equal(whole.keys, half.keys)
    assert whole.written == 16 and whole.values[:16].any(1).all()
    finer = F.avg_pool2d(x, CELL).flatten(2).transpose(1, 2)  # the first three channels of a key
    upper, lower = finer[:, :8].flatten(0, 1), finer[:, 8:].flatten(0, 1)
    for key in whole.keys[:16, :3]:
        assert (key == lower).all(1).any() and not (key == upper).all(1).any()


@given(st.integers(0, 999), st.integers(1, 20))
def test_positions_of_rare_classes_are_kept_more_often(seed: int, keep: int) -> None:
    shares = torch.rand(2, 16, 3, generator=seeded(seed)) ** torch.tensor([1.0, 3.0, 20.0])
    shares = shares / shares.sum(2, keepdim=True)  # class 0 is frequent, class 2 rare
    kept = spread(shares, keep)
    assert kept.tolist() == [naive_spread(image, keep) for image in shares.tolist()]
    if keep >= 16:  # there is room for all
        return
    # Systematic sampling: every position comes as often as its weight says, but for less than one.
    weight = (shares / shares.sum(1, keepdim=True).clamp(min=1e-6).sqrt()).sum(2) + 1e-6
    expected = keep * weight / weight.sum(1, keepdim=True)
    often = torch.stack([image.bincount(minlength=16) for image in kept])
    assert (often - expected).abs().max() < 1


@given(st.integers(0, 999))
def test_plausible_classes_keep_their_odds_however_often_it_is_asked(seed: int) -> None:
    """Self-training asks again and again: the line between plausible classes is the network's."""
    g = seeded(seed)
    x, y = random_images(g, 2, 3)
    reference = averages(3, tolerance=0.3, temperature=1.0)
    reference.add(x, y)
    probs = guided = torch.randn(2, 3, SIZE, SIZE, generator=g).softmax(1)
    for _ in range(10):
        guided = reference(guided, x)
    ratio = F.interpolate(reference.likelihood(x), size=(SIZE, SIZE), mode="bilinear") + 0.01
    plausible = ratio >= 0.3 * ratio.amax(1, keepdim=True)
    both = plausible[:, 0] & plausible[:, 1]
    assert both.any()
    odds, before = (p[:, 0][both] / p[:, 1][both] for p in (guided, probs))
    torch.testing.assert_close(odds, before, rtol=1e-3, atol=1e-5)
    lost = plausible[:, 0] & ~plausible[:, 1]
    assert (guided[:, 1] / guided[:, 0] < probs[:, 1] / probs[:, 0])[lost].all()


def test_without_tolerance_it_is_bayes_rule() -> None:
    x, y = random_images(seeded(0), 2, 3)
    reference = averages(3, tolerance=1.0, floor=1e-6)
    reference.add(x, y)
    probs = torch.rand(2, 3, SIZE, SIZE).softmax(1)
    likelihood = F.interpolate(reference.likelihood(x), size=(SIZE, SIZE), mode="bilinear")
    joint = probs * likelihood
    bayes = joint / joint.sum(1, keepdim=True)
    torch.testing.assert_close(reference(probs, x), bayes, rtol=1e-4, atol=1e-4)


def test_strength_0_leaves_probabilities_as_they_are() -> None:
    x, y = random_images(seeded(0), 2, 3)
    probs = torch.rand(2, 3, SIZE, SIZE).softmax(1)
    for strength, same in ((0.0, True), (1.0, False)):
        reference = averages(3, strength=strength)
        reference.add(x, y)
        assert torch.allclose(reference(probs, x), probs, atol=1e-6) == same


@given(st.integers(0, 999))
def test_guided_probabilities_are_a_distribution_and_nothing_is_changed_in_place(seed: int) -> None:
    g = seeded(seed)
    reference = averages(3)
    x, y = random_images(g, 2, 3)
    probs = torch.randn(2, 3, SIZE, SIZE, generator=g).mul(4).softmax(1)
    before = x.clone(), y.clone(), probs.clone()
    reference.add(x, y)
    guided = reference(probs, x)
    assert guided.min() >= 0
    torch.testing.assert_close(guided.sum(1), torch.ones(2, SIZE, SIZE))
    assert all(torch.equal(a, b) for a, b in zip(before, (x, y, probs), strict=True))


def test_the_encoder_is_a_frozen_copy() -> None:
    net = tiny_net()
    reference = LabeledReference(net.model.encoder, 3)
    owner = nn.Sequential(reference)
    owner.train()
    before = {name: v.clone() for name, v in reference.encoder.state_dict().items()}
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()  # the student trains, its former encoder stays
    x, y, x_u = tiny_batch()
    reference.add(x, y)
    probs = torch.full((4, 3, 32, 32), 1 / 3, requires_grad=True)
    reference(probs, x_u)[:, 0].sum().backward()
    assert probs.grad is not None and probs.grad.any()
    assert not any(m.training for m in reference.modules())
    assert not any(p.requires_grad for p in reference.parameters())
    after = reference.encoder.state_dict()
    assert all(torch.equal(after[name], v) for name, v in before.items())
    assert not any(name.startswith("model") for name in reference.state_dict())


def test_the_memory_is_part_of_the_state() -> None:
    x, y, x_u = tiny_batch()
    reference = LabeledReference(tiny_net().model.encoder, 3, capacity=64)
    reference.add(x, y)
    other = LabeledReference(tiny_net().model.encoder, 3, capacity=64)
    other.load_state_dict(reference.state_dict())
    assert torch.equal(other.likelihood(x_u), reference.likelihood(x_u))


@pytest.mark.parametrize("classes", [1, 3])
def test_it_helps_where_features_tell_the_classes(classes: int) -> None:
    """Stripes of coloured noise: a network that knows nothing, guided by labeled pixels."""
    g, colors = seeded(0), torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [-2.0, -1.0, 2.0]])

    def stripes(n: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(max(classes, 2), (n, 4), generator=g).repeat_interleave(4, 1)
        y = y[:, None].expand(n, 16, 16)
        noise = torch.randn(n, 3, 16, 16, generator=g)
        return colors[y].permute(0, 3, 1, 2) + noise, y

    reference = averages(classes)
    reference.add(*stripes(8))
    x, y = stripes(8)
    if classes == 1:
        guess = reference(torch.full((8, 1, 16, 16), 0.5), x)[:, 0] > 0.5
    else:
        guess = reference(torch.full((8, 3, 16, 16), 1 / 3), x).argmax(1)
    assert (guess == y).float().mean() > 0.85


def test_images_of_any_size_and_half_precision() -> None:
    x, y, _ = tiny_batch(size=50)
    reference = LabeledReference(smp.Unet("resnet18", encoder_weights=None).encoder, 3)
    with torch.autocast("cpu", torch.bfloat16):
        reference.add(x[..., :42], y[..., :42])
        in_half = reference.likelihood(x)
        assert reference(torch.full((3, 3, 50, 50), 1 / 3), x).shape == (3, 3, 50, 50)
    assert reference.keys.dtype == in_half.dtype == torch.float32
    assert in_half.isfinite().all()


def test_small_images_are_enlarged_for_the_encoder() -> None:
    x, y = random_images(seeded(0), 3, 3)
    one, two = averages(3, shorter_side=2 * SIZE), averages(3)
    one.add(x, y)
    large = F.interpolate(x, scale_factor=2, mode="bilinear")
    two.add(large, y.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert one.written == two.written == 3 * 64
    assert torch.equal(one.keys, two.keys) and torch.equal(one.values, two.values)
    assert torch.equal(one.likelihood(x), two.likelihood(large))
    guided = one(torch.full((3, 3, SIZE, SIZE), 1 / 3), x)
    assert guided.shape == (3, 3, SIZE, SIZE)


@pytest.mark.parametrize(
    ("size", "shorter_side", "grid"),
    [
        ((8, 8), 1, (4, 4)),
        ((7, 10), 1, (4, 6)),  # to the next multiple of the stride, 4
        ((7, 10), 8, (4, 6)),
        ((8, 16), 12, (6, 12)),
        ((8, 16), 32, (8, 16)),  # no more than twice as large
        ((10, 6), 12, (10, 6)),  # 12 / 6 * 10 = 20, exactly
    ],
)
def test_the_grid_covers_the_image(
    size: tuple[int, int], shorter_side: int, grid: tuple[int, int]
) -> None:
    reference = averages(2, shorter_side=shorter_side)
    assert reference.likelihood(torch.randn(1, 3, *size)).shape[2:] == grid


def test_a_vision_transformer_can_serve_as_well() -> None:
    torch.manual_seed(0)
    encoder = smp.DPT("tu-test_vit", encoder_weights=None, dynamic_img_size=True).encoder
    x, y, x_u = tiny_batch(size=40)
    reference = LabeledReference(encoder, 3, tolerance=1.0)
    reference.add(x, y)
    guided = reference(torch.full((4, 3, 40, 40), 1 / 3), x_u)
    torch.testing.assert_close(guided.sum(1), torch.ones(4, 40, 40))
    assert guided.std() > 0.01


@pytest.mark.parametrize(
    ("build", "settings", "seen"),
    [
        (smp.DPT, {"encoder_name": "tu-test_vit", "dynamic_img_size": False}, (64, 64)),
        (smp.DPT, {"encoder_name": "tu-test_vit", "dynamic_img_size": True}, (80, 96)),
        (smp.Unet, {"encoder_name": "tu-coatnet_pico_rw_224"}, (64, 64)),  # has no strict_img_size
    ],
)
def test_an_encoder_of_one_size_sees_images_at_that_size(
    build: Any, settings: dict[str, Any], seen: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    encoder = build(**settings, encoder_weights=None, img_size=64).encoder
    reference = LabeledReference(encoder, 3)
    sizes = set()
    reference.encoder.register_forward_pre_hook(lambda _, args: sizes.add(args[0].shape[2:]))
    x, y, x_u = tiny_batch(size=48)
    reference.add(x[..., :40, :], y[..., :40, :])
    guided = reference(torch.full((4, 3, 40, 48), 1 / 3), x_u[..., :40, :])
    assert sizes == {seen} and guided.shape == (4, 3, 40, 48)


@pytest.mark.parametrize(
    ("settings", "size", "seen"),
    [
        ({}, (48, 48), (224, 224)),  # windows of 7 at stride 32
        ({}, (200, 230), (224, 448)),
        ({"img_size": 64}, (40, 72), (64, 128)),  # windows of 2
    ],
)
def test_an_encoder_of_windows_sees_whole_windows(
    settings: dict[str, int], size: tuple[int, int], seen: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    encoder = get_encoder("tu-maxvit_pico_rw_256", weights=None, **{"img_size": 224, **settings})
    reference = LabeledReference(encoder, 3, shorter_side=1)
    sizes = set()
    reference.encoder.register_forward_pre_hook(lambda _, args: sizes.add(args[0].shape[2:]))
    x, y = torch.randn(1, 3, *size), torch.randint(3, (1, *size))
    reference.add(x, y)
    guided = reference(torch.full((1, 3, *size), 1 / 3), x)
    assert sizes == {seen} and guided.shape == (1, 3, *size)
    assert (guided.sum(1) - 1).abs().max() < 1e-5


def test_a_size_that_an_encoder_refuses_ends_in_one_sentence() -> None:
    reference = averages(2)

    def refuse(*args: Any) -> None:
        raise AssertionError("height (4) must be divisible by window (7)")

    reference.encoder.forward = refuse  # type: ignore[method-assign]
    with pytest.raises(
        ValueError, match=r"cannot take images of 8 x 8: height .*; build the model"
    ):
        reference.likelihood(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("name", ["capacity", "positions", "shorter_side", "temperature", "floor"])
def test_settings_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="`temperature` and `floor` must be above 0, got"):
        averages(2, **{name: 0})


def test_a_negative_strength_is_refused() -> None:
    with pytest.raises(ValueError, match="`strength` must be at least 0, got -1"):
        averages(2, strength=-1.0)


@pytest.mark.parametrize("tolerance", [0.0, 1.5])
def test_a_tolerance_that_is_no_share_is_refused(tolerance: float) -> None:
    with pytest.raises(ValueError, match=r"`tolerance` is a share in \(0, 1\], got"):
        averages(2, tolerance=tolerance)


def test_what_does_not_fit_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"must declare the `out_channels`.*got Conv2d with 8"):
        LabeledReference(nn.Conv2d(3, 8, 3), 2)
    reference = averages(2)
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"`y` must have shape \(N, H, W\).*got \(2, 4, 8\)"):
        reference.add(x, torch.zeros(2, 4, 8, dtype=torch.long))
    with pytest.raises(ValueError, match=r"same images, got \(2, 2, 4, 4\) and \(2, 3, 8, 8\)"):
        reference(torch.zeros(2, 2, 4, 4), x)
    with pytest.raises(ValueError, match=r"`probs` and `weights`"):
        reference(torch.zeros(2, 3, 8, 8), x)
