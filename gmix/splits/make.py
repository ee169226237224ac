"""Choice of the labeled images: `gmix splits make`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gmix.builders.data import build_classes
from gmix.config.commands import SplitsMakeConfig
from gmix.config.files import all_files, known_data
from gmix.config.parser import missing
from gmix.config.train_config import TrainConfig
from gmix.data import Classes, Entry, Paths, data_names
from gmix.data.splits import check_same_text, format_split, whole_path
from gmix.runtime.atomic import atomic_write_text, make_folder
from gmix.splits.order import label_counts, seeded_order, stratified_order
from gmix.splits.pixels import class_pixels

# Flags that locate the data; they mean the same as in `gmix train`.
SOURCES = (
    *("images", "masks", "unlabeled"),
    *("dataset", "data", "voc", "train_list", "unlabeled_list"),
)


@dataclass(frozen=True)
class Made:
    """A split that was written.

    Attributes:
        folder: Folder with `labeled.txt` and `unlabeled.txt`.
        root: Folder that the paths in them are relative to.
        labeled: Number of images with masks.
        unlabeled: Number of all other images.
        absent: Classes without a labeled pixel; None if the classes are not known.
    """

    folder: Path
    root: Path
    labeled: int
    unlabeled: int
    absent: list[str] | None


def make_splits(config: SplitsMakeConfig) -> list[Made]:
    """Write `labeled.txt` and `unlabeled.txt` for each part of `--labels`.

    Masks are opened with `--stratify` (all of them), and with `--classes` or `--dataset` (the selected ones).

    Args:
        config: Options of `gmix splits make`.

    Raises:
        ValueError: If something is missing or inconsistent, or a file with another list would be overwritten; then
            nothing is written.
    """
    if config.labels is None or config.out is None:
        raise missing(config, "labels", "out")
    if config.stratify and config.classes is None and known_data(config) is None:
        raise ValueError("--stratify needs --classes N or FILE: what to spread evenly")
    given = TrainConfig(**{name: getattr(config, name) for name in SOURCES})
    (images, masks), groups = all_files(given)
    classes = None
    if config.stratify or config.classes is not None or config.dataset is not None:
        classes = build_classes(config, masks)
    pairs = dict(zip(images, masks, strict=True))  # without duplicates
    root = data_root(config)
    labelable = [Entry(*inside(pair, root)) for pair in pairs.items()]
    rest = [
        Entry(name)
        for name in set(inside(Paths.union(*groups), root)) - {entry.image for entry in labelable}
    ]
    parts, masks = label_counts(str(config.labels), len(pairs)), list(pairs.values())

    order = seeded_order([entry.image for entry in labelable], config.seed)
    if config.stratify and classes is not None:
        order = stratified_order(class_pixels(masks, classes)[:, :-1] > 0, order)

    found, files = [], {}
    for name, count in parts.items():
        folder = Path(config.out) / (name if len(parts) > 1 else "")
        labeled = sorted(labelable[i] for i in order[:count])
        unlabeled = sorted(rest + [labelable[i] for i in order[count:]])
        if not unlabeled:
            raise ValueError(f"--labels {name} would label every image: ask for fewer")
        files[folder / "labeled.txt"] = format_split(labeled)
        files[folder / "unlabeled.txt"] = format_split(unlabeled)
        chosen = [masks[i] for i in order[:count]]
        absent = None if classes is None else absent_classes(chosen, classes)
        found.append(Made(folder, root, len(labeled), len(unlabeled), absent))
    for path, text in files.items():  # check all files before writing the first
        check_same_text(path, text)
    for path, text in files.items():
        make_folder(path.parent)
        atomic_write_text(path, text)
    return found


def data_root(config: SplitsMakeConfig) -> Path:
    """Return the folder the paths in lists are relative to: the data set's, or the common parent.

    Raises:
        ValueError: If the folders have no common parent (drives of Windows).
    """
    if (known := known_data(config)) is not None:
        return known[1]
    folders = [config.images, config.masks, config.unlabeled]
    whole = [whole_path(folder) for folder in folders if folder is not None]
    try:
        return Path(os.path.commonpath(whole))
    except ValueError:
        raise ValueError(
            "a list can only name files of one drive: move the folders to one"
        ) from None


def inside(paths: Sequence[Path], root: Path) -> list[str]:
    """Return the names of files below the root.

    Raises:
        ValueError: If a file is elsewhere.
    """
    base = whole_path(root)
    for path in paths:
        if not whole_path(path).is_relative_to(base):
            raise ValueError(
                f"{path} is not inside of {root}, so no list can name it: move it there"
            )
    return data_names(paths, root)


def absent_classes(masks: list[Path], classes: Classes) -> list[str]:
    """Return the names of classes that occur in no mask."""
    counts = class_pixels(masks, classes).sum(axis=0)
    return [name for name, count in zip(classes.names, counts, strict=False) if not count]
