"""Checks of shapes and class numbers that the maths would accept silently."""

import math
from numbers import Integral, Real
from typing import Any

from torch import Tensor

__all__ = ["check_ignore_index", "per_image", "per_pixel", "same_shape", "within"]


def same_shape(a: Tensor, b: Tensor, names: str, shape: str) -> None:
    """Refuse two tensors of different shapes.

    Raises:
        ValueError: If the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(
            f"{names} must have the same shape {shape}, got {tuple(a.shape)} and {tuple(b.shape)}"
        )


def per_image(values: Tensor, like: Tensor, name: str = "lam") -> Tensor:
    """Reshape one value per image to `(N, 1, 1, 1)`, with the type of `like`.

    Raises:
        ValueError: If there is not one value per image.
    """
    if values.shape != like.shape[:1]:
        raise ValueError(
            f"`{name}` must hold one value per image, shape ({like.shape[0]},), "
            f"got {tuple(values.shape)}"
        )
    return values.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def per_pixel(values: Tensor, scores: Tensor, name: str) -> None:
    """Refuse values that are not one per pixel of `scores` `(N, K, H, W)`.

    Raises:
        ValueError: If the shape is not `(N, H, W)`.
    """
    expected = (scores.shape[0], *scores.shape[2:])
    if values.shape != expected:
        raise ValueError(
            f"`{name}` must have shape {expected}, one value per pixel, got {tuple(values.shape)}"
        )


def within(value: Any, low: float, high: float = math.inf, kind: Any = Real) -> bool:
    """Tell whether a value is a number from `low` to `high`; text, tensors, infinity and NaN are none.

    Examples:
        >>> within(0.5, 0, 1), within("0.5", 0, 1), within(1.5, 1, kind=Integral)
        (True, False, False)
    """
    return isinstance(value, kind) and low <= value <= high and value < math.inf


def check_ignore_index(classes: int, ignore_index: int) -> None:
    """Refuse 255, which means "no class" by default, where it is a class.

    Raises:
        ValueError: If it is no whole number, or if 255 is both a class and `ignore_index`: it would be neither
            learned nor scored.
    """
    if not within(ignore_index, -math.inf, kind=Integral):
        raise ValueError(
            f"`ignore_index` must be the whole number that masks hold where there is no class, got {ignore_index!r}"
        )
    if ignore_index == 255 and classes > 255:
        raise ValueError(
            f"of {classes} classes 255 is one, so `ignore_index` cannot be 255: pass `ignore_index=-1` and masks with "
            "-1 where there is no class"
        )
