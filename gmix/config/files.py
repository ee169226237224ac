"""Files that the flags name: images, their masks, and images without masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from gmix.config.options import flag, lookup
from gmix.config.train_config import TrainConfig
from gmix.data import (
    LAYOUTS,
    Finder,
    Layout,
    Paths,
    evenly_spaced,
    fetch,
    find_images,
    folder_images,
    match_masks,
    pair_masks,
)

Pairs = tuple[list[Path], list[Path]]
Found = tuple[Pairs, list[Sequence[Path]]]


def known_layout(config: Any) -> Layout | None:
    """Return the known data set that `--dataset` (or `--voc`) names."""
    if config.dataset is not None:
        layout: Layout = lookup(config.dataset.replace("-", "_"), LAYOUTS, "--dataset")
        return layout
    return LAYOUTS["voc"] if getattr(config, "voc", None) is not None else None


def known_data(config: Any) -> tuple[Layout, Path] | None:
    """Return a known data set and its folder, if the flags name one.

    Args:
        config: Any options with `dataset`, `data` and `voc`.

    Raises:
        ValueError: If the flags contradict each other.
    """
    layout = known_layout(config)
    if config.voc is not None:
        if config.data is not None or config.dataset not in (None, "voc"):
            raise ValueError("give either --voc ROOT or --dataset NAME and --data ROOT, not both")
        return LAYOUTS["voc"], Path(config.voc)
    if config.data is None:
        return None
    if layout is None:
        raise ValueError(f"--data {config.data} needs --dataset NAME: {', '.join(LAYOUTS)}")
    return layout, Path(config.data)


def known_finder(config: Any) -> Finder | None:
    """Return a finder for the known data set of the flags; with `--download`, fetch the data set first."""
    known = known_data(config)
    if known is None:
        check_lists(config)
        return None
    if any(getattr(config, name, None) is not None for name in ("images", "masks")):
        raise ValueError("give either --data ROOT (--voc ROOT) or --images and --masks, not both")
    if getattr(config, "download", False):
        fetch(*known)
    return Finder(*known)


def check_lists(config: Any) -> None:
    """Refuse list flags that would silently be ignored, because no folder says where their paths start.

    Raises:
        ValueError: If such a flag is given.
    """
    for item in fields(config):
        given = getattr(config, item.name)
        if item.name in ("train_list", "unlabeled_list", "val_list") and given != item.default:
            root = "--voc ROOT" if config.dataset is None else "--data ROOT"
            raise ValueError(
                f"{flag(item.name)} {given} needs {root}, the folder that the paths in it start from"
            )


def training_files(config: TrainConfig, found: Found | None = None) -> tuple[Pairs, Paths]:
    """Return labeled images with their masks, and all unlabeled images.

    Args:
        config: The flags.
        found: Result of `all_files`, if it was already called.
    """
    (images, masks), groups = found or all_files(config)
    if config.labels is not None:
        groups = [images, *groups]  # first, so that its spelling of each path is kept
        pairs = evenly_spaced(list(zip(images, masks, strict=True)), config.labels)
        images, masks = [image for image, _ in pairs], [mask for _, mask in pairs]
    return (images, masks), Paths.union(*groups).without(images)


def held_out_files(
    config: TrainConfig, unlabeled: Sequence[Path], found: Found | None = None
) -> Pairs | None:
    """Select up to `--held-out` unlabeled images whose masks `--labels` left unused, with these masks.

    Training still uses the images; the masks only serve for measuring.
    """
    if config.held_out == 0:
        return None
    (images, masks), _ = found or all_files(config)
    free = set(images).intersection(unlabeled)
    unused = [pair for pair in zip(images, masks, strict=True) if pair[0] in free]
    if not unused:
        return None
    pairs = evenly_spaced(unused, min(config.held_out, len(unused)))
    return [image for image, _ in pairs], [mask for _, mask in pairs]


def all_files(config: TrainConfig, finder: Finder | None = None) -> Found:
    """Return all training images with a mask, ignoring `--labels`, and groups of images without one."""
    rest: list[Sequence[Path]] = []
    finder = finder or known_finder(config)
    if finder is not None:
        images, masks = finder.pairs(config.train_list)
        if config.unlabeled_list is not None:
            rest.append(finder.images(config.unlabeled_list))
    else:
        if config.images is None or config.masks is None:
            raise ValueError(
                "--images DIR and --masks DIR are missing (or --dataset NAME and --data ROOT)"
            )
        images, masks, others = match_masks(find_images(config.images), config.masks)
        rest.append(others)
    if config.unlabeled is not None:
        rest.append(folder_images(config.unlabeled))
    return (images, masks), rest


def validation_files(config: Any, finder: Finder | None = None) -> Pairs | None:
    """Return validation images with their masks, or None if there are none.

    Args:
        config: Any options with `val_images`, `val_masks`, `dataset`, `data`, `voc`, `val_list` and `val_part`.
        finder: Result of `known_finder`, if it was already called.
    """
    if config.val_images is not None:
        if config.val_masks is None:
            raise ValueError("--val-images needs --val-masks DIR")
        images = find_images(config.val_images)
        masks = pair_masks(images, config.val_masks)
    elif config.val_masks is not None:
        raise ValueError("--val-masks needs --val-images DIR")
    elif (finder := finder or known_finder(config)) is not None:
        images, masks = finder.pairs(config.val_list)
    else:
        return None
    part = {"all": slice(None), "odd": slice(0, None, 2), "even": slice(1, None, 2)}[
        config.val_part
    ]
    return images[part], masks[part]


def check_disjoint(labeled: Sequence[Path], validation: Sequence[Path]) -> None:
    """Refuse to validate on labeled training images.

    Raises:
        ValueError: If an image is both labeled and used for validation.
    """
    both = set(labeled).difference(Paths(labeled).without(validation))
    if both:
        raise ValueError(
            f"labeled images that are validation images too: {len(both)}, such as {min(both)}; "
            "take them out of one, or the scores say nothing"
        )
