"""Class masks and overlays for a folder of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.transforms import v2

from gmix.data import eval_transform, read_image, to_rgb
from gmix.evaluation import class_map
from gmix.training.saved import SavedModel

Color = tuple[int, int, int]
Pixels = npt.NDArray[np.uint8]


class Failure(NamedTuple):
    """An image that could not be predicted, and why."""

    path: Path
    reason: str


def predict_folder(
    saved: SavedModel,
    images: Sequence[Path],
    out: Path,
    *,
    overlays: bool = True,
    on_image: Callable[[Path], None] = lambda path: None,
) -> list[Failure]:
    """Write `out/masks/NAME.png` and `out/overlays/NAME.jpg` for each image.

    Masks are palette PNGs of the image's own size (upright, if a camera turned it); pixel values
    are class ids 0 .. K-1. Images with the same stem (`a.jpg`, `a.png`) keep their suffix:
    `a.jpg.png`. A file that cannot be read is left out and reported; the others are written.

    Args:
        saved: network, classes and input statistics, as `load_model` gives them.
        images: files.
        out: folder, made if it does not exist.
        overlays: whether to write the colours over the image as well.
        on_image: called before each image.

    Returns:
        What failed.
    """
    names = output_names(images)
    failures = []
    for folder in ("masks", *(["overlays"] if overlays else [])):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for path, name in zip(images, names, strict=True):
        on_image(path)
        try:
            image = read_image(path, saved.format)
        except ValueError as error:
            failures.append(Failure(path, str(error)))
            continue
        classes = predict_image(saved, image)
        save_mask(classes, saved.classes.palette, out / "masks" / f"{name}.png")
        if overlays:
            pixels = to_rgb(image)
            picture = Image.fromarray(overlay(pixels, classes, saved.classes.palette))
            picture.save(out / "overlays" / f"{name}.jpg", quality=92)
    return failures


def output_names(images: Sequence[Path]) -> list[str]:
    """What to call what is written for each image: its stem, or all of its name if two share a stem.

    Examples:
        >>> output_names([Path("a.jpg"), Path("b.jpg"), Path("b.png")])
        ['a', 'b.jpg', 'b.png']
    """
    stems = Counter(path.stem for path in images)
    return [path.stem if stems[path.stem] == 1 else path.name for path in images]


def save_mask(classes: Pixels, palette: Iterable[Color], path: Path) -> None:
    """Write a palette PNG whose pixel values are class ids."""
    mask = Image.fromarray(classes)
    mask.putpalette([channel for color in palette for channel in color])
    mask.save(path)


def predict_image(saved: SavedModel, image: torch.Tensor) -> Pixels:
    """Classes of one image.

    Args:
        saved: as for `predict_folder`.
        image: `(C, H, W)` in 0..255.

    Returns:
        uint8 `(H, W)`, class ids.
    """
    classes = class_map(predict_logits(saved, image), (image.shape[-2], image.shape[-1]))[0]
    result: Pixels = classes.cpu().numpy().astype(np.uint8)
    return result


@torch.inference_mode()
def predict_logits(saved: SavedModel, image: torch.Tensor) -> torch.Tensor:
    """Logits of one image, `(1, K, h, w)`: of its own size, or of `saved.size`.

    Args:
        saved: as for `predict_folder`.
        image: `(C, H, W)` in 0..255.
    """
    if saved.size is not None:
        image = v2.functional.resize(image, list(saved.size), antialias=True)
    x = eval_transform(saved.mean, saved.std)(image).as_subclass(torch.Tensor)[None]
    logits: torch.Tensor = saved.net(x.to(next(saved.net.parameters()).device))
    return logits


def overlay(
    image: Pixels, classes: Pixels, palette: Iterable[Color], opacity: float = 0.5
) -> Pixels:
    """Lay each class's colour over the image; black, the background's colour, leaves it as it is.

    Args:
        image: uint8 `(H, W, 3)`.
        classes: uint8 `(H, W)`.
        palette: RGB, 0..255, one per class.
        opacity: 0 .. 1, of the colours.

    Examples:
        >>> image = np.full((1, 2, 3), 100, dtype=np.uint8)
        >>> classes = np.array([[0, 1]], dtype=np.uint8)
        >>> overlay(image, classes, [(0, 0, 0), (200, 0, 0)])[0].tolist()
        [[100, 100, 100], [150, 50, 50]]
    """
    colors = np.array(list(palette), dtype=np.float32)
    share = opacity * (colors.sum(axis=1) > 0)[classes][..., None]
    mixed = (1 - share) * image + share * colors[classes]
    result: Pixels = mixed.round().astype(np.uint8)
    return result
