"""Samples of a TIFF file, of any depth and number of channels."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from gmix.data.segments import LOSSY, check_segments

Pixels = npt.NDArray[Any]

_QUIET = logging.NullHandler()

_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE = 0, 1, 2, 3


class Tiff:
    """The single picture of an open TIFF file; its samples are not read yet.

    Args:
        page: The only page, or the first of those that make up its channels or rows.
        series: All these pages; `None` if there is only one.

    Attributes:
        photometric: Meaning of samples: 0 grey with white as 0, 1 grey, 2 RGB.
        bits: Bits per sample.
        alpha: Whether the last channel is marked as alpha.
        orientation: Orientation, as in EXIF.
        lossy: Whether the compression may change samples.
    """

    def __init__(self, page: Any, series: Any = None) -> None:
        self._page, self._series = page, series
        self.photometric = int(page.photometric)
        self.bits = int(np.max(page.bitspersample))
        self.alpha = bool(page.extrasamples) and int(page.extrasamples[-1]) in (1, 2)
        self.orientation = _orientation(page)
        self.lossy = int(page.compression) in LOSSY

    @property
    def known(self) -> bool:
        """Return whether `brightness` can interpret the samples; Pillow handles other colours."""
        return self.photometric in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE)

    @property
    def rgb(self) -> bool:
        """Return whether the first three channels of `brightness` are red, green and blue."""
        return self.photometric in (_RGB, _PALETTE)

    def check(self) -> None:
        """Check that the compressed segments fit into the page.

        Raises:
            ValueError: If one is larger than the page has room for.
        """
        for page in [self._page] if self._series is None else self._series.pages:
            if page is not None:  # else omitted
                check_segments(page)

    def samples(self) -> Pixels:
        """Read the samples as stored, `(H, W)` or `(H, W, C)`; pages keep their own order."""
        self.check()
        source = self._page if self._series is None else self._series
        samples: Pixels = source.asarray(maxworkers=1)  # images are already read in parallel
        planes_first = self._series is None and self._page.axes == "SYX"
        return samples.transpose(1, 2, 0) if planes_first else samples

    def brightness(self) -> Pixels:
        """Read the brightness of each channel, brighter meaning larger, with few bits scaled to 8.

        Raises:
            ValueError: If white is 0 and the numbers do not say what black is.
        """
        samples, white = self.samples(), 2**self.bits - 1
        if self.photometric == _PALETTE:
            colors = np.asarray(self._page.colormap, dtype=np.uint16).T  # of 16 bits each
            return (colors >> 8).astype(np.uint8)[samples.astype(np.intp)]
        if self.photometric == _MIN_IS_WHITE:
            if samples.dtype.kind not in "bu":
                raise ValueError(
                    f"it stores white as 0 in {samples.dtype} numbers, whose black is unknown: save it with black as 0 "
                    "(MinIsBlack)"
                )
            samples = ~samples if samples.dtype == bool else white - samples
        if samples.dtype == np.uint8 and self.bits < 8:
            samples = np.round(samples * (255 / white)).astype(np.uint8)
        return samples


def is_tiff(file: BinaryIO) -> bool:
    """Return whether a file begins like TIFF (or BigTIFF)."""
    file.seek(0)
    start = file.read(4)
    file.seek(0)
    return start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def tiff_orientation(file: BinaryIO) -> int:
    """Read the orientation of a TIFF file, as in EXIF."""
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        return _orientation(tiff.pages.first)


@contextmanager
def open_tiff(file: BinaryIO, channels: int) -> Iterator[Tiff]:
    """Open the picture of a TIFF file, checking its header before memory is allocated.

    If there are `channels` grey pages, they are the channels. Reduced copies and masks of a page are skipped.

    Raises:
        ValueError: If the file holds other pages, is too large, or is not TIFF.
    """
    import tifffile

    # Its log messages about broken files are not meant for our users.
    logging.getLogger("tifffile").addHandler(_QUIET)
    with tifffile.TiffFile(file) as tiff:
        pages: Any = tiff.pages
        first = pages.first
        _check_page(first, channels)
        others = (page for page in islice(pages, 1, None) if not (page.is_reduced or page.is_mask))
        count = len(pages)
        if next(others, None) is None:
            # Some programs store further pages without an offset to them.
            count = tiff.series[0].size // max(1, first.size) if count == 1 else 1
        if count <= 1:
            yield Tiff(first)
            return
        # Pages may be channels, or rows: tifffile writes (H, W, 5) so by default.
        series = tiff.series[0] if channels in (count, first.shape[-1]) else None
        if series is None or len(series.shape) != 3 or series.size != count * first.size:
            raise ValueError(
                f"it holds {count} pages, expected one picture: save each as a file of its own (only "
                "--channels N pages of one size are channels)"
            )
        _check_limit(math.prod(series.shape) // channels)
        yield Tiff(first, series)


def _check_page(page: Any, channels: int) -> None:
    _check_limit(page.imagelength * page.imagewidth)
    _check_limit(
        page.tilelength * page.tilewidth
    )  # decoded as a whole, even if little of it is in the image
    if page.axes not in ("YX", "YXS", "SYX"):
        raise ValueError(f"its axes are {page.axes}, expected one flat picture")
    if page.samplesperpixel > max(4, channels):
        raise ValueError(
            f"it has {page.samplesperpixel} channels, expected {channels} (--channels N says how many)"
        )


def _check_limit(count: int) -> None:
    limit = None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS
    if limit is not None and count > limit:  # the limit of Pillow for other files
        raise ValueError(f"Image size ({count} pixels) exceeds limit of {limit} pixels")


def _orientation(page: Any) -> int:
    tag = page.tags.get("Orientation")
    return 1 if tag is None else int(tag.value)
