"""Reading of mask files, and checks of masks against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torchvision import tv_tensors

from gmix.data.classes import IGNORE, Classes
from gmix.data.decode import LOSSLESS, Pixels, described, load_ids, open_file, open_picture, upright
from gmix.data.matfile import load_mat

Ids = npt.NDArray[np.int64]
Color = tuple[int, int, int]
Found = TypeVar("Found")


def read_mask(path: str | Path, classes: Classes, orientation: int = 1) -> tv_tensors.Mask:
    """Read a mask upright and convert palette indices, grey values or numbers to class ids.

    Values are read as stored: those of a grey PNG file of 2 bits are 0 to 3. `.npy` files hold an array of integers;
    `.mat` files hold the variables of the SBD and PASCAL Context (`GTcls.Segmentation`, `LabelMap`).

    Args:
        path: Mask file.
        classes: Class names and label map.
        orientation: EXIF orientation to apply, for a mask drawn on the stored pixels of a photo that is shown rotated.

    Returns:
        Tensor `(H, W)`, int64, of class ids and 255.

    Raises:
        ValueError: If the file cannot be read, is a colour image, or (without a label map) holds an unknown id; the
            message names file and value.
    """
    ids = upright(_whole_ids(path), orientation)
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
    return tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(ids)))


WHITE = {0: 0, 1: 1, IGNORE: 1}  # label map of masks whose foreground is 255


def check_white(classes: Classes, masks: Sequence[Path]) -> None:
    """Refuse masks where 255 cannot be the foreground, for a model that reads 255 as the foreground.

    Raises:
        ValueError: If a mask holds 1 as well; the message names it.
    """
    if not classes.binary or classes.label_map != WHITE:
        return
    for path, seen in zip(masks, _in_threads(_readable_values, masks), strict=True):
        if seen >= {1, IGNORE}:
            raise ValueError(
                f"mask {path} holds 1 and 255, but this model has learned 255 as the foreground: "
                "save what is not to be scored as another value, e.g. 2"
            )


def fit_binary(classes: Classes, masks: Sequence[Path]) -> Classes:
    """Map 255 to the foreground of a binary problem without a label map, if masks store it so.

    Raises:
        ValueError: As in `holds_only_0_and_255`.
    """
    if classes.binary and classes.label_map is None and holds_only_0_and_255(masks):
        return replace(classes, label_map=WHITE)
    return classes


def holds_only_0_and_255(masks: Sequence[Path]) -> bool:
    """Return whether a binary data set stores its foreground as 255, as most editors do.

    This is the case if 255 occurs and only 0 besides; in masks with a 1, 255 is ignored pixels.

    Raises:
        ValueError: If the masks are of both kinds; the message names one of each.
    """
    ones: Path | None = None
    whites: Path | None = None
    for path, seen in zip(masks, _in_threads(_readable_values, masks), strict=True):
        if seen - {0, 1, IGNORE}:
            return False  # reading the mask will report the error
        if 1 in seen:
            ones = ones or path
        elif IGNORE in seen:
            whites = whites or path
        if ones is not None and whites is not None:
            raise ValueError(
                f"mask {whites} holds 255 for a foreground or for what is ignored, mask {ones} holds 1: write "
                'all alike, or say that 255 is one too (gmix train --label-map "0:0,1:1,255:1") or ignored ("0:0,1:1")'
            )
    return whites is not None


def _readable_values(path: Path) -> set[int]:
    try:
        return set(_values(path))
    except ValueError:
        return set()  # reading the mask will report the error, or skip it


class _Painted(NamedTuple):
    """A mask file and its palette."""

    path: Path
    palette: npt.NDArray[np.uint8]  # (N, 3)

    def color(self, index: int) -> Color | None:
        """Return the colour of an index, or None if the palette has none."""
        if index >= len(self.palette):
            return None
        red, green, blue = self.palette[index].tolist()
        return red, green, blue


def compare_palettes(masks: Sequence[Path]) -> list[str]:
    """Compare the palettes of masks: if each file has its own palette, indices are not classes.

    Pixels are only read if palettes differ.

    Returns:
        A sentence if an index has several colours, which may be intended; else an empty list.

    Raises:
        ValueError: If a colour has different indices in two masks; the message names both.
    """
    raw = list(_in_threads(_palette_bytes, masks))
    kinds = {palette for palette in raw if palette is not None}
    if len(kinds) < 2:
        return []
    colors: dict[Color, tuple[int, _Painted]] = {}
    indices: dict[int, tuple[Color, _Painted]] = {}
    note: list[str] = []
    painted = [path for path, palette in zip(masks, raw, strict=True) if palette is not None]
    for mask, used in _in_threads(_paint, painted):
        for index in used:
            color = mask.color(index)
            if color is None:
                continue
            first, other = colors.setdefault(color, (index, mask))
            # A palette may show two indices in the same colour.
            if first != index and color not in (mask.color(first), other.color(index)):
                raise ValueError(
                    f"the colour {color} is {first} in mask {other.path} but {index} in {mask.path}: indices of "
                    "such files are no classes; save all masks with one palette, or in grey if the indices are right"
                )
            shown, other = indices.setdefault(index, (color, mask))
            if shown != color and not note:
                note.append(
                    f"the palettes of the masks differ: {index} is {shown} in {other.path} but {color} in "
                    f"{mask.path}; the index counts, not the colour"
                )
    return note


def _paint(path: Path) -> tuple[_Painted, list[int]]:
    with open_file(path) as file, open_picture(file, LOSSLESS) as picture:
        picture.load()
        palette = np.array(picture.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
    return _Painted(path, palette), _values(path)


def _palette_bytes(path: Path) -> tuple[str, bytes] | None:
    """Read the palette of a file without its pixels; None if it has none or cannot be read."""
    try:
        with open_file(path) as file, open_picture(file, LOSSLESS) as picture:
            palette: Any = picture.palette if picture.mode == "P" else None
            return None if palette is None else (str(palette.rawmode), bytes(palette.palette))
    except Exception:
        return None


def _in_threads(work: Callable[[Path], Found], paths: Sequence[Path]) -> Iterator[Found]:
    with ThreadPool(4) as pool:
        yield from pool.imap(work, paths)


def _values(path: str | Path) -> list[int]:
    values: list[int] = np.unique(_whole_ids(path)).tolist()
    return values


def _whole_ids(path: str | Path) -> Ids:
    """Return the values of a mask file, which must be one integer per pixel."""
    try:
        ids, kind = _load(Path(path))
    except Exception as error:  # decoders raise all kinds of errors
        raise ValueError(f"cannot read mask {path}: {error}") from None
    if ids.ndim != 2 or ids.dtype.kind not in "biu":
        raise ValueError(
            f"mask {path} is {kind}: expected a palette or grey image (or an array of whole numbers) "
            "whose pixel values are class ids"
        )
    return ids.astype(np.int64)


def _load(path: Path) -> tuple[Pixels, str]:
    with open_file(path) as file:
        return described(load_mat(file)) if path.suffix.lower() == ".mat" else load_ids(file)
