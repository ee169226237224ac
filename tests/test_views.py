"""Strong colours, blur and CutMix: against loops over images, and against what a box must be."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_nets import seeded
from torch import Tensor

from gmix import CutMix, StrongColor
from gmix.nn.views import GaussianBlur, StrongView, drop_channels, drop_complements

seeds = st.integers(0, 2**31 - 1)


def turned(image: Any, angle: float) -> Any:
    """Colours `(3, H, W)` turned about the grey axis, by a rotation matrix."""
    axis = np.ones(3) / math.sqrt(3)
    cross = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    matrix = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross
    assert np.allclose(matrix @ matrix.T, np.eye(3)) and np.allclose(matrix @ axis, axis)
    out = np.empty(image.shape)
    for r, c in np.ndindex(*image.shape[1:]):
        out[:, r, c] = matrix @ image[:, r, c]
    return out


def naive_color(view: StrongColor, x: Tensor, u: Tensor, turn: Tensor | None = None) -> Tensor:
    """One image at a time, in numpy; `u` are the five numbers drawn for each image, `turn` a sixth."""
    channels = x.shape[1]
    mean = view.mean.flatten().numpy() * np.ones(channels)
    std = view.std.flatten().numpy() * np.ones(channels)
    out = []
    for i, (image, draws) in enumerate(zip(x.double().numpy(), u.double().numpy().T, strict=True)):
        brightness, contrast, saturation = 1 + view.strength * (2 * draws[:3] - 1)
        if draws[3] < view.grey:
            saturation = 0
        raw = np.stack([image[c] * std[c] + mean[c] for c in range(channels)])
        raw = raw * brightness
        raw = raw.mean() + contrast * (raw - raw.mean())
        if turn is not None:
            raw = turned(raw, 2 * math.pi * view.hue * (2 * turn[i].item() - 1))
        centre = raw.mean(0)
        raw = np.clip(
            np.stack([centre + saturation * (raw[c] - centre) for c in range(channels)]), 0, 1
        )
        changed = np.stack([(raw[c] - mean[c]) / std[c] for c in range(channels)])
        out.append(changed if draws[4] < view.p else image)
    return torch.from_numpy(np.stack(out)).float()


@given(seeds, st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_color_is_the_loop_over_images(seed: int, strength: float, p: float, grey: float) -> None:
    view = StrongColor(strength, p, grey)
    x, g, told = torch.randn(6, 3, 4, 5, generator=seeded(seed)), seeded(seed), seeded(seed)
    before, u = x.clone(), torch.rand(5, 6, 1, 1, 1, generator=g).view(5, 6)
    out = view(x, generator=told)
    torch.testing.assert_close(out, naive_color(view, x, u), atol=1e-4, rtol=1e-4)
    assert torch.equal(x, before)
    assert torch.equal(told.get_state(), g.get_state())  # nothing more is drawn


@pytest.mark.parametrize(
    ("channels", "mean", "std"),
    [(1, 0.5, 0.25), (1, (0.4,), (0.2,)), (5, 0.5, 0.5), (4, (0.1, 0.2, 0.3, 0.4), (0.5,) * 4)],
)
def test_color_works_for_any_number_of_channels(channels: int, mean: Any, std: Any) -> None:
    view = StrongColor(mean=mean, std=std)
    x = torch.randn(6, channels, 4, 5, generator=seeded(0))
    u = torch.rand(5, 6, 1, 1, 1, generator=seeded(1)).view(5, 6)
    out = view(x, seeded(1))
    assert not torch.equal(out, x)
    torch.testing.assert_close(out, naive_color(view, x, u), atol=1e-4, rtol=1e-4)


# --- hue --------------------------------------------------------------------------------------


@given(seeds, st.floats(1e-3, 0.5), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_color_with_hue_is_the_loop_over_images(
    seed: int, hue: float, strength: float, p: float, grey: float
) -> None:
    view = StrongColor(strength, p, grey, hue=hue)
    x = torch.randn(6, 3, 4, 5, generator=seeded(seed))
    g = seeded(seed)
    u = torch.rand(5, 6, 1, 1, 1, generator=g).view(5, 6)
    turn = torch.rand(6, 1, 1, 1, generator=g).flatten()
    out = view(x, generator=seeded(seed))
    torch.testing.assert_close(out, naive_color(view, x, u, turn), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_hue_is_for_images_of_three_channels(channels: int) -> None:
    x = torch.rand(4, channels, 5, 5)
    settings: dict[str, Any] = {"mean": 0.5, "std": 0.2}
    out = StrongColor(**settings, hue=0.5)(x, seeded(0))
    assert torch.equal(out, StrongColor(**settings)(x, seeded(0)))


# --- blur -------------------------------------------------------------------------------------


def naive_blur(image: Any, sigma: float) -> Any:
    """`(C, H, W)`: every pixel the Gaussian mean of a window, the border's pixels going on forever."""
    h, w = image.shape[1:]
    radius = 6
    out = np.zeros(image.shape)
    for r, c in np.ndindex(h, w):
        total = 0.0
        for i, j in np.ndindex(2 * radius + 1, 2 * radius + 1):
            weight = math.exp(-((i - radius) ** 2 + (j - radius) ** 2) / (2 * sigma**2))
            row, col = min(max(r + i - radius, 0), h - 1), min(max(c + j - radius, 0), w - 1)
            out[:, r, c] += weight * image[:, row, col]
            total += weight
        out[:, r, c] /= total
    return out


