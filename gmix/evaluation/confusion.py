"""A confusion matrix for a whole data set, and the scores computed from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from gmix.data.classes import IGNORE
from gmix.functional.shapes import check_ignore_index, check_tensor, within

CHUNK = 2**18
"""Pixels counted at a time: intermediate values would take several times the memory of a large mask."""


@dataclass(frozen=True)
class Scores:
    """The scores of a data set, all in 0..1.

    Attributes:
        miou: Mean of `iou` over the classes that occur (`nan` if none does).
        iou: Intersection over union per class; `nan` for an absent class. In the binary case
            background, then foreground.
        pixel_accuracy: Share of the pixels with the right class, without ignored pixels.
        absent: Classes that occur neither in a mask nor in a prediction; not part of `miou`.
    """

    miou: float
    iou: list[float]
    pixel_accuracy: float
    absent: list[int]

    @property
    def dice(self) -> list[float]:
        """Return Dice (F1) per class, `2 C_kk / (sum_j C_kj + sum_j C_jk)`; `nan` for an absent class.

        Equals `2 IoU / (1 + IoU)`: it ranks the results for a class as IoU does, with larger
        numbers.
        """
        return [2 * iou / (1 + iou) for iou in self.iou]

    @property
    def mean_dice(self) -> float:
        """Return the mean of `dice` over the classes that occur (`nan` if none does)."""
        present = [dice for dice in self.dice if not math.isnan(dice)]
        return sum(present) / len(present) if present else math.nan

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the scores for JSON: IoU and Dice by class name, with `None` instead of `nan`.

        Examples:
            >>> found = Scores(1.0, [1.0, math.nan], 0.5, [1]).to_dict(["cat", "cow"])
            >>> found["iou"], found["dice"]
            ({'cat': 1.0, 'cow': None}, {'cat': 1.0, 'cow': None})
        """
        return {
            "miou": _number(self.miou),
            "pixel_accuracy": _number(self.pixel_accuracy),
            "iou": dict(zip(names, map(_number, self.iou), strict=True)),
            "mean_dice": _number(self.mean_dice),
            "dice": dict(zip(names, map(_number, self.dice), strict=True)),
            "absent": [names[index] for index in self.absent],
        }


class ConfusionMatrix:
    """Count pixels by true and predicted class, in `num_classes**2` cells whatever the size of the data.

    `IoU_k = C_kk / (sum_j C_kj + sum_j C_jk - C_kk)` over the whole data set (not the mean of
    per-image IoU), rows true, columns predicted.

    Args:
        num_classes: Number of class ids; 2 in the binary case.
        ignore_index: Target value of pixels that do not count.

    Attributes:
        counts: An int64 tensor `(num_classes, num_classes)`. Counts of two parts of a data set add up
            to those of the whole.

    Examples:
        >>> matrix = ConfusionMatrix(num_classes=3)
        >>> matrix.update(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 1, 255]]]))
        >>> matrix.scores()
        Scores(miou=1.0, iou=[1.0, 1.0, nan], pixel_accuracy=1.0, absent=[2])
    """

    def __init__(self, num_classes: int, ignore_index: int = IGNORE) -> None:
        if not within(num_classes, 2, kind=Integral):
            raise ValueError(
                f"`num_classes` must be at least 2 (binary: background and foreground), "
                f"got {num_classes!r}"
            )
        check_ignore_index(num_classes, ignore_index)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count one batch.

        Args:
            pred: Predicted classes `(N, H, W)`, of any integer type.
            target: True classes and `ignore_index`, the same shape, of any integer type.

        Raises:
            TypeError: If an argument is no tensor, or does not hold integers.
            ValueError: If the shapes differ or a value is not a class.
        """
        for name, values in (("pred", pred), ("target", target)):
            check_tensor(name, values)
            kind = values.dtype
            if kind.is_floating_point or kind.is_complex or kind == torch.bool:
                raise TypeError(
                    f"`{name}` must hold classes as integers (uint8, int64 or any other integer type), "
                    f"got {kind}: pass class ids, such as `logits.argmax(1)`, or convert with `.long()`"
                )
        if pred.shape != target.shape:
            raise ValueError(
                f"`pred` and `target` must have the same shape (N, H, W), "
                f"got {tuple(pred.shape)} and {tuple(target.shape)}"
            )
        parts = (torch.split(x.flatten(), CHUNK) for x in (pred, target))
        for pred, target in zip(*parts, strict=True):
            # The index of a cell is up to num_classes**2, which may not fit the caller's type.
            pred, target = pred.long(), target.long()
            counted = target != self.ignore_index
            pred, target = pred[counted], target[counted]
            for name, values in (("pred", pred), ("target", target)):
                wrong = values[(values < 0) | (values >= self.num_classes)]
                if wrong.numel():
                    raise ValueError(
                        f"`{name}` must hold classes 0..{self.num_classes - 1}, "
                        f"got {wrong[0].item()}"
                    )
            cells = torch.bincount(target * self.num_classes + pred, minlength=self.num_classes**2)
            self.counts += cells.view_as(self.counts).cpu()

    def scores(self) -> Scores:
        """Compute the scores of everything counted so far."""
        correct = self.counts.diagonal()
        union = self.counts.sum(0) + self.counts.sum(1) - correct
        present = union > 0
        # A class without pixels divides 0 by 0, which gives nan as wanted.
        iou = correct.double() / union.double()
        return Scores(
            miou=iou[present].mean().item(),
            iou=iou.tolist(),
            pixel_accuracy=(correct.sum().double() / self.counts.sum().double()).item(),
            absent=(~present).nonzero().flatten().tolist(),
        )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
