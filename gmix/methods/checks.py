"""Checks of the inputs of a method: lossless conversions, or one-sentence errors."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from gmix.nn.views import StrongColor

__all__ = [
    "check_images",
    "check_masks",
    "check_place",
    "check_types",
    "check_unlabeled",
    "check_valid",
]

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


def check_place(**tensors: Tensor | None) -> None:
    """Refuse what is no tensor, has no values, or is on another device than the first.

    Examples:
        >>> check_place(x_labeled=torch.zeros(2, 3, 4, 4, device="meta"))
        Traceback (most recent call last):
        ValueError: `x_labeled` is on the device meta, where tensors have no values: pass one that has
    """
    given = {name: x for name, x in tensors.items() if x is not None}
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise TypeError(
                f"`{name}` must be a tensor, got {type(x).__name__}: pass torch.as_tensor({name})"
            )
        if x.device.type == "meta":
            raise ValueError(
                f"`{name}` is on the device meta, where tensors have no values: pass one that has"
            )
        first, other = next(iter(given.items()))
        if x.device != other.device:
            raise ValueError(
                f"`{name}` is on {x.device}, `{first}` on {other.device}: pass {name}.to({first}.device)"
            )


def check_masks(y: Tensor, x: Tensor) -> Tensor:
    """Convert masks of any integer type, `(N, H, W)` or `(N, 1, H, W)`, to int64 `(N, H, W)`.

    Raises:
        ValueError: If images have no batch dimension, or masks have another shape or type, such as one-hot masks.

    Examples:
        >>> check_masks(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, 3, 4, 4)).dtype
        torch.int64
    """
    if x.dim() != 4 or not len(x):
        raise ValueError(
            f"`x_labeled` must be one image or more, shape (N, C, H, W), got {tuple(x.shape)}"
        )
    pixels = (len(x), *x.shape[2:])
    found = y
    if y.dim() == 4 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape == pixels and y.dtype in INTEGERS:
        return y.long()
    remedy = ""
    if y.dim() == 4 and (len(y), *y.shape[2:]) == pixels:
        remedy = ": pass one-hot masks as y.argmax(1)"
    elif y.dim() == 4 and y.shape[:3] == pixels:
        remedy = ": pass one-hot masks as y.argmax(-1)"
    elif y.shape == pixels:
        remedy = ": pass y.long()"
    raise ValueError(
        f"`y_labeled` must have shape {pixels} and type torch.int64, one class per pixel of "
        f"`x_labeled`, got {tuple(found.shape)} and {found.dtype}{remedy}"
    )


def check_classes(y: Tensor, classes: int, ignore_index: int) -> None:
    """Refuse masks `(N, H, W)` with other values than classes and `ignore_index`; waits for a GPU."""
    wrong = y[((y < 0) | (y >= classes)) & (y != ignore_index)]
    if len(wrong):
        raise ValueError(
            f"`y_labeled` must hold classes 0 to {classes - 1}, or {ignore_index} "
            f"(`ignore_index`) where there is none, got {wrong[0].item()}"
        )


def check_unlabeled(x_labeled: Tensor, x_unlabeled: Tensor) -> None:
    """Refuse unlabeled images whose shape differs from that of the labeled ones."""
    if x_unlabeled.shape[1:] != x_labeled.shape[1:]:
        raise ValueError(
            "`x_labeled` and `x_unlabeled` must have the same shape but for their number, "
            f"got {tuple(x_labeled.shape)} and {tuple(x_unlabeled.shape)}"
        )


def check_valid(valid: Tensor | None, x_unlabeled: Tensor) -> None:
    """Refuse a `valid_unlabeled` that is not one bool per pixel."""
    pixels = (len(x_unlabeled), *x_unlabeled.shape[2:])
    if valid is not None and (valid.shape != pixels or valid.dtype != torch.bool):
        raise ValueError(
            f"`valid_unlabeled` must have shape {pixels} and type torch.bool, one value per pixel "
            f"of `x_unlabeled`, got {tuple(valid.shape)} and {valid.dtype}"
        )


def check_types(net: nn.Module, **images: Tensor) -> None:
    """Refuse weights and images of other types than float32; autocast also accepts 16-bit images."""
    for p in net.parameters():
        if p.dtype != torch.float32:
            raise TypeError(
                f"a method learns float32 weights, got {p.dtype}: call method.float(), and for speed wrap the "
                'call in torch.autocast("cuda", torch.bfloat16)'
            )
    for name, x in images.items():
        if not x.is_floating_point():
            raise TypeError(
                f"`{name}` must be normalised float32 images, got {x.dtype}: pass (x / 255 - mean) / std"
            )
        narrow = x.dtype in (torch.float16, torch.bfloat16)
        if x.dtype != torch.float32 and not (narrow and torch.is_autocast_enabled(x.device.type)):
            raise TypeError(f"`{name}` must be float32, got {x.dtype}: pass {name}.float()")


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
