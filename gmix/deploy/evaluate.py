"""Scoring of a finished run: `gmix evaluate`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from gmix.builders.notes import clipped, turned
from gmix.config.commands import EvaluateConfig, PredictConfig, PseudoLabelConfig
from gmix.config.files import known_data, known_layout, validation_files
from gmix.config.options import read_windows
from gmix.config.parser import missing, parse
from gmix.config.train_config import TrainConfig
from gmix.data import (
    Classes,
    SegmentationDataset,
    check_white,
    compare_palettes,
    data_names,
    eval_transform,
    fingerprint,
    fit_binary,
)
from gmix.evaluation import (
    CenterCrop,
    ConfusionMatrix,
    Inference,
    add_other_processes,
    count_pixels,
    draw_confusion,
)
from gmix.protocols import LabeledDataset
from gmix.runs.saved import SavedModel
from gmix.runtime.console import warn
from gmix.runtime.device import prepare_device
from gmix.runtime.distributed import start_processes
from gmix.runtime.own import check_own, own_file, write_own


def score_model(config: EvaluateConfig) -> dict[str, Any]:
    """Load a model and score it on images with masks.

    Returns:
        `miou`, `pixel_accuracy`, `iou` by class name, `mean_dice`, `dice` by class name, and `absent` classes, all
        scores in 0..1; `split`, a hash of the names of the scored images; and `incomparable_center`, if only that was
        scored.

    Raises:
        ValueError: If the model or the images are missing or do not match.
    """
    if config.model is None:
        raise missing(config, "model")
    check_places(config)
    predict, center = build_predict(config), config.center_size()
    processes = start_processes(config.device)
    device = prepare_device(processes.device or config.device, config.threads)
    saved = SavedModel.from_pretrained(config.model, device)
    source = judged_on(config, Path(config.model))
    files = validation_files(source)
    if files is None:
        raise ValueError("--val-images and --val-masks are missing (the run had none of its own)")
    notes = [*compare_palettes(files[1]), turned(source, files[0])]
    notes.append(clipped(files[0], saved.format, which=""))
    for note in filter(None, notes) if processes.first else ():
        warn(note)
    classes = fit_masks(saved.classes, source, files[1])
    dataset: LabeledDataset = SegmentationDataset(
        *files, classes, format=saved.format, turn_masks=source.mask_orientation == "stored"
    )
    if center is not None:
        if saved.size is not None:
            raise ValueError(
                "--incomparable-center cuts images, but this model was trained with --size, on "
                "whole ones resized: leave the flag out"
            )
        dataset = CenterCrop(dataset, center)
    own = count_pixels(
        saved.net,
        dataset,
        classes,
        transform=eval_transform(saved.mean, saved.std),
        size=saved.size,
        device=next(saved.net.parameters()).device,
        batch_size=config.batch,
        predict=predict,
        indices=processes.shard(len(files[0]), config.batch),
    )
    matrix = add_other_processes(own)
    found = matrix.scores().to_dict(classes.names)
    names = data_names(files[0], source.voc or source.data)
    found["split"] = fingerprint([], [], names)
    if center is not None:
        found["incomparable_center"] = list(center)
    if processes.first:
        write_scores(config, found, matrix, classes)
    return found


def check_places(config: EvaluateConfig) -> None:
    """Check before hours of scoring that the output files can be written.

    Raises:
        ValueError: If one cannot be written.
    """
    for name in ("out", "picture"):
        path = getattr(config, name)
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"--{name} {path}: its folder does not exist, make it first")
        if path is not None and Path(path).is_dir():
            raise ValueError(f"--{name} {path} is a folder: name a file in it")
    check_own(Path(path) for path in (config.out, config.picture) if path is not None)
    if config.picture is not None and Path(config.picture).suffix not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--picture {config.picture} must end with .png, .pdf or .svg")


def write_scores(
    config: EvaluateConfig, found: dict[str, Any], matrix: ConfusionMatrix, classes: Classes
) -> None:
    """Write the scores and the picture of the confusion matrix, as requested by the flags."""
    if config.out is not None:
        write_own(Path(config.out), json.dumps(found, indent=2) + "\n")
    if config.picture is not None:
        with own_file(Path(config.picture)) as aside:
            draw_confusion(matrix.counts, classes.names, aside)


def fit_masks(classes: Classes, config: EvaluateConfig | TrainConfig, masks: list[Path]) -> Classes:
    """Adapt the model's classes to the way these masks are stored.

    A model trained on one kind of Cityscapes masks may be scored on the other, and one trained on masks of 0 and 1 on
    masks of 0 and 255.

    Raises:
        ValueError: If a mask does not match the classes of the model.
    """
    compare_palettes(masks)
    layout = known_layout(config)
    if layout is None or layout.classes().names != classes.names:
        if isinstance(config, EvaluateConfig):  # masks of the run itself were checked together
            check_white(classes, masks)
        return fit_binary(classes, masks)
    return layout.classes(masks)


def build_predict(
    config: EvaluateConfig | PredictConfig | PseudoLabelConfig,
) -> Inference | None:
    """Return how images are predicted; None if whole, as they are.

    Examples:
        >>> build_predict(EvaluateConfig(window="513x769"))
        Inference(crop=(513, 769), stride=(342, 512), edge='shift', scales=(1.0,), flip=False)
    """
    crop, stride = read_windows(config.window, config.stride, config.edge) or (None, (1, 1))
    how = Inference(crop, stride, config.edge)
    if isinstance(config, EvaluateConfig):
        how = replace(how, scales=tuple(config.scale_factors()), flip=config.flip)
    return None if how == Inference() else how


def judged_on(config: EvaluateConfig, run: Path) -> EvaluateConfig | TrainConfig:
    """Return the flags with the images to score: given ones or the run's, with another list or part if given."""
    folders = config.val_images is not None or config.val_masks is not None
    known = known_data(config) is not None
    if folders and known:
        raise ValueError("give either --val-images and --val-masks or --data ROOT (--voc ROOT)")
    if config.dataset is not None and not (folders or known):
        raise ValueError(f"--dataset {config.dataset} needs --data ROOT, its folder")
    source = config if folders or known else original_data(run)
    names = ("val_list", "val_part", "mask_orientation")
    chosen: dict[str, Any] = {name: getattr(config, name) for name in names}
    default = {"val_list": "val", "val_part": "all"} if source is config else {}
    given = {name: value for name, value in chosen.items() if value is not None}
    if "val_list" in given and source.val_images is not None:
        raise ValueError(
            f"--val-list {config.val_list}: the images of {source.val_images} have no lists"
        )
    return replace(source, **{**default, **given})


def original_data(run: Path) -> TrainConfig:
    """Read the data flags of the run."""
    path = run / "config.yaml"
    if not path.is_file():  # OUT/model or OUT/best
        path = run.absolute().parent / "config.yaml"
    if not path.is_file():
        raise ValueError(f"--val-images is missing, and {run} has no config.yaml that names them")
    return parse(TrainConfig, "gmix train", "", ["--config", str(path)])
