"""Reading of an image file into a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torchvision import tv_tensors

from gmix.data.decode import Pixels, load_image, open_file

# Half a step of 8 bits: the error that resampling and float16 leave outside 0..1.
_ROUNDING = 0.5 / 255


@dataclass(frozen=True)
class ImageFormat:
    """Format in which images are read.

    Attributes:
        channels: 1 (grey), 3 (RGB), or the number of channels of the files, e.g. 4.
        span: Pixel values that become 0 and 255, in files of more than 8 bits. The default is 0 and 65535 for 16 bits,
            0 and 1 for floating point.

    Examples:
        >>> ImageFormat(channels=1, span=(0, 4095)).scaled(np.array([4095], dtype=np.uint16))
        array([255.], dtype=float32)
    """

    channels: int = 3
    span: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ValueError(f"`channels` must be at least 1, got {self.channels}")
        if self.span is not None and not -np.inf < self.span[0] < self.span[1] < np.inf:
            raise ValueError(f"`span` must be two rising numbers, none infinite, got {self.span}")

    def scaled(self, pixels: Pixels) -> Pixels:
        """Convert pixels to 0..255: bool and uint8 to uint8, all other types to float32.

        Raises:
            ValueError: If their range is not known.
        """
        if pixels.dtype == bool:
            return pixels.astype(np.uint8) * 255
        if pixels.dtype == np.uint8:
            return pixels
        low, high = self._black_and_white(pixels)
        # float32 cannot hold every integer of 32 or more bits.
        fine: Pixels = pixels.astype(np.float32 if pixels.itemsize <= 2 else np.float64)
        scaled: Pixels = np.clip((fine - low) * (255 / (high - low)), 0, 255).astype(np.float32)
        return scaled

    def _black_and_white(self, pixels: Pixels) -> tuple[float, float]:
        """Return the values that become 0 and 255."""
        kind = pixels.dtype.kind
        if kind not in "iuf":
            raise ValueError(f"its pixels are {pixels.dtype}: expected numbers")
        if kind == "f" and not np.isfinite(pixels).all():
            raise ValueError("some of its pixels are nan or infinite: give them a value")
        if self.span is not None:
            return self.span
        if kind == "u" and pixels.itemsize == 2:  # in either byte order
            return 0, 65535
        if kind != "f":
            raise ValueError(
                f"its pixels are {pixels.dtype} numbers of unknown range: say which values are black and "
                "white (--value-range LOW-HIGH)"
            )
        least, most = float(pixels.min()), float(pixels.max())
        if least < -_ROUNDING or most > 1 + _ROUNDING:
            raise ValueError(
                f"its values go from {least:g} to {most:g}, where 0 is taken for black and 1 for white: say which "
                "values are black and white in all images (--value-range LOW-HIGH of gmix train)"
            )
        return 0, 1


RGB = ImageFormat()


def read_image(path: str | Path | BinaryIO, format: ImageFormat = RGB) -> tv_tensors.Image:
    """Read an image upright (EXIF orientation).

    Grey becomes RGB, and colour becomes grey, as the format requires. An alpha channel is dropped unless four channels
    are wanted. `.npy` files hold `(H, W)`, `(H, W, C)` or `(C, H, W)`; TIFF files may have any number of channels.

    Args:
        path: A path, or an open binary file.
        format: Format to read it in.

    Returns:
        `(C, H, W)`: uint8 if the file has 8 bits, else float32 in 0..255.

    Raises:
        ValueError: If the file cannot be read or has another number of channels; the message names it.
    """
    try:
        pixels = format.scaled(_load(path, format.channels))
    except Exception as error:  # decoders raise all kinds of errors
        raise ValueError(f"cannot read image {path}: {error}") from None
    return tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(pixels)))


def value_span(path: str | Path, channels: int = 3) -> tuple[float, float] | None:
    """Return the smallest and largest value in an image file; `None` for files of up to 8 bits.

    Raises:
        ValueError: As in `read_image`.
    """
    try:
        pixels = _load(path, channels)
    except Exception as error:  # as above
        raise ValueError(f"cannot read image {path}: {error}") from None
    if pixels.dtype in (bool, np.uint8):
        return None
    return float(pixels.min()), float(pixels.max())


def _load(path: str | Path | BinaryIO, channels: int) -> Pixels:
    """Load the numbers of an image as `(C, H, W)`, of any type."""
    if isinstance(path, (str, Path)):
        with open_file(path) as file:
            return _channels_first(load_image(file, channels), channels)
    return _channels_first(load_image(path, channels), channels)


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


def to_rgb(image: torch.Tensor) -> npt.NDArray[np.uint8]:
    """Convert an image to RGB for display: the first of one or two channels in grey, else the first three.

    Args:
        image: Tensor `(C, H, W)` in 0..255.

    Returns:
        uint8 `(H, W, 3)`.

    Examples:
        >>> to_rgb(torch.full((1, 1, 1), 7.0)).tolist()
        [[[7, 7, 7]]]
    """
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    # numpy, because this runs in threads, in each of which torch would start further threads.
    pixels: npt.NDArray[np.uint8] = shown.permute(1, 2, 0).numpy().round().astype(np.uint8)
    return pixels
