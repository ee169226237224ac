"""Model card of a saved model: README.md, as the Hugging Face hub shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmix.config.options import CLASSES, INPUT, METHOD, MODEL, OPTIM, flag
from gmix.config.train_config import TrainConfig
from gmix.runs.results import versions
from gmix.runtime.shown import in_code, in_markdown, printable

if TYPE_CHECKING:
    from gmix.runs.saved import SavedModel

# Settings that the card lists elsewhere.
_SAID = {"arch", "encoder", "mitrans", "method", "steps", "seed", "classes", "label_map"}


# Machine flags that affect the weights.
_PRECISION = {"amp", "compile", "sync_norm"}


def training_facts(
    config: TrainConfig, images: Mapping[str, int], split: str, scores: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Collect the facts of a training for its model card: no paths, nothing about the machine.

    Args:
        config: Configuration of the run.
        images: Number of images of each kind.
        split: Hash of the split, as in `results.json`.
        scores: Validation scores of the saved weights, and their step; None without validation images.

    Examples:
        >>> config = TrainConfig(voc="VOC2012", recipe="voc_1-8_r101", lr=0.01)
        >>> facts = training_facts(config, {"labeled": 183}, "1f2e", None)
        >>> facts["dataset"], facts["split"], facts["settings"]
        ('voc', '1f2e', {'lr': 0.01})
    """
    settings, defaults = {}, TrainConfig()
    for item in fields(TrainConfig):
        value = getattr(config, item.name)
        learns = item.metadata["group"] in (CLASSES, MODEL, METHOD, INPUT, OPTIM)
        if (learns or item.name in _PRECISION) and item.name not in _SAID:
            if item.name == "encoder_weights":
                value = Path(value).name
            if value != getattr(defaults, item.name):
                settings[item.name] = value
    return {
        "dataset": config.dataset or ("voc" if config.voc else None),
        "images": dict(images),
        "split": split,
        "recipe": config.recipe,
        "method": config.method,
        "steps": config.steps,
        "seed": config.seed,
        "settings": settings,
        "scores": scores,
        "versions": versions(),
    }


def model_card(saved: SavedModel) -> str:
    """Return the text of README.md: data set, split, recipe, scores, input, and how to load the model.

    Facts that are unknown, because the model was not made by `gmix train`, are omitted. So is the license, which is the
    choice of whoever publishes the model.

    Args:
        saved: Model to describe; `saved.training` holds the facts about its training.
    """
    network = type(saved.net.model).__name__
    encoder = saved.net.model.config.get("encoder_name", "")
    title = printable(f"{network} with {encoder}" if encoder else network)
    training = saved.training or {}
    parts = [
        f"---\n{_header(saved, title)}\n---",
        f"# {in_markdown(title)}\n\nSemantic segmentation into {saved.classes.num_classes} classes: "
        f"{', '.join(map(in_markdown, saved.classes.names))}.",
        _training(training),
        _scores(training),
        _input(saved),
        _loading(saved, network),
        "## License\n\nNot said yet: it is up to who publishes this model.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def for_smp_alone(saved: SavedModel) -> bool:
    """Return whether segmentation_models_pytorch can build this whole network."""
    inside = type(saved.net.model).__module__.startswith("segmentation_models_pytorch")
    return inside and saved.net.mitrans is None


def _header(saved: SavedModel, title: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    training = saved.training or {}
    last, dataset = training.get("scores"), printable(training.get("dataset") or "own images")
    found = [("mean_iou", "mIoU", "miou"), ("dice", "mean Dice", "mean_dice")]
    measured = [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=dataset,
            dataset_name=f"{dataset}, validation images",
            metric_type=kind,
            metric_name=name,
            metric_value=last[key],
        )
        for kind, name, key in found
        if last and last.get(key) is not None
    ]
    tags = ["semantic-segmentation", "semi-supervised", "segmentation-models-pytorch", "gmix"]
    if "method" in training:
        tags.append(training["method"])
    data = ModelCardData(
        library_name="segmentation-models-pytorch" if for_smp_alone(saved) else "gmix",
        pipeline_tag="image-segmentation",
        tags=tags,
        model_name=title,
        eval_results=measured or None,
    )
    return str(data.to_yaml()).strip()


def _training(training: Mapping[str, Any]) -> str:
    if not training:
        return ""
    images = ", ".join(
        f"{number} {name.replace('_', ' ')}" for name, number in training["images"].items()
    )
    versions = ", ".join(f"{name} {number}" for name, number in training["versions"].items())
    settings = ", ".join(
        in_code(f"{flag(name)} {value}") for name, value in training["settings"].items()
    )
    rows = {
        "data set": in_markdown(training["dataset"] or "own images"),
        "images": in_markdown(images),
        "split": f"{in_code(training['split'])}, a hash of which images were used for what",
        "recipe": in_markdown(training["recipe"] or "none"),
        "method": in_markdown(training["method"]),
        "steps": training["steps"],
        "seed": training["seed"],
        "settings besides the defaults": settings or "none",
        "versions": in_markdown(versions),
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *lines])


