"""The check whether the unlabeled images helped: `gmix train --guard`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gmix.builders.data import find_data
from gmix.config.train_config import TrainConfig
from gmix.data import Sample, eval_transform
from gmix.evaluation import Gain, count_pixels, paired_gain, tallies
from gmix.runs.saved import SavedModel
from gmix.runtime.console import is_main_process
from gmix.runtime.device import prepare_device
from gmix.runtime.own import write_own
from gmix.training.train import train

FOLDER = "guard-supervised"  # in the folder of the run


def check_guard(config: TrainConfig) -> None:
    """Check that there will be something to compare, and images to judge it on.

    Raises:
        ValueError: If one of them is missing.
    """
    if not config.learns_unlabeled:
        raise ValueError(
            "--guard compares a method that learns from unlabeled images with supervised training: "
            "choose another --method, or leave the flag out"
        )
    if images_to_judge(config)[0] is None:
        raise ValueError(
            "--guard needs images with masks that no training learns from: give --val-images and --val-masks, "
            "or --labels N with --held-out N"
        )


def guard(config: TrainConfig) -> str:
    """Train the supervised twin of a finished run, and say whether the unlabeled images helped.

    The twin has the same masks, steps, seed and finishing, and resumes if it was interrupted. Both are judged on
    the validation images or, without validation images, on the `--held-out` ones. `guard.json` keeps the numbers.

    Args:
        config: The flags of the run, whose `model/` exists.

    Returns:
        The result as a sentence.
    """
    out = Path(str(config.out))
    twin = out / FOLDER
    supervised = replace(
        config,
        method="supervised",
        variant="default",
        method_args={},
        out=str(twin),
        resume=(twin / "config.yaml").exists(),
        guard=False,
        report="none",
        trackers="none",
    )
    train(supervised)
    if not is_main_process():  # only the main process judges
        return ""
    dataset, kind = images_to_judge(config)
    assert dataset is not None  # `check_guard` has checked it
    device = prepare_device(config.device, config.threads)
    found = [
        tally(SavedModel.from_pretrained(folder, device), dataset, device) for folder in (twin, out)
    ]
    gain = paired_gain(*found)
    text = describe(gain, config.method, len(dataset), kind)
    numbers = {**gain._asdict(), "images": len(dataset), "judged_on": kind, "verdict": gain.verdict}
    write_own(out / "guard.json", json.dumps(numbers, indent=2) + "\n")
    return text


def describe(gain: Gain, method: str, images: int, kind: str) -> str:
    """Describe a gain in one sentence.

    Examples:
        >>> describe(Gain(0.041, 0.02, 0.062), "guidedmix", 40, "validation")[:84]
        'the unlabeled images helped: guidedmix is 4.1 points of mIoU above supervised traini'
    """
    where = "above" if gain.difference >= 0 else "below"
    return (
        f"the unlabeled images {gain.verdict}: {method} is {100 * abs(gain.difference):.1f} points of mIoU {where} "
        f"supervised training on {images} {kind} images (95 % of resampled images: {100 * gain.low:+.1f} to "
        f"{100 * gain.high:+.1f}; another seed would move it, too)"
    )


def images_to_judge(config: TrainConfig) -> tuple[Sequence[Sample] | None, str]:
    """Return images with masks that training does not learn from, and their name in messages."""
    data = find_data(config)
    if data.validation is not None:
        dataset: Any = data.validation
        return dataset, "validation"
    held_out: Any = data.held_out
    return held_out, "held-out"


def tally(saved: SavedModel, dataset: Sequence[Sample], device: torch.device) -> Tensor:
    """Count the pixels of each image for its IoU: `(n, 3, K)`."""
    transform = eval_transform(saved.mean, saved.std)
    return torch.stack(
        [
            tallies(
                count_pixels(
                    saved.net,
                    dataset,
                    saved.classes,
                    transform=transform,
                    size=saved.size,
                    device=device,
                    indices=[index],
                ).counts
            )
            for index in range(len(dataset))
        ]
    )
