"""How right a method's pseudo masks are, on images whose masks training never sees."""

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

AT_ONCE = 4  # whole images, beside a batch of labeled ones


def judge_pseudo_masks(
    method: Method,
    data: Data,
    *,
    transform: Callable[[Any], Tensor],
    batch_labeled: int,
    seed: int,
) -> dict[str, Any] | None:
    """Compare what the method would learn from on the held-out images with their masks.

    Nothing the training depends on is changed: neither the method nor torch's generators.

    Args:
        method: On its device.
        data: With held-out images, or without any.
        transform: uint8 image to normalised float image.
        batch_labeled: How many labeled images the method may refer to at a time.
        seed: Of which ones these are, and of the method's own draws; the same at each call.

    Returns:
        What `summary` says; None without held-out images.
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
    """Scores of pseudo masks, all in 0..1; None where there is no pixel to tell.

    Args:
        every: All pixels.
        sure: Those the method is sure enough of to learn them.
        names: Of the classes.

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
    """A share, or None of nothing."""
    return part / whole if whole else None


def alike(dataset: Any, length: int) -> Iterator[list[Sample]]:
    """Neighbouring samples, a few of one size at a time."""
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
    """A batch of images and masks; cut and padded at the bottom and right to `size` if given."""
    images = [transform(image).as_subclass(Tensor) for image, _ in samples]
    masks = [mask.as_subclass(Tensor).long() for _, mask in samples]
    if size is not None:  # a negative padding cuts
        margins = [(0, size[1] - y.shape[1], 0, size[0] - y.shape[0]) for y in masks]
        images = [F.pad(x, margin) for x, margin in zip(images, margins, strict=True)]
        masks = [F.pad(y, m, value=IGNORE) for y, m in zip(masks, margins, strict=True)]
    return torch.stack(images), torch.stack(masks)
