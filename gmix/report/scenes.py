"""Validation images with the predictions of the runs: evenly spaced images, the worst and the best."""

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

# Largest number of images, and of pixels, that are scored one by one to find the worst and the best.
MOST, MOST_PIXELS = 64, 64 * 512 * 512


class Scene(NamedTuple):
    """An image, its mask, and the predictions of each run.

    Attributes:
        name: Name of the file.
        why: Reason for the choice: `even`, `worst` or `best`.
        image: `(H, W, 3)`.
        truth: Class ids `(H, W)`, 255 where the class is unknown.
        predicted: Class ids `(H, W)` of each run.
        mious: The mIoU of each run on this image alone; nan if all of it is ignored.
    """

    name: str
    why: str
    image: Pixels
    truth: Pixels
    predicted: list[Pixels]
    mious: list[float]


@dataclass(frozen=True)
class Scenes:
    """The chosen images, and the confusion matrix of all scored images.

    Attributes:
        chosen: Evenly spaced images first, then the worst, then the best.
        confusion: Confusion matrix of the last run, over the scored images.
        scored: Number of scored images.
        images: Number of validation images.
    """

    chosen: list[Scene]
    confusion: ConfusionMatrix
    scored: int
    images: int


def load_newest(folder: Path, device: torch.device) -> SavedModel:
    """Load the model of a run: from its last step or, if the run is unfinished, the best so far.

    Raises:
        ValueError: If the run has not saved a model yet.
    """
    unfinished = not (folder / "model").is_dir() and (folder / "best").is_dir()
    return SavedModel.from_pretrained(folder / "best" if unfinished else folder, device)


def look_at_scenes(folder: Path, models: list[SavedModel], count: int) -> Scenes:
    """Choose validation images of a run and let every model predict them.

    Up to 64 evenly spaced images, fewer if they are large, are scored with the last model. Of these, `count` evenly
    spaced images are shown, and half as many each with the lowest and the highest mIoU.

    Args:
        folder: Folder of the run whose validation images are used.
        models: Models of all runs to show; the last one decides which images are the worst and the best.
        count: Number of evenly spaced images.

    Raises:
        ValueError: If there are no validation images, or they are not where they were.
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
    """Let every model predict evenly spaced validation images of a run, chosen without regard to scores.

    Args:
        folder: Folder of the run whose validation images are used.
        models: Models of all runs to show.
        count: Number of images; all if there are fewer.

    Raises:
        ValueError: If there are no validation images, or they are not where they were.
    """
    dataset, names = open_validation(folder, models[-1])
    shown = evenly_spaced(range(len(dataset)), min(count, len(dataset)))
    return [look_at_one(names[index], "even", dataset[index], models) for index in shown]


def open_validation(folder: Path, model: SavedModel) -> tuple[SegmentationDataset, list[str]]:
    """Open the validation images of a run in the format of a model, and return them with their names.

    Raises:
        ValueError: If there are no validation images, or they are not where they were.
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
    """Predict an image with every model."""
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
    """Compute the number of images to score, so that it takes seconds whatever their size.

    Args:
        images: Number of all images.
        pixels: Pixels of an image at the network's input.
        count: Number of requested images; twice as many are shown.

    Examples:
        >>> how_many(1449, 500 * 375, 6), how_many(500, 2048 * 1024, 6), how_many(20, 100, 6)
        (64, 12, 20)
    """
    return min(images, max(2 * count, min(MOST, MOST_PIXELS // pixels)))


def count_one(sample: Sample, predicted: Pixels, classes: int) -> ConfusionMatrix:
    """Count the confusion matrix of an image."""
    matrix = ConfusionMatrix(classes)
    target = sample.mask.as_subclass(torch.Tensor)
    matrix.update(torch.from_numpy(predicted)[None], target[None])
    return matrix


def choose(mious: dict[int, float], count: int) -> list[tuple[int, str]]:
    """Choose the images to show, with the reasons; no image twice.

    Args:
        mious: The mIoU of each scored image, by index.
        count: Number of evenly spaced images; half as many each of the worst and the best.

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
