"""The strong view of a batch: the student sees it, while the teacher sees the unchanged image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmix.nn.given import remember_given
from gmix.protocols import Augmentation, BoxSampler

__all__ = [
    "CutMix",
    "GaussianBlur",
    "Pasted",
    "StrongColor",
    "StrongView",
    "disturb",
    "drop_channels",
    "drop_complements",
]


class StrongColor(nn.Module):
    r"""Change colours strongly, per image: brightness, contrast, saturation, hue, grey. Geometry does not change.

    Works on the *normalised* batch, on its device, without a loop over images. Factors are uniform on
    $[1-s, 1+s]$; an image is changed with probability `p`, and then turned grey with probability `grey`. Works with any
    number of channels: saturation is the distance from the mean of the channels. The hue rotates about the grey axis by
    up to `hue` of a full turn in either direction, and only in images with three channels.

    Args:
        strength: $s$, in [0, 1].
        p: Probability that an image is changed.
        grey: Probability that a changed image becomes grey; `p` times `grey` of all images do.
        hue: Largest rotation of the hue, as a share of a full turn, in [0, 0.5].
        mean: Mean per channel that the images (0 to 1) were normalised with; a single number is used for all.
        std: Standard deviation per channel that they were normalised with.

    Shape:
        - Input, output: `(N, C, H, W)`.

    Reference:
        The colour part of FixMatch-style strong augmentation (UniMatch, 2023).

    Examples:
        >>> view = StrongColor()
        >>> x = torch.randn(2, 3, 8, 8)
        >>> view(x, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 8, 8])
        >>> torch.equal(StrongColor(p=0.0, grey=0.0)(x), x)
        True
    """

    __call__: Augmentation

    @remember_given
    def __init__(
        self,
        strength: float = 0.5,
        p: float = 0.8,
        grey: float = 0.2,
        mean: Sequence[float] | float = (0.485, 0.456, 0.406),
        std: Sequence[float] | float = (0.229, 0.224, 0.225),
        hue: float = 0.0,
    ) -> None:
        super().__init__()
        if not (0 <= strength <= 1 and 0 <= p <= 1 and 0 <= grey <= 1):
            raise ValueError(
                f"`strength`, `p` and `grey` must be in [0, 1], got {strength}, {p} and {grey}"
            )
        if not 0 <= hue <= 0.5:
            raise ValueError(f"`hue` is a share of a turn in [0, 0.5], got {hue}")
        self.strength = strength
        self.p = p
        self.grey = grey
        self.hue = hue
        self.mean: Tensor
        self.std: Tensor
        means, stds = _numbers("mean", mean), _numbers("std", std)
        if len({len(means), len(stds)} - {1}) > 1:
            raise ValueError(
                "`mean` and `std` must have one value, or one per channel, got "
                f"{len(means)} and {len(stds)}"
            )
        if min(stds) <= 0:
            raise ValueError(f"`std` must be above 0, images are divided by it, got {std}")
        self.register_buffer(
            "mean", torch.tensor(means, dtype=torch.float32).view(1, -1, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(stds, dtype=torch.float32).view(1, -1, 1, 1), persistent=False
        )

    def check_channels(self, x: Tensor) -> None:
        """Refuse images `(N, C, H, W)` whose number of channels does not fit `mean` and `std`."""
        channels = max(self.mean.shape[1], self.std.shape[1])
        if channels not in (1, x.shape[1]):
            raise ValueError(
                f"`mean` and `std` are for {channels} channels, the images have {x.shape[1]}: pass one value "
                "per channel"
            )

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Change the colours of each image at random."""
        self.check_channels(x)
        u = torch.rand(5, len(x), 1, 1, 1, generator=generator, device=x.device)
        brightness, contrast, saturation = 1 - self.strength + 2 * self.strength * u[:3]
        raw = x * self.std + self.mean
        new = raw * brightness
        new = torch.lerp(new.mean((1, 2, 3), keepdim=True), new, contrast)
        saturation = torch.where(u[3] < self.grey, 0.0, saturation)
        if self.hue > 0 and x.shape[1] == 3:
            turn = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device)
            new = _turn_hue(new, 2 * math.pi * self.hue * (2 * turn - 1))
        new = torch.lerp(new.mean(1, keepdim=True), new, saturation).clamp(0, 1)
        return torch.where(u[4] < self.p, (new - self.mean) / self.std, x)


