"""Configuration of a training: every field is a command-line flag, a YAML key and a Python argument.

Importing this module is cheap (no torch), so that `gmix --help` answers at once.
"""

# ruff: noqa: RUF009 - `option` is `dataclasses.field` with a help text
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from gmix.config.options import (
    CLASSES,
    COMPARE,
    DATA,
    DATASETS,
    INPUT,
    KNOWN,
    MACHINE,
    METHOD,
    MODEL,
    OPTIM,
    OUTPUT,
    RECIPE,
    WEIGHTED,
    check_range,
    check_threads,
    flag,
    omitted_flag,
    option,
    parse_class_weights,
    parse_loss,
    parse_methods,
    parse_range,
    parse_size,
    write_loss,
)
from gmix.methods import METHODS


@dataclass
class TrainConfig:
    """Configuration of one training run.

    Paths are strings; sizes are written `HxW` (height first). The help text of each field is its documentation; `gmix
    train --help` prints it.

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
    mask_orientation: Literal["shown", "stored"] | None = option(
        None,
        CLASSES,
        "HOW",
        "masks were drawn on photos as shown, upright (default), or as stored: EXIF turns both",
    )

    arch: str = option("Unet", MODEL, "NAME", "any segmentation-models-pytorch architecture")
    encoder: str = option("resnet34", MODEL, "NAME", "any of its encoders")
    encoder_weights: str = option(
        "imagenet",
        MODEL,
        "NAME|PATH",
        "imagenet (downloads), lite0, lite1, lite2 (from packages), none, a file",
    )
    mitrans: bool = option(False, MODEL, "", "put the MITrans block before the decoder")
    model_args: dict[str, Any] = option(dict, MODEL, "YAML", "more arguments of the architecture")

    method: str = option(
        "guidedmix",
        METHOD,
        "NAME",
        f"or {', '.join(name for name in METHODS if name != 'guidedmix')}",
    )
    variant: str = option("default", METHOD, "NAME", "guidedmix: default, paper or official")
    method_args: dict[str, Any] = option(
        dict,
        METHOD,
        "YAML",
        'its settings: "{threshold: 0.9}"; parts of guidedmix: "{teacher: {decay: 0.999}}"',
    )

    loss: str = option(
        "ce",
        METHOD,
        "SUM",
        "of labeled images: ce, ohem, focal, dice, lovasz, or a sum: 0.5*ce+lovasz",
    )
    class_weights: str | None = option(
        None,
        METHOD,
        "auto|FILE",
        "for ce, ohem, focal: auto (by their labeled pixels), or a file: one number a class",
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
        1, INPUT, "N", "split a step's images into N micro-batches: less memory, same batch"
    )

    steps: int = option(4000, OPTIM, "N", "training steps")
    optimizer: Literal["adamw", "sgd"] = option("adamw", OPTIM, "NAME", "adamw, or the paper's sgd")
    lr: float = option(1e-3, OPTIM, "LR", "learning rate; falls to 0 as (1 - t/steps)^0.9")
    encoder_lr: float = option(0.3, OPTIM, "FACTOR", "the encoder's share of --lr; 0 freezes it")
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
    decide_for: Literal["miou", "pixels"] = option(
        "miou",
        OPTIM,
        "WHAT",
        "miou: class biases for the mIoU expected on unlabeled images; pixels: none",
    )
    seed: int = option(0, OPTIM, "N", "same seed, same batches, same result")
    skip_nonfinite: int = option(
        0, OPTIM, "N", "leave out up to N steps whose loss is not finite (checks each: slower)"
    )
    skip_damaged: int = option(
        0, INPUT, "N", "leave out up to N images that cannot be read; 0: stop at the first"
    )

    device: str = option("auto", MACHINE, "NAME", "auto, cpu, cuda, cuda:1, mps")
    amp: Literal["auto", "none", "bf16", "fp16"] = option(
        "auto",
        MACHINE,
        "TYPE",
        "bf16, fp16 or none; auto: bf16 or fp16 where the device computes in it",
    )
    channels_last: bool = option(True, MACHINE, "", "keep torch's own memory layout, often slower")
    sync_norm: bool = option(
        False, MACHINE, "", "BatchNorm over the images of all processes (GPUs only)"
    )
    compile: bool = option(
        False,
        MACHINE,
        "",
        "torch.compile: minutes at the start, then faster; hardly on a CPU (docs/speed.md)",
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
        "tensorboard",
        OUTPUT,
        "NAMES",
        "where numbers are shown live: tensorboard,wandb,mlflow,...; none",
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
    guard: bool = option(
        False, METHOD, "", "then train supervised, too, and say whether the unlabeled images helped"
    )
    dry_run: bool = option(
        False, OUTPUT, "", "say what the training would take; train and write nothing"
    )

    def __post_init__(self) -> None:
        """Check the values."""
        self.method = self.method.lower()
        for name in ("steps", "batch_labeled", "accumulate", "log_every", "keep_last", "channels"):
            check_range(name, getattr(self, name), 1)
        for name in (
            "batch_unlabeled",
            "held_out",
            "norm_batches",
            "eval_every",
            "checkpoint_every",
            "skip_nonfinite",
            "skip_damaged",
        ):
            check_range(name, getattr(self, name), 0)
        check_range("workers", self.workers, 0, 1024)
        if self.labels is not None:
            check_range("labels", self.labels, 1)
        check_threads(self.threads)
        if self.seed.bit_length() > 63:  # the limit of torch
            raise ValueError(f"--seed must be below 2^63 either way, got {self.seed}")
        for name in ("lr", "encoder_lr", "weight_decay", "rotate", "jitter"):
            if not 0 <= getattr(self, name) < math.inf:  # also refuses NaN
                raise ValueError(f"{flag(name)} must be 0 or more, got {getattr(self, name)}")
        batches = (self.batch_labeled, self.batch_unlabeled * self.learns_unlabeled)
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
        self.loss = write_loss(parse_loss(self.loss))
        self._read_class_weights()

    def _read_class_weights(self) -> None:
        """Replace a file of class weights by its numbers: `config.yaml` then says what the run was trained with."""
        if self.class_weights is None:
            return
        if self.class_weights.lower() == "auto":
            self.class_weights = "auto"
        else:
            weights = parse_class_weights(self.class_weights)
            self.class_weights = ",".join(map(repr, weights))
        if not any(name in WEIGHTED for _, name in parse_loss(self.loss)):
            raise ValueError(
                f"--class-weights: --loss {self.loss} takes none, it weighs classes alike already; "
                f"leave them out, or add a loss that does, e.g. --loss ce+{self.loss}"
            )

    @property
    def learns_unlabeled(self) -> bool:
        """Return whether the method learns from unlabeled images; unknown methods are refused later."""
        return self.method not in METHODS or METHODS[self.method].unlabeled

    def crop_size(self) -> tuple[int, int]:
        """Return height and width of the training crop."""
        return parse_size(self.crop or self.size or "256x256", "crop")

    def scale_range(self) -> tuple[float, float]:
        """Return the smallest and largest random scale."""
        low, high = parse_range(self.scale, "scale", "0.5-2")
        if not low > 0:
            raise ValueError(f"{flag('scale')} must be above 0, got {self.scale}")
        return low, high

    def value_span(self) -> tuple[float, float] | None:
        """Return the values of black and white for images of more than 8 bits, if they were given."""
        if self.value_range is None:
            return None
        low, high = parse_range(self.value_range, "value_range", "0-4095")
        if low == high:
            raise ValueError(f"{flag('value_range')} must have two values, got {self.value_range}")
        return low, high


@dataclass
class CompareConfig(TrainConfig):
    """Options of `gmix compare`: the flags of `gmix train`, the methods to run, and the number of seeds.

    Examples:
        >>> config = CompareConfig(methods="supervised, unimatch", seeds=2, seed=5)
        >>> config.method_names(), config.all_seeds()
        (['supervised', 'unimatch'], [5, 6])
    """

    methods: str = option(
        "supervised,guidedmix", COMPARE, "NAME,NAME,..", "what to compare, or all"
    )
    seeds: int = option(3, COMPARE, "N", "runs of each method: --seed, --seed + 1, ...")
    full: bool = option(False, COMPARE, "", "also train supervised with all masks: an upper bound")
    jobs: int = option(1, COMPARE, "N", "runs at a time")
    held_out: int = option(
        32, CLASSES, "N", "judge pseudo masks on N images whose mask --labels left unused"
    )
    method: str = omitted_flag("guidedmix", "name what to compare with --methods NAME,NAME")
    resume: bool = omitted_flag(False, "a comparison always goes on with what is in --out")
    guard: bool = omitted_flag(False, "a comparison trains supervised beside the others anyway")
    dry_run: bool = omitted_flag(False, "it is for `gmix train`: one training at a time")

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        for name in ("seeds", "jobs"):
            check_range(name, getattr(self, name), 1)
        if not self.method_names():
            raise ValueError("--methods names no method: write e.g. supervised,guidedmix")
        if self.full and self.labels is None:
            raise ValueError("--full needs --labels N: without it every run has all masks already")

    def method_names(self) -> list[str]:
        """Return the methods to compare, without duplicates, in the order given; `all` names every method."""
        return parse_methods(self.methods)

    def all_seeds(self) -> list[int]:
        """Return the seed of each run of a method."""
        return [self.seed + i for i in range(self.seeds)]
