"""Augmentation against a per-pixel loop, torchvision, and what must never move."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from gmix.data import ColorJitter, TrainTransform, eval_transform, train_transform
from gmix.data.transforms import adjust_color, crop_grid

RAW = {"jitter": None, "mean": (0.0,) * 3, "std": (1 / 255,) * 3}  # pixel values stay 0..255


def random_pair(height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(1, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    mask = torch.randint(0, 5, (height, width), generator=generator)
    return tv_tensors.Image(image), tv_tensors.Mask(mask)


@pytest.mark.parametrize(
    ("scaled", "corner", "degrees", "flip"),
    [
        ((9, 12), (2, 3), 0.0, False),
        ((9, 12), (-2, -1), 0.0, True),
        ((18, 24), (5, 7), 10.0, True),
        ((13, 17), (-3, 6), -33.0, False),
    ],
)
def test_crop_grid_against_a_loop(
    scaled: tuple[int, int], corner: tuple[int, int], degrees: float, flip: bool
) -> None:
    height, width = 6, 8
    grid = crop_grid(scaled, (height, width), corner, degrees, flip)
    middle = complex(corner[1] + width / 2, corner[0] + height / 2)
    turn = complex(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
    for y in range(height):
        for x in range(width):
            right = (width - 1 - x if flip else x) + 0.5 - width / 2
            place = middle + turn * complex(right, y + 0.5 - height / 2)
            expected = (2 * place.real / scaled[1] - 1, 2 * place.imag / scaled[0] - 1)
            assert grid[y, x].tolist() == pytest.approx(expected, abs=1e-5)


def test_without_scale_and_rotation_it_is_a_crop_to_the_bit() -> None:
    image, mask = random_pair(9, 12)
    transform = train_transform(crop=(4, 5), scale=(1, 1), flip=0, rotate=0, **RAW)
    windows = {}
    for top in range(9 - 4 + 1):
        for left in range(12 - 5 + 1):
            window = v2.functional.crop(mask, top, left, 4, 5)
            windows[tuple(window.flatten().tolist())] = (top, left)
    seen = set()
    for seed in range(60):
        torch.manual_seed(seed)
        x, y = transform(image, mask)
        top, left = windows[tuple(y.flatten().tolist())]
        expected = v2.functional.crop(image, top, left, 4, 5).float()
        torch.testing.assert_close(x, expected.as_subclass(Tensor), atol=1e-2, rtol=0)
        seen.add((top, left))
    assert len(seen) > 25
    assert {0, 5} <= {top for top, _ in seen} and {0, 7} <= {left for _, left in seen}


def test_flip_is_certain_at_one() -> None:
    image, mask = random_pair(6, 8)
    x, y = train_transform(crop=(6, 8), scale=(1, 1), flip=1, rotate=0, **RAW)(image, mask)
    assert torch.equal(y, mask.flip(-1).as_subclass(Tensor))
    torch.testing.assert_close(x, image.flip(-1).float().as_subclass(Tensor), atol=1e-2, rtol=0)


def test_a_small_scale_averages_instead_of_skipping() -> None:
    """Stripes one pixel wide turn grey: shrinking is antialiased."""
    image = tv_tensors.Image(torch.zeros(3, 40, 40, dtype=torch.uint8))
    image[..., ::2] = 200
    mask = tv_tensors.Mask(torch.zeros(40, 40, dtype=torch.int64))
    x, _ = train_transform(crop=(10, 10), scale=(0.3, 0.3), flip=0, rotate=0, **RAW)(image, mask)
    assert (x - 100).abs().max() < 40


@given(
    seed=st.integers(0, 10_000),
    height=st.integers(3, 50),
    width=st.integers(3, 50),
    crop=st.tuples(st.integers(7, 40), st.integers(7, 40)),
)
def test_image_and_mask_stay_aligned(
    seed: int, height: int, width: int, crop: tuple[int, int]
) -> None:
    """The image shows 40 + 40 * class: away from class borders both must agree exactly."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, 5, (1, 1, 4, 4), generator=generator).float()
    mask = F.interpolate(blocks, (height, width), mode="nearest")[0, 0].long()
    image = (40 + 40 * mask).expand(3, -1, -1).to(torch.uint8)
    transform = train_transform(crop=crop, **RAW)
    torch.manual_seed(seed)
    x, y = transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
    assert x.shape == (3, *crop) and y.shape == crop
    assert x.dtype == torch.float32 and y.dtype == torch.int64
    padded = y == 255
    assert torch.equal(padded, (x == 0).all(0)), "255 in the mask and 0 in the image are one place"
    # A 7x7 window of one class is out of reach of the shrinking filter.
    near = torch.where(padded, -1, y)[None, None].float()
    lowest, highest = -F.max_pool2d(-near, 7, 1)[0, 0], F.max_pool2d(near, 7, 1)[0, 0]
    same = (lowest == highest) & (lowest >= 0)
    middle = x[0, 3:-3, 3:-3][same]
    torch.testing.assert_close(middle, 40 + 40 * lowest[same], atol=0.05, rtol=0)


@given(seed=st.integers(0, 10_000), value=st.sampled_from([0, 128, 255]))
def test_padding_is_zero_after_normalisation_with_jitter(seed: int, value: int) -> None:
    """Where an all-zero mask turns 255 is exactly where the crop left the image."""
    torch.manual_seed(seed)
    image = tv_tensors.Image(torch.full((3, 10, 14), value, dtype=torch.uint8))
    zeros = tv_tensors.Mask(torch.zeros(10, 14, dtype=torch.uint8))
    x, y = train_transform(crop=(16, 16), mean=(0.4, 0.41, 0.43), std=(0.2, 0.3, 0.4))(image, zeros)
    assert set(y.unique().tolist()) <= {0, 255}
    inside = y == 0
    assert torch.equal(x.abs().amax(0) > 0, inside)
    # A convex image stays convex: each row of it is one run.
    for row in inside:
        assert (row[1:] != row[:-1]).sum() <= 2


