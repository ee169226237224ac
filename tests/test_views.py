"""Strong colours and CutMix: against a loop over images, and against what a box must be."""

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

seeds = st.integers(0, 2**31 - 1)


def naive_color(view: StrongColor, x: Tensor, u: Tensor) -> Tensor:
    """One image at a time, in numpy; `u` are the five numbers drawn for each image."""
    channels = x.shape[1]
    mean = view.mean.flatten().numpy() * np.ones(channels)
    std = view.std.flatten().numpy() * np.ones(channels)
    out = []
    for image, draws in zip(x.double().numpy(), u.double().numpy().T, strict=True):
        brightness, contrast, saturation = 1 + view.strength * (2 * draws[:3] - 1)
        if draws[3] < view.grey:
            saturation = 0
        raw = np.stack([image[c] * std[c] + mean[c] for c in range(channels)])
        raw = raw * brightness
        raw = raw.mean() + contrast * (raw - raw.mean())
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
    x = torch.randn(6, 3, 4, 5, generator=seeded(seed))
    u = torch.rand(5, 6, 1, 1, 1, generator=seeded(seed)).view(5, 6)
    out = view(x, generator=seeded(seed))
    torch.testing.assert_close(out, naive_color(view, x, u), atol=1e-4, rtol=1e-4)


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


@given(seeds)
def test_color_stays_in_the_range_of_an_image_and_never_works_in_place(seed: int) -> None:
    view = StrongColor(strength=1.0, p=1.0)
    raw = torch.rand(4, 3, 5, 5, generator=seeded(seed))
    x = (raw - view.mean) / view.std
    before = x.clone()
    out = view(x, seeded(seed)) * view.std + view.mean
    assert torch.equal(x, before)
    assert out.min() > -1e-5 and out.max() < 1 + 1e-5


def test_color_with_p_0_and_with_strength_0_changes_nothing() -> None:
    x = (torch.rand(4, 3, 5, 5) - 0.45) / 0.25
    assert torch.equal(StrongColor(p=0.0)(x), x)
    view = StrongColor(strength=0.0, p=1.0, grey=0.0)
    inside = (torch.rand(4, 3, 5, 5) - view.mean) / view.std
    torch.testing.assert_close(view(inside), inside, atol=1e-5, rtol=1e-5)


def test_grey_images_have_equal_channels_and_p_is_a_share() -> None:
    view = StrongColor(p=1.0, grey=1.0)
    x = torch.randn(4, 3, 5, 5)
    raw = view(x) * view.std + view.mean
    torch.testing.assert_close(raw, raw[:, :1].expand_as(raw))
    x = torch.rand(2000, 3, 2, 2)
    changed = (StrongColor(p=0.8)(x, seeded(0)) != x).flatten(1).any(1)
    assert changed.float().mean().item() == pytest.approx(0.8, abs=0.04)


def test_views_follow_their_generator() -> None:
    x = torch.rand(8, 3, 16, 16)
    for view in (StrongColor(), CutMix()):
        once, again, other = view(x, seeded(1)), view(x, seeded(1)), view(x, seeded(2))
        first, second, third = (v[0] if isinstance(v, tuple) else v for v in (once, again, other))
        assert torch.equal(first, second) and not torch.equal(first, third)


# --- CutMix -----------------------------------------------------------------------------------


@given(seeds, st.integers(1, 5), st.integers(4, 24), st.integers(4, 24))
def test_every_box_is_one_rectangle(seed: int, n: int, h: int, w: int) -> None:
    box, source = CutMix(p=1.0)(torch.zeros(n, 3, h, w), seeded(seed))
    assert box.shape == (n, h, w) and box.dtype == torch.bool
    assert sorted(source.tolist()) == list(range(n))
    assert n == 1 or all(source[i] != i for i in range(n))
    for one in box:
        rows, cols = one.any(1), one.any(0)
        assert torch.equal(one, rows[:, None] & cols[None])
        for line in (rows, cols):  # without a gap
            inside = line.nonzero().flatten()
            assert not len(inside) or len(inside) == inside[-1] - inside[0] + 1


def test_boxes_have_the_announced_areas_ratios_and_places() -> None:
    n, size = 4000, 64
    cutmix = CutMix(p=1.0, area=(0.05, 0.25), aspect=3.0)  # no side can reach the image's
    box = cutmix(torch.zeros(n, 1, size, size), seeded(0)).box
    heights, widths = box.any(2).sum(1) / size, box.any(1).sum(1) / size
    levels = np.linspace(0.05, 0.95, 10)
    area = np.quantile((heights * widths).numpy(), levels)
    np.testing.assert_allclose(area, 0.05 + 0.2 * levels, atol=0.01)
    ratio = np.quantile((heights / widths).log().numpy(), levels)
    np.testing.assert_allclose(ratio, math.log(3) * (2 * levels - 1), atol=0.1)
    for line, side in ((box.any(2), heights), (box.any(1), widths)):
        start = line.float().argmax(1) / size
        place = np.quantile((start / (1 - side)).numpy(), levels)
        np.testing.assert_allclose(place, levels, atol=0.04)


def test_a_box_larger_than_the_image_is_cut_to_it() -> None:
    whole = CutMix(p=1.0, area=(1.0, 1.0), aspect=1.0)(torch.zeros(3, 1, 8, 8))
    assert whole.box.all()
    tall = CutMix(p=1.0, area=(0.9, 0.9), aspect=4.0)(torch.zeros(64, 1, 8, 8), seeded(0)).box
    assert tall.flatten(1).any(1).all() and not tall.all()


def test_p_is_the_share_of_images_with_a_box() -> None:
    x = torch.zeros(4000, 1, 8, 8)
    has_box = CutMix(p=0.3, area=(0.2, 0.4))(x, seeded(0)).box.flatten(1).any(1)
    assert has_box.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert not CutMix(p=0.0)(x).box.any()


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
        (lambda: CutMix(p=2), "`p` must be in [0, 1]"),
        (lambda: CutMix(area=(0.5, 0.2)), "two rising shares"),
        (lambda: CutMix(aspect=0.5), "`aspect` at least 1"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(call: Any, words: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)