@pytest.mark.parametrize(("n", "channels", "h", "w"), [(4, 3, 8, 11), (3, 1, 16, 5), (2, 5, 1, 9)])
def test_blur_is_the_loop_over_pixels(n: int, channels: int, h: int, w: int) -> None:
    blur = GaussianBlur(p=0.7, sigma=(0.3, 2.0))
    x = torch.randn(n, channels, h, w, generator=seeded(0))
    before = x.clone()
    out = blur(x, seeded(1))
    u = torch.rand(2, n, 1, generator=seeded(1)).view(2, n).tolist()
    blurred = [draw < 0.7 for draw in u[1]]
    assert any(blurred)
    for image, result, width, changed in zip(x, out, u[0], blurred, strict=True):
        expected = image.double().numpy()
        if changed:
            expected = naive_blur(expected, 0.3 + 1.7 * width)
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-5)
    assert torch.equal(x, before) and out.shape == x.shape and out.dtype == x.dtype


@pytest.mark.parametrize("view", [GaussianBlur(p=0.0), GaussianBlur(p=1.0), StrongView()])
def test_views_of_single_precision_stay_so_under_autocast(view: Any) -> None:
    """A convolution would round the images, blurred or not."""
    x = torch.rand(4, 3, 8, 8, generator=seeded(0))
    expected, out = view(x, seeded(1)), None
    with torch.autocast("cpu", torch.bfloat16):
        out = view(x, seeded(1))
    if isinstance(view, StrongView):
        expected, out = expected[0], out[0]
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, expected)


def test_blur_keeps_half_precision() -> None:
    x = torch.rand(3, 3, 6, 7, generator=seeded(0)).bfloat16()
    out = GaussianBlur(p=1.0)(x, seeded(1))
    assert out.dtype == torch.bfloat16
    expected = GaussianBlur(p=1.0)(x.float(), seeded(1))
    torch.testing.assert_close(out.float(), expected, atol=0.02, rtol=0)


def test_blur_takes_channels_last_images() -> None:
    x = torch.randn(3, 3, 6, 7, generator=seeded(0))
    last = x.contiguous(memory_format=torch.channels_last)
    blur = GaussianBlur(p=1.0)
    torch.testing.assert_close(blur(last, seeded(1)), blur(x, seeded(1)))


# --- the strong view --------------------------------------------------------------------------


@given(seeds)
def test_a_strong_view_is_coloured_blurred_and_pasted_as_it_says(seed: int) -> None:
    strong = StrongView()
    x = torch.randn(4, 3, 9, 8, generator=seeded(seed))
    before = x.clone()
    view, pasted = strong(x, seeded(seed))
    g = seeded(seed)
    blurred = strong.blur(strong.color(x, g), g)
    box, source = strong.cutmix(x, g)
    assert torch.equal(pasted.box, box) and torch.equal(pasted.source, source)
    expected = blurred.clone()
    for i, j in enumerate(source.tolist()):
        expected[i, :, box[i]] = blurred[j, :, box[i]]
    assert torch.equal(view, expected) and torch.equal(x, before)


def test_a_strong_view_knows_how_images_were_normalised() -> None:
    strong = StrongView(mean=0.5, std=(0.25,))
    assert strong.color.mean.flatten().tolist() == [0.5]
    assert strong.color.std.flatten().tolist() == [0.25]
    assert (strong.color.hue, strong.blur.p, strong.cutmix.p) == (0.25, 0.5, 0.5)
    assert strong(torch.randn(2, 6, 8, 8))[0].shape == (2, 6, 8, 8)


# --- dropped channels -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (4, 6, 3, 2)])
@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
def test_channels_are_dropped_whole_and_the_others_grow(p: float, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=seeded(0))
    before = x.clone()
    out = drop_channels(x, p, seeded(1))
    draw = torch.rand(4, 6, generator=seeded(1))
    for i, c in np.ndindex(4, 6):
        expected = torch.zeros_like(x[i, c]) if draw[i, c] < p else x[i, c] / (1 - p)
        torch.testing.assert_close(out[i, c], expected)
    assert torch.equal(x, before)


def test_dropping_channels_keeps_the_type_and_the_gradient() -> None:
    x = torch.ones(2, 8, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    out = drop_channels(x, 0.5, seeded(0))
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, out.detach())


# --- CutMix -----------------------------------------------------------------------------------


