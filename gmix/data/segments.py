"""Sizes of the compressed segments of a TIFF file, checked before any is decoded.

A segment in an image codec has a header of its own, which may ask for any amount of memory. All other supported codecs
decode into the space the page reserves for a segment, and no more.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

# Raw, CCITT, LZW, Deflate, PackBits, LZMA and Zstandard.
_BOUNDED = (1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 34926, 50000)
_WEBP = (34927, 50001)  # limited to 16383 x 16383
_JPEG = (6, 7, 33007, 34892)
_JPEG_2000 = (33003, 33004, 33005, 34712)
_PNG = (34933,)
LOSSY = (*_JPEG, *_JPEG_2000, *_WEBP)
"""Numbers of the compressions that may change samples."""


def check_segments(page: Any) -> None:
    """Refuse a page with a segment that claims to be larger than its place, or does not state its size.

    Args:
        page: A page or frame of tifffile.

    Raises:
        ValueError: If it has such a segment.
    """
    key = page.keyframe
    codec = int(key.compression)
    if codec in (*_BOUNDED, *_WEBP):
        return
    read = _READERS.get(codec)
    if read is None:
        raise ValueError(
            f"it is compressed in a way (number {codec}) that tells its size only when it is decoded: save it with "
            "Deflate, LZW or JPEG"
        )
    height = key.tilelength or min(key.rowsperstrip, key.imagelength)
    width = key.tilewidth or key.imagewidth
    room = _blocks(height) * _blocks(width)
    file = page.parent.filehandle
    for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
        if not (offset and length):  # omitted: an empty segment
            continue
        file.seek(offset)
        sizes = [*read(file.read(length))]
        if not sizes:
            raise ValueError("a piece of it does not say how large it is")
        tall, wide = max(sizes, key=lambda size: size[0] * size[1])
        if tall * wide > room:
            raise ValueError(
                f"a piece of it says that it is {wide} x {tall}, where {width} x {height} belong"
            )


def _blocks(length: int) -> int:
    """Round a length up to the blocks of JPEG."""
    return -(-length // 16) * 16


def jpeg_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield height and width from the frame header of a JPEG stream, if it has one.

    Examples:
        >>> [*jpeg_sizes(bytes.fromhex("ffd8 ffc0 0011 08 0010 0020 03"))]
        [(16, 32)]
    """
    place = 0
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # filling
            place += 1
        elif 0xD0 <= marker <= 0xD8 or marker == 0x01:  # markers without a length
            place += 2
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            yield struct.unpack_from(">HH", data, place + 5)
            return
        else:
            place += 2 + struct.unpack_from(">H", data, place + 2)[0]


def jpeg_2000_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield height and width of every codestream in a JPEG 2000 file or stream.

    Examples:
        >>> [*jpeg_2000_sizes(bytes.fromhex("ff4f ff51 0029 0000 00000020 00000010") + bytes(8))]
        [(16, 32)]
    """
    start, place = b"\xff\x4f\xff\x51", -1
    while (place := data.find(start, place + 1)) >= 0:
        if place + 16 <= len(data):
            width, height = struct.unpack_from(">II", data, place + 8)
            yield height, width


def png_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    r"""Yield height and width of a PNG file.

    Examples:
        >>> [*png_sizes(b"\x89PNG\r\n\x1a\n" + bytes.fromhex("0000000d 49484452 00000020 00000010"))]
        [(16, 32)]
    """
    if len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)
        yield height, width


_READERS = {
    **dict.fromkeys(_JPEG, jpeg_sizes),
    **dict.fromkeys(_JPEG_2000, jpeg_2000_sizes),
    **dict.fromkeys(_PNG, png_sizes),
}
