"""Class masks and overlays for a folder of images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.transforms import v2

from gmix.data import ahead, eval_transform, read_image, to_rgb
from gmix.data.files import IMAGE_SUFFIXES, MASK_SUFFIXES
from gmix.evaluation import Predict, class_maps, fit
from gmix.runs.saved import SavedModel, Size
from gmix.runtime.atomic import make_folder
from gmix.runtime.own import check_own, own_file

Color = tuple[int, int, int]
Pixels = npt.NDArray[np.uint8]
Found = TypeVar("Found")
Done = TypeVar("Done")

BAND = 128
"""Rows of an overlay that are mixed at a time: their fractions take many times the memory of its bytes."""


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
    predict: Predict | None = None,
    on_image: Callable[[Path], None] = lambda path: None,
) -> list[Failure]:
    """Write `out/masks/NAME.png` and `out/overlays/NAME.jpg` for each image.

    Masks are palette PNGs of the image's own size (upright, if a camera turned it); pixel values
    are class ids 0 .. K-1. Images with the same stem (`a.jpg`, `a.png`) keep their suffix:
    `a.jpg.png`. A file that cannot be read is left out and reported; the others are written.

    While the network runs, other threads read the next images and write the last ones: a handful, however
    many there are.

    Args:
        saved: Network, classes and input statistics, as `load_model` gives them.
        images: Files.
        out: Folder, made if it does not exist.
        overlays: Whether to write the colours over the image as well.
        predict: As for `gmix.evaluation.evaluate`, e.g. `Inference` to predict large images in windows.
        on_image: Called before each image is predicted.

    Returns:
        What failed.

    Raises:
        ValueError: If there are images in these folders that gmix did not write, or something cannot be written,
            in one sentence; what is there by then is whole.
    """
    make_own_folders(out, "masks", *(["overlays"] if overlays else []))

    def write(path: Path, name: str, image: torch.Tensor, classes: Pixels) -> None:
        save_mask(classes, saved.classes.palette, out / "masks" / f"{name}.png", out)
        if overlays:
            picture = Image.fromarray(overlay(to_rgb(image), classes, saved.classes.palette))
            save_picture(picture, out / "overlays" / f"{name}.jpg", out, quality=92)

    done = each_image(
        saved, images, lambda image: predict_image(saved, image, predict), write, on_image
    )
    return [failure for failure in done if failure is not None]


def make_own_folders(home: Path, *names: str) -> None:
    """Make folders for nothing but what gmix writes: among predicted masks nobody would know a drawn one.

    Args:
        home: What they are in; has the record of what gmix wrote.
        names: Of the folders.

    Raises:
        ValueError: If an image or mask is in one that gmix did not write, before any is made; or one cannot be made.
    """
    endings = (*IMAGE_SUFFIXES, *MASK_SUFFIXES)
    folders = [home / name for name in names]
    for folder in folders:
        there = sorted(folder.iterdir()) if folder.is_dir() else []
        images = [path for path in there if path.name.lower().endswith(endings)]
        check_own((path for path in images if path.name[0] != "."), home)
    for folder in folders:
        make_folder(folder)


def each_image(
    saved: SavedModel,
    images: Sequence[Path],
    predict: Callable[[torch.Tensor], Found],
    write: Callable[[Path, str, torch.Tensor, Found], Done],
    on_image: Callable[[Path], None],
) -> Iterator[Done | Failure]:
    """Read images, predict each and write what was found; reading and writing in other threads.

    Args:
        saved: Says what images are read as.
        images: Files.
        predict: Gets an image `(C, H, W)` in 0..255; called in this thread, in order.
        write: Gets the file, what to call what is written (`output_names`), the image, and what `predict`
            returned; called in other threads.
        on_image: Called before each image is predicted.

    Yields:
        What `write` returned, or why the image could not be read; in order.
    """

    def read(path: Path) -> torch.Tensor | Failure:
        try:
            image: torch.Tensor = read_image(path, saved.format)
        except ValueError as error:
            return Failure(path, str(error))
        return image

    def predicted() -> Iterator[tuple[Path, str, torch.Tensor, Found] | Failure]:
        names = output_names(images)
        for path, name, image in zip(images, names, ahead(read, images), strict=True):
            on_image(path)
            if isinstance(image, Failure):
                yield image
            else:
                yield path, name, image, predict(image)

    return ahead(lambda one: one if isinstance(one, Failure) else write(*one), predicted())


def output_names(images: Sequence[Path]) -> list[str]:
    """What to call what is written for each image: its stem, or all of its name if two share a stem; no two alike.

    Examples:
        >>> output_names([Path("a.jpg"), Path("b.jpg"), Path("b.png")])
        ['a', 'b.jpg', 'b.png']
        >>> output_names([Path("b.jpg"), Path("b.png"), Path("b.jpg.jpg")])
        ['b.jpg', 'b.png', 'b.jpg.jpg']
    """
    stems = Counter(path.stem for path in images)
    names = [path.stem if stems[path.stem] == 1 else path.name for path in images]
    # The stem of one may be all of another's name.
    return names if len(set(names)) == len(names) else [path.name for path in images]


def save_mask(
    classes: Pixels, palette: Iterable[Color], path: Path, home: Path | None = None
) -> None:
    """Write a palette PNG whose pixel values are class ids, as `save_picture` does."""
    mask = Image.fromarray(classes)
    mask.putpalette([channel for color in palette for channel in color])
    save_picture(mask, path, home)


def save_picture(
    picture: Image.Image, path: Path, home: Path | None = None, **options: Any
) -> None:
    """Write an image file that is whole or absent, and known as gmix's own.

    Args:
        picture: What to write.
        path: The file.
        home: The folder with the record of what gmix wrote; None: that of the file.
        options: Of its format.

    Raises:
        ValueError: If it cannot be written; what was there stays.
    """
    with own_file(path, home, flush=False) as aside:
        picture.save(aside, **options)


@torch.inference_mode()
def predict_image(saved: SavedModel, image: torch.Tensor, predict: Predict | None = None) -> Pixels:
    """Classes of one image.

    Args:
        saved: As for `predict_folder`.
        image: `(C, H, W)` in 0..255.
        predict: As for `predict_folder`.

    Returns:
        uint8 `(H, W)`, class ids.
    """
    size = (image.shape[-2], image.shape[-1])
    seen, how = fit(predict, size, saved.size)
    (classes,) = class_maps(saved.net, prepare(saved, image, seen), [size], saved.classes, how)
    result: Pixels = classes.cpu().numpy().astype(np.uint8)
    return result


@torch.inference_mode()
def predict_logits(saved: SavedModel, image: torch.Tensor) -> torch.Tensor:
    """Logits of one image, `(1, K, h, w)`: of its own size, or of `saved.size`.

    Args:
        saved: As for `predict_folder`.
        image: `(C, H, W)` in 0..255.
    """
    logits: torch.Tensor = saved.net(prepare(saved, image, saved.size))
    return logits


def prepare(saved: SavedModel, image: torch.Tensor, size: Size | None) -> torch.Tensor:
    """What the network sees of one image: `(1, C, h, w)`, normalised, and resized to `size` unless that is None."""
    if size is not None:
        image = v2.functional.resize(image, list(size), antialias=True)
    x: torch.Tensor = eval_transform(saved.mean, saved.std)(image).as_subclass(torch.Tensor)[None]
    return x.to(next(saved.net.parameters()).device)


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
    shares = opacity * (colors.sum(axis=1) > 0)
    result = np.empty_like(image)
    for top in range(0, len(image), BAND):
        rows = slice(top, top + BAND)
        share = shares[classes[rows]][..., None]
        result[rows] = ((1 - share) * image[rows] + share * colors[classes[rows]]).round()
    return result