def test_padding_of_a_small_image_is_counted_exactly() -> None:
    image, mask = random_pair(4, 6)
    transform = train_transform(crop=(10, 10), scale=(1, 1), rotate=0, **RAW)
    corners = set()
    for seed in range(30):
        torch.manual_seed(seed)
        _, y = transform(image, mask)
        ys, xs = (y != 255).nonzero().unbind(1)
        assert len(ys) == 4 * 6
        corners.add((ys.min().item(), xs.min().item()))
    assert len(corners) > 8, "a small image is placed at random, not always at the centre"


def test_scale_and_rotation_cover_their_ranges() -> None:
    """The area and the tilt of a single bright row tell scale and angle."""
    image = tv_tensors.Image(torch.full((3, 20, 20), 255, dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.zeros(20, 20, dtype=torch.int64))
    transform = train_transform(crop=(60, 60), scale=(0.5, 2.0), rotate=10, **RAW)
    sizes, tilts = [], []
    for seed in range(200):
        torch.manual_seed(seed)
        inside = transform(image, mask)[1] == 0
        sizes.append(math.sqrt(inside.sum().item()) / 20)
        top = inside.int().argmax(0)[inside.any(0)]
        tilts.append((top[-3] - top[2]).item())
    assert 0.45 < min(sizes) < 0.6 and 1.9 < max(sizes) < 2.05
    assert min(tilts) < -3 and max(tilts) > 3


@pytest.mark.parametrize(
    ("name", "factor"), [("brightness", 0.7), ("brightness", 1.3), ("saturation", 0.0)]
)
def test_adjust_color_against_torchvision(name: str, factor: float) -> None:
    image = random_pair(7, 5)[0].float().as_subclass(Tensor)
    settings = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "grey": 100.0}
    ours = adjust_color(image, **{**settings, name: factor})
    theirs = getattr(v2.functional, f"adjust_{name}")(image / 255, factor) * 255
    torch.testing.assert_close(ours, theirs, atol=0.2, rtol=0)


def test_adjust_color_identity_contrast_and_hue() -> None:
    image = random_pair(7, 5)[0].float().as_subclass(Tensor)
    torch.testing.assert_close(adjust_color(image, 1, 1, 1, 0, 50), image)
    torch.testing.assert_close(adjust_color(image, 1, 1, 1, 1.0, 50), image, atol=1e-3, rtol=0)
    torch.testing.assert_close(adjust_color(image, 1, 0, 1, 0, 50), torch.full_like(image, 50))
    both = 0.8 * (50 + 0.5 * (image - 50))
    torch.testing.assert_close(adjust_color(image, 0.8, 0.5, 1, 0, 50), both)
    grey = torch.full((3, 2, 2), 80.0)
    torch.testing.assert_close(adjust_color(grey, 1, 1, 1.3, 0.2, 0), grey, atol=1e-3, rtol=0)
    red = torch.tensor([150.0, 50.0, 50.0])[:, None, None]
    turned = adjust_color(red, 1, 1, 1, 1 / 3, 0).flatten()
    assert turned.argmax() != 0, "a third of a turn is another colour"


def test_jitter_moves_colors_within_its_range() -> None:
    image = tv_tensors.Image(torch.full((3, 4, 4), 100, dtype=torch.uint8))
    mask = tv_tensors.Mask(torch.zeros(4, 4, dtype=torch.int64))
    settings = {**RAW, "jitter": ColorJitter(brightness=0.3, contrast=0, saturation=0, hue=0)}
    transform = train_transform(crop=(2, 2), scale=(2, 2), rotate=0, **settings)
    values = []
    for seed in range(50):
        torch.manual_seed(seed)
        values.append(transform(image, mask)[0][0, 0, 0].item())
    assert 69.9 < min(values) < 80 and 120 < max(values) < 130.1


def test_same_bits_with_any_number_of_threads() -> None:
    image, mask = random_pair(300, 400)
    transform = train_transform(crop=(250, 300))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(5)
            results.append([transform(image, mask) for _ in range(4)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for (x, y), (other_x, other_y) in zip(results[0], other, strict=True):
            assert torch.equal(x, other_x) and torch.equal(y, other_y)


def test_inputs_are_left_alone_and_the_draw_follows_the_seed() -> None:
    image, mask = random_pair(20, 30)
    before = image.clone(), mask.clone()
    transform = train_transform(crop=(16, 16))
    assert isinstance(transform, TrainTransform)
    torch.manual_seed(1)
    first, second = transform(image, mask), transform(image, mask)
    torch.manual_seed(1)
    again = transform(image, mask)
    assert torch.equal(image, before[0]) and torch.equal(mask, before[1])
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": (0, 4)}, "`crop` must be"),
        ({"crop": (4, 4), "scale": (2.0, 0.5)}, "`scale` must be"),
        ({"crop": (4, 4), "scale": (0.0, 0.5)}, "`scale` must be"),
        ({"crop": (4, 4), "flip": 1.5}, "`flip` must be"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_transform(**settings)  # type: ignore[arg-type]


def test_eval_transform_normalises() -> None:
    image = random_pair(5, 4)[0]
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.6, 0.7])
    expected = (image.permute(1, 2, 0).numpy() / 255 - mean) / std
    got = eval_transform(tuple(mean), tuple(std))(image)
    np.testing.assert_allclose(got.permute(1, 2, 0).numpy(), expected, atol=1e-6)
