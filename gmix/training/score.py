"""Scoring a finished run: `gmix evaluate`."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gmix.data import SegmentationDataset, eval_transform
from gmix.evaluation import evaluate, predict_multiscale
from gmix.training.build import validation_files
from gmix.training.config import EvaluateConfig, TrainConfig, read_yaml
from gmix.training.run import prepare_device
from gmix.training.saved import load_model


def score_model(config: EvaluateConfig) -> dict[str, Any]:
    """Load a model and score it.

    Returns:
        `miou`, `pixel_accuracy`, `iou` by class name, `absent` classes; all in 0..1.

    Raises:
        ValueError: if the model or the images are missing or do not fit.
    """
    if config.model is None:
        raise ValueError("--model DIR is missing: the --out folder of a finished `gmix train`")
    saved = load_model(config.model, prepare_device(config.device, config.threads))
    files = validation_files(config)
    if files is None:
        files = validation_files(original_data(Path(config.model), config.val_part))
    if files is None:
        raise ValueError("--val-images and --val-masks are missing (the run had none of its own)")
    scales = config.scale_factors()
    several = config.flip or scales != [1.0]
    scores = evaluate(
        saved.net,
        SegmentationDataset(*files, saved.classes, format=saved.format),
        saved.classes,
        transform=eval_transform(saved.mean, saved.std),
        size=saved.size,
        device=next(saved.net.parameters()).device,
        batch_size=config.batch,
        predict=partial(predict_multiscale, scales=scales, flip=config.flip) if several else None,
    )
    found = scores.to_dict(saved.classes.names)
    if config.out is not None:
        Path(config.out).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def original_data(run: Path, part: Literal["all", "odd", "even"]) -> TrainConfig:
    """The data flags of the run; `part` overrides its own unless it is "all"."""
    path = run / "config.yaml"
    if not path.is_file():
        raise ValueError(f"--val-images is missing, and {run} has no config.yaml that names them")
    config = TrainConfig(**read_yaml(path))
    return config if part == "all" else replace(config, val_part=part)
