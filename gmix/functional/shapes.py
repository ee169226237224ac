"""Checks of shapes and class numbers that the maths would accept silently."""

import math
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "check_classes",
    "check_classes_on_cpu",
    "check_ignore_index",
    "check_integers",
    "check_tensor",
    "class_ids",
    "class_targets",
    "per_image",
    "per_pixel",
    "same_shape",
    "within",
]


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


def check_tensor(name: str, value: object) -> None:
    """Refuse what is no tensor, such as a NumPy array.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"`{name}` must be a tensor, got {type(value).__name__}: pass torch.as_tensor({name})"
        )


def check_integers(name: str, mask: Tensor) -> None:
    """Refuse masks that do not hold whole numbers: converting them would cut off fractions.

    Raises:
        TypeError: If it is no tensor, or its type is no integer type; bool counts as one.
    """
    check_tensor(name, mask)
    if mask.is_floating_point() or mask.is_complex():
        raise TypeError(
            f"`{name}` must hold one class per pixel as an integer, got {mask.dtype}: pass {name}.long()"
        )


def class_ids(mask: Tensor, like: Tensor, names: tuple[str, str]) -> Tensor:
    """Convert masks of any integer type, `(N, H, W)` or `(N, 1, H, W)`, to int64 `(N, H, W)`.

    Args:
        mask: The masks.
        like: The images or logits `(N, C, H, W)` they belong to.
        names: What the caller calls the two, for the error.

    Raises:
        TypeError: If `mask` is no tensor of an integer type.
        ValueError: If it has another shape, such as that of one-hot masks.

    Examples:
        >>> class_ids(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, 3, 4, 4), ("y", "x")).dtype
        torch.int64
    """
    name, of = names
    check_tensor(name, mask)
    pixels = (len(like), *like.shape[2:])
    found = mask
    if mask.dim() == 4 and mask.shape[1] == 1 and mask.shape != pixels:
        mask = mask[:, 0]
    if mask.shape == pixels:
        check_integers(name, mask)
        return mask.long()
    remedy = ""
    if mask.dim() == 4 and (len(mask), *mask.shape[2:]) == pixels:
        remedy = f": pass one-hot masks as {name}.argmax(1)"
    elif mask.dim() == 4 and mask.shape[:3] == pixels:
        remedy = f": pass one-hot masks as {name}.argmax(-1)"
    raise ValueError(
        f"`{name}` must have shape {pixels}, one class per pixel of `{of}` {tuple(like.shape)}, "
        f"got {tuple(found.shape)}{remedy}"
    )


def check_classes(name: str, mask: Tensor, classes: int, ignore_index: int) -> None:
    """Refuse masks with other values than classes and `ignore_index`; waits for a GPU.

    Raises:
        ValueError: If there is another value.
    """
    wrong = mask[((mask < 0) | (mask >= classes)) & (mask != ignore_index)]
    if len(wrong):
        raise ValueError(
            f"`{name}` must hold classes 0 to {classes - 1}, or {ignore_index} "
            f"(`ignore_index`) where there is none, got {wrong[0].item()}"
        )


def check_classes_on_cpu(name: str, mask: Tensor, classes: int, ignore_index: int) -> None:
    """Check the values of masks as `check_classes`, where this costs no wait and no break of a compiled graph.

    Raises:
        ValueError: If there is another value.
    """
    if mask.device.type == "cpu" and not torch.compiler.is_compiling():
        check_classes(name, mask, classes, ignore_index)


def class_targets(
    scores: Tensor, mask: Tensor, ignore_index: int, names: tuple[str, str] = ("target", "logits")
) -> Tensor:
    """Return the masks of `scores` `(N, K, H, W)` as int64 `(N, H, W)`; on a CPU, check their values too.

    Raises:
        TypeError: If `mask` is no tensor of an integer type.
        ValueError: If its shape does not fit, or, on a CPU, if it has other values than classes and `ignore_index`.
    """
    classes = scores.shape[1]
    check_ignore_index(classes, ignore_index)
    mask = class_ids(mask, scores, names)
    check_classes_on_cpu(names[0], mask, max(classes, 2), ignore_index)
    return mask
