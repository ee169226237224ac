"""Masks in MATLAB files, in the formats of the SBD and PASCAL Context."""

from __future__ import annotations

import io
import math
import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

# A mask of the SBD has 25 arrays. SciPy reads nested arrays recursively, and the stack is finite.
MOST_ARRAYS = 200
MOST_ELEMENTS = 10 * MOST_ARRAYS  # flags, dimensions, a name, names of fields and values for each
MOST_DIMENSIONS = 32  # of SciPy
MOST_BYTES = 2**30

_MATRIX, _COMPRESSED = 14, 15
_FLAGS = (6, 8)
_OF_ARRAYS = (1, 2, 3)  # cells, structs and objects: SciPy makes room for all that are announced


def load_mat(file: BinaryIO) -> npt.NDArray[Any]:
    """Load `GTcls.Segmentation` or `LabelMap`.

    Raises:
        ValueError: If there is neither, or the file holds more than a mask does.
    """
    from scipy.io import loadmat, whosmat

    content = file.read()
    if 0 not in content[:4]:  # else version 4, which has no nested arrays
        _check_size(content)
    wanted = ("GTcls", "LabelMap")
    options: dict[str, Any] = {"squeeze_me": True, "struct_as_record": False}
    found = loadmat(io.BytesIO(content), variable_names=wanted, **options)
    if "GTcls" in found:
        if not hasattr(found["GTcls"], "Segmentation"):
            raise ValueError("GTcls in it is no struct with a field Segmentation")
        return np.asarray(found["GTcls"].Segmentation)
    if "LabelMap" in found:
        return np.asarray(found["LabelMap"])
    names = [name for name, *_ in whosmat(io.BytesIO(content))]
    raise ValueError(f"expected GTcls or LabelMap in it, found {', '.join(names) or 'nothing'}")


def _check_size(content: bytes) -> None:
    """Check what a file of version 5 announces, by the headers of its elements.

    Raises:
        ValueError: If it unpacks to too many bytes or holds too many arrays or elements.
    """
    order = "<" if content[126:128] == b"IM" else ">"
    place, room = 128, MOST_BYTES
    while place + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, place)
        if kind == _COMPRESSED:
            packed = content[place + 8 : place + 8 + size]
            data = zlib.decompressobj().decompress(packed, room)
            room -= len(data)
            if not room:
                raise ValueError(f"it unpacks to more than {MOST_BYTES} bytes")
            _check_elements(data, 0, order)
        elif kind == _MATRIX:  # to the end of the file: SciPy ignores the size of an array
            _check_elements(content, place, order)
        place += 8 + size


def _check_elements(data: bytes, place: int, order: str) -> None:
    arrays = 0
    for _ in range(MOST_ELEMENTS):
        if place + 8 > len(data):
            return
        kind, size = struct.unpack_from(f"{order}II", data, place)
        place += 8
        if kind == _MATRIX:  # its elements follow
            arrays += 1
            if size and place + 8 <= len(data):
                arrays += _announced(data, place, order)
                place += 16
            if arrays > MOST_ARRAYS:
                raise ValueError(
                    f"it holds more than {MOST_ARRAYS} arrays, expected those of a mask"
                )
        elif kind >> 16 == 0:  # else a small element: its data are in the header
            place += (size + 7) // 8 * 8
    raise ValueError(f"it holds more than {MOST_ELEMENTS} elements, expected those of a mask")


def _announced(data: bytes, place: int, order: str) -> int:
    """Return how many arrays an array says that it is made of, from its flags and dimensions."""
    # SciPy reads 16 bytes of flags, whatever their header says.
    if struct.unpack_from(f"{order}II", data, place) != _FLAGS:
        raise ValueError("an array in it does not begin as MATLAB's do")
    if place + 24 > len(data):
        return 0
    flags, _, kind, size = struct.unpack_from(f"{order}IIII", data, place + 8)
    if flags & 0xFF not in _OF_ARRAYS:
        return 0
    if kind >> 16:  # a small element: its data are in the header
        return int(size)
    count = min(size, len(data) - place - 24) // 4
    sizes = struct.unpack_from(f"{order}{min(count, MOST_DIMENSIONS)}I", data, place + 24)
    return math.prod(sizes)
