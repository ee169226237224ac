"""Reading one image or one mask file into a tensor."""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision import tv_tensors

from gmix.data.classes import IGNORE, Classes

Pixels = npt.NDArray[Any]

# What image and mask files may be. Pillow knows more kinds, EPS among them, for which it starts another program.
_KINDS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM")

_QUIET = logging.NullHandler()

# Modes of one channel in which Pillow hands over the pixels as they are in the file.
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True)
class ImageFormat:
    """What images are read as.

    Attributes:
        channels: 1 (grey), 3 (RGB), or as many as the files have, e.g. 4.
        span: The pixel values that become 0 and 255, in files of more than 8 bits. Without it these are 0 and
            65535 for 16 bits and 0 and 1 for floating point.

    Examples:
        >>> ImageFormat(channels=1, span=(0, 4095)).scaled(np.array([4095], dtype=np.uint16))
        array([255.], dtype=float32)
    """

    channels: int = 3
    span: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"`channels` must be at least 1, got {self.channels}")
        if self.span is not None and not self.span[0] < self.span[1]:
            raise ValueError(f"`span` must be two rising numbers, got {self.span}")

    def scaled(self, pixels: Pixels) -> Pixels:
        """Pixels of any type as uint8 (if they are that) or float32, 0..255.

        Raises:
            ValueError: If their range is not known.
        """
        if pixels.dtype == bool:
            return pixels.astype(np.uint8) * 255
        if pixels.dtype == np.uint8:
            return pixels
        span = self.span
        if span is None and pixels.dtype == np.uint16:
            span = (0, 65535)
        elif span is None and pixels.dtype.kind == "f":
            span = (0, 1)
        if span is None:
            raise ValueError(
                f"its pixels are {pixels.dtype} numbers of unknown range: say which values are black and "
                "white (--value-range LOW-HIGH)"
            )
        if pixels.dtype.kind not in "iuf":
            raise ValueError(f"its pixels are {pixels.dtype}: expected numbers")
        low, high = span
        unit = (pixels.astype(np.float32) - low) * np.float32(255 / (high - low))
        if np.isnan(unit).any():
            raise ValueError("some of its pixels are nan: give them a value")
        scaled: Pixels = np.clip(unit, 0, 255)
        return scaled


RGB = ImageFormat()


def read_image(path: str | Path | BinaryIO, format: ImageFormat = RGB) -> tv_tensors.Image:
    """Reads an image upright (EXIF orientation).

    Files of one channel become RGB and colour becomes grey where the format wants that; an alpha channel is
    dropped, unless four channels are wanted. `.npy` files hold `(H, W)`, `(H, W, C)` or `(C, H, W)`; TIFF files
    may have any number of channels.

    Args:
        path: A file, or what is in one.
        format: What it is read as.

    Returns:
        `(C, H, W)`: uint8 if the file has 8 bits, else float32 in 0..255.

    Raises:
        ValueError: If the file cannot be read or has another number of channels; names it.
    """
    try:
        if isinstance(path, (str, Path)):
            _expect_file(path)
            with Path(path).open("rb") as file:
                pixels = _pixels(file, format.channels)
        else:
            pixels = _pixels(path, format.channels)
        pixels = format.scaled(_channels_first(pixels, format.channels))
    except Exception as error:  # readers raise nearly anything on a broken file
        raise ValueError(f"cannot read image {path}: {error}") from None
    return tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(pixels)))


def _pixels(file: BinaryIO, channels: int) -> Pixels:
    """`(H, W)` or `(H, W, C)`, as in the file; what it is, it says itself, whatever it is called."""
    start = file.read(6)
    file.seek(0)
    if start == b"\x93NUMPY":
        return _channels_last(_load_npy(file), channels)
    is_tiff = start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
    if is_tiff and channels not in (1, 3):  # Pillow knows neither five channels nor four of 16 bits
        return _load_tiff(file, channels)
    try:
        opened = _open(file)
    except UnidentifiedImageError:
        if not is_tiff:
            raise
        return _load_tiff(file, channels)
    with opened as picture:
        upright = ImageOps.exif_transpose(picture)
        if upright.mode in _DEEP:
            # Some releases of Pillow hold 16-bit PNG files in 32 bits.
            deep = np.array(upright)
            return deep.astype(np.uint16) if picture.format == "PNG" else deep
        if channels in (1, 3):
            upright.info.pop("transparency", None)  # Pillow would warn that it is lost
            return np.array(upright.convert("L" if channels == 1 else "RGB"))
        return np.array(upright)


def _expect_file(path: str | Path) -> None:
    """To open a pipe is to wait for whoever may write to it."""
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise ValueError("it is no file")


def _open(file: BinaryIO | Path) -> Image.Image:
    try:
        return Image.open(file, formats=_KINDS)
    except UnidentifiedImageError:
        what = f"it is no image of a known kind ({', '.join(_KINDS)}), or one that is cut short"
        raise UnidentifiedImageError(what) from None


