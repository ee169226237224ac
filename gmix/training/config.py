"""The one flag vocabulary: every field is a command-line flag, a YAML key and a Python argument.

Importing this file costs nothing (no torch), so that `gmix --help` answers at once.
"""

# ruff: noqa: RUF009 - `option` is `dataclasses.field` with a help text
from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from gmix.training.whole import write_whole


def option(default: Any, group: str, metavar: str, help: str) -> Any:
    """A dataclass field that knows its own help text: the command line is built from it."""
    metadata = {"group": group, "metavar": metavar, "help": help}
    if default is dict:
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def left_out(default: Any, why: str) -> Any:
    """An inherited field that a command does without: no flag, and `why` for those who try it."""
    return field(init=False, default=default, metadata={"help": why})


COMPARE = "the comparison"
RECIPE = "a recipe: voc_1-8_r101, cityscapes_100_r101, cpu, medical, ... (docs/recipes.md)"
DATA = "your data: plain folders"
KNOWN = "your data: a known data set (instead of the folders above)"
CLASSES = "classes and labels"
MODEL = "the network"
METHOD = "the method"
INPUT = "what the network sees"
OPTIM = "optimisation"
SAVED = "the trained model"
IMAGES = "images"
TEST = "how images are tested"
MACHINE = "the machine"
OUTPUT = "output"
SPLIT = "the split"

WINDOW = ("HxW", "predict overlapping windows and average them (default: whole images)")
STRIDE = ("HxW", "from window to window (default: two thirds of --window)")
EDGE = ("HOW", "shift the last windows back into the image, or truncate them")

Edge = Literal["shift", "truncate"]

DATASETS = "voc, sbd, context, cityscapes, ade20k, coco, coco_stuff, camvid"


