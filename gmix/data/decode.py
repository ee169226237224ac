"""Decoding of image files with all the bits and channels they store, upright."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from gmix.data.tiff import is_tiff, open_tiff, tiff_orientation
from gmix.runtime.infile import plain_file

Pixels = npt.NDArray[Any]

# Formats of image files. Pillow supports more, among them EPS, for which it starts another program.
KINDS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM")
# Formats of mask files: lossless ones.
LOSSLESS = ("PNG", "TIFF", "BMP", "GIF", "PPM")

ORIENTATION = 0x0112
"""EXIF (and TIFF) tag of the orientation."""

# One-channel modes in which Pillow returns the pixels as stored.
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")

# Operations of `ImageOps.exif_transpose` by value of the orientation tag.
_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}

# Grey or colour, and the largest value, of the PPM files whose numbers Pillow leaves as they are.
_EXACT = (("L", 255), ("RGB", 255), ("I", 65535))


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Rotate or mirror stored pixels `(H, W)` or `(H, W, C)` as EXIF says.

    Examples:
        >>> upright(np.array([[1, 2, 3]]), 3)
        array([[3, 2, 1]])
    """
    turn = _UPRIGHT.get(orientation)
    return pixels if turn is None else turn(pixels)


def orientation(path: str | Path) -> int:
    """Read the EXIF orientation of an image; 1 if it is upright, or cannot be read."""
    try:
        with open_file(path) as file:
            if is_tiff(file):
                return tiff_orientation(file)
            if _png_header(file) != (0, 0):
                # To find it elsewhere in a PNG file, Pillow would have to decode the whole file.
                content = file.read()
                if b"eXIf" not in content and b"rientation" not in content:
                    return 1
            with open_picture(file) as picture:
                return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # reading the file will report the error
        return 1


def load_image(file: BinaryIO, channels: int) -> Pixels:
    """Load an image as `(H, W)` or `(H, W, C)` numbers of any type, brighter meaning larger.

    The content decides the format, not the file name. Palettes become colours. If one or three `channels` are wanted,
    an alpha channel is dropped; for one channel, colour becomes grey.

    Raises:
        ValueError: If the file holds more than one picture, or cannot be decoded.
    """
    depth, colour = _png_header(file)
    if _starts_with(file, b"\x93NUMPY"):
        return _channels_last(load_npy(file), channels)
    if is_tiff(file):
        with open_tiff(file, channels) as tiff:
            if tiff.known or channels not in (1, 3):
                pixels = _channels_last(tiff.brightness(), channels)
                pixels = _without_alpha(pixels, tiff.alpha, tiff.rgb, channels)
                return upright(pixels, tiff.orientation)
            tiff.check()
            # Pillow converts other colours to RGB, but not with 16 bits, and not well if rows and columns are
            # swapped.
            if tiff.bits > 8 or tiff.orientation > 4:
                raise ValueError(
                    "it is turned or deeper than 8 bits, and neither RGB nor grey: save it as RGB"
                )
    with open_picture(file) as picture:
        _expect_one_picture(picture)
        if depth == 16 and colour in (2, 4, 6):  # Pillow keeps 8 bits of these
            from imagecodecs import png_decode

            file.seek(0)
            pixels = png_decode(file.read())
            pixels = _without_alpha(pixels, colour in (4, 6), colour != 4, channels)
            return upright(pixels, picture.getexif().get(ORIENTATION, 1))
        return _pixels(picture, channels)


def load_ids(file: BinaryIO) -> tuple[Pixels, str]:
    """Load the samples as stored: palette indices, or grey values in their original bit depth.

    Returns:
        The samples, and a description of them for error messages.

    Raises:
        ValueError: If the file holds more than one picture, or has a format that changes values.
    """
    depth, _ = _png_header(file)
    if _starts_with(file, b"\x93NUMPY"):
        return described(load_npy(file))
    if is_tiff(file):
        with open_tiff(file, 1) as tiff:
            if tiff.lossy:
                raise ValueError(
                    "it is compressed as JPEG, JPEG 2000 or WebP, which may change ids: save it with Deflate or LZW"
                )
            return described(upright(tiff.samples(), tiff.orientation))
    with open_picture(file, LOSSLESS) as picture:
        _expect_one_picture(picture)
        turned = ImageOps.exif_transpose(picture)
        ids = np.array(turned)
        if turned.mode == "L" and depth in (2, 4):
            ids = ids // (255 // (2**depth - 1))  # Pillow scales the largest value to white
        return ids, f"a colour image (mode {turned.mode})"


