"""Masks in MATLAB files, in the formats of the SBD and PASCAL Context."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

# A mask of the SBD has 25 arrays. SciPy reads nested arrays recursively, and the stack is finite.
MOST_ARRAYS = 200
MOST_BYTES = 2**30

_MATRIX, _COMPRESSED = 14, 15
_FLAGS = (6, 8)


def load_mat(file: BinaryIO) -> npt.NDArray[Any]:
    """Load `GTcls.Segmentation` or `LabelMap`.

    Raises:
        ValueError: If there is neither, or the file nests arrays too deeply.
    """
    from scipy.io import loadmat, whosmat

    content = file.read()
    if 0 not in content[:4]:  # else version 4, which has no nested arrays
        _check_nesting(content)
    wanted = ("GTcls", "LabelMap")
    options: dict[str, Any] = {"squeeze_me": True, "struct_as_record": False}
    found = loadmat(io.BytesIO(content), variable_names=wanted, **options)
    if "GTcls" in found:
        return np.asarray(found["GTcls"].Segmentation)
    if "LabelMap" in found:
        return np.asarray(found["LabelMap"])
    names = [name for name, *_ in whosmat(io.BytesIO(content))]
    raise ValueError(f"expected GTcls or LabelMap in it, found {', '.join(names) or 'nothing'}")


def _check_nesting(content: bytes) -> None:
    """Count the arrays of a file of version 5 by the headers of its elements, and refuse too many."""
    order = "<" if content[126:128] == b"IM" else ">"
    place, arrays = 128, 0
    while place + 8 <= len(content) and arrays <= MOST_ARRAYS:
        kind, size = struct.unpack_from(f"{order}II", content, place)
        if kind == _COMPRESSED:
            packed = content[place + 8 : place + 8 + size]
            data = zlib.decompressobj().decompress(packed, MOST_BYTES)
            if len(data) == MOST_BYTES:
                raise ValueError(f"it unpacks to more than {MOST_BYTES} bytes")
            arrays = max(arrays, _count_arrays(data, 0, order))
        elif kind == _MATRIX:  # to the end of the file: SciPy ignores the size of an array
            arrays = max(arrays, _count_arrays(content, place, order))
        place += 8 + size
    if arrays > MOST_ARRAYS:
        raise ValueError(f"it holds more than {MOST_ARRAYS} arrays, expected those of a mask")


def _count_arrays(data: bytes, place: int, order: str) -> int:
    count = 0
    while place + 8 <= len(data) and count <= MOST_ARRAYS:
        kind, size = struct.unpack_from(f"{order}II", data, place)
        place += 8
        if kind == _MATRIX:  # its elements follow
            count += 1
            if size and place + 8 <= len(data):
                # SciPy reads 16 bytes of flags, whatever their header says.
                if struct.unpack_from(f"{order}II", data, place) != _FLAGS:
                    raise ValueError("an array in it does not begin as MATLAB's do")
                place += 16
        elif kind >> 16 == 0:  # else a small element: its data are in the header
            place += (size + 7) // 8 * 8
    return count