def _channels_last(array: Pixels, channels: int) -> Pixels:
    """An array of either order as `(H, W, C)`; `(H, W)` stays."""
    if array.ndim == 3 and array.shape[2] not in (1, channels) and array.shape[0] in (1, channels):
        return array.transpose(1, 2, 0)
    return array


def _channels_first(pixels: Pixels, channels: int) -> Pixels:
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.ndim == 3 and pixels.shape[2] == 1 and channels == 3:
        pixels = pixels.repeat(3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != channels:
        raise ValueError(
            f"it is an array of {'x'.join(map(str, pixels.shape))}, expected {channels} channels "
            "(--channels N says how many)"
        )
    if not pixels.size:
        raise ValueError("it has no pixels")
    return pixels.transpose(2, 0, 1)


def read_mask(path: str | Path, classes: Classes) -> tv_tensors.Mask:
    """Reads a mask upright as class ids: palette *indices*, grey values or numbers, through the label map.

    `.npy` files hold an array of whole numbers; `.mat` files what the SBD and PASCAL Context have in theirs
    (`GTcls.Segmentation`, `LabelMap`).

    Returns:
        int64 tensor `(H, W)` of class ids and 255.

    Raises:
        ValueError: If the file cannot be read, is a colour image, or (without a label map) holds
            an id that is no class; names file and value.
    """
    ids = _whole_ids(path)
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


def to_rgb(image: torch.Tensor) -> npt.NDArray[np.uint8]:
    """An image to look at: of one or two channels the first in grey, of more the first three as RGB.

    Args:
        image: `(C, H, W)` in 0..255.

    Returns:
        uint8 `(H, W, 3)`.

    Examples:
        >>> to_rgb(torch.full((1, 1, 1), 7.0)).tolist()
        [[[7, 7, 7]]]
    """
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    # By numpy: this is called in threads, for each of which torch would start threads of its own.
    pixels: npt.NDArray[np.uint8] = shown.permute(1, 2, 0).numpy().round().astype(np.uint8)
    return pixels


def holds_only_0_and_255(masks: Sequence[Path]) -> bool:
    """Whether a binary data set has its foreground stored as 255, as most editors do.

    That is so if 255 occurs and nothing but 0 beside it; where a mask has a 1, 255 is what is ignored.

    Raises:
        ValueError: If a file cannot be read; names it.
    """
    seen: set[int] = set()
    for path in masks:
        seen |= set(np.unique(_whole_ids(path)).tolist())
        if not seen <= {0, IGNORE}:
            return False
    return IGNORE in seen


def _whole_ids(path: str | Path) -> npt.NDArray[np.int64]:
    """What a mask file holds, if these are whole numbers, one a pixel."""
    try:
        ids, kind = _ids(Path(path))
    except Exception as error:  # as above
        raise ValueError(f"cannot read mask {path}: {error}") from None
    if ids.ndim != 2 or ids.dtype.kind not in "biu":
        raise ValueError(
            f"mask {path} is {kind}: expected a palette or grey image (or an array of whole numbers) "
            "whose pixel values are class ids"
        )
    return ids.astype(np.int64)


def _ids(path: Path) -> tuple[Pixels, str]:
    """What a mask file holds, and how to call that."""
    _expect_file(path)
    loaders = {".npy": _load_npy, ".mat": _load_mat}
    if (load := loaders.get(path.suffix.lower())) is not None:
        ids = load(path)
        return ids, f"an array of {'x'.join(map(str, ids.shape))} {ids.dtype} numbers"
    with _open(path) as file:
        upright = ImageOps.exif_transpose(file)
        kind = "an image of fractions" if upright.mode == "F" else "a colour image"
        return np.array(upright), f"{kind} (mode {upright.mode})"


def _load_npy(file: BinaryIO | Path) -> Pixels:
    array: Pixels = np.load(file, allow_pickle=False)
    return array


# What `ImageOps.exif_transpose` does for a value of the tag "orientation".
_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def _load_tiff(file: BinaryIO, channels: int) -> Pixels:
    import tifffile

    # What it logs of a broken file is no line of ours.
    logging.getLogger("tifffile").addHandler(_QUIET)
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages.first
        count, limit = page.imagelength * page.imagewidth, Image.MAX_IMAGE_PIXELS
        if limit is not None and count > 2 * limit:  # as Pillow has it for other files
            raise ValueError(f"Image size ({count} pixels) exceeds limit of {2 * limit} pixels")
        array = _channels_last(tiff.asarray(), channels)
        tag = page.tags.get("Orientation")
    upright = _UPRIGHT.get(1 if tag is None else int(tag.value))
    return array if upright is None or array.ndim < 2 else upright(array)


def _load_mat(path: Path) -> Pixels:
    from scipy.io import loadmat

    content = loadmat(path, squeeze_me=True, struct_as_record=False)
    if "GTcls" in content:
        return np.asarray(content["GTcls"].Segmentation)
    if "LabelMap" in content:
        return np.asarray(content["LabelMap"])
    names = [name for name in content if not name.startswith("__")]
    raise ValueError(f"expected GTcls or LabelMap in it, found {', '.join(names) or 'nothing'}")
