"""Check of a split for errors: `gmix splits audit`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from gmix.builders.data import build_classes
from gmix.compare.table import Table, number
from gmix.config.commands import SplitsAuditConfig
from gmix.config.files import known_layout
from gmix.config.parser import missing
from gmix.data import LAYOUTS, Classes, Entry, Layout, data_names, fingerprint
from gmix.data.layouts import Finder
from gmix.runtime.own import check_own, write_own
from gmix.splits.pixels import class_pixels

SHOWN = 3  # names listed in a note


@dataclass(frozen=True)
class Audit:
    """Findings about a split. Images are named by their path below the root, or as listed if missing.

    Attributes:
        split: Hash of the split, as in `results.json` of a run on it.
        counts: Number of entries of each list.
        duplicates: Images listed more than once, by list.
        overlaps: Images that two lists share, by pair of lists, e.g. `"labeled, val"`.
        missing: Files that do not exist, by list; of unlabeled images only the image counts.
        classes: Share of the labeled pixels and number of labeled images, by class name; None if the classes are not
            known.
        absent: Classes without a labeled pixel.
        ignored: Share of all pixels that belong to no class.
        fine: Number of labeled images in the list of finely annotated ones, and that list; None without a list.
    """

    split: str
    counts: dict[str, int]
    duplicates: dict[str, list[str]]
    overlaps: dict[str, list[str]]
    missing: dict[str, list[str]]
    classes: dict[str, dict[str, float]] | None = None
    absent: list[str] | None = None
    ignored: float | None = None
    fine: dict[str, Any] | None = None

    @property
    def leaks(self) -> dict[str, list[str]]:
        """Return validation images that are also trained on, by the other list they are in."""
        return {
            pair.removesuffix(", val"): names
            for pair, names in self.overlaps.items()
            if pair.endswith(", val") and names
        }

    @property
    def tables(self) -> list[Table]:
        """Return tables of the counts, overlaps and classes."""
        lists = [
            [name, str(count), str(len(self.duplicates[name])), str(len(self.missing[name]))]
            for name, count in self.counts.items()
        ]
        found = [Table("Lists", ["list", "images", "listed twice", "missing files"], lists)]
        if self.overlaps:
            shared = [[pair, str(len(names))] for pair, names in self.overlaps.items()]
            found.append(Table("In two lists", ["lists", "images"], shared))
        if self.classes is not None:
            rows = [
                [name, number(of["pixels"], "{:.2f}%", 100), str(of["images"])]
                for name, of in self.classes.items()
            ]
            head = ["class", "share of labeled pixels", "labeled images"]
            found.append(Table("Classes", head, rows))
        return found

    @property
    def notes(self) -> list[str]:
        """Return all other findings, one line each."""
        kinds = [("listed twice in", self.duplicates), ("missing of", self.missing)]
        kinds.append(("in both", self.overlaps))
        found = [
            f"{what} {where}: {first_of(names)}"
            for what, groups in kinds
            for where, names in groups.items()
            if names
        ]
        if self.absent:
            found.append(f"no labeled pixel of {', '.join(self.absent)}")
        if self.fine is not None:
            found.append(
                f"{self.fine['labeled']} of {self.counts['labeled']} labeled images are finely "
                f"annotated (in {self.fine['list']})"
            )
        return [*found, f"split {self.split}"]

    def to_json(self) -> str:
        """Return everything as JSON, with all names."""
        return json.dumps(asdict(self), indent=2) + "\n"


@dataclass(frozen=True)
class Listed:
    """Entries of a list, with the files found for them."""

    names: list[str]
    missing: list[str]
    masks: list[Path]


def audit_split(config: SplitsAuditConfig) -> Audit:
    """Check a split; only the masks of labeled images are opened, and only to count classes.

    Args:
        config: Options of `gmix splits audit`; findings are written to `out`, if it is given.

    Raises:
        ValueError: If a list or mask cannot be read, or `out` exists and is not gmix's. Missing images are a finding,
            not an error.
    """
    if config.root is None or config.labeled is None:
        raise missing(config, "root", "labeled")
    if config.out is not None:
        check_own([Path(config.out)])
    root, layout = Path(config.root), known_layout(config) or LAYOUTS["voc"]
    files = {"labeled": config.labeled, "unlabeled": config.unlabeled, "val": config.val}
    lists = {
        name: look_up(layout, root, file, with_masks=name != "unlabeled")
        for name, file in files.items()
        if file is not None
    }
    names = {name: set(listed.names) for name, listed in lists.items()}
    labeled, unlabeled, val = (names.get(name, set()) for name in files)
    histogram = {}
    if config.classes is not None or config.dataset is not None:
        masks = lists["labeled"].masks
        histogram = describe_classes(masks, build_classes(config, masks))
    found = Audit(
        # As in training: unlabeled images are those in neither other list.
        split=fingerprint(labeled, unlabeled - labeled - val, val),
        counts={name: len(listed.names) for name, listed in lists.items()},
        duplicates={name: repeated(listed.names) for name, listed in lists.items()},
        overlaps={f"{a}, {b}": sorted(names[a] & names[b]) for a, b in combinations(lists, 2)},
        missing={name: listed.missing for name, listed in lists.items()},
        fine=describe_fine(config, lists["labeled"].names),
        **histogram,
    )
    if config.out is not None:
        write_own(Path(config.out), found.to_json())
    return found


def look_up(layout: Layout, root: Path, listing: str, with_masks: bool) -> Listed:
    """Find the files of a list.

    Raises:
        ValueError: If the list cannot be read.
    """
    names, missing, masks = [], [], []
    finder = Finder(layout, root)
    for entry in finder.entries(listing):
        image = locate(finder.image, entry)
        names.append(entry.image if image is None else data_names([image], root)[0])
        if image is None:
            missing.append(entry.image)
        if with_masks:
            mask = locate(finder.mask, entry)
            if mask is None:
                missing.append(f"the mask {entry.mask or 'of ' + entry.image}")
            else:
                masks.append(mask)
    return Listed(names, missing, masks)


def locate(find: Callable[[Entry], Path], entry: Entry) -> Path | None:
    """Return a file of an entry, or None if it does not exist."""
    try:
        return find(entry)
    except (ValueError, OSError):
        return None


def describe_classes(masks: list[Path], classes: Classes) -> dict[str, Any]:
    """Count the classes in the labeled masks, as fields of `Audit`."""
    pixels = class_pixels(masks, classes)
    sums, images = pixels.sum(axis=0), (pixels > 0).sum(axis=0)
    known, total = sums[:-1].sum(), sums.sum()
    rows = {
        name: {"pixels": float(sums[k] / known) if known else 0.0, "images": int(images[k])}
        for k, name in enumerate(classes.names)
    }
    return {
        "classes": rows,
        "absent": [name for name, row in rows.items() if not row["images"]],
        "ignored": float(sums[-1] / total) if total else 0.0,
    }


def describe_fine(config: SplitsAuditConfig, labeled: list[str]) -> dict[str, Any] | None:
    """Count the labeled images in the list of finely annotated ones, if there is one."""
    root = Path(str(config.root))
    listing = config.fine
    if listing is None:
        official = root / "ImageSets" / "Segmentation" / "train.txt"
        if not official.is_file():
            return None
        listing = str(official)
    fine = set(look_up(LAYOUTS["voc"], root, listing, with_masks=False).names)
    return {"labeled": sum(name in fine for name in labeled), "list": listing}


def repeated(names: list[str]) -> list[str]:
    """Return the names that occur more than once, in order.

    Examples:
        >>> repeated(["b", "a", "b", "c", "a", "b"])
        ['b', 'a']
    """
    return [name for name, count in Counter(names).items() if count > 1]


def first_of(names: list[str]) -> str:
    """Shorten a list of names to the first few.

    Examples:
        >>> first_of(list("abcde")), first_of(["a"])
        ('a, b, c and 2 more', 'a')
    """
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
