"""The quality of a method's pseudo masks, on images whose masks training never sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gmix import functional as G
from gmix.builders.data import Data
from gmix.data import IGNORE, Sample
from gmix.evaluation import ConfusionMatrix, eval_mode
from gmix.methods import Method
from gmix.training.fit import step_seed

AT_ONCE = 4  # whole images, in addition to a batch of labeled ones


def judge_pseudo_masks(
    method: Method,
    data: Data,
    *,
    transform: Callable[[Any], Tensor],
    batch_labeled: int,
    seed: int,
) -> dict[str, Any] | None:
    """Compare the method's pseudo masks of the held-out images with their true masks.

    Nothing that the training depends on is changed: neither the method nor torch's generators.

    Args:
        method: The method, on its device.
        data: The data, with or without held-out images.
        transform: Maps a uint8 image to a normalised float image.
        batch_labeled: Number of labeled images that the method may refer to at a time.
        seed: Seed for the choice of these images and for the method's draws; the same at each call.

    Returns:
        The result of `summary`; None without held-out images.
    """
    if data.held_out is None:
        return None
    device = next(method.parameters()).device
    draw = torch.Generator().manual_seed(step_seed(seed, 0, "held out"))
    generator = torch.Generator(device).manual_seed(step_seed(seed, 0, "pseudo masks"))
    every = ConfusionMatrix(data.classes.num_classes)
    sure = ConfusionMatrix(data.classes.num_classes)
    forked = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(forked), torch.no_grad(), eval_mode(method):
        for samples in alike(data.held_out, data.counts["held_out"]):
            x, y = stack(samples, transform)
            order = torch.randperm(data.counts["labeled"], generator=draw)[:batch_labeled]
            labeled = [data.labeled[index] for index in order.tolist()]
            x_labeled, y_labeled = stack(labeled, transform, (x.shape[2], x.shape[3]))
            x, y, x_labeled, y_labeled = (t.to(device) for t in (x, y, x_labeled, y_labeled))
            probs = method.pseudo_masks(x_labeled, y_labeled, x, generator)
            confidence, labels = G.most_probable(probs)
            every.update(labels, y)
            sure.update(labels, y.masked_fill(~(confidence >= method.threshold), IGNORE))
    return summary(every, sure, data.classes.names)


def summary(
    every: ConfusionMatrix, sure: ConfusionMatrix, names: tuple[str, ...]
) -> dict[str, Any]:
    """Compute scores of pseudo masks, all in 0..1; None for a score without pixels.

    Args:
        every: Confusion matrix of all pixels.
        sure: Confusion matrix of the pixels that are sure enough to be learned.
        names: Names of the classes.

    Returns:
        `precision` (share of the sure pixels that are right), `coverage` (share of the pixels that
        are sure), `miou` of all pixels, `precision_by_class` (of the sure pixels *given* a class)
        and `pass_rate` (share of the pixels *of* a class that are sure).

    Examples:
        >>> every, sure = ConfusionMatrix(2), ConfusionMatrix(2)
        >>> every.update(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 1]))
        >>> sure.update(torch.tensor([0, 1, 1, 1]), torch.tensor([0, 0, 1, 255]))
        >>> found = summary(every, sure, ("cat", "cow"))
        >>> found["coverage"], found["precision_by_class"], found["pass_rate"]
        (0.75, {'cat': 1.0, 'cow': 0.5}, {'cat': 1.0, 'cow': 0.5})
    """
    right = sure.counts.diagonal()
    given = map(ratio, right.tolist(), sure.counts.sum(0).tolist())
    passed = map(ratio, sure.counts.sum(1).tolist(), every.counts.sum(1).tolist())
    return {
        "precision": ratio(right.sum().item(), sure.counts.sum().item()),
        "coverage": ratio(sure.counts.sum().item(), every.counts.sum().item()),
        "miou": every.scores().to_dict(names)["miou"],
        "precision_by_class": dict(zip(names, given, strict=True)),
        "pass_rate": dict(zip(names, passed, strict=True)),
    }


def ratio(part: float, whole: float) -> float | None:
    """Divide a part by the whole; None if the whole is 0."""
    return part / whole if whole else None


def alike(dataset: Any, length: int) -> Iterator[list[Sample]]:
    """Yield neighbouring samples of the same size, a few at a time."""
    samples: list[Sample] = []
    for index in range(length):
        sample: Sample = dataset[index]
        if samples and (len(samples) == AT_ONCE or samples[0].mask.shape != sample.mask.shape):
            yield samples
            samples = []
        samples.append(sample)
    yield samples


def stack(
    samples: list[Sample], transform: Callable[[Any], Tensor], size: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Stack images and masks; crop and pad them at the bottom and right to `size` if given."""
    images = [transform(image).as_subclass(Tensor) for image, _ in samples]
    masks = [mask.as_subclass(Tensor).long() for _, mask in samples]
    if size is not None:  # a negative padding cuts
        margins = [(0, size[1] - y.shape[1], 0, size[0] - y.shape[0]) for y in masks]
        images = [F.pad(x, margin) for x, margin in zip(images, margins, strict=True)]
        masks = [F.pad(y, m, value=IGNORE) for y, m in zip(masks, margins, strict=True)]
    return torch.stack(images), torch.stack(masks)