class GaussianBlur(nn.Module):
    r"""Blur each image with probability `p`, with a Gaussian of its own width.

    Args:
        p: Probability that an image is blurred.
        sigma: Smallest and largest standard deviation, in pixels, above 0.

    Shape:
        - Input, output: `(N, C, H, W)`.

    Reference:
        UniMatch, 2023.

    Examples:
        >>> x = torch.zeros(1, 1, 5, 5)
        >>> x[..., 2, 2] = 1
        >>> out = GaussianBlur(p=1.0)(x, generator=torch.Generator().manual_seed(0))
        >>> bool(out[..., 2, 2] < 1), round(GaussianBlur(p=0.0)(x)[..., 2, 2].item())
        (True, 1)
    """

    __call__: Augmentation

    @remember_given
    def __init__(self, p: float = 0.5, sigma: tuple[float, float] = (0.1, 2.0)) -> None:
        super().__init__()
        if not (0 <= p <= 1 and 0 < sigma[0] <= sigma[1]):
            raise ValueError(
                f"`p` must be in [0, 1], `sigma` two rising numbers above 0, got {p} and {sigma}"
            )
        self.p = p
        self.sigma = sigma

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Blur each image at random."""
        n, channels = x.shape[:2]
        u = torch.rand(2, n, 1, generator=generator, device=x.device)
        sigma = self.sigma[0] + (self.sigma[1] - self.sigma[0]) * u[0]
        # A Gaussian this narrow has all its weight on the pixel itself: nothing is blurred.
        sigma = torch.where(u[1] < self.p, sigma, 1e-3)
        radius = math.ceil(3 * self.sigma[1])
        distance = torch.arange(-radius, radius + 1, device=x.device)
        kernel = torch.exp(-(distance**2) / (2 * sigma**2))
        kernel = (kernel / kernel.sum(1, keepdim=True)).to(x.dtype)
        kernel = kernel.repeat_interleave(channels, 0)[:, None]
        # One group per image and channel, so that each image has its own width in one convolution.
        planes = F.pad(x.reshape(1, -1, *x.shape[2:]), (radius,) * 4, mode="replicate")
        with torch.autocast(x.device.type, enabled=False):
            planes = F.conv2d(planes, kernel[:, :, :, None], groups=n * channels)
            return F.conv2d(planes, kernel[:, :, None, :], groups=n * channels).view_as(x)


class Pasted(NamedTuple):
    """The boxes of `CutMix`: where `box[i]` is True, the content of image i comes from image `source[i]`."""

    box: Tensor  # (N, H, W) bool
    source: Tensor  # (N,) int64

    def apply(self, values: Tensor) -> Tensor:
        """Paste `(N, ..., H, W)` values (images, masks, weights) the same way."""
        box = self.box.view(len(values), *[1] * (values.dim() - 3), *values.shape[-2:])
        return torch.where(box, values[self.source], values)


class CutMix(nn.Module):
    """Draw a box per image, to be filled from another image of the batch.

    Args:
        p: Probability that an image gets a box.
        area: Smallest and largest share of the image that a box covers. A side longer than that of the image is cut:
            a box that is both large and long (`area` times `aspect` above 1) covers less.
        aspect: Largest ratio of the sides of a box, relative to those of the image; the smallest is its inverse.

    Shape:
        - Input: `(N, ..., H, W)`; only its shape and device are used.
        - Output: `Pasted(box (N, H, W) bool, source (N,) int64)`.

    Reference:
        Yun et al., "CutMix", 2019; French et al., 2020; box sizes as in UniMatch, 2023.

    Examples:
        >>> x = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 8, 8)
        >>> pasted = CutMix(p=1.0)(x, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(pasted.apply(x)[0, 0], pasted.box[0].float())
        True
    """

    __call__: BoxSampler

    @remember_given
    def __init__(
        self,
        p: float = 0.5,
        area: tuple[float, float] = (0.02, 0.4),
        aspect: float = 1 / 0.3,
    ) -> None:
        super().__init__()
        if not (0 <= p <= 1 and 0 < area[0] <= area[1] <= 1 and aspect >= 1):
            raise ValueError(
                "`p` must be in [0, 1], `area` two rising shares in (0, 1], `aspect` at least 1, "
                f"got {p}, {area} and {aspect}"
            )
        self.p = p
        self.area = area
        self.aspect = aspect

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Pasted:
        """Draw the boxes and the images that fill them."""
        n, (h, w) = len(x), x.shape[-2:]
        u = torch.rand(5, n, 1, 1, generator=generator, device=x.device)
        area = self.area[0] + (self.area[1] - self.area[0]) * u[0]
        ratio = self.aspect ** (2 * u[1] - 1)
        box_h = (area * ratio).sqrt().clamp(max=1)
        box_w = (area / ratio).sqrt().clamp(max=1)
        top, left = (1 - box_h) * u[2], (1 - box_w) * u[3]
        # Pixel centres in [0, 1]: the box needs no integers, so none are read back from a GPU.
        rows = ((torch.arange(h, device=x.device) + 0.5) / h).view(1, h, 1)
        cols = ((torch.arange(w, device=x.device) + 0.5) / w).view(1, 1, w)
        inside = (rows >= top) & (rows < top + box_h) & (cols >= left) & (cols < left + box_w)
        return Pasted(inside & (u[4] < self.p), torch.arange(n, device=x.device).roll(1))


class StrongView(nn.Module):
    """Apply strong colours, blur and CutMix: the view that FixMatch and UniMatch learn from.

    Args:
        mean: Mean per channel that the images (0 to 1) were normalised with; a single number is used for all.
        std: Standard deviation per channel that they were normalised with.

    Shape:
        - Input: `(N, C, H, W)`.
        - Output: the view, and the `Pasted` to apply to its masks and weights.

    Reference:
        UniMatch, 2023.

    Examples:
        >>> x = torch.randn(2, 3, 8, 8)
        >>> view, pasted = StrongView()(x)
        >>> view.shape, pasted.apply(torch.zeros(2, 8, 8)).shape
        (torch.Size([2, 3, 8, 8]), torch.Size([2, 8, 8]))
    """

    __call__: Callable[..., tuple[Tensor, Pasted]]

    def __init__(
        self,
        mean: Sequence[float] | float = (0.485, 0.456, 0.406),
        std: Sequence[float] | float = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        self.color = StrongColor(hue=0.25, mean=mean, std=std)
        self.blur = GaussianBlur()
        self.cutmix = CutMix()

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Pasted]:
        """Make the strong view of images, and return it with its boxes."""
        view = self.blur(self.color(x, generator), generator)
        pasted = self.cutmix(view, generator)
        return pasted.apply(view), pasted


def drop_channels(x: Tensor, p: float, generator: torch.Generator | None = None) -> Tensor:
    """Drop whole channels of `(N, C, ...)`, as `torch.nn.Dropout2d` does, but with a generator.

    Raises:
        ValueError: If `p` is outside [0, 1].

    Examples:
        >>> out = drop_channels(torch.ones(1, 4, 2, 2), 0.5, torch.Generator().manual_seed(0))
        >>> out[0, :, 0, 0]
        tensor([0., 2., 0., 0.])
    """
    if not 0 <= p <= 1:
        raise ValueError(f"`p` is a probability in [0, 1], got {p}")
    draw = torch.rand(x.shape[:2], generator=generator, device=x.device)
    keep = (draw >= p).to(x.dtype) / max(1 - p, torch.finfo(x.dtype).tiny)
    return x * keep.view(*x.shape[:2], *[1] * (x.dim() - 2))


def disturb(
    features: Sequence[Tensor], p: float, generator: torch.Generator | None = None
) -> list[Tensor]:
    """Drop whole channels of all maps of an encoder, but not of the prefix tokens of a vision transformer.

    Examples:
        >>> maps, tokens = torch.ones(1, 4, 2, 2), torch.ones(1, 5, 4)
        >>> out = disturb([maps, tokens], 1.0)
        >>> out[0].sum().item(), torch.equal(out[1], tokens)
        (0.0, True)
    """
    return [drop_channels(f, p, generator) if f.dim() == 4 else f for f in features]


def drop_complements(
    features: Sequence[Tensor], whole: float = 0.5, generator: torch.Generator | None = None
) -> list[Tensor]:
    """Drop a random half of the channels of a first view of each image, and the other half of a second view.

    Each channel is drawn by itself, and what is left is doubled. Prefix tokens of a vision transformer stay.

    Args:
        features: Maps of an encoder, `(2N, C, h, w)`: N images in a first view, then the same in a second.
        whole: Share of the images, rounded down, that keep all channels in both views.
        generator: Source of randomness, on the device of the features.

    Reference:
        Complementary dropout of UniMatch V2, 2024.

    Examples:
        >>> maps, tokens = torch.ones(2, 4, 1, 1), torch.ones(2, 5, 4)
        >>> out = drop_complements([maps, tokens], generator=torch.Generator().manual_seed(0))
        >>> out[0][..., 0, 0], torch.equal(out[1], tokens)
        (tensor([[2., 0., 2., 2.],
                [0., 2., 0., 0.]]), True)
    """
    n, device = len(features[0]) // 2, features[0].device
    kept = torch.randperm(n, generator=generator, device=device) < int(whole * n)
    dropped = []
    for f in features:
        if f.dim() == 4:
            draw = torch.rand(n, f.shape[1], generator=generator, device=device)
            first = torch.where(kept[:, None], 1.0, 2.0 * (draw < 0.5))
            both = torch.cat([first, 2 - first])[:, :, None, None]
            f = f * both.to(f.dtype)
        dropped.append(f)
    return dropped


def _turn_hue(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate `(N, 3, H, W)` colours about the grey axis (Rodrigues' formula), which keeps their mean."""
    grey = x.mean(1, keepdim=True)
    across = (x.roll(1, 1) - x.roll(-1, 1)) / math.sqrt(3)
    return grey + angle.cos() * (x - grey) + angle.sin() * across


def _numbers(name: str, values: Sequence[float] | float) -> list[float]:
    try:
        numbers = [float(v) for v in (values if isinstance(values, Iterable) else [values])]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"`{name}` must be a finite number, or one per channel, got {values!r}")
    return numbers