def load_npy(file: BinaryIO) -> Pixels:
    """Load an array, refusing pickles."""
    array: Pixels = np.load(file, allow_pickle=False)
    return array


@contextmanager
def open_file(path: str | Path) -> Iterator[BinaryIO]:
    """Open a regular file; opening a pipe could block."""
    with plain_file(path).open("rb") as file:
        yield file


def open_picture(file: BinaryIO, kinds: tuple[str, ...] = KINDS) -> Image.Image:
    """Open an image file with Pillow, without reading its pixels."""
    file.seek(0)
    try:
        picture = Image.open(file, formats=kinds)
    except UnidentifiedImageError:
        what = f"it is no image of a known kind ({', '.join(kinds)}), or one that is cut short"
        raise ValueError(what) from None
    if picture.format == "BMP" and picture.mode in ("1", "L"):
        file.seek(14)
        header = file.read(16)
        place = 10 if header[0] == 12 else 14  # OS/2 headers are shorter
        bits = int.from_bytes(header[place : place + 2], "little")
        if bits != {"1": 1, "L": 8}[picture.mode]:
            raise ValueError(
                f"its palette is grey but its pixels have {bits} bits, which Pillow takes for other pixels: save it "
                "as PNG"
            )
    return picture


def _pixels(picture: Image.Image, channels: int) -> Pixels:
    turned = ImageOps.exif_transpose(picture)
    if turned.mode in _DEEP:
        # Some releases of Pillow load 16-bit PNG files as 32 bits.
        deep = np.array(turned)
        return deep.astype(np.uint16) if picture.format == "PNG" else deep
    clear = turned.info.pop("transparency", None)  # Pillow would warn that it gets lost
    if channels in (1, 3):
        return np.array(turned.convert("L" if channels == 1 else "RGB"))
    if turned.mode == "P":
        if clear is not None:
            turned.info["transparency"] = clear
        turned = turned.convert("RGB" if clear is None else "RGBA")
    return np.array(turned)


def _expect_one_picture(picture: Any) -> None:
    """Refuse files that would lose data: several pictures, or numbers that Pillow rounds."""
    # Not for JPEG, where cameras append smaller or brighter copies, nor for TIFF, which is checked elsewhere.
    count = getattr(picture, "n_frames", 1) if picture.format in ("PNG", "GIF", "WEBP") else 1
    if count > 1:
        raise ValueError(f"it holds {count} pictures, expected one: save each as a file of its own")
    details = picture.tile[0][3] if picture.format == "PPM" else None
    if isinstance(details, tuple) and (picture.mode, details[1]) not in _EXACT:
        raise ValueError("its numbers do not end at 255 (or 65535 in grey): save it as PNG")


def _without_alpha(pixels: Pixels, alpha: bool, rgb: bool, channels: int) -> Pixels:
    """Drop alpha and convert RGB to grey, if one or three channels are wanted."""
    if channels not in (1, 3):
        return pixels
    if alpha:
        pixels = pixels[..., :-1]
    if channels == 1 and rgb and pixels.shape[-1] == 3:
        if pixels.dtype == np.uint8:
            return np.array(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))
        grey = pixels @ np.array([0.299, 0.587, 0.114])
        pixels = (grey if pixels.dtype.kind == "f" else grey.round()).astype(pixels.dtype)
    return pixels


def _channels_last(array: Pixels, channels: int) -> Pixels:
    """Convert an array in either channel order to `(H, W, C)`; `(H, W)` is unchanged."""
    if array.ndim == 3 and array.shape[2] not in (1, channels) and array.shape[0] in (1, channels):
        return array.transpose(1, 2, 0)
    return array


def described(ids: Pixels) -> tuple[Pixels, str]:
    """Return the samples with a description of them for error messages."""
    if not ids.ndim:
        return ids, f"a single value ({ids.dtype})"
    return ids, f"an array of {'x'.join(map(str, ids.shape))} {ids.dtype} numbers"


def _starts_with(file: BinaryIO, magic: bytes) -> bool:
    file.seek(0)
    start = file.read(len(magic))
    file.seek(0)
    return start == magic


def _png_header(file: BinaryIO) -> tuple[int, int]:
    """Return the bit depth and colour type of a PNG file; zeros for other files."""
    file.seek(0)
    start = file.read(26)
    file.seek(0)
    if len(start) < 26 or start[:8] != b"\x89PNG\r\n\x1a\n" or start[12:16] != b"IHDR":
        return 0, 0
    return start[24], start[25]
