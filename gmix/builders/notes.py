"""Warnings about the data that need not be errors, one sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import NamedTuple

from gmix.config.commands import EvaluateConfig
from gmix.config.train_config import TrainConfig
from gmix.data import IGNORE, Classes, ImageFormat, folder_images
from gmix.data.decode import orientation
from gmix.data.files import masks_without_image
from gmix.data.images import value_span


class Seen(NamedTuple):
    """Findings from reading a whole data set."""

    ids: set[int]  # values in the masks, 255 included
    brightest: float  # highest value in any image, 0..255
    sizes: frozenset[tuple[int, int]] = frozenset()  # of the images, height and width
    pixels: tuple[int, ...] = ()  # of each value in the masks


def clipped(images: Sequence[Path], format: ImageFormat, *, which: str = " with a mask") -> str:
    """Describe images with values outside the given range, or say that the range has no effect; else ""."""
    if format.span is None:  # such images are refused then
        return ""
    with ThreadPool(4) as pool:
        spans = pool.map(partial(_span, channels=format.channels), images)
    low, high = format.span
    given = f"--value-range {low:g}-{high:g}"
    if not any(spans):
        return (
            f"{given} is for images of more than 8 bits, which none{which} is: it changes nothing"
        )
    outside = [
        (path, span)
        for path, span in zip(images, spans, strict=True)
        if span is not None and (span[0] < low or span[1] > high)
    ]
    if not outside:
        return ""
    path, (least, most) = outside[0]
    return (
        f"{len(outside)} of {len(images)} images{which} hold values outside of {given}, "
        f"which become black and white, such as {path}: {least:g} to {most:g}"
    )


def _span(path: Path, channels: int) -> tuple[float, float] | None:
    try:
        return value_span(path, channels)
    except ValueError:
        return None  # whoever reads it says what is wrong, or leaves it out


def dark(config: TrainConfig, seen: Sequence[Seen]) -> str:
    """Describe images that seem to have fewer bits than their files; else return "".

    Examples:
        >>> dark(TrainConfig(), [Seen({0}, 255 * 4095 / 65535)])[:61]
        'no image with a mask is brighter than 16 of 255: say which va'
    """
    brightest = max(each.brightest for each in seen)
    if config.value_range is not None or brightest >= 16:
        return ""
    return (
        f"no image with a mask is brighter than {brightest:.2g} of 255: say which values are black and white, "
        "--value-range 0-4095 for 12 bits in files of 16"
    )


def turned(config: TrainConfig | EvaluateConfig, images: Sequence[Path]) -> str:
    """Describe what is assumed about masks of images that EXIF rotates; "" if it was given, or none is."""
    if config.mask_orientation is not None:
        return ""
    with ThreadPool(4) as pool:
        found = [
            path
            for path, turn in zip(images, pool.map(orientation, images), strict=True)
            if turn != 1
        ]
    if not found:
        return ""
    return (
        f"{len(found)} of {len(images)} images with masks are turned or mirrored by their EXIF data, such as "
        f"{found[0]}: their masks are taken as drawn on what is shown (--mask-orientation shown); if they were drawn "
        "on the stored pixels, say --mask-orientation stored"
    )


def strays(config: TrainConfig) -> Iterator[str]:
    """Yield a warning about masks that match no image."""
    if config.images is None or config.masks is None:
        return
    unmatched, total = masks_without_image(folder_images(config.images), config.masks)
    if unmatched:  # all masks may be in one folder
        others = [folder for folder in (config.unlabeled, config.val_images) if folder is not None]
        stems = {image.stem for folder in others for image in folder_images(folder)}
        unmatched = [mask for mask in unmatched if mask.stem not in stems]
    if unmatched:
        yield (
            f"{len(unmatched)} of {total} masks belong to no image, such as {unmatched[0]}: "
            "a mask is called as its image is, but for the ending"
        )


def absent(split: str, classes: Classes, seen: set[int]) -> Iterator[str]:
    """Yield a warning about classes that occur in no mask of a split.

    Examples:
        >>> list(absent("labeled", Classes.of(3), {0, 1, 255}))
        ['no labeled pixel, so nothing is learned, of class 2']
        >>> list(absent("validation", Classes.of(2), {0, 255}))
        ['no validation pixel, so nothing is scored, of class 1; where 255 is the foreground, say --classes 1']
    """
    names = [name for index, name in enumerate(classes.names) if index not in seen]
    if names:
        lost = "scored" if split == "validation" else "learned"
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        white = seen == {0, IGNORE} and not classes.binary
        hint = "; where 255 is the foreground, say --classes 1" if white else ""
        yield f"no {split} pixel, so nothing is {lost}, of {', '.join(names[:5])}{more}{hint}"
