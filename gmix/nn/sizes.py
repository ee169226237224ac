"""The image sizes that an encoder accepts, and the error messages for other sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers.halo_attn import HaloAttn
from timm.layers.non_local_attn import BilinearAttnTransform
from torch import Tensor, nn
from torch.func import functional_call

from gmix.nn.modes import eval_mode

__all__ = ["check_channels", "dry_run", "fixed_size", "refusal", "windows"]

REBUILT = "`img_size=...` (some: `dynamic_img_size=True`)"

# The errors of torch for a table of positions, or a grid of windows, of another size.
_OTHER_SIZE = re.compile(r"must match the size of tensor|is invalid for input of size|broadcast")


def windows(encoder: nn.Module) -> int:
    """Compute the least number of positions of the deepest map that all windows of an encoder divide (MaxViT: 7).

    Examples:
        >>> windows(nn.Conv2d(3, 8, 3))
        1
    """
    sizes: list[Any] = [getattr(module, "partition_size", ()) for module in encoder.modules()]
    blocks = [m for m in encoder.modules() if isinstance(m, HaloAttn | BilinearAttnTransform)]
    return math.lcm(
        *(int(length) for size in sizes for length in size),
        *(int(block.block_size) for block in blocks),
    )


def check_channels(encoder: object, x: Tensor) -> None:
    """Refuse what is no batch of images `(N, C, H, W)` of as many channels as an encoder, `_in_channels`, takes.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> check_channels(smp.Unet("resnet18", encoder_weights=None).encoder, torch.zeros(2, 1, 64, 64))
        Traceback (most recent call last):
        ValueError: the network takes images of shape (N, 3, H, W), got (2, 1, 64, 64): make grey images ...
    """
    takes = getattr(encoder, "_in_channels", None) or (x.shape[1] if x.dim() == 4 else "C")
    if x.dim() == 4 and x.shape[1] == takes:
        return
    if x.dim() != 4:
        remedy = "pass a batch, of one image image[None]"
    elif x.shape[1] == 1:
        remedy = f"make grey images images.expand(-1, {takes}, -1, -1), or build the model with in_channels=1"
    else:
        remedy = f"convert the images, or build the model with in_channels={x.shape[1]}"
    raise ValueError(
        f"the network takes images of shape (N, {takes}, H, W), got {tuple(x.shape)}: {remedy}"
    )


def fixed_size(encoder: nn.Module) -> tuple[tuple[int, int] | None, bool]:
    """Return the only image size that an encoder accepts, if timm says which, and whether there is only one.

    Examples:
        >>> fixed_size(nn.Conv2d(3, 8, 3))
        (None, False)
    """
    strict = [module for module in encoder.modules() if hasattr(module, "strict_img_size")]
    if strict:
        sizes: list[Any] = [module.img_size for module in strict if module.strict_img_size]
        size = next(filter(None, sizes), None)
        return size, size is not None
    return None, bool(_settings(encoder).get("fixed_input_size", False))


def refusal(encoder: nn.Module, error: Exception, images: Tensor) -> str | None:
    """Explain that an encoder does not accept images of this size, and which size it accepts.

    Args:
        encoder: An SMP encoder.
        error: The exception that it raised.
        images: The images `(N, C, H, W)` that it was given.

    Returns:
        The end of a sentence; None if the error has another cause.
    """
    only, fixed = fixed_size(encoder)
    if not isinstance(error, AssertionError) and not (fixed and _OTHER_SIZE.search(str(error))):
        return None
    usual = tuple(_settings(encoder).get("input_size", ()))[1:]
    only = only or (usual if usual and _takes(encoder, images, usual) else None)
    if only is not None:
        takes = f"it takes {only[0]} x {only[1]}"
    else:
        takes = "it takes the size it was built for" if fixed else _one_sentence(error)
    return f"{takes}; resize the images, or build the model with {REBUILT}"


def dry_run(module: nn.Module, shape: Sequence[int]) -> None:
    """Run a module on images of a shape without computing: tensors on the `meta` device have shapes only.

    Examples:
        >>> dry_run(nn.Conv2d(3, 8, 3), (1, 3, 10**6, 10**6))
    """
    state = (*module.named_parameters(), *module.named_buffers())
    hollow = {name: torch.empty_like(tensor, device="meta") for name, tensor in state}
    with eval_mode(module), torch.no_grad():
        functional_call(module, hollow, torch.empty(*shape, device="meta"))


def _settings(encoder: nn.Module) -> dict[str, Any]:
    """Return timm's settings of an encoder; empty for other encoders."""
    settings: Any = getattr(getattr(encoder, "model", None), "pretrained_cfg", None)
    return settings or {}


def _takes(encoder: nn.Module, images: Tensor, size: tuple[int, ...]) -> bool:
    try:
        dry_run(encoder, (1, images.shape[1], *size))
    except Exception:  # timm and torch raise many types
        return False
    return True


def _one_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") or "it refuses them"
