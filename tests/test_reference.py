"""LabeledReference against attention written as loops, and what a memory must never do."""

import math
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
from gmix.nn.reference import class_shares, spread

SIZE, CELL = 8, 2  # images of 8 x 8, features on a grid of 4 x 4


def averages(classes: int, **settings: Any) -> LabeledReference:
    """A reference whose features are means of pixels, and which takes images as they are."""
    return LabeledReference(AverageEncoder(), classes, **{"shorter_side": 1, **settings})


class NaiveReference:
    """The docstring's three equations, one position and one memory entry at a time."""

    def __init__(self, classes: int, capacity: int, positions: int, temperature: float) -> None:
        self.slots = max(classes, 2)
        self.memory: list[tuple[np.ndarray, np.ndarray, int]] = []  # key, class shares, image
        self.capacity = capacity
        self.positions = positions
        self.temperature = temperature

    def features(self, image: Tensor) -> np.ndarray:
        finer = F.avg_pool2d(image, 2)
        deepest = F.avg_pool2d(image[None, :2], 4) ** 2
        deepest = F.interpolate(deepest, size=finer.shape[-2:], mode="bilinear")[0]
        return torch.cat([finer, deepest]).flatten(1).T.double().numpy()

    def remember(self, x: Tensor, y: Tensor) -> None:
        grid = SIZE // CELL
        each = max(min(self.positions, self.capacity // len(x)), min(16, self.capacity))
        most = min(len(x), self.capacity // each)
        for owner in [i * len(x) // most for i in range(most)]:
            features, mask = self.features(x[owner]), y[owner]
            shares = []
            for r, c in np.ndindex(grid, grid):
                cell = mask[CELL * r : CELL * (r + 1), CELL * c : CELL * (c + 1)]
                cell = cell.flatten().tolist()
                shares.append([cell.count(k) / len(cell) for k in range(self.slots)])
            for position in sorted(set(spread(torch.tensor([shares]), each)[0].tolist())):
                if sum(shares[position]) > 0:
                    self.memory.append((features[position], np.array(shares[position]), owner))

    def ratio(self, feature: np.ndarray, without: int | None = None) -> np.ndarray:
        """How much likelier each class is there than anywhere, by the images but for one."""
        centre = sum(key for key, _, _ in self.memory) / len(self.memory)
        seen = sum(shares for _, shares, _ in self.memory)
        asked = [(key, shares) for key, shares, owner in self.memory if owner != without]
        scores = [
            math.exp(similarity(feature - centre, key - centre) / self.temperature)
            for key, _ in asked
        ]
        attended = sum(s * y for s, (_, y) in zip(scores, asked, strict=True))
        attended = attended / attended.sum()
        out = np.ones(self.slots)
        for k in range(self.slots):
            if seen[k] > 0:  # a class never seen says nothing
                out[k] = attended[k] / max(seen[k] / seen.sum(), 1e-3)
        return out

    def likelihood(self, x: Tensor) -> np.ndarray:
        out = np.array([[self.ratio(feature) for feature in self.features(image)] for image in x])
        return out.transpose(0, 2, 1).reshape(len(x), self.slots, SIZE // CELL, SIZE // CELL)

    def gain(self, strength: float, floor: float) -> float:
        """Leave-one-image-out log-likelihood of the classes over chance, less its standard error."""
        seen = sum(shares for _, shares, _ in self.memory)
        known = [k for k in range(self.slots) if seen[k] > 0]
        gains = dict.fromkeys([owner for _, _, owner in self.memory], 0.0)
        for key, shares, owner in self.memory:
            likelihood = (self.ratio(key, without=owner)[known] + floor) ** strength
            for k, p in zip(known, likelihood / likelihood.sum(), strict=True):
                gains[owner] += shares[k] / seen[k] / len(known) * math.log(p * len(known))
        each = np.array([*gains.values()])
        return float(each.sum() - each.std(ddof=1) * math.sqrt(len(each)))


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


def remembering(reference: LabeledReference, x: Tensor, y: Tensor) -> LabeledReference:
    """The reference, which remembers a batch."""
    reference.remember([*zip(x, y, strict=True)])
    return reference


@settings(max_examples=8)
@given(
    st.integers(0, 999),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([(200, 16), (40, 5), (100, 7), (11, 16)]),
)
def test_likelihood_and_guidance_are_the_loops(
    seed: int, classes: int, memory: tuple[int, int]
) -> None:
    capacity, positions = memory
    g = seeded(seed)
    settings = {"capacity": capacity, "positions": positions, "temperature": 0.2}
    x, y = random_images(g, 8, max(classes, 2))  # more than the smaller memories hold
    reference = remembering(averages(classes, **settings, strength=0.7, floor=0.1), x, y)
    naive = NaiveReference(classes, capacity, positions, 0.2)
    naive.remember(x, y)
    assert int((reference.owners >= 0).sum()) == len(naive.memory)
    x = torch.randn(2, 3, SIZE, SIZE, generator=g)
    expected = naive.likelihood(x)
    np.testing.assert_allclose(reference.likelihood(x).numpy(), expected, atol=2e-3, rtol=2e-3)

    probs = torch.rand(2, max(classes, 2), SIZE, SIZE, generator=g)
    probs = probs / probs.sum(1, keepdim=True)
    ratio = F.interpolate(torch.from_numpy(expected), size=(SIZE, SIZE), mode="bilinear").numpy()
    weighed = np.zeros_like(ratio)
    for i, r, c in np.ndindex(len(x), SIZE, SIZE):
        for k in range(ratio.shape[1]):
            weighed[i, k, r, c] = probs[i, k, r, c].item() * (ratio[i, k, r, c] + 0.1) ** 0.7
    weighed = weighed / weighed.sum(1, keepdims=True)
    own = slice(1, 2) if classes == 1 else slice(None)
    before = probs.clone(), x.clone()
    guided = reference(probs[:, own], x)
    assert torch.equal(probs, before[0]) and torch.equal(x, before[1])
    assert guided.dtype == torch.float32
    np.testing.assert_allclose(guided.numpy(), weighed[:, own], atol=2e-3)


@settings(max_examples=4)
@given(st.integers(0, 999), st.sampled_from([1, 3]))
def test_the_measured_strength_is_the_best_of_the_loops(seed: int, classes: int) -> None:
    x, y = stripes(seeded(seed), 4, classes, noise=3.0)
    x, y = x[..., :SIZE, :SIZE], y[..., :SIZE, :SIZE]
    y[0, :2] = 255
    reference = remembering(averages(classes, temperature=0.3, floor=0.05), x, y)
    naive = NaiveReference(classes, 4096, 64, 0.3)
    naive.remember(x, y)
    best = max((naive.gain(s, 0.05), s) for s in np.arange(0.05, 2.05, 0.05))
    assert reference.trust.item() == pytest.approx(best[1] if best[0] > 0 else 0.0)


def test_what_is_not_known_to_be_true_is_not_said() -> None:
    """Where masks have nothing to do with the images, however many there are, and of one image alone."""
    g = seeded(0)
    x, y = stripes(g, 12, 3)
    assert remembering(averages(3), x, y).trust > 0.3
    assert remembering(averages(3), x, y[torch.randperm(12, generator=g)]).trust == 0
    alone = remembering(averages(3), x[:1], y[:1])
    probs = torch.rand(2, 3, 16, 16, generator=g).softmax(1)
    assert alone.trust == 0 and torch.allclose(alone(probs, x[1:3]), probs)


def stripes(g: torch.Generator, n: int, classes: int, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Stripes of coloured noise, each class in its colour."""
    colors = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [-2.0, -1.0, 2.0]])
    y = torch.randint(max(classes, 2), (n, 4), generator=g).repeat_interleave(4, 1)
    y = y[:, None].expand(n, 16, 16)
    x = colors[y].permute(0, 3, 1, 2) + noise * torch.randn(n, 3, 16, 16, generator=g)
    return x, y.clone()


@given(st.integers(0, 999), st.sampled_from([255, -1, 1, 9]))
def test_class_shares_are_pooled_one_hot_masks_without_what_is_ignored(
    seed: int, ignore_index: int
) -> None:
    y = torch.randint(-1, 7, (2, 9, 14), generator=seeded(seed))  # classes 0 to 4, and others
    slots = torch.where((y < 0) | (y > 4) | (y == ignore_index), 5, y)
    one_hot = F.one_hot(slots, 6)[..., :5].permute(0, 3, 1, 2).float()
    expected = F.adaptive_avg_pool2d(one_hot, (2, 5))
    assert torch.equal(class_shares(y, 5, (2, 5), ignore_index), expected)


def test_what_is_remembered_takes_the_place_of_what_was() -> None:
    x, y = random_images(seeded(0), 5, 2)
    once = remembering(averages(2), x[:2], y[:2])
    twice = remembering(remembering(averages(2), x, y), x[:2], y[:2])
    for name, value in once.state_dict().items():
        assert torch.equal(value, twice.state_dict()[name]), name


@pytest.mark.parametrize("classes", [1, 3])
def test_nothing_remembered_leaves_probabilities_as_they_are(classes: int) -> None:
    reference = averages(classes)
    x = torch.randn(2, 3, SIZE, SIZE)
    probs = torch.rand(2, 3, SIZE, SIZE).softmax(1)[:, :classes]
    torch.testing.assert_close(reference(probs, x), probs)
    with pytest.warns(UserWarning, match="no labeled image has a pixel with a class"):
        remembering(reference, x, torch.full((2, SIZE, SIZE), 255))
    assert torch.equal(reference.likelihood(x), torch.ones(2, max(classes, 2), 4, 4))
    torch.testing.assert_close(reference(probs, x), probs)


def test_a_class_never_seen_has_ratio_1() -> None:
    x, y = random_images(seeded(0), 2, 2)  # classes 0 and 1 of three
    reference = remembering(averages(3), x, y)
    ratio = reference.likelihood(x)
    assert torch.equal(ratio[:, 2], torch.ones(2, 4, 4)) and ratio[:, :2].std() > 0.1


def test_ignored_pixels_are_not_remembered() -> None:
    x, y = random_images(seeded(0), 2, 3)
    y[:, : SIZE // 2] = 255
    whole, half = averages(3, positions=8), averages(3, positions=8)
    remembering(whole, x, y)
    half.remember([*zip(x, torch.where(y == 255, 77, y), strict=True)], ignore_index=77)
    assert torch.equal(whole.values, half.values) and torch.equal(whole.keys, half.keys)
    assert (whole.owners >= 0).sum() == 16 and whole.values[:16].any(1).all()
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


def test_strength_0_leaves_probabilities_as_they_are() -> None:
    x, y = random_images(seeded(0), 2, 3)
    probs = torch.rand(2, 3, SIZE, SIZE).softmax(1)
    for strength, same in ((0.0, True), (1.0, False)):
        reference = remembering(averages(3, strength=strength), x, y)
        assert torch.allclose(reference(probs, x), probs, atol=1e-6) == same


def test_the_encoder_is_a_frozen_copy() -> None:
    net = tiny_net()
    reference = LabeledReference(net.model.encoder, 3, strength=1.0)
    owner = nn.Sequential(reference)
    owner.train()
    before = {name: v.clone() for name, v in reference.encoder.state_dict().items()}
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()  # the student trains, its former encoder stays
    x, y, x_u = tiny_batch()
    remembering(reference, x, y)
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
    remembering(reference, x, y)
    other = LabeledReference(tiny_net().model.encoder, 3, capacity=64)
    other.load_state_dict(reference.state_dict())
    assert torch.equal(other.likelihood(x_u), reference.likelihood(x_u))


def test_images_of_any_size_and_half_precision() -> None:
    x, y, _ = tiny_batch(size=50)
    reference = LabeledReference(smp.Unet("resnet18", encoder_weights=None).encoder, 3)
    with torch.autocast("cpu", torch.bfloat16):
        remembering(reference, x[..., :42], y[..., :42])
        in_half = reference.likelihood(x)
        assert reference(torch.full((3, 3, 50, 50), 1 / 3), x).shape == (3, 3, 50, 50)
    assert reference.keys.dtype == in_half.dtype == torch.float32
    assert in_half.isfinite().all()


def test_small_images_are_enlarged_for_the_encoder() -> None:
    x, y = random_images(seeded(0), 3, 3)
    one, two = averages(3, shorter_side=2 * SIZE), averages(3)
    remembering(one, x, y)
    large = F.interpolate(x, scale_factor=2, mode="bilinear")
    remembering(two, large, y.repeat_interleave(2, 1).repeat_interleave(2, 2))
    assert torch.equal(one.owners, two.owners)
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
    reference = LabeledReference(encoder, 3, strength=1.0)
    remembering(reference, x, y)
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
    remembering(reference, x[..., :40, :], y[..., :40, :])
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
    remembering(reference, x, y)
    guided = reference(torch.full((1, 3, *size), 1 / 3), x)
    assert sizes == {seen} and guided.shape == (1, 3, *size)
    assert (guided.sum(1) - 1).abs().max() < 1e-5


def test_a_size_that_an_encoder_refuses_ends_in_one_sentence() -> None:
    reference = averages(2)

    def refuse(*args: Any) -> None:
        raise AssertionError("height (4) must be divisible by window (7)")

    reference.encoder.forward = refuse  # type: ignore[method-assign]
    with pytest.raises(
        ValueError, match=r"cannot take images of 8 x 8: height .*; resize the images"
    ):
        reference.likelihood(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("name", ["capacity", "positions", "shorter_side", "temperature", "floor"])
def test_settings_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="`temperature` and `floor` must be above 0, got"):
        averages(2, **{name: 0})


def test_a_negative_strength_is_refused() -> None:
    with pytest.raises(
        ValueError, match="`strength` must be at least 0, or None to measure it, got -1"
    ):
        averages(2, strength=-1.0)


def test_what_does_not_fit_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"must declare the `out_channels`.*got Conv2d with 8"):
        LabeledReference(nn.Conv2d(3, 8, 3), 2)
    reference = averages(2)
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"same images, got \(2, 2, 4, 4\) and \(2, 3, 8, 8\)"):
        reference(torch.zeros(2, 2, 4, 4), x)
    with pytest.raises(ValueError, match=r"`probs` and `weights`"):
        reference(torch.zeros(2, 3, 8, 8), x)


photos = (torch.rand(3, 3, SIZE, SIZE, generator=seeded(0)) * 255).round()
classes = torch.randint(2, (3, SIZE, SIZE), generator=seeded(1))


@pytest.mark.parametrize(
    ("images", "masks", "said"),
    [
        (photos.byte(), classes, r"`labeled\[0\]\[0\]` must be normalised float32 images, got torch.uint8"),
        (photos.numpy(), classes, r"`labeled\[0\]\[0\]` must be a tensor, got ndarray"),
        (photos / 255, classes.numpy(), r"`labeled\[0\]\[1\]` must be a tensor, got ndarray"),
        (photos / 255, classes.float(), r"`labeled\[0\]\[1\]` must hold one class .* as an integer, got torch.float32"),
        (photos / 255, classes + 7, r"`labeled\[0\]\[1\]` must hold classes 0 to 1, or 255 .*, got [78]"),
        (photos / 255, classes[:, :4], r"`labeled\[0\]\[1\]` must have shape \(1, 8, 8\).*got \(1, 4, 8\)"),
        (photos[:, 0] / 255, classes, r"`labeled\[0\]\[0\]` must have shape \(C, H, W\), got \(8, 8\)"),
        (photos[:0], classes[:0], "at least one labeled image, got none"),
    ],
)  # fmt: skip
def test_what_cannot_be_remembered_is_refused_and_forgets_nothing(
    images: Any, masks: Any, said: str
) -> None:
    reference = remembering(averages(2), photos / 255, classes)
    before = {name: buffer.clone() for name, buffer in reference.named_buffers()}
    with pytest.raises((ValueError, TypeError), match=said) as error:
        reference.remember([*zip(images, masks, strict=True)])
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[name], buffer) for name, buffer in reference.named_buffers())


def test_masks_of_any_integer_type_and_images_of_any_float_type_are_remembered() -> None:
    whole = remembering(averages(2), photos / 255, classes)
    for kind in (torch.uint8, torch.int32, torch.bool):
        again = remembering(averages(2), (photos / 255).double(), classes[:, None].to(kind))
        torch.testing.assert_close(dict(again.named_buffers()), dict(whole.named_buffers()))
    with pytest.raises(ValueError, match=r"`labeled\[0\]` must be a pair.*, got 3 values"):
        averages(2).remember([(photos[0], classes[0], "name")])  # type: ignore[list-item]


def test_an_image_with_holes_is_named_and_not_remembered() -> None:
    """One alone would make all evidence nan, and with it every pseudo mask: nothing is learned from those."""
    x, y, _ = tiny_batch()
    reference = LabeledReference(tiny_net().model.encoder, 3)
    reference.remember([*zip(x, y, strict=True)])
    before = reference.keys.clone()
    for bad in (float("nan"), float("inf")):
        x[1, 0, 5, 5] = bad
        with pytest.raises(
            ValueError, match=r"^the features of labeled image 1 are nan or infinite"
        ):
            reference.remember([*zip(x, y, strict=True)])
        assert torch.equal(reference.keys, before)
