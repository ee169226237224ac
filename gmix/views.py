"""The strong view of a batch: what the student sees while the teacher sees the image as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["CutMix", "Pasted", "StrongColor"]


class StrongColor(nn.Module):
    r"""Strong colour changes, drawn per image: brightness, contrast, saturation, grey. Geometry stays.

    Works on the *normalised* batch on its own device and needs no loop over images. Factors are uniform on
    $[1-s, 1+s]$; an image is changed with probability `p` and turned grey with probability `grey`. Any number
    of channels: saturation is the distance from the channels' mean.

    Args:
        strength: $s$, in [0, 1].
        p: Probability that an image is changed at all.
        grey: Probability that an image becomes grey.
        mean: Per channel, what was subtracted when the images (0 to 1) were normalised; a number serves all.
        std: Per channel, what they were divided by.

    Shape:
        - input, output: `(N, C, H, W)`

    Reference:
        The colour half of FixMatch-style strong augmentation (UniMatch, 2023).

    Examples:
        >>> view = StrongColor()
        >>> x = torch.randn(2, 3, 8, 8)
        >>> view(x, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 8, 8])
        >>> torch.equal(StrongColor(p=0.0, grey=0.0)(x), x)
        True
    """

    def __init__(
        self,
        strength: float = 0.5,
        p: float = 0.8,
        grey: float = 0.2,
        mean: Sequence[float] | float = (0.485, 0.456, 0.406),
        std: Sequence[float] | float = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        if not (0 <= strength <= 1 and 0 <= p <= 1 and 0 <= grey <= 1):
            raise ValueError(
                f"`strength`, `p` and `grey` must be in [0, 1], got {strength}, {p} and {grey}"
            )
        self.strength = strength
        self.p = p
        self.grey = grey
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", _channels(mean), persistent=False)
        self.register_buffer("std", _channels(std), persistent=False)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if self.mean.shape[1] not in (1, x.shape[1]):
            raise ValueError(
                f"`mean` and `std` are for {self.mean.shape[1]} channels, the images have "
                f"{x.shape[1]}: pass one value per channel"
            )
        u = torch.rand(5, len(x), 1, 1, 1, generator=generator, device=x.device)
        brightness, contrast, saturation = 1 - self.strength + 2 * self.strength * u[:3]
        raw = x * self.std + self.mean
        new = raw * brightness
        new = torch.lerp(new.mean((1, 2, 3), keepdim=True), new, contrast)
        saturation = torch.where(u[3] < self.grey, 0.0, saturation)
        new = torch.lerp(new.mean(1, keepdim=True), new, saturation).clamp(0, 1)
        return torch.where(u[4] < self.p, (new - self.mean) / self.std, x)


class Pasted(NamedTuple):
    """What `CutMix` did: for image i, where `box[i]` is True the content comes from image `source[i]`."""

    box: Tensor  # (N, H, W) bool
    source: Tensor  # (N,) int64

    def apply(self, values: Tensor) -> Tensor:
        """Paste `(N, ..., H, W)` values (images, masks, weights) the same way."""
        box = self.box.view(len(values), *[1] * (values.dim() - 3), *values.shape[-2:])
        return torch.where(box, values[self.source], values)


class CutMix(nn.Module):
    """Draw one box per image, to be filled from another image of the batch.

    Args:
        p: Probability that an image gets a box.
        area: Smallest and largest share of the image that a box covers.
        aspect: Largest ratio of the box's sides; the smallest is its inverse.

    Shape:
        - input: `(N, ..., H, W)`, only its shape and device are used
        - output: `Pasted(box (N, H, W) bool, source (N,) int64)`

    Reference:
        Yun et al., "CutMix", 2019; French et al., 2020; box sizes as in UniMatch, 2023.

    Examples:
        >>> x = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 8, 8)
        >>> pasted = CutMix(p=1.0)(x, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(pasted.apply(x)[0, 0], pasted.box[0].float())
        True
    """

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
        n, (h, w) = len(x), x.shape[-2:]
        u = torch.rand(5, n, 1, 1, generator=generator, device=x.device)
        area = self.area[0] + (self.area[1] - self.area[0]) * u[0]
        ratio = self.aspect ** (2 * u[1] - 1)
        box_h = (area * ratio).sqrt().clamp(max=1)
        box_w = (area / ratio).sqrt().clamp(max=1)
        top, left = (1 - box_h) * u[2], (1 - box_w) * u[3]
        # Pixel centres in [0, 1]: the box needs no whole numbers, so none are read back from a GPU.
        rows = ((torch.arange(h, device=x.device) + 0.5) / h).view(1, h, 1)
        cols = ((torch.arange(w, device=x.device) + 0.5) / w).view(1, 1, w)
        inside = (rows >= top) & (rows < top + box_h) & (cols >= left) & (cols < left + box_w)
        return Pasted(inside & (u[4] < self.p), torch.arange(n, device=x.device).roll(1))


def _channels(values: Sequence[float] | float) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32).reshape(1, -1, 1, 1)
