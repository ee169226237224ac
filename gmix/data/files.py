"""Files of a data set: images in folders, masks matched by name, and evenly spaced subsets."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".npy")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".npy", ".mat")  # lossless ones only


def find_images(folder: str | Path) -> list[Path]:
    """List the image files directly inside a folder, sorted by name.

    Args:
        folder: Folder to list; sub-folders and hidden files are ignored. File types: jpg, jpeg, png, bmp, tif, tiff,
            webp, npy, in any case.

    Raises:
        ValueError: If the folder is missing or holds no image.
    """
    return [Path(folder, name) for name in names_in(Path(folder), IMAGE_SUFFIXES, "image")]


def find_masks(folder: str | Path) -> list[Path]:
    """List the mask files directly inside a folder, like `find_images`."""
    return [Path(folder, name) for name in names_in(Path(folder), MASK_SUFFIXES, "mask")]


def match_masks(
    images: Sequence[Path], mask_folder: str | Path
) -> tuple[list[Path], list[Path], list[Path]]:
    """Split images into those with a mask of the same stem and the rest.

    Args:
        images: Image files.
        mask_folder: Folder of png, bmp, tif, npy or mat masks, named like their images.

    Returns:
        Images with a mask, their masks in the same order, and the images without one.

    Raises:
        ValueError: If the folder is missing or empty, two files share a stem, or no image has a mask.
    """
    masks = _by_stem(find_masks(mask_folder))
    stems = _by_stem(images)
    labeled = [image for stem, image in stems.items() if stem in masks]
    if not labeled:
        raise ValueError(
            f"no mask in {mask_folder} is named like an image: expected e.g. "
            f"{next(iter(stems), 'NAME')}.png"
        )
    rest = [image for stem, image in stems.items() if stem not in masks]
    return labeled, [masks[image.stem] for image in labeled], rest


def pair_masks(images: Sequence[Path], mask_folder: str | Path) -> list[Path]:
    """Return the mask of each image, matched by stem, in the order of the images.

    Raises:
        ValueError: As in `match_masks`, and if an image has no mask; the message names the first one.
    """
    _, masks, rest = match_masks(images, mask_folder)
    if rest:
        raise ValueError(
            f"{rest[0]} has no mask: expected {Path(mask_folder) / rest[0].stem}.png "
            f"({len(rest)} of {len(images)} images have none)"
        )
    return masks


def masks_without_image(images: Iterable[Path], mask_folder: str | Path) -> tuple[list[Path], int]:
    """Return masks that match no image, and the number of all masks in the folder."""
    masks = find_masks(mask_folder)
    stems = {image.stem for image in images}
    return [mask for mask in masks if mask.stem not in stems], len(masks)


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """Select `count` items at even distances, beginning with the first.

    This is every k-th item if some k gives exactly `count` of them, else item `floor(i * len / count)`.

    Raises:
        ValueError: If `count` is not in `1..len(items)`.

    Examples:
        >>> evenly_spaced(range(10), 4), evenly_spaced(range(10), 6)
        ([0, 3, 6, 9], [0, 1, 3, 5, 6, 8])
    """
    total = len(items)
    if not 1 <= count <= total:
        raise ValueError(f"cannot keep {count} of {total} labeled images: ask for 1 to {total}")
    step = -(-total // count)
    if len(range(0, total, step)) == count:
        return [items[i] for i in range(0, total, step)]
    return [items[i * total // count] for i in range(count)]


def names_in(folder: Path, suffixes: Sequence[str], what: str) -> list[str]:
    """List the names of the files in a folder that have one of these suffixes."""
    if not folder.is_dir():
        raise ValueError(f"the {what} folder {folder} does not exist")
    names: list[str] = []
    others: list[str] = []
    with os.scandir(folder) as entries:  # knows the file types: no file is queried itself
        for entry in entries:
            if entry.name[0] != "." and entry.name.lower().endswith(tuple(suffixes)):
                plain = entry.is_file(follow_symlinks=False) or Path(entry).is_file()
                (names if plain else others).append(entry.name)
    for path in sorted(folder / name for name in others):
        if path.is_symlink() and not path.exists():  # a broken link is an error
            raise ValueError(f"{path} is a link that leads nowhere: mend or delete it")
    if not names:
        kinds = ", ".join(suffix[1:] for suffix in suffixes)
        raise ValueError(f"the {what} folder {folder} holds no {what} ({kinds})")
    return sorted(names)


def _by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    stems: dict[str, Path] = {}
    for path in paths:
        if path.stem in stems:
            raise ValueError(
                f"{stems[path.stem]} and {path} have the same stem, so masks cannot be matched "
                "by name: rename one"
            )
        stems[path.stem] = path
    return stems
