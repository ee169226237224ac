"""Which files make up a data set: folders, masks by name, and even choices."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".npy")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".npy", ".mat")  # lossless ones only


def find_images(folder: str | Path) -> list[Path]:
    """Image files directly inside a folder, sorted by name.

    Args:
        folder: The folder; sub-folders and hidden files are not looked at. File types: jpg,
            jpeg, png, bmp, tif, tiff, webp, npy, in any case.

    Raises:
        ValueError: If the folder is missing or holds no image.
    """
    return [Path(folder, name) for name in names_in(Path(folder), IMAGE_SUFFIXES, "image")]


def find_masks(folder: str | Path) -> list[Path]:
    """Mask files directly inside a folder, as `find_images` finds images."""
    return [Path(folder, name) for name in names_in(Path(folder), MASK_SUFFIXES, "mask")]


def match_masks(
    images: Sequence[Path], mask_folder: str | Path
) -> tuple[list[Path], list[Path], list[Path]]:
    """Splits images into those with a mask of the same stem and the rest.

    Args:
        images: Image files.
        mask_folder: Folder of png, bmp, tif, npy or mat masks, named like their image.

    Returns:
        Images with a mask, their masks (same order), and the images without one.

    Raises:
        ValueError: If the folder is missing or empty, two files share a stem, or no image has
            a mask.
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
    """The mask of every image, by stem, in the order of the images.

    Raises:
        ValueError: As `match_masks`, and if any image has no mask (the first one is named).
    """
    _, masks, rest = match_masks(images, mask_folder)
    if rest:
        raise ValueError(
            f"{rest[0]} has no mask: expected {Path(mask_folder) / rest[0].stem}.png "
            f"({len(rest)} of {len(images)} images have none)"
        )
    return masks


def masks_without_image(images: Iterable[Path], mask_folder: str | Path) -> tuple[list[Path], int]:
    """Masks that `match_masks` leaves aside, because no image has their stem, and how many masks there are."""
    masks = find_masks(mask_folder)
    stems = {image.stem for image in images}
    return [mask for mask in masks if mask.stem not in stems], len(masks)


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """Keeps `count` items at even distances, the first one always.

    Every k-th item where some k gives exactly `count` of them, else item `floor(i * len / count)`.

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
    """Of the files in a folder that end so."""
    if not folder.is_dir():
        raise ValueError(f"the {what} folder {folder} does not exist")
    names: list[str] = []
    others: list[str] = []
    with os.scandir(folder) as entries:  # which knows what is a file: of a million none is asked
        for entry in entries:
            if entry.name[0] != "." and entry.name.lower().endswith(tuple(suffixes)):
                plain = entry.is_file(follow_symlinks=False) or Path(entry).is_file()
                (names if plain else others).append(entry.name)
    for path in sorted(folder / name for name in others):
        if path.is_symlink() and not path.exists():  # such a data set is not a smaller one
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
