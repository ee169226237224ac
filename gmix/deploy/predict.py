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
"""Number of rows of an overlay that are blended at once: floats take many times the memory of its bytes."""


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

    Masks are palette PNGs of the image's own size (upright, if EXIF rotates the image); pixel values are class ids 0 ..
    K-1. Images with the same stem (`a.jpg`, `a.png`) keep their suffix: `a.jpg.png`. A file that cannot be read is left
    out and reported; the others are written.

    While the network runs, other threads read the next few images and write the last few results.

    Args:
        saved: Network, classes and input statistics, from `SavedModel.from_pretrained`.
        images: Image files.
        out: Folder to write to, created if it does not exist.
        overlays: Whether to write the class colours over the image as well.
        predict: As in `gmix.evaluation.evaluate`, e.g. `Inference` to predict large images in windows.
        on_image: Called before each image is predicted.

    Returns:
        Images that could not be read.

    Raises:
        ValueError: If these folders hold images that gmix did not write, or something cannot be written. Files written
            by then are complete.
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
    """Create folders for files of gmix only: a drawn mask would be lost among predicted ones.

    Args:
        home: Parent folder, which holds the record of what gmix wrote.
        names: Names of the folders.

    Raises:
        ValueError: If a folder holds an image or mask that gmix did not write (then none is created), or cannot be
            created.
    """
    endings = (*IMAGE_SUFFIXES, *MASK_SUFFIXES)
    folders = [home / name for name in names]
    for folder in folders:
        there = sorted(folder.iterdir()) if folder.is_dir() else []
        images = [path for path in there if path.name.lower().endswith(endings)]
        check_own((p for p in images if p.name[0] != "." and p.is_file()), home)
    for folder in folders:
        make_folder(folder)


def each_image(
    saved: SavedModel,
    images: Sequence[Path],
    predict: Callable[[torch.Tensor], Found],
    write: Callable[[Path, str, torch.Tensor, Found], Done],
    on_image: Callable[[Path], None],
) -> Iterator[Done | Failure]:
    """Read images, predict each and write the result; reading and writing happen in other threads.

    Args:
        saved: Model, whose format images are read in.
        images: Image files.
        predict: Called with an image `(C, H, W)` in 0..255, in this thread, in order.
        write: Called with the file, the name for its results (`output_names`), the image, and the result of `predict`,
            in other threads.
        on_image: Called before each image is predicted.

    Yields:
        The result of `write`, or the reason why the image could not be read, in order.
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
    """Return a unique name for the results of each image: its stem, or its full name if stems repeat.

    Examples:
        >>> output_names([Path("a.jpg"), Path("b.jpg"), Path("b.png")])
        ['a', 'b.jpg', 'b.png']
        >>> output_names([Path("b.jpg"), Path("b.png"), Path("b.jpg.jpg")])
        ['b.jpg', 'b.png', 'b.jpg.jpg']
    """
    stems = Counter(path.stem for path in images)
    names = [path.stem if stems[path.stem] == 1 else path.name for path in images]
    # The stem of one image may be the full name of another.
    return names if len(set(names)) == len(names) else [path.name for path in images]


def save_mask(
    classes: Pixels, palette: Iterable[Color], path: Path, home: Path | None = None
) -> None:
    """Write a palette PNG whose pixel values are class ids, with `save_picture`."""
    mask = Image.fromarray(classes)
    mask.putpalette([channel for color in palette for channel in color])
    save_picture(mask, path, home)


def save_picture(
    picture: Image.Image, path: Path, home: Path | None = None, **options: Any
) -> None:
    """Write an image file atomically, and record it as gmix's own.

    Args:
        picture: Image to write.
        path: File to write.
        home: Folder with the record of what gmix wrote; None for the folder of the file.
        options: Options of the file format.

    Raises:
        ValueError: If it cannot be written; the old file stays.
    """
    with own_file(path, home, flush=False) as aside:
        picture.save(aside, **options)


@torch.inference_mode()
def predict_image(saved: SavedModel, image: torch.Tensor, predict: Predict | None = None) -> Pixels:
    """Predict the classes of one image.

    Args:
        saved: As in `predict_folder`.
        image: Tensor `(C, H, W)` in 0..255.
        predict: As in `predict_folder`.

    Returns:
        Class ids, uint8 `(H, W)`.
    """
    size = (image.shape[-2], image.shape[-1])
    seen, how = fit(predict, size, saved.size)
    (classes,) = class_maps(saved.net, prepare(saved, image, seen), [size], saved.classes, how)
    result: Pixels = classes.cpu().numpy().astype(np.uint8)
    return result


@torch.inference_mode()
def predict_logits(saved: SavedModel, image: torch.Tensor) -> torch.Tensor:
    """Predict the logits of one image, `(1, K, h, w)`, at its own size or `saved.size`.

    Args:
        saved: As in `predict_folder`.
        image: Tensor `(C, H, W)` in 0..255.
    """
    logits: torch.Tensor = saved.net(prepare(saved, image, saved.size))
    return logits


def prepare(saved: SavedModel, image: torch.Tensor, size: Size | None) -> torch.Tensor:
    """Return the network's input for one image, `(1, C, h, w)`: normalised, resized to `size` unless it is None."""
    if size is not None:
        image = v2.functional.resize(image, list(size), antialias=True)
    x: torch.Tensor = eval_transform(saved.mean, saved.std)(image).as_subclass(torch.Tensor)[None]
    return x.to(next(saved.net.parameters()).device)


def overlay(
    image: Pixels, classes: Pixels, palette: Iterable[Color], opacity: float = 0.5
) -> Pixels:
    """Blend the colour of each class into the image; black, the background's colour, changes nothing.

    Args:
        image: uint8 `(H, W, 3)`.
        classes: uint8 `(H, W)`.
        palette: RGB colour of each class, 0..255.
        opacity: Opacity of the colours, 0 .. 1.

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
