"""Augmentation: one resampling for scale, rotation, crop and flip; one matrix for all colour changes."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from gmix.data.classes import IGNORE

Size = tuple[int, int]
Stats = tuple[float, ...]


@dataclass(frozen=True)
class ColorJitter:
    """Ranges of the random colour changes.

    Attributes:
        brightness: Range of the factor, `1 -/+ brightness`.
        contrast: Range of the factor about the image's mean grey, `1 -/+ contrast`.
        saturation: Range of the factor, `1 -/+ saturation`.
        hue: Range of the rotation of the colour circle, `-/+ hue`; 0.5 is half a turn.
    """

    brightness: float = 0.3
    contrast: float = 0.3
    saturation: float = 0.3
    hue: float = 0.05


def train_transform(
    crop: Size,
    scale: tuple[float, float] = (0.5, 2.0),
    flip: float = 0.5,
    rotate: float = 10.0,
    jitter: ColorJitter | None = ColorJitter(),
    mean: Stats = IMAGENET_DEFAULT_MEAN,
    std: Stats = IMAGENET_DEFAULT_STD,
) -> "TrainTransform":
    """Build the training transform: random scale, rotation, crop, flip and colour, then normalisation.

    The geometry is one affine map, the same for image (bilinear) and mask (nearest). Outside the image, the crop is
    filled with 0 in the image and 255 in the mask.

    Args:
        crop: Height and width of the result.
        scale: Range of the uniform scale factor.
        flip: Probability of a left-right flip.
        rotate: Largest rotation to either side, in degrees, about the centre of the crop.
        jitter: Ranges of the colour changes, or `None` for unchanged colours. Saturation and hue need RGB; with any
            other number of channels only brightness and contrast change.
        mean: Per-channel mean, for images scaled to 0..1.
        std: Per-channel standard deviation.

    Returns:
        A callable `(image (C, H, W) in 0..255, mask (H, W)) -> (float (C, h, w), int64 (h, w))`, which draws from
        torch's default generator.

    Raises:
        ValueError: If a range is empty or a value is out of range.

    Examples:
        >>> from torchvision import tv_tensors
        >>> _ = torch.manual_seed(0)
        >>> transform = train_transform(crop=(4, 6), scale=(0.5, 0.5), rotate=0)
        >>> image, mask = transform(
        ...     tv_tensors.Image(torch.full((3, 4, 8), 255, dtype=torch.uint8)),
        ...     tv_tensors.Mask(torch.ones(4, 8, dtype=torch.int64)),
        ... )
        >>> image.shape, mask.unique()
        (torch.Size([3, 4, 6]), tensor([  1, 255]))
    """
    if min(crop) < 1:
        raise ValueError(f"`crop` must be a positive height and width, got {crop}")
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"`scale` must be a range (low, high) with 0 < low <= high, got {scale}")
    if not 0 <= flip <= 1:
        raise ValueError(f"`flip` must be a probability, got {flip}")
    return TrainTransform(crop, scale, flip, rotate, jitter, mean, std)


def eval_transform(
    mean: Stats = IMAGENET_DEFAULT_MEAN, std: Stats = IMAGENET_DEFAULT_STD
) -> v2.Compose:
    """Build the transform that normalises an image in 0..255 (uint8 or float), for torchvision v2.

    `mean` and `std` refer to images scaled to 0..1.

    Examples:
        >>> from torchvision import tv_tensors
        >>> white = tv_tensors.Image(torch.full((3, 1, 1), 255, dtype=torch.uint8))
        >>> eval_transform((0.5,) * 3, (0.5,) * 3)(white).flatten().tolist()
        [1.0, 1.0, 1.0]
    """
    mean, std = tuple(255 * value for value in mean), tuple(255 * value for value in std)
    return v2.Compose([v2.ToDtype(torch.float32), v2.Normalize(list(mean), list(std))])


@dataclass(frozen=True)
class TrainTransform:
    """Transform with the settings of `train_transform`, which draws and applies a random view per call."""

    crop: Size
    scale: tuple[float, float]
    flip: float
    rotate: float
    jitter: ColorJitter | None
    mean: Stats
    std: Stats

    @cached_property
    def stats(self) -> tuple[Tensor, Tensor]:
        """Return `mean` and `std` for images in 0..255, `(C, 1, 1)`."""
        mean, std = (255 * torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        return mean, std

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a view of an image and its mask."""
        height, width = image.shape[-2:]
        scale = _uniform(*self.scale)
        scaled = max(1, round(height * scale)), max(1, round(width * scale))
        corner = [_between(full - part) for full, part in zip(scaled, self.crop, strict=True)]
        grid = crop_grid(
            scaled,
            self.crop,
            (corner[0], corner[1]),
            degrees=_uniform(-self.rotate, self.rotate),
            flip=_uniform(0, 1) < self.flip,
        )
        if scale < 1:
            # Antialiasing happens here; the grid has relative coordinates and fits any resolution.
            image = v2.functional.resize(image, list(scaled), antialias=True)
        image, mask = image.as_subclass(Tensor), mask.as_subclass(Tensor)
        view = _sample(image, grid, "bilinear")
        if self.jitter is not None:
            adjust = adjust_color if len(image) == 3 else adjust_contrast
            view = adjust(view, *_draw_color(image, self.jitter))
        inside = (grid.abs() <= 1).all(-1)
        mean, std = self.stats
        view = view.sub_(mean).div_(std).mul_(inside)
        classes = _sample(mask[None], grid, "nearest")[0].long()
        return view, classes.masked_fill_(~inside, IGNORE)


