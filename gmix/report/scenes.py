"""Validation images as the runs see them: evenly spaced ones, the worst and the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from gmix.config.files import validation_files
from gmix.data import Sample, SegmentationDataset, data_names, evenly_spaced, to_rgb
from gmix.deploy.evaluate import fit_masks, original_data
from gmix.deploy.predict import Pixels, predict_image
from gmix.evaluation import ConfusionMatrix
from gmix.runs.saved import SavedModel

# Images that are scored one by one to find the worst and the best: so many, and fewer of large ones.
MOST, MOST_PIXELS = 64, 64 * 512 * 512


class Scene(NamedTuple):
    """One image, its mask, and what each run makes of it.

    Attributes:
        name: of the file.
        why: `even`, `worst` or `best`.
        image: `(H, W, 3)`.
        truth: class ids `(H, W)`, 255 where they are not known.
        predicted: class ids `(H, W)` of each run.
        mious: of this image alone, of each run; nan if all of it is ignored.
    """

    name: str
    why: str
    image: Pixels
    truth: Pixels
    predicted: list[Pixels]
    mious: list[float]


@dataclass(frozen=True)
class Scenes:
    """The chosen images, and the confusion of all that were looked at.

    Attributes:
        chosen: evenly spaced ones first, then the worst, then the best.
        confusion: of the last run, over the images that were scored.
        scored: how many that are.
        images: how many validation images there are.
    """

    chosen: list[Scene]
    confusion: ConfusionMatrix
    scored: int
    images: int


def load_newest(folder: Path, device: torch.device) -> SavedModel:
    """The model of a run: of its last step, or the best so far of one that goes on.

    Raises:
        ValueError: if it has saved none yet.
    """
    unfinished = not (folder / "model").is_dir() and (folder / "best").is_dir()
    return SavedModel.from_pretrained(folder / "best" if unfinished else folder, device)


def look_at_scenes(folder: Path, models: list[SavedModel], count: int) -> Scenes:
    """Choose validation images of a run and let every model predict them.

    Up to 64 evenly spaced images, fewer of large ones, are scored with the last model; shown are `count` of them evenly
    spaced, and half as many each of the lowest and the highest mIoU.

    Args:
        folder: of the run whose validation images are taken.
        models: of all runs to show; the last one decides what is worst and best.
        count: how many images are evenly spaced.

    Raises:
        ValueError: if there are no validation images, or they are not where they were.
    """
    focus = models[-1]
    dataset, names = open_validation(folder, focus)
    height, width = focus.size or dataset[0].mask.shape[-2:]
    scored = evenly_spaced(range(len(dataset)), how_many(len(dataset), height * width, count))
    confusion = ConfusionMatrix(focus.classes.num_classes)
    mious: dict[int, float] = {}
    for index in scored:
        sample = dataset[index]
        matrix = count_one(sample, predict_image(focus, sample.image), focus.classes.num_classes)
        confusion.counts += matrix.counts
        mious[index] = matrix.scores().miou
    chosen = [
        look_at_one(names[index], why, dataset[index], models)
        for index, why in choose(mious, count)
    ]
    return Scenes(chosen, confusion, len(scored), len(dataset))


def look_at_even_scenes(folder: Path, models: list[SavedModel], count: int) -> list[Scene]:
    """Let every model predict evenly spaced validation images of a run, whatever comes out.

    Args:
        folder: of the run whose validation images are taken.
        models: of all runs to show.
        count: how many images; all of them if there are fewer.

    Raises:
        ValueError: if there are no validation images, or they are not where they were.
    """
    dataset, names = open_validation(folder, models[-1])
    shown = evenly_spaced(range(len(dataset)), min(count, len(dataset)))
    return [look_at_one(names[index], "even", dataset[index], models) for index in shown]


def open_validation(folder: Path, model: SavedModel) -> tuple[SegmentationDataset, list[str]]:
    """The validation images of a run as a model wants them, and their names.

    Raises:
        ValueError: if there are none, or they are not where they were.
    """
    source = original_data(folder)
    files = validation_files(source)
    if files is None:
        raise ValueError("the run has no validation images")
    classes = fit_masks(model.classes, source, files[1])
    turn = source.mask_orientation == "stored"
    dataset = SegmentationDataset(*files, classes, format=model.format, turn_masks=turn)
    return dataset, data_names(files[0], source.voc or source.data)


def look_at_one(name: str, why: str, sample: Sample, models: Sequence[SavedModel]) -> Scene:
    """What every model makes of one image."""
    classes = models[-1].classes.num_classes
    predicted = [predict_image(model, sample.image) for model in models]
    return Scene(
        name,
        why,
        to_rgb(sample.image.as_subclass(torch.Tensor)),
        sample.mask.numpy().astype("uint8"),
        predicted,
        [count_one(sample, pixels, classes).scores().miou for pixels in predicted],
    )


def how_many(images: int, pixels: int, count: int) -> int:
    """How many of the images are scored: a matter of seconds whatever their size.

    Args:
        images: in all.
        pixels: of one, as the network sees it.
        count: how many are asked for; twice as many are shown.

    Examples:
        >>> how_many(1449, 500 * 375, 6), how_many(500, 2048 * 1024, 6), how_many(20, 100, 6)
        (64, 12, 20)
    """
    return min(images, max(2 * count, min(MOST, MOST_PIXELS // pixels)))


def count_one(sample: Sample, predicted: Pixels, classes: int) -> ConfusionMatrix:
    """The confusion of one image."""
    matrix = ConfusionMatrix(classes)
    target = sample.mask.as_subclass(torch.Tensor)
    matrix.update(torch.from_numpy(predicted)[None], target[None])
    return matrix


def choose(mious: dict[int, float], count: int) -> list[tuple[int, str]]:
    """Which images are shown, and why; none twice.

    Args:
        mious: of each image that was scored, by its number.
        count: how many are evenly spaced; the worst and the best are half as many each.

    Examples:
        >>> choose({0: 0.5, 1: 0.1, 2: 0.9, 3: 0.4, 4: 0.6}, 2)
        [(0, 'even'), (4, 'even'), (1, 'worst'), (2, 'best')]
    """
    known = [index for index, miou in mious.items() if miou == miou]
    ranked = sorted(known, key=lambda index: mious[index])
    half = min((count + 1) // 2, len(ranked) // 2)
    worst, best = ranked[:half], ranked[::-1][:half]
    rest = [index for index in mious if index not in (*worst, *best)]
    even = evenly_spaced(rest, min(count, len(rest))) if rest else []
    groups = (("even", even), ("worst", worst), ("best", best))
    return [(index, why) for why, indices in groups for index in indices]
