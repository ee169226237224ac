"""Reading one image or one mask file into a tensor."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision import tv_tensors

from gmix.data.classes import IGNORE, Classes


def read_image(path: str | Path) -> tv_tensors.Image:
    """Reads an image upright (EXIF orientation) as RGB.

    Grey becomes RGB, an alpha channel is dropped, 16-bit grey is scaled to 8 bits.

    Returns:
        uint8 tensor `(3, H, W)`.

    Raises:
        ValueError: If the file cannot be read; names it.
    """
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            if picture.mode.startswith("I;16"):
                # convert("RGB") would clip at 255 instead of scaling.
                picture = Image.fromarray((np.array(picture) >> 8).astype(np.uint8))
            pixels = np.array(picture.convert("RGB"))
    except Exception as error:  # Pillow raises nearly anything on a broken file
        raise ValueError(f"cannot read image {path}: {error}") from None
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())


def read_mask(path: str | Path, classes: Classes) -> tv_tensors.Mask:
    """Reads a mask upright as class ids: palette *indices* or grey values, through the label map.

    Returns:
        int64 tensor `(H, W)` of class ids and 255.

    Raises:
        ValueError: If the file cannot be read, is a colour image, or (without a label map) holds
            an id that is no class; names file and value.
    """
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)
            mode, ids = upright.mode, np.array(upright).astype(np.int64)
    except Exception as error:  # as above
        raise ValueError(f"cannot read mask {path}: {error}") from None
    if ids.ndim != 2:
        raise ValueError(
            f"mask {path} is a colour image (mode {mode}): expected a palette or grey image "
            "whose pixel values are class ids"
        )
    if classes.label_map is None:
        bad = ids[(ids != IGNORE) & ((ids < 0) | (ids >= classes.num_classes))]
        if bad.size:
            raise ValueError(
                f"mask {path} holds the id {bad[0]}: expected 0..{classes.num_classes - 1} or "
                f"{IGNORE}; give a label map if the file holds raw ids"
            )
    else:
        table = np.full(65536, IGNORE, dtype=np.int64)
        table[list(classes.label_map)] = list(classes.label_map.values())
        known = (ids >= 0) & (ids < len(table))
        ids = np.where(known, table[np.where(known, ids, 0)], IGNORE)
    return tv_tensors.Mask(torch.from_numpy(ids))
