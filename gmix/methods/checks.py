"""Checks of the inputs of a method: lossless conversions, or one-sentence errors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gmix.functional.shapes import check_integers, check_tensor, class_ids
from gmix.nn.images import check_floats
from gmix.nn.logits import describe
from gmix.nn.modes import eval_mode, forget_casts

__all__ = [
    "check_logits",
    "check_masks",
    "check_place",
    "check_planes",
    "check_types",
    "check_unlabeled",
    "check_valid",
]


def check_place(**tensors: Tensor | None) -> None:
    """Refuse what is no tensor, has no values, or is on another device than the first.

    Examples:
        >>> check_place(x_labeled=torch.zeros(2, 3, 4, 4, device="meta"))
        Traceback (most recent call last):
        ValueError: `x_labeled` is on the device meta, where tensors have no values: pass one that has
    """
    given = {name: x for name, x in tensors.items() if x is not None}
    for name, x in given.items():
        check_tensor(name, x)
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
        TypeError: If masks have no integer type.
        ValueError: If images have no batch dimension, or masks have another shape, such as one-hot masks.

    Examples:
        >>> check_masks(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, 3, 4, 4)).dtype
        torch.int64
    """
    if x.dim() != 4 or not len(x):
        raise ValueError(
            f"`x_labeled` must be one image or more, shape (N, C, H, W), got {tuple(x.shape)}"
        )
    return class_ids(y, x, ("y_labeled", "x_labeled"))


def check_planes(y: Tensor, x: Tensor, planes: int) -> Tensor:
    """Convert masks of classes that overlap, of any integer type, to int64 `(N, K, H, W)`.

    Raises:
        TypeError: If masks have no integer type.
        ValueError: If they have another shape.
    """
    expected = (len(x), planes, *x.shape[2:])
    if y.shape != expected:
        raise ValueError(
            f"`y_labeled` must have shape {expected}, a mask of 0 and 1 for each of the {planes} classes, "
            f"got {tuple(y.shape)}"
        )
    check_integers("y_labeled", y)
    return y.long()


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


@torch.no_grad()
def check_logits(net: Any, x: Tensor) -> None:
    """Run an image through a network of your own; refuse it unless both of its paths return logits of the image's size.

    Raises:
        TypeError: If it returns no tensor.
        ValueError: If it returns other shapes.
    """
    size = (x.shape[2], x.shape[3])
    with eval_mode(net):
        found = {
            "net(x)": net(x),
            "net.decode(net.encode(x), (H, W))": net.decode(net.encode(x), size),
        }
    forget_casts()  # its weights have no gradients
    for call, logits in found.items():
        wanted = f"`{call}` must return logits ({len(x)}, {net.classes}, {size[0]}, {size[1]}) for {len(x)} image"
        if not isinstance(logits, Tensor):
            raise TypeError(f"{wanted}, got {describe(logits)}: return only that tensor")
        if logits.shape[:2] != (len(x), net.classes) or logits.shape[-2:] != size:
            raise ValueError(
                f"{wanted}, got {tuple(logits.shape)}: upsample logits that are coarser, and put classes first"
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
        check_floats(name, x)
        narrow = x.dtype in (torch.float16, torch.bfloat16)
        if x.dtype != torch.float32 and not (narrow and torch.is_autocast_enabled(x.device.type)):
            raise TypeError(f"`{name}` must be float32, got {x.dtype}: pass {name}.float()")