def _scores(training: Mapping[str, Any]) -> str:
    if not training:
        return ""
    last = training.get("scores")
    if not last:
        return "## Scores\n\nNone: there were no validation images."

    def percent(value: float | None) -> str:
        return "does not occur" if value is None else f"{100 * value:.1f}"

    dice = last.get("dice", {})
    rows = [
        f"| {in_markdown(name)} | {percent(iou)} | {percent(dice.get(name))} |"
        for name, iou in last["iou"].items()
    ]
    mean = f"| **mean** | **{percent(last['miou'])}** | **{percent(last.get('mean_dice'))}** |"
    about = (
        f"In percent, on the validation images at their masks' own resolution, after step {last['step']}. "
        f"Pixel accuracy: {percent(last['pixel_accuracy'])}."
    )
    head = ["| class | IoU | Dice |", "|---|---|---|"]
    return "\n".join(["## Scores", "", about, "", *head, *rows, mean])


def _input(saved: SavedModel) -> str:
    stride, span = saved.net.stride, saved.format.span
    says = [
        f"- {saved.format.channels} channels, scaled to 0..1, then normalised with mean "
        f"{list(saved.mean)} and standard deviation {list(saved.std)}."
    ]
    if span is not None:
        says.append(
            f"- In files of more than 8 bits, {span[0]:g} becomes 0 and {span[1]:g} becomes 1."
        )
    if saved.size is not None:
        says.append(
            f"- Images were resized to {saved.size[0]} x {saved.size[1]} (height x width) first."
        )
    smallest = saved.net.padded(1, 1)[0]
    least = f" and at least {smallest}" if smallest > stride else ""
    says.append(
        f"- Height and width are multiples of {stride}{least}: pad with zeros at the bottom and right, after "
        "normalising. gmix does so itself."
    )
    output = (
        "one logit: above 0 it is the second class"
        if saved.classes.binary
        else "one logit a class, in the order above: the largest is the class"
    )
    return "\n".join(["## Input and output", "", *says, f"- Out comes {output}."])


def _loading(saved: SavedModel, network: str) -> str:
    alone = [
        "With segmentation_models_pytorch alone:",
        "",
        "```python",
        "import segmentation_models_pytorch as smp",
        "",
        'model = smp.from_pretrained("FOLDER").eval()',
        "logits = model(images)  # as described above",
        "```",
    ]
    if not for_smp_alone(saved):
        part = "attention (MITrans)" if saved.net.mitrans is not None else f"network ({network})"
        alone = [
            f"segmentation_models_pytorch alone does not know this model's {part}: load it with gmix, or "
            "write it with `gmix export` as a file that needs neither."
        ]
    return "\n".join(
        [
            "## Loading",
            "",
            *alone,
            "",
            "With gmix, which resizes, normalises and pads:",
            "",
            "```python",
            "import gmix",
            "",
            'saved = gmix.SavedModel.from_pretrained("FOLDER")',
            "classes = gmix.predict_image(saved, image)  # (C, H, W) in 0..255 -> (H, W)",
            "```",
        ]
    )
