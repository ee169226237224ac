"""A check that images are normalised, as networks expect them."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from gmix.functional.shapes import check_tensor
from gmix.nn.views import StrongColor

__all__ = ["check_floats", "check_images"]


def check_floats(name: str, x: Tensor) -> None:
    """Refuse images of an integer type.

    Raises:
        TypeError: If they are no tensor of floating point.
    """
    check_tensor(name, x)
    if not x.is_floating_point():
        raise TypeError(
            f"`{name}` must be normalised float32 images, got {x.dtype}: pass (x / 255 - mean) / std"
        )


def check_images(x: Tensor, color: StrongColor | None) -> None:
    """Check that a batch `(N, C, H, W)` was normalised, with the `mean` and `std` of `color`; waits for a GPU.

    Raises:
        ValueError: If it holds nan or infinite values, if all values are whole numbers up to 255, or if most values,
            denormalised, lie outside 0..1.

    Warns:
        UserWarning: If the batch may not have been normalised.
    """
    raw = x.detach().float()
    whole = (raw == raw.round()).all()
    lowest, highest = raw.aminmax()
    if color is not None:
        color.check_channels(x)
        raw = raw * color.std + color.mean
    outside = ((raw < -0.05) | (raw > 1.05)).float().mean()
    far = (raw.abs().amax() > 10) if color is not None else (raw.abs().amax() > 50)
    found = torch.stack([lowest, highest, outside, whole.float(), far.float()]).tolist()
    low, high, outside_share, are_whole, are_far = found
    if not math.isfinite(low + high):
        broken = int((~raw.isfinite()).flatten(1).any(1).nonzero()[0])
        raise ValueError(
            f"image {broken} of a batch of {len(x)} holds nan or infinite values: mend or leave out its file"
        )
    span = f"the images lie in {low:.4g}..{high:.4g}"
    remedy = "pass (x - mean) / std of images in 0..1"
    if are_whole and are_far:
        also = ", or mean=0.0 and std=1/255 for images in 0..255" if color is not None else ""
        raise ValueError(f"{span}, whole numbers: they are not normalised; {remedy}{also}")
    if color is not None and outside_share > 0.5:
        mean, std = (_numbers(values) for values in (color.mean, color.std))
        raise ValueError(
            f"{span}, and x * std + mean is not in 0..1, as strong colours need it, with mean {mean} and std "
            f"{std}: pass the `mean` and `std` they were normalised with (0.0 and 1.0 for images in 0..1)"
        )
    if are_far:
        warnings.warn(f"{span}: if they are not normalised, {remedy}", stacklevel=2)
    elif (
        color is not None and low >= 0 and high <= 1 and high > low and bool(color.mean.min() > 0.1)
    ):
        warnings.warn(
            f"{span}: if they are not normalised, pass mean=0.0 and std=1.0 to the method, or (x - mean) / std",
            stacklevel=2,
        )


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.flatten().tolist())
