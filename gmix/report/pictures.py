"""Pictures inside a page: photos as JPEG, class maps as small PNGs, all of limited size."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[Any]
Color = tuple[int, int, int]

SIDE = 320  # pixels of the longer side: twice the size on the page, for high-density screens

# Marks for two predictions; no mark where both are right.
FIXED, BROKEN, BOTH = 1, 2, 3
# Found by search: distinguishable with every kind of colour blindness, and different from the colours of classes,
# both gmix's and those of known data sets.
CHANGES: dict[int, tuple[str, Color]] = {
    FIXED: ("only {focus} right", (0, 70, 255)),
    BROKEN: ("only {baseline} right", (255, 0, 90)),
    BOTH: ("both wrong", (220, 255, 0)),
}
WRONG: tuple[str, Color] = ("wrong", (255, 0, 90))


class Picture(NamedTuple):
    """A picture of the page.

    Attributes:
        alt: Description in words.
        source: A data URI.
        safe: The picture in colour-blind safe colours; empty if it is the same.
        caption: Text below the picture.
        kind: `photo`, `mask` (can be laid over the photo of its row) or `layer` (always is).
        under: The photo below it, if it is not that of its row.
        size: Width and height in pixels.
    """

    alt: str
    source: str
    safe: str = ""
    caption: str = ""
    kind: str = "photo"
    under: str = ""
    size: tuple[int, int] = (0, 0)


def photo(pixels: Pixels, alt: str, caption: str = "") -> Picture:
    """Make a picture of an image `(H, W, 3)`, reduced if it is large."""
    image = _shrunk(Image.fromarray(pixels), Image.Resampling.LANCZOS)
    source = _uri(image, "JPEG", quality=84, optimize=True)
    return Picture(alt, source, "", caption, size=image.size)


def class_picture(
    classes: Pixels,
    palettes: Sequence[Sequence[Color]],
    alt: str,
    caption: str = "",
    strength: Pixels | None = None,
) -> Picture:
    """Make a picture of a class map `(H, W)`, in one or two palettes; 255 is transparent.

    Args:
        classes: Class ids.
        palettes: The data set's palette, and the colour-blind safe one if it differs.
        alt: Description in words, including the classes.
        caption: Text below the picture.
        strength: `(H, W)` in 0..1, the opacity of each pixel.
    """
    made = [_painted(classes, palette, strength) for palette in palettes]
    kind = "mask" if strength is None else "layer"
    safe = made[1] if len(made) > 1 else ""
    return Picture(alt, made[0], safe, caption, kind, size=_size(classes))


def layer(marks: Pixels, colors: dict[int, Color], alt: str, caption: str = "") -> Picture:
    """Make a layer of coloured marks over the photo; marks without a colour are transparent."""
    palette = [colors.get(index, (0, 0, 0)) for index in range(max(colors) + 1)]
    known = np.where(np.isin(marks, list(colors)), marks, 255)
    return Picture(alt, _painted(known, palette, None), "", caption, "layer", size=_size(marks))


def heat(values: Pixels, alt: str, caption: str = "") -> Picture:
    """Make a picture of numbers `(H, W)` in 0..1 in cividis, from dark blue to yellow."""
    from matplotlib import colormaps

    colors = (255 * colormaps["cividis"](np.linspace(0, 1, 32))[:, :3]).round().astype(np.uint8)
    levels = np.clip(values * 32, 0, 31).astype(np.uint8)
    source = _painted(levels, colors.tolist(), None)
    return Picture(alt, source, "", caption, size=_size(values))


def compare_errors(truth: Pixels, focus: Pixels, baseline: Pixels | None) -> Pixels:
    """Mark where which of two predictions is right; with a single prediction, where it is wrong.

    Returns:
        `FIXED`, `BROKEN`, `BOTH`, or 0 where all are right or the true class is unknown.

    Examples:
        >>> truth = np.array([[0, 1, 1, 1, 255]])
        >>> focus, baseline = np.array([[0, 1, 0, 0, 0]]), np.array([[0, 0, 1, 0, 1]])
        >>> compare_errors(truth, focus, baseline).tolist()
        [[0, 1, 2, 3, 0]]
        >>> compare_errors(truth, focus, None).tolist()
        [[0, 0, 3, 3, 0]]
    """
    now = focus != truth
    before = now if baseline is None else baseline != truth
    marks = np.where(before & now, BOTH, np.where(now, BROKEN, np.where(before, FIXED, 0)))
    return np.where(truth == 255, 0, marks)


def describe(classes: Pixels, names: Sequence[str], most: int = 4) -> str:
    """Describe the largest classes of a map in words.

    Examples:
        >>> describe(np.array([[0, 0, 0, 1]]), ["sky", "bird"])
        'sky 75 %, bird 25 %'
    """
    counts = np.bincount(classes[classes < len(names)].ravel(), minlength=len(names))
    order = [k for k in np.argsort(-counts, kind="stable")[:most] if counts[k] > 0]
    total = max(counts.sum(), 1)
    return ", ".join(f"{names[k]} {100 * counts[k] / total:.0f} %" for k in order) or "nothing"


def _painted(classes: Pixels, palette: Sequence[Any], strength: Pixels | None) -> str:
    if strength is None:
        clear = len(palette)
        indices = np.where(classes < clear, classes, clear).astype(np.uint8)
        image = _shrunk(Image.fromarray(indices), Image.Resampling.NEAREST)
        image.putpalette([channel for color in [*palette, (0, 0, 0)] for channel in color])
        return _uri(image, "PNG", optimize=True, transparency=clear)
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(palette)] = palette
    # A few levels are enough for the eye, and take a fifth of the bytes.
    opacity = (np.clip(strength, 0, 1) * 15).round() * 17
    opacity = np.where(classes == 255, 0, opacity)[..., None]
    image = Image.fromarray(np.concatenate([table[classes], opacity], axis=2).astype(np.uint8))
    return _uri(_shrunk(image, Image.Resampling.NEAREST), "PNG", optimize=True)


def _shrunk(image: Image.Image, how: Image.Resampling) -> Image.Image:
    width, height = image.size
    size = _fitting(width, height)
    return image if size == image.size else image.resize(size, how)


def _size(pixels: Pixels) -> tuple[int, int]:
    return _fitting(pixels.shape[1], pixels.shape[0])


def _fitting(width: int, height: int) -> tuple[int, int]:
    scale = min(1, SIDE / max(height, width))
    return max(1, round(scale * width)), max(1, round(scale * height))


def _uri(image: Image.Image, kind: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
