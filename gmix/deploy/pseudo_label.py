"""Masks of the confident pixels in a folder of images, to continue with in an annotation tool."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy import ndimage

import gmix
from gmix.data import IGNORE
from gmix.deploy.predict import (
    Failure,
    each_image,
    make_own_folders,
    prepare,
    save_mask,
    save_picture,
)
from gmix.evaluation import Predict, fit, most_likely, to_logits
from gmix.runs.saved import SavedModel
from gmix.runtime.own import check_own, own_file

Mask = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int64]
Probs = npt.NDArray[np.float32]

_UNSURE = (255, 255, 255)  # colour of 255 in masks


class Made(NamedTuple):
    """Summary of what `pseudo_label_folder` wrote."""

    images: int
    regions: int
    sure: float  # share of the pixels that got a class, 0..1
    failures: list[Failure]


class Written(NamedTuple):
    """Results for one image."""

    name: str
    size: tuple[int, ...]  # height and width
    labeled: int  # pixels
    regions: list[str]  # as JSON text


def pseudo_label_folder(
    saved: SavedModel,
    images: Sequence[Path],
    out: Path,
    *,
    min_confidence: float = 0.9,
    min_area: int = 0,
    predict: Predict | None = None,
    on_image: Callable[[Path], None] = lambda path: None,
) -> Made:
    """Write `out/masks/NAME.png`, `out/confidence/NAME.png` and `out/coco.json`.

    Masks are palette PNGs of the image's own size. They hold class ids, and 255 where the most likely class has a
    probability below `min_confidence` or its region has fewer pixels than `min_area`. `gmix train` accepts them without
    changes. `confidence` holds that probability as a grey image: 255 is 1. `coco.json` holds the regions of the masks
    (`find_regions`), except those of a first class called "background"; category ids are class ids.

    The network is the one `gmix train` tested and saved, not its teacher. While it runs, other threads read the next
    images and write the last ones, as in `predict_folder`.

    Args:
        saved: Network, classes and input statistics.
        images: Image files; one that cannot be read is left out and reported.
        out: Folder to write to, created if it does not exist.
        min_confidence: Lowest probability of a labeled pixel, from 0 (all pixels get a class) to 1.
        min_area: Smallest number of pixels in a region.
        predict: As in `gmix.evaluation.evaluate`, e.g. `Inference` to predict large images in windows.
        on_image: Called before each image is predicted.

    Raises:
        ValueError: If these folders hold images, or a `coco.json`, that gmix did not write, or something cannot be
            written. Files written by then are complete.
    """
    check_own([out / "coco.json"])
    make_own_folders(out, "masks", "confidence")
    names = saved.classes.names
    first = 1 if names[0].lower() == "background" else 0
    unused = [(0, 0, 0)] * (IGNORE - len(names))
    palette = [*saved.classes.palette, *unused, _UNSURE]
    done: list[dict[str, Any]] = []
    failures: list[Failure] = []
    regions = labeled = pixels = 0

    def write(path: Path, name: str, image: torch.Tensor, found: tuple[Ids, Probs]) -> Written:
        classes, confidence = found
        mask = sure_mask(classes, confidence, min_confidence, min_area)
        save_mask(mask, palette, out / "masks" / f"{name}.png", out)
        grey = (255 * confidence).round().astype(np.uint8)
        save_picture(Image.fromarray(grey), out / "confidence" / f"{name}.png", out)
        # Kept as text, which takes a fraction of the memory of the numbers.
        texts = [json.dumps(region) for region in find_regions(mask, confidence, first)]
        return Written(path.name, mask.shape, int((mask != IGNORE).sum()), texts)

    with own_file(out / "coco.json") as aside, aside.open("w", encoding="utf-8") as file:
        # Written one by one: the run lengths of a large folder would fill the memory.
        file.write('{"annotations": [')
        for one in each_image(
            saved, images, lambda image: predict_sure(saved, image, predict), write, on_image
        ):
            if isinstance(one, Failure):
                failures.append(one)
                continue
            height, width = one.size
            done.append(
                {"id": len(done) + 1, "file_name": one.name, "height": height, "width": width}
            )
            for text in one.regions:
                file.write(",\n" if regions else "\n")
                regions += 1
                file.write(f'{{"id": {regions}, "image_id": {len(done)}, {text[1:]}')
            labeled += one.labeled
            pixels += height * width
        rest = {
            "images": done,
            "categories": [{"id": id, "name": names[id]} for id in range(first, len(names))],
            "info": {
                "description": "pseudo labels: predicted, not annotated",
                "gmix_version": gmix.__version__,
                "min_confidence": min_confidence,
                "min_area": min_area,
            },
        }
        file.write("\n], " + json.dumps(rest)[1:] + "\n")
    return Made(len(done), regions, labeled / max(pixels, 1), failures)


@torch.inference_mode()
def predict_sure(
    saved: SavedModel, image: torch.Tensor, predict: Predict | None = None
) -> tuple[Ids, Probs]:
    """Predict the class of each pixel and its probability in 0..1, both `(H, W)`.

    Args:
        saved: As in `pseudo_label_folder`.
        image: Tensor `(C, H, W)` in 0..255.
        predict: As in `pseudo_label_folder`.
    """
    size = (image.shape[-2], image.shape[-1])
    seen, how = fit(predict, size, saved.size)
    x = prepare(saved, image, seen)
    if how is None:
        parts = [most_likely(saved.net(x), size)]
    else:
        found = how(saved.net, x)
        bands = [found] if isinstance(found, torch.Tensor) else found
        if tuple(x.shape[-2:]) == size:
            parts = [most_likely(to_logits(band)) for band in bands]
        else:
            parts = [most_likely(to_logits(torch.cat(list(bands), dim=2)), size)]
    classes, confidence = (
        torch.cat(part, dim=1)[0].cpu().numpy() for part in zip(*parts, strict=True)
    )
    return classes, confidence


def sure_mask(classes: Ids, confidence: Probs, min_confidence: float, min_area: int) -> Mask:
    """Keep the class ids of confident pixels in large regions; set all other pixels to 255.

    Args:
        classes: Class ids `(H, W)`.
        confidence: Probabilities `(H, W)`, 0..1.
        min_confidence: Lowest probability of a confident pixel.
        min_area: Smallest region to keep, in pixels; a region is confident pixels of one class that share edges.

    Examples:
        >>> sure = sure_mask(np.array([[0, 1, 1]]), np.array([[0.9, 0.9, 0.5]]), 0.6, 0)
        >>> sure.tolist()
        [[0, 1, 255]]
    """
    mask: Mask = np.where(confidence >= min_confidence, classes, IGNORE).astype(np.uint8)
    if min_area > 1:
        for id in np.unique(mask[mask != IGNORE]):
            labels, _ = ndimage.label(mask == id)
            small = np.bincount(labels.ravel()) < min_area
            small[0] = False  # belongs to another class
            mask[small[labels]] = IGNORE
    return mask


def find_regions(mask: Mask, confidence: Probs, first: int = 0) -> Iterator[dict[str, Any]]:
    """Yield the connected regions of a mask as COCO annotations, without ids.

    A region is pixels of one class that share edges. Its shape is a run-length code, which unlike polygons is exact and
    can have holes; it is not compressed, so that no library is needed to read it. COCO marks such annotations
    `iscrowd`.

    Args:
        mask: Class ids and 255, `(H, W)`.
        confidence: Probabilities `(H, W)`, 0..1; `score` is their mean over the region.
        first: Lowest class id whose regions are wanted.

    Yields:
        `category_id`, `segmentation`, `area`, `bbox` (x, y, width, height), `iscrowd`, `score`.

    Examples:
        >>> mask = np.array([[255, 1], [255, 1]], dtype=np.uint8)
        >>> (region,) = find_regions(mask, np.full((2, 2), 0.75, dtype=np.float32))
        >>> region["segmentation"], region["bbox"], region["score"]
        ({'size': [2, 2], 'counts': [2, 2]}, [1, 0, 1, 2], 0.75)
    """
    height = mask.shape[0]
    for id in np.unique(mask[(mask >= first) & (mask != IGNORE)]).tolist():
        labels, count = ndimage.label(mask == id)
        areas = np.bincount(labels.ravel(), minlength=count + 1)
        sums = np.bincount(labels.ravel(), confidence.ravel(), minlength=count + 1)
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
            # Columns outside the box are runs of zeros.
            inside = labels[:, columns] == number
            counts = run_lengths(inside)
            counts[0] += height * columns.start
            after = height * (mask.shape[1] - columns.stop)
            if len(counts) % 2:
                counts[-1] += after
            elif after:
                counts.append(after)
            yield {
                "category_id": id,
                "segmentation": {"size": list(mask.shape), "counts": counts},
                "area": int(areas[number]),
                "bbox": [
                    columns.start,
                    rows.start,
                    columns.stop - columns.start,
                    rows.stop - rows.start,
                ],
                "iscrowd": 1,
                "score": round(float(sums[number] / areas[number]), 4),
            }


def run_lengths(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Compute the lengths of alternating runs of zeros and ones, column by column, beginning with zeros.

    Examples:
        >>> run_lengths(np.array([[True, False], [True, True]]))
        [0, 2, 1, 1]
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    counts: list[int] = np.diff([0, *changes, flat.size]).tolist()
    return counts
