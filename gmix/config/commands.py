"""Flags of every command except `gmix train` and `gmix compare`.

Importing this module is cheap (no torch), so that `gmix --help` answers at once.
"""

# ruff: noqa: RUF009 - `option` is `dataclasses.field` with a help text
from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gmix.config.options import (
    CLASSES,
    DATA,
    DATASETS,
    EDGE,
    IMAGES,
    INPUT,
    KNOWN,
    MACHINE,
    OPTIM,
    OUTPUT,
    SAVED,
    SPLIT,
    STRIDE,
    TEST,
    WINDOW,
    Edge,
    check_range,
    check_threads,
    option,
    parse_size,
)


@dataclass
class EvaluateConfig:
    """Options of `gmix evaluate`; without data flags it scores the validation images of the run."""

    model: str | None = option(None, SAVED, "DIR", "--out folder of a finished `gmix train`")
    val_images: str | None = option(
        None, IMAGES, "DIR", "to score (default: the validation images of the run)"
    )
    val_masks: str | None = option(None, IMAGES, "DIR", "their masks, named like the images")
    dataset: str | None = option(None, IMAGES, "NAME", f"instead of folders: {DATASETS}")
    data: str | None = option(None, IMAGES, "ROOT", "its folder, in its usual layout")
    voc: str | None = option(None, IMAGES, "ROOT", "short for --dataset voc --data ROOT")
    val_list: str | None = option(
        None, IMAGES, "LIST", "of a known data set: a split, or a file (default: val, or the run's)"
    )
    val_part: Literal["all", "odd", "even"] | None = option(
        None, IMAGES, "PART", "all, odd or even images (default: all, or the run's)"
    )
    mask_orientation: Literal["shown", "stored"] | None = option(
        None, IMAGES, "HOW", "masks drawn on photos as shown, or as stored (default: as the run's)"
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
        """Check the values."""
        check_range("batch", self.batch, 1)
        check_threads(self.threads)

    def center_size(self) -> tuple[int, int] | None:
        """Return height and width of the centre to score; None for the whole image."""
        if self.incomparable_center is None:
            return None
        return parse_size(self.incomparable_center, "incomparable_center")

    def scale_factors(self) -> list[float]:
        """Return the scales to average over."""
        try:
            factors = [float(part) for part in self.scales.split(",")]
        except ValueError:
            factors = []
        if not factors or not all(0 < factor < math.inf for factor in factors):
            raise ValueError(f"--scales must be written like 0.75,1,1.25, got {self.scales!r}")
        return factors


@dataclass
class PredictConfig:
    """Options of `gmix predict`."""

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
        """Check the values."""
        check_threads(self.threads)


@dataclass
class ExportConfig:
    """Options of `gmix export`."""

    model: str | None = option(None, SAVED, "DIR", "--out folder of a finished `gmix train`")
    out: str | None = option(None, OUTPUT, "FILE", "model.onnx, or model.pt2 for torch.export")
    format: Literal["onnx", "torch"] | None = option(
        None, OUTPUT, "NAME", "onnx or torch (default: what the ending of --out says)"
    )
    size: str | None = option(
        None, INPUT, "HxW", "one size of all images (default: any; the batch is free in any case)"
    )

    def chosen_format(self) -> Literal["onnx", "torch"]:
        """Return the format from `--format`, or from the suffix of `--out`.

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
    """Options of `gmix pseudo-label`."""

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
        """Check the values."""
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(
                f"--min-confidence must lie between 0 and 1, got {self.min_confidence}"
            )
        check_range("min_area", self.min_area, 0)
        check_threads(self.threads)


@dataclass
class ReportConfig:
    """Options of `gmix report`, besides the runs themselves."""

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
        """Check the values."""
        check_range("images", self.images, 1, 100)
        check_threads(self.threads)
        if self.figure is not None and Path(self.out or "").suffix not in (".pdf", ".png", ".svg"):
            raise ValueError(
                f"--figure needs --out FILE that ends with .pdf, .png or .svg, got {self.out}"
            )


@dataclass
class DemoConfig:
    """Options of `gmix demo`."""

    out: str = option(
        "gmix-demo", OUTPUT, "DIR", "gets the scenes, both runs and the picture sheet"
    )
    steps: int | None = option(None, OPTIM, "N", "training steps (default: what takes minutes)")
    seed: int = option(0, OPTIM, "N", "same seed, same result")

    def __post_init__(self) -> None:
        """Check the values."""
        if self.steps is not None:
            check_range("steps", self.steps, 1)


@dataclass
class SplitsMakeConfig:
    """Options of `gmix splits make`; the data flags are those of `gmix train`."""

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
    """Options of `gmix splits audit`."""

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