@dataclass
class TrainConfig:
    """Everything one training run depends on.

    Paths are strings; sizes are written `HxW` (height first). Each field is documented by its own
    help text, which `gmix train --help` prints.

    Examples:
        >>> config = TrainConfig(images="photos", masks="masks", classes="7", steps=100)
        >>> config.crop_size(), parse_size("120x160")
        ((256, 256), (120, 160))
    """

    recipe: str | None = option(None, RECIPE, "NAME", "start from its settings; flags win")

    images: str | None = option(None, DATA, "DIR", "images; those without a mask are unlabeled")
    masks: str | None = option(None, DATA, "DIR", "masks (PNG), named like their images")
    unlabeled: str | None = option(None, DATA, "DIR", "more images; never need a mask")
    unlabeled_shards: str | None = option(
        None, DATA, "TARS", "more of them in tar files: a folder, or pool/{0000..0099}.tar"
    )
    val_images: str | None = option(None, DATA, "DIR", "validation images, never trained on")
    val_masks: str | None = option(None, DATA, "DIR", "validation masks")

    dataset: str | None = option(None, KNOWN, "NAME", DATASETS)
    data: str | None = option(None, KNOWN, "ROOT", "its folder, in its usual layout")
    voc: str | None = option(None, KNOWN, "ROOT", "short for --dataset voc --data ROOT")
    train_list: str = option("train", KNOWN, "LIST", "labeled: a split, or a file of names")
    unlabeled_list: str | None = option(
        None, KNOWN, "LIST", "unlabeled; labeled ones are taken out"
    )
    val_list: str = option("val", KNOWN, "LIST", "validation")
    download: bool = option(False, KNOWN, "", "fetch it to ROOT if it is not there (voc, sbd)")

    classes: int | str | None = option(
        None, CLASSES, "N|FILE", "how many, or a file: one name a line (known data sets: theirs)"
    )
    label_map: str | dict[int, int] | None = option(
        None, CLASSES, "FILE|MAP", 'raw id to class, e.g. "0:0,8:1"; any other id is ignored'
    )
    labels: int | None = option(
        None, CLASSES, "N", "keep N evenly spaced masks; the other images become unlabeled"
    )
    held_out: int = option(
        0, CLASSES, "N", "judge pseudo masks on N images whose mask --labels left unused"
    )
    val_part: Literal["all", "odd", "even"] = option(
        "all",
        CLASSES,
        "PART",
        "all, odd or even validation images: choose on one, report the other",
    )

    arch: str = option("Unet", MODEL, "NAME", "any segmentation-models-pytorch architecture")
    encoder: str = option("resnet34", MODEL, "NAME", "any of its encoders")
    encoder_weights: str = option(
        "imagenet",
        MODEL,
        "NAME|PATH",
        "imagenet (downloads), lite0 (from its package), none, a file",
    )
    mitrans: bool = option(False, MODEL, "", "put the MITrans block before the decoder")
    model_args: dict[str, Any] = option(dict, MODEL, "YAML", "more arguments of the architecture")

    method: str = option(
        "guidedmix",
        METHOD,
        "NAME",
        "or supervised, mean_teacher, cct, cutmix, classmix, cps, fixmatch, unimatch",
    )
    variant: str = option("default", METHOD, "NAME", "guidedmix: default or paper")
    method_args: dict[str, Any] = option(
        dict,
        METHOD,
        "YAML",
        'its settings: "{threshold: 0.9}"; parts of guidedmix: "{teacher: {decay: 0.999}}"',
    )

    channels: int = option(3, INPUT, "N", "of the images: 3 RGB, 1 grey, or as many as they have")
    value_range: str | None = option(
        None, INPUT, "LOW-HIGH", "black and white in images of more than 8 bits, e.g. 0-4095"
    )
    size: str | None = option(None, INPUT, "HxW", "resize every image first (default: leave as is)")
    crop: str | None = option(None, INPUT, "HxW", "training crop (default: --size, else 256x256)")
    scale: str = option("0.5-2", INPUT, "LOW-HIGH", "range of random scaling before the crop")
    rotate: float = option(10.0, INPUT, "DEGREES", "largest random rotation")
    jitter: float = option(1.0, INPUT, "FACTOR", "strength of the colour jitter; 0: none")
    batch_labeled: int = option(8, INPUT, "N", "labeled images a step")
    batch_unlabeled: int = option(8, INPUT, "N", "unlabeled images a step")
    accumulate: int = option(
        1, INPUT, "N", "go through a step's images in N parts: less memory, same batch"
    )

    steps: int = option(4000, OPTIM, "N", "training steps")
    optimizer: Literal["adamw", "sgd"] = option("adamw", OPTIM, "NAME", "adamw, or the paper's sgd")
    lr: float = option(1e-3, OPTIM, "LR", "learning rate; falls to 0 as (1 - t/steps)^0.9")
    encoder_lr: float = option(0.3, OPTIM, "FACTOR", "the encoder's share of --lr")
    weight_decay: float = option(1e-4, OPTIM, "W", "weight decay")
    ema: float | None = option(
        None, OPTIM, "DECAY", "evaluate and save an average of the weights, e.g. 0.99"
    )
    norm_batches: int = option(
        40,
        OPTIM,
        "N",
        "test and save with BatchNorm statistics of N unlabeled batches; 0: as trained",
    )
    seed: int = option(0, OPTIM, "N", "same seed, same batches, same result")
    skip_nonfinite: int = option(
        0, OPTIM, "N", "leave out up to N steps whose loss is not finite (checks each: slower)"
    )

    device: str = option("auto", MACHINE, "NAME", "auto, cpu, cuda, cuda:1, mps")
    amp: Literal["auto", "none", "bf16"] = option(
        "auto",
        MACHINE,
        "TYPE",
        "bf16 mixed precision, none, or auto: bf16 if the device is made for it",
    )
    channels_last: bool = option(True, MACHINE, "", "keep torch's own memory layout, often slower")
    sync_norm: bool = option(
        False, MACHINE, "", "BatchNorm over the images of all processes (GPUs only)"
    )
    compile: bool = option(
        False, MACHINE, "", "torch.compile: minutes at the start, then faster (docs/speed.md)"
    )
    deterministic: bool = option(
        False, MACHINE, "", "the same bits each time on a GPU too: slower, some models refuse"
    )
    threads: int | None = option(None, MACHINE, "N", "CPU threads (default: torch decides)")
    workers: int = option(2, MACHINE, "N", "processes that load images; 0: none")
    cache: bool = option(False, MACHINE, "", "keep decoded images in memory")

    out: str | None = option(None, OUTPUT, "DIR", "where everything is written")
    resume: bool = option(False, OUTPUT, "", "go on from the last checkpoint in --out")
    log_every: int = option(20, OUTPUT, "N", "steps between lines in metrics.jsonl")
    trackers: str = option(
        "tensorboard", OUTPUT, "NAMES", "who shows them: tensorboard,wandb,mlflow,...; none"
    )
    eval_every: int = option(500, OUTPUT, "N", "steps between validations; 0: only at the end")
    checkpoint_every: int = option(
        500, OUTPUT, "N", "steps between checkpoints; 0: only at the end"
    )
    keep_last: int = option(2, OUTPUT, "N", "how many checkpoints stay")
    keep_best: bool = option(
        False, OUTPUT, "", "also keep the model of the highest mIoU seen, in OUT/best"
    )
    report: Literal["html", "none"] = option(
        "html", OUTPUT, "KIND", "html, or none: write no OUT/report.html at the end"
    )
    dry_run: bool = option(
        False, OUTPUT, "", "say what the training would take; train and write nothing"
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        for name in ("steps", "batch_labeled", "accumulate", "log_every", "keep_last", "channels"):
            _at_least(name, getattr(self, name), 1)
        for name in (
            "batch_unlabeled",
            "held_out",
            "norm_batches",
            "eval_every",
            "checkpoint_every",
            "skip_nonfinite",
        ):
            _at_least(name, getattr(self, name), 0)
        _at_least("workers", self.workers, 0, 1024)
        if self.labels is not None:
            _at_least("labels", self.labels, 1)
        _check_threads(self.threads)
        if self.seed.bit_length() > 63:  # what torch takes
            raise ValueError(f"--seed must be below 2^63 either way, got {self.seed}")
        for name in ("lr", "encoder_lr", "weight_decay", "rotate", "jitter"):
            if not 0 <= getattr(self, name) < math.inf:  # nan is neither
                raise ValueError(f"{flag(name)} must be 0 or more, got {getattr(self, name)}")
        batches = (self.batch_labeled, self.batch_unlabeled * (self.method != "supervised"))
        if any(batch % self.accumulate for batch in batches):
            raise ValueError(
                f"{flag('accumulate')} must divide {flag('batch_labeled')} {self.batch_labeled} "
                f"and {flag('batch_unlabeled')} {self.batch_unlabeled}, got {self.accumulate}"
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"{flag('ema')} must lie between 0 and 1, got {self.ema}")
        if self.size is not None:
            parse_size(self.size, "size")
        self.crop_size()
        self.scale_range()
        self.value_span()

    def crop_size(self) -> tuple[int, int]:
        """Height and width of the training crop."""
        return parse_size(self.crop or self.size or "256x256", "crop")

    def scale_range(self) -> tuple[float, float]:
        """Smallest and largest random scale."""
        low, high = parse_range(self.scale, "scale", "0.5-2")
        if not low > 0:
            raise ValueError(f"{flag('scale')} must be above 0, got {self.scale}")
        return low, high

    def value_span(self) -> tuple[float, float] | None:
        """Which values are black and white in images of more than 8 bits, if they were given."""
        if self.value_range is None:
            return None
        low, high = parse_range(self.value_range, "value_range", "0-4095")
        if low == high:
            raise ValueError(f"{flag('value_range')} must have two values, got {self.value_range}")
        return low, high


@dataclass
class CompareConfig(TrainConfig):
    """What `gmix compare` needs: the flags of `gmix train`, and which methods to run how often.

    Examples:
        >>> config = CompareConfig(methods="supervised, unimatch", seeds=2, seed=5)
        >>> config.method_names(), config.all_seeds()
        (['supervised', 'unimatch'], [5, 6])
    """

    methods: str = option("supervised,guidedmix", COMPARE, "NAME,NAME,..", "what to compare")
    seeds: int = option(3, COMPARE, "N", "runs of each method: --seed, --seed + 1, ...")
    full: bool = option(False, COMPARE, "", "also train supervised with all masks: an upper bound")
    jobs: int = option(1, COMPARE, "N", "runs at a time")
    held_out: int = option(
        32, CLASSES, "N", "judge pseudo masks on N images whose mask --labels left unused"
    )
    method: str = left_out("guidedmix", "name what to compare with --methods NAME,NAME")
    resume: bool = left_out(False, "a comparison always goes on with what is in --out")
    dry_run: bool = left_out(False, "it is for `gmix train`: one training at a time")

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        super().__post_init__()
        for name in ("seeds", "jobs"):
            _at_least(name, getattr(self, name), 1)
        if not self.method_names():
            raise ValueError("--methods names no method: write e.g. supervised,guidedmix")
        if self.full and self.labels is None:
            raise ValueError("--full needs --labels N: without it every run has all masks already")

    def method_names(self) -> list[str]:
        """The methods asked for, each once, in their order."""
        names = (name.strip().lower() for name in self.methods.split(","))
        return list(dict.fromkeys(filter(None, names)))

    def all_seeds(self) -> list[int]:
        """The seed of each run of a method."""
        return [self.seed + i for i in range(self.seeds)]


@dataclass
class EvaluateConfig:
    """What `gmix evaluate` needs; without data flags it takes the validation images of the run."""

    model: str | None = option(None, SAVED, "DIR", "--out folder of a finished `gmix train`")
    val_images: str | None = option(
        None, IMAGES, "DIR", "to score (default: the validation images of the run)"
    )
    val_masks: str | None = option(None, IMAGES, "DIR", "their masks, named like the images")
    dataset: str | None = option(None, IMAGES, "NAME", f"instead of folders: {DATASETS}")
    data: str | None = option(None, IMAGES, "ROOT", "its folder, in its usual layout")
    voc: str | None = option(None, IMAGES, "ROOT", "short for --dataset voc --data ROOT")
    val_list: str = option("val", IMAGES, "LIST", "of a known data set: a split, or a file")
    val_part: Literal["all", "odd", "even"] = option(
        "all", IMAGES, "PART", "all, odd or even images"
    )
    window: str | None = option(None, TEST, *WINDOW)
    stride: str | None = option(None, TEST, *STRIDE)
    edge: Edge = option("shift", TEST, *EDGE)
    scales: str = option("1", TEST, "S,S,..", "average over sizes, e.g. 0.5,0.75,1,1.25,1.5,1.75")
    flip: bool = option(False, TEST, "", "average with the mirrored image")
    incomparable_center: str | None = option(
        None, TEST, "HxW", "score this centre of each image only; compares with nothing else"
    )
    batch: int = option(8, TEST, "N", "images at a time, where they have one size")
    device: str = option("auto", MACHINE, "NAME", "auto, cpu, cuda, cuda:1, mps")
    threads: int | None = option(None, MACHINE, "N", "CPU threads (default: torch decides)")
    out: str | None = option(None, OUTPUT, "FILE", "also write the scores as JSON")
    picture: str | None = option(
        None, OUTPUT, "FILE", "also draw the confusion matrix: png, pdf or svg"
    )

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        _at_least("batch", self.batch, 1)
        _check_threads(self.threads)

    def center_size(self) -> tuple[int, int] | None:
        """Height and width of the centre to score; None: all of each image."""
        if self.incomparable_center is None:
            return None
        return parse_size(self.incomparable_center, "incomparable_center")

    def scale_factors(self) -> list[float]:
        """The sizes to average over."""
        try:
            factors = [float(part) for part in self.scales.split(",")]
        except ValueError:
            factors = []
        if not factors or not all(0 < factor < math.inf for factor in factors):
            raise ValueError(f"--scales must be written like 0.75,1,1.25, got {self.scales!r}")
        return factors


@dataclass
class PredictConfig:
    """What `gmix predict` needs."""

    model: str | None = option(None, SAVED, "DIR", "--out folder of a finished `gmix train`")
    images: str | None = option(None, IMAGES, "DIR", "of any kind and size")
    window: str | None = option(None, INPUT, *WINDOW)
    stride: str | None = option(None, INPUT, *STRIDE)
    edge: Edge = option("shift", INPUT, *EDGE)
    out: str | None = option(None, OUTPUT, "DIR", "gets masks/NAME.png and overlays/NAME.jpg")
    masks_only: bool = option(False, OUTPUT, "", "no overlays")
    device: str = option("auto", MACHINE, "NAME", "auto, cpu, cuda, cuda:1, mps")
    threads: int | None = option(None, MACHINE, "N", "CPU threads (default: torch decides)")

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        _check_threads(self.threads)


@dataclass
class ExportConfig:
    """What `gmix export` needs."""

    model: str | None = option(None, SAVED, "DIR", "--out folder of a finished `gmix train`")
    out: str | None = option(None, OUTPUT, "FILE", "model.onnx, or model.pt2 for torch.export")
    format: Literal["onnx", "torch"] | None = option(
        None, OUTPUT, "NAME", "onnx or torch (default: what the ending of --out says)"
    )
    size: str | None = option(
        None, INPUT, "HxW", "one size of all images (default: any; the batch is free in any case)"
    )

    def chosen_format(self) -> Literal["onnx", "torch"]:
        """What `--format` or the ending of `--out` says.

        Examples:
            >>> ExportConfig(out="model.pt2").chosen_format()
            'torch'
        """
        ending = Path(self.out or "").suffix.lower()
        if self.format is None and ending in (".onnx", ".pt2"):
            return "onnx" if ending == ".onnx" else "torch"
        if self.format is None:
            raise ValueError(
                f"--out must end with .onnx or .pt2, or --format say which: {self.out}"
            )
        if self.format == "torch" and ending != ".pt2":
            raise ValueError(f"torch.export wants a file that ends with .pt2, got --out {self.out}")
        return self.format


@dataclass
class PseudoLabelConfig:
    """What `gmix pseudo-label` needs."""

    model: str | None = option(None, SAVED, "DIR", "--out folder of a finished `gmix train`")
    images: str | None = option(None, IMAGES, "DIR", "of any kind and size")
    window: str | None = option(None, INPUT, *WINDOW)
    stride: str | None = option(None, INPUT, *STRIDE)
    edge: Edge = option("shift", INPUT, *EDGE)
    out: str | None = option(
        None, OUTPUT, "DIR", "gets masks/NAME.png, confidence/NAME.png and coco.json"
    )
    min_confidence: float = option(
        0.9, OUTPUT, "P", "pixels of less probability become 255, nobody's"
    )
    min_area: int = option(0, OUTPUT, "N", "so do regions of fewer pixels")
    device: str = option("auto", MACHINE, "NAME", "auto, cpu, cuda, cuda:1, mps")
    threads: int | None = option(None, MACHINE, "N", "CPU threads (default: torch decides)")

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(
                f"--min-confidence must lie between 0 and 1, got {self.min_confidence}"
            )
        _at_least("min_area", self.min_area, 0)


@dataclass
class ReportConfig:
    """What `gmix report` needs, besides the runs themselves."""

    out: str | None = option(
        None, OUTPUT, "FILE", "the page (default: report.html where the runs are), or the figure"
    )
    images: int = option(
        6, OUTPUT, "N", "evenly spaced validation images; half as many worst and best ones"
    )
    palette: Literal["default", "colorblind"] = option(
        "default", OUTPUT, "NAME", "colours of the classes: the data set's own, or colorblind"
    )
    figure: Literal["activations", "decoupling", "comparison"] | None = option(
        None,
        OUTPUT,
        "NAME",
        "a paper's figure instead of the page: activations, decoupling or comparison",
    )
    device: str = option("auto", MACHINE, "NAME", "auto, cpu, cuda, cuda:1, mps")
    threads: int | None = option(None, MACHINE, "N", "CPU threads (default: torch decides)")

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        _at_least("images", self.images, 1, 100)
        _check_threads(self.threads)
        if self.figure is not None and Path(self.out or "").suffix not in (".pdf", ".png", ".svg"):
            raise ValueError(
                f"--figure needs --out FILE that ends with .pdf, .png or .svg, got {self.out}"
            )


@dataclass
class DemoConfig:
    """What `gmix demo` needs."""

    out: str = option(
        "gmix-demo", OUTPUT, "DIR", "gets the scenes, both runs and the picture sheet"
    )
    steps: int | None = option(None, OPTIM, "N", "training steps (default: what takes minutes)")
    seed: int = option(0, OPTIM, "N", "same seed, same result")

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if self.steps is not None:
            _at_least("steps", self.steps, 1)


@dataclass
class SplitsMakeConfig:
    """What `gmix splits make` needs; the data flags are those of `gmix train`."""

    images: str | None = option(None, DATA, "DIR", "images; those without a mask are unlabeled")
    masks: str | None = option(None, DATA, "DIR", "masks (PNG), named like their images")
    unlabeled: str | None = option(None, DATA, "DIR", "more images; never need a mask")
    dataset: str | None = option(None, KNOWN, "NAME", DATASETS)
    data: str | None = option(None, KNOWN, "ROOT", "its folder, in its usual layout")
    voc: str | None = option(None, KNOWN, "ROOT", "short for --dataset voc --data ROOT")
    train_list: str = option("train", KNOWN, "LIST", "to choose from: a split, or a file of names")
    unlabeled_list: str | None = option(None, KNOWN, "LIST", "more images that stay unlabeled")
    labels: int | str | None = option(
        None, SPLIT, "N|A/B,..", "how many: 183, 1/8, or nested ones: 1/16,1/8"
    )
    seed: int = option(0, SPLIT, "N", "same seed, same split")
    stratify: bool = option(False, SPLIT, "", "spread the classes evenly (opens every mask)")
    classes: int | str | None = option(
        None, CLASSES, "N|FILE", "how many, or a file: one name a line"
    )
    label_map: str | dict[int, int] | None = option(
        None, CLASSES, "FILE|MAP", 'raw id to class, e.g. "0:0,8:1"; any other id is ignored'
    )
    out: str | None = option(None, OUTPUT, "DIR", "gets labeled.txt and unlabeled.txt")


@dataclass
class SplitsAuditConfig:
    """What `gmix splits audit` needs."""

    root: str | None = option(
        None, SPLIT, "DIR", "what the lists are relative to: the data set's folder"
    )
    dataset: str | None = option(None, SPLIT, "NAME", f"{DATASETS}; default: as voc")
    labeled: str | None = option(None, SPLIT, "LIST", "a file, or the name of a split")
    unlabeled: str | None = option(None, SPLIT, "LIST", "unlabeled; no mask of it is looked for")
    val: str | None = option(None, SPLIT, "LIST", "what is trained on must not be in it")
    fine: str | None = option(
        None, SPLIT, "LIST", "finely annotated images (default: ImageSets/Segmentation/train.txt)"
    )
    classes: int | str | None = option(
        None, CLASSES, "N|FILE", "how many, or names: opens the labeled masks and counts"
    )
    label_map: str | dict[int, int] | None = option(
        None, CLASSES, "FILE|MAP", 'raw id to class, e.g. "0:0,8:1"; any other id is ignored'
    )
    out: str | None = option(None, OUTPUT, "FILE", "also write what was found as JSON")


def parse_size(text: str, name: str = "size") -> tuple[int, int]:
    """Read `HxW`.

    Raises:
        ValueError: if the text is not two positive whole numbers joined by `x`.
    """
    parts = text.lower().split("x")
    good = [part for part in parts if part.isdecimal() and len(part) < 6 and int(part) > 0]
    if len(parts) != 2 or good != parts:
        raise ValueError(
            f"{flag(name)} must be written HxW, e.g. 120x160, at most 99999 each, got {text!r}"
        )
    return int(parts[0]), int(parts[1])


def read_windows(
    window: str | None, stride: str | None, edge: Edge
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Height and width of a window, and of the step to the next; None: whole images.

    Raises:
        ValueError: if the flags are not written `HxW`, or do not fit each other.

    Examples:
        >>> read_windows("513x513", None, "shift")
        ((513, 513), (342, 342))
    """
    if window is None:
        if stride is not None or edge != "shift":
            raise ValueError("--stride and --edge are about windows: add --window HxW")
        return None
    height, width = parse_size(window, "window")
    down, right = max(1, height * 2 // 3), max(1, width * 2 // 3)
    if stride is not None:
        down, right = parse_size(stride, "stride")
    if down > height or right > width:
        raise ValueError(
            f"--stride {stride} would leave gaps between windows of {window}: "
            "it must be at most --window"
        )
    return (height, width), (down, right)


def parse_range(text: str, name: str, example: str) -> tuple[float, float]:
    """Read `LOW-HIGH`; either may be negative.

    Raises:
        ValueError: if the text is not two numbers, the first at most as large as the second.

    Examples:
        >>> parse_range("-1000-400", "value_range", "0-4095")
        (-1000.0, 400.0)
    """
    found = re.fullmatch(r"\s*(-?[\d.]+(?:e-?\d+)?)-(-?[\d.]+(?:e-?\d+)?)\s*", text)
    try:
        low, high = (float(part) for part in found.groups()) if found else (1.0, 0.0)
    except ValueError:
        low, high = 1.0, 0.0
    if not -math.inf < low <= high < math.inf:
        raise ValueError(f"{flag(name)} must be written LOW-HIGH, e.g. {example}: {text!r}")
    return low, high


def suggest(word: str, known: Sequence[str]) -> str:
    """A hint at what was meant, or nothing.

    Examples:
        >>> suggest("--crops", ["--crop", "--size"])
        ', did you mean --crop?'
    """
    near = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {near[0]}?" if near else ""


def flag(name: str) -> str:
    """The command-line spelling of a field."""
    return "--" + name.replace("_", "-")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a mapping of flags (`batch-labeled` or `batch_labeled`) from a YAML file.

    Raises:
        ValueError: if the file cannot be read or is no mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the configuration {path}: {error}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """A mapping of flags from the text of a YAML file; `source` is what errors call it.

    Raises:
        ValueError: if it is no mapping.

    Examples:
        >>> parse_yaml("batch-labeled: 4", "mine.yaml")
        {'batch_labeled': 4}
    """
    import yaml

    try:
        _check_yaml(yaml.compose(text, yaml.SafeLoader))
        found = yaml.safe_load(text)
    except Exception as error:  # PyYAML raises nearly anything on what it cannot understand
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{source} is not valid YAML: {reason}") from None
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise ValueError(
            f"{source} must hold lines like `steps: 100`, got a {type(found).__name__}"
        )
    settings: dict[str, Any] = {}
    for key, value in found.items():
        name = str(key).replace("-", "_")
        if name in settings:
            raise ValueError(f"{source} gives {name} twice: keep one of the lines")
        settings[name] = value
    return settings


# A few lines of aliases of aliases can stand for more than any memory holds.
YAML_NODES = 200_000


def _check_yaml(root: Any) -> None:
    """Refuse what PyYAML takes without a word: keys given twice or of another kind, endless aliases."""
    waiting, count = [root], 0
    while waiting:
        node, count = waiting.pop(), count + 1
        if count > YAML_NODES:
            raise ValueError(f"it has more than {YAML_NODES} values, or aliases without end")
        inside = [] if node is None or isinstance(node.value, str) else node.value
        pairs = [pair for pair in inside if isinstance(pair, tuple)]
        keys = [key.value for key, _ in pairs if isinstance(key.value, str)]
        odd = [key.value for key, _ in pairs if key.tag.endswith((":float", ":bool"))]
        if odd:
            raise ValueError(f"{odd[0]} is no key: expected a word or a whole number")
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"{twice} is given twice: keep one of the two")
        waiting += [part for pair in pairs for part in pair] if pairs else inside


def write_yaml(config: TrainConfig, path: Path) -> None:
    """Write the resolved configuration: `gmix train --config FILE` repeats the run."""
    import yaml

    fresh = replace(config, resume=False, dry_run=False, report="html")
    write_whole(path, yaml.safe_dump(asdict(fresh), sort_keys=False))


# Where a run may go on elsewhere, or report more often, without changing its result.
FREE_ON_RESUME = {
    "resume",
    "out",
    "held_out",
    "download",
    "workers",
    "cache",
    "log_every",
    "trackers",
    "eval_every",
    "checkpoint_every",
    "keep_last",
    "keep_best",
    "skip_nonfinite",
    "report",
    "dry_run",
}


def refuse_changes(config: TrainConfig, path: Path) -> None:
    """Refuse to resume a run under other settings than it was started with.

    Raises:
        ValueError: naming the first flag that differs, both values and the remedy.
    """
    before = read_yaml(path)
    for name, now in asdict(config).items():
        if name not in FREE_ON_RESUME and name in before and before[name] != now:
            raise ValueError(
                f"cannot resume {path.parent}: it was started with {flag(name)} {before[name]}, "
                f"now {flag(name)} is {now}; use the old value or another --out"
            )


def _at_least(name: str, value: int, least: int, most: int = 2**31 - 1) -> None:
    if value < least:
        raise ValueError(f"{flag(name)} must be at least {least}, got {value}")
    if value > most:
        raise ValueError(f"{flag(name)} must be at most {most}, got {value}")


def _check_threads(threads: int | None) -> None:
    if threads is not None:
        _at_least("threads", threads, 1, 1024)