def crop_grid(scaled: Size, crop: Size, corner: Size, degrees: float, flip: bool) -> Tensor:
    """Compute the source of each pixel of a crop, in relative image coordinates (-1..1).

    Args:
        scaled: Height and width of the scaled image.
        crop: Height and width of the crop.
        corner: Top and left of the crop in the scaled image; may be negative.
        degrees: Rotation about the centre of the crop.
        flip: Whether to flip left and right.

    Returns:
        Float `(h, w, 2)`, x before y, as `grid_sample` expects (`align_corners=False`); values outside -1..1 are
        outside the image.
    """
    (full_h, full_w), (h, w) = scaled, crop
    down = torch.arange(h)[:, None] - (h - 1) / 2
    right = torch.arange(w)[None, :] - (w - 1) / 2
    if flip:
        right = -right
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    grid = torch.empty(h, w, 2)
    # The two axes are combined last, so that all earlier terms are as small as a row or a column.
    for axis, (along, across, start, full) in enumerate(
        ((cos, -sin, corner[1] + w / 2, full_w), (sin, cos, corner[0] + h / 2, full_h))
    ):
        grid[..., axis] = right * (2 * along / full) + (
            down * (2 * across / full) + (2 * start / full - 1)
        )
    return grid


def adjust_color(
    image: Tensor, brightness: float, contrast: float, saturation: float, hue: float, grey: float
) -> Tensor:
    """Change brightness, contrast, saturation and hue with one 3x3 matrix and an offset.

    Args:
        image: Float `(3, H, W)` in 0..255.
        brightness: Factor; 1 changes nothing.
        contrast: Factor about `grey`; 1 changes nothing.
        saturation: Factor about each pixel's own grey; 1 changes nothing, 0 gives a grey image.
        hue: Rotation of the colour circle; 0 changes nothing, 0.5 is half a turn.
        grey: Mean grey of the image, 0..255.

    Returns:
        Float `(3, H, W)`, clamped to 0..255.
    """
    turn = 2 * math.pi * hue
    cos, sin = saturation * math.cos(turn), saturation * math.sin(turn)
    chroma = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])
    matrix = torch.from_numpy(brightness * contrast * _TO_RGB @ chroma @ _TO_YIQ).float()
    red, green, blue = matrix.T[:, :, None, None]
    # Products and sums instead of BLAS: bit-identical with any number of threads.
    moved: Tensor = image[0] * red
    moved += image[1] * green
    moved += image[2] * blue
    return moved.add_(brightness * (1 - contrast) * grey).clamp_(0, 255)


def adjust_contrast(
    image: Tensor, brightness: float, contrast: float, saturation: float, hue: float, grey: float
) -> Tensor:
    """Change brightness and contrast, the part of `adjust_color` that suits any number of channels.

    Examples:
        >>> adjust_contrast(torch.tensor([[[10.0, 30.0]]]), 2.0, 0.5, 1.0, 0.0, grey=20.0)
        tensor([[[30., 50.]]])
    """
    moved = image * (brightness * contrast)
    return moved.add_(brightness * (1 - contrast) * grey).clamp_(0, 255)


# Rows: luma and two chroma axes; scaling the last two changes saturation, rotating them changes hue.
_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_TO_RGB = np.linalg.inv(_TO_YIQ)


def _draw_color(image: Tensor, jitter: ColorJitter) -> tuple[float, float, float, float, float]:
    # An integer sum is exact, and so the same with any number of threads. Every 4th pixel suffices.
    pixels = image[:, ::4, ::4]
    sums = pixels.round().sum(dim=(1, 2), dtype=torch.int64).tolist()
    weights = _TO_YIQ[0] if len(image) == 3 else np.full(len(image), 1 / len(image))
    grey = float(weights @ sums) / pixels[0].numel()
    return (
        1 + _uniform(-jitter.brightness, jitter.brightness),
        1 + _uniform(-jitter.contrast, jitter.contrast),
        1 + _uniform(-jitter.saturation, jitter.saturation),
        _uniform(-jitter.hue, jitter.hue),
        grey,
    )


def _sample(image: Tensor, grid: Tensor, mode: str) -> Tensor:
    batch: Tensor = F.grid_sample(
        image[None].float(), grid[None], mode, padding_mode="border", align_corners=False
    )
    return batch[0]


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _between(end: int) -> int:
    """Draw an integer between 0 and `end` (which may be negative), both included."""
    low, high = min(end, 0), max(end, 0)
    return int(torch.randint(low, high + 1, ()).item())
