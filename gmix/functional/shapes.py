"""Shapes that do not fit are named, where broadcasting would go on without a word."""

from torch import Tensor

__all__ = ["per_image", "per_pixel", "same_shape"]


def same_shape(a: Tensor, b: Tensor, names: str, shape: str) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"{names} must have the same shape {shape}, got {tuple(a.shape)} and {tuple(b.shape)}"
        )


def per_image(values: Tensor, like: Tensor, name: str = "lam") -> Tensor:
    """`(N,)` -> `(N, 1, 1, 1)`, in the type of `like`."""
    if values.shape != like.shape[:1]:
        raise ValueError(
            f"`{name}` must hold one value per image, shape ({like.shape[0]},), "
            f"got {tuple(values.shape)}"
        )
    return values.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def per_pixel(values: Tensor, scores: Tensor, name: str) -> None:
    expected = (scores.shape[0], *scores.shape[2:])
    if values.shape != expected:
        raise ValueError(
            f"`{name}` must have shape {expected}, one value per pixel, got {tuple(values.shape)}"
        )