def test_boxes_are_the_loop_over_pixels() -> None:
    """Each of the five numbers drawn for an image decides one thing, whatever the others are."""
    n, h, w = 24, 7, 9
    box, source = CutMix(p=0.6, area=(0.1, 1.0), aspect=3.0)(torch.zeros(n, 1, h, w), seeded(0))
    assert sorted(source.tolist()) == [*range(n)] and all(source[i] != i for i in range(n))
    draws = torch.rand(5, n, 1, 1, generator=seeded(0)).view(5, n).T.tolist()
    expected = np.zeros((n, h, w), dtype=bool)
    for i, r, c in np.ndindex(n, h, w):
        area, ratio = 0.1 + 0.9 * draws[i][0], 3 ** (2 * draws[i][1] - 1)
        height, width = min(math.sqrt(area * ratio), 1), min(math.sqrt(area / ratio), 1)
        down = (r + 0.5) / h - (1 - height) * draws[i][2]
        right = (c + 0.5) / w - (1 - width) * draws[i][3]
        expected[i, r, c] = 0 <= down < height and 0 <= right < width and draws[i][4] < 0.6
    np.testing.assert_array_equal(box.numpy(), expected)


@given(seeds)
def test_apply_pastes_images_masks_and_validity_alike(seed: int) -> None:
    g = seeded(seed)
    image = torch.randn(3, 2, 6, 7, generator=g)
    mask = torch.randint(9, (3, 6, 7), generator=g)
    valid = torch.rand(3, 6, 7, generator=g) < 0.5
    before = image.clone(), mask.clone(), valid.clone()
    pasted = CutMix(p=0.8)(image, g)
    new_image, new_mask, new_valid = map(pasted.apply, (image, mask, valid))
    for i, r, c in np.ndindex(3, 6, 7):
        j = int(pasted.source[i]) if pasted.box[i, r, c] else i
        assert torch.equal(new_image[i, :, r, c], image[j, :, r, c])
        assert new_mask[i, r, c] == mask[j, r, c] and new_valid[i, r, c] == valid[j, r, c]
    assert new_mask.dtype == mask.dtype and new_valid.dtype == torch.bool
    assert all(torch.equal(a, b) for a, b in zip(before, (image, mask, valid), strict=True))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: StrongColor(strength=2.0), "must be in [0, 1], got 2.0, 0.8 and 0.2"),
        (lambda: StrongColor(p=-0.1), "must be in [0, 1]"),
        (lambda: StrongColor()(torch.zeros(1, 4, 2, 2)), "3 channels, the images have 4"),
        (lambda: StrongColor(hue=0.6), "`hue` is a share of a turn in [0, 0.5], got 0.6"),
        (lambda: StrongColor(hue=-0.1), "in [0, 0.5], got -0.1"),
        (lambda: GaussianBlur(p=1.5), "`p` must be in [0, 1]"),
        (lambda: GaussianBlur(p=-0.1), "`p` must be in [0, 1]"),
        (lambda: GaussianBlur(sigma=(0.0, 1.0)), "two rising numbers above 0"),
        (lambda: GaussianBlur(sigma=(2.0, 1.0)), "above 0, got 0.5 and (2.0, 1.0)"),
        (lambda: CutMix(p=2), "`p` must be in [0, 1]"),
        (lambda: CutMix(area=(0.5, 0.2)), "two rising shares"),
        (lambda: CutMix(area=(0.0, 0.2)), "two rising shares in (0, 1]"),
        (lambda: CutMix(area=(0.5, 1.1)), "two rising shares in (0, 1]"),
        (lambda: CutMix(aspect=0.5), "`aspect` at least 1"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(call: Any, words: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)


@given(seeds, st.integers(1, 6), st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0]))
def test_what_one_view_drops_the_other_doubles(
    seed: int, images: int, channels: int, whole: float
) -> None:
    """In each map anew, and of the given number of images neither loses anything."""
    x = torch.rand(2 * images, channels, 2, 3, generator=seeded(seed)) + 0.5
    tokens = torch.rand(2 * images, 5, channels, generator=seeded(seed))
    one, other, left = drop_complements([x, x, tokens], whole, seeded(seed))
    assert left is tokens
    untouched = []
    for out in (one, other):
        ratio = (out / x).round(decimals=5)
        assert torch.equal(ratio, ratio[..., :1, :1].expand_as(ratio))
        first, second = ratio[..., 0, 0].split(images)
        assert torch.equal(first + second, torch.full_like(first, 2.0))
        untouched.append((first == 1).all(1))
        assert torch.equal(untouched[-1], (first == 1).any(1))
    assert torch.equal(*untouched) and int(untouched[0].sum()) == int(whole * images)


def test_complements_are_drawn_for_each_map_by_a_fair_coin() -> None:
    x = torch.ones(2, 4000, 1, 1)
    one, other = drop_complements([x, x], generator=seeded(0))
    assert abs(float((one[0] > 0).float().mean()) - 0.5) < 0.03
    assert abs(float((one[0] == other[0]).float().mean()) - 0.5) < 0.03
    half = drop_complements([x.bfloat16().requires_grad_()], generator=seeded(0))[0]
    assert half.dtype == torch.bfloat16 and half.requires_grad
