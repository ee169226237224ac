"""The content of the folders of runs, finished or not; missing files are skipped."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmix.compare.table import mean, shared_means
from gmix.config.train_config import TrainConfig
from gmix.config.yamlfile import FREE_ON_RESUME, read_settings
from gmix.methods import METHODS
from gmix.runtime.infile import plain_file, read_json

Points = list[tuple[int, float]]

BASELINE, FOCUS = "supervised", "guidedmix"
# Runs that differ only in these are seeds of the same experiment, wherever they were trained.
FREE = FREE_ON_RESUME | {
    "seed",
    "recipe",
    "device",
    "channels_last",
    "compile",
    "deterministic",
    "threads",
}
# Paths say little about the images: a data set has another folder on another machine.
PLACES = (
    *("images", "masks", "unlabeled", "unlabeled_shards", "val_images", "val_masks"),
    *("data", "voc", "train_list", "unlabeled_list", "val_list"),
)
DEFAULTS = TrainConfig()


@dataclass(frozen=True)
class RunRecord:
    """The files that a run has written.

    Attributes:
        folder: `--out` of its training.
        settings: `config.yaml`.
        rows: `metrics.jsonl`, a dictionary per line.
        results: `results.json`; empty before the end.
    """

    folder: Path
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    results: dict[str, Any]

    @property
    def method(self) -> str:
        """Return the method, as `--method` names it."""
        return str(self.settings.get("method", FOCUS)).lower()

    @property
    def seed(self) -> int:
        """Return the seed of the training."""
        return int(self.settings.get("seed", 0))

    @property
    def step(self) -> int:
        """Return the number of steps done, as far as they were reported."""
        steps: list[int] = [row["step"] for row in self.rows]
        return max([int(self.results.get("steps") or 0), *steps])

    @property
    def scores(self) -> dict[str, Any]:
        """Return the scores of the last weights, or of the last validation of an unfinished run; empty without one."""
        last = self.results.get("last") or {}
        return last or self._last_validation.get("validation", {})

    @property
    def scored_step(self) -> int:
        """Return the step of these scores; an unfinished run has taken more steps since."""
        return self.step if self.results.get("last") else int(self._last_validation.get("step", 0))

    @property
    def _last_validation(self) -> dict[str, Any]:
        return next((row for row in reversed(self.rows) if "validation" in row), {})

    @property
    def miou(self) -> float | None:
        """Return the mIoU of these scores, 0..1."""
        found: float | None = self.scores.get("miou")
        return found

    def iou(self, name: str) -> float | None:
        """Return the IoU of a class in these scores; None if it never occurs."""
        found: float | None = self.scores.get("iou", {}).get(name)
        return found

    def setting(self, name: str) -> Any:
        """Return a flag of its training; the default if the run is from a version without the flag."""
        return self.settings.get(name, getattr(DEFAULTS, name))

    def terms(self) -> list[str]:
        """Return the names of the loss terms, in the order in which they were written."""
        return list(dict.fromkeys(name for row in self.rows for name in row.get("losses", {})))

    def series(self, *path: str) -> Points:
        """Return a number over time: `series("losses", "total")`, `series("validation", "miou")`."""
        found = []
        for row in self.rows:
            value: Any = row
            for name in path:
                value = value.get(name) if isinstance(value, dict) else None
            if isinstance(value, (int, float)) and math.isfinite(value):
                found.append((int(row["step"]), float(value)))
        return found


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed: a column of the report."""

    label: str
    runs: list[RunRecord]

    @property
    def finished(self) -> list[RunRecord]:
        """Return the runs with scores of their last weights."""
        return [run for run in self.runs if run.results.get("last")]

    @property
    def seeds(self) -> set[int]:
        """Return the seeds of the finished runs."""
        return {run.seed for run in self.finished}

    @property
    def counted(self) -> list[RunRecord]:
        """Return the runs that means are taken over: the finished runs or, if there are none, the validated ones."""
        return self.finished or [run for run in self.runs if run.scores]

    @property
    def first(self) -> RunRecord:
        """Return the run whose pictures are shown."""
        return (self.counted or self.runs)[0]

    @property
    def miou(self) -> float | None:
        """Return the mIoU, mean over the seeds, 0..1."""
        return mean(run.miou for run in self.counted)

    def iou(self, name: str) -> float | None:
        """Return the IoU of a class, mean over the seeds, 0..1; None if it never occurs."""
        return mean(run.iou(name) for run in self.counted)


def find_runs(folders: Sequence[str | Path]) -> list[Path]:
    """List the runs that folders are or hold (as those of `gmix compare` and `gmix demo` do), each once.

    Raises:
        ValueError: If a folder is not a run and holds none.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        inside = sorted(path.parent for path in folder.glob("*/config.yaml"))
        runs = [folder] if (folder / "config.yaml").is_file() else inside
        if not runs:
            raise ValueError(
                f"no run in {folder}: expected the --out folder of `gmix train`, or a folder of such"
            )
        found += runs
    once: dict[Path, Path] = {}
    for run in found:
        once.setdefault(run.resolve(), run)
    return list(once.values())


def read_run(folder: Path) -> RunRecord:
    """Read the files that a run has written so far.

    Raises:
        ValueError: If its `config.yaml` cannot be read.
    """
    settings = read_settings(folder)
    return RunRecord(folder, settings, list(_rows(folder)), _results(folder))


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """Put the seeds of each experiment together; supervised comes first, GuidedMix last.

    An experiment is defined by its settings and its images, which may be in a different folder for each run. If a seed
    is repeated, only runs whose folder names differ in nothing but the seed are grouped. If a method has several
    groups, they are named after their folders.
    """
    same = [name for name in vars(DEFAULTS) if name not in FREE and name not in PLACES]
    groups = [
        part
        for group in _divide(runs, lambda run: [run.setting(name) for name in same])
        for part in ([group] if len(_divide(group, _sources)) == 1 else _divide(group, _data))
    ]
    for key in (_place, lambda run: run.folder):
        groups = [
            part
            for group in groups
            for part in (_divide(group, key) if _repeats(group) else [group])
        ]
    named = [Group(name, group) for name, group in zip(_names(groups), groups, strict=True)]
    place = {BASELINE: 0, FOCUS: 2}
    return sorted(named, key=lambda group: place.get(group.first.method, 1))


def compare_groups(
    before: Group, after: Group, value: Callable[[RunRecord], float | None]
) -> list[float] | None:
    """Compute the mean of a number in each of two groups, over the seeds that both have finished.

    Returns:
        Both means; None if they share no seed, or the runs learned from or were judged on different images.
    """
    splits = {run.results.get("split") for group in (before, after) for run in group.finished}
    if len(splits - {None, ""}) > 1:
        return None
    return shared_means(
        *({run.seed: value(run) for run in group.finished} for group in (before, after))
    )


def _divide(runs: Sequence[RunRecord], key: Callable[[RunRecord], Any]) -> list[list[RunRecord]]:
    """Divide runs into lists with equal keys, in order."""
    parts: list[list[RunRecord]] = []
    for run in runs:
        part = next((part for part in parts if key(part[0]) == key(run)), None)
        if part is None:
            parts.append([run])
        else:
            part.append(run)
    return parts


def _sources(run: RunRecord) -> list[Any]:
    return [run.setting(name) for name in PLACES]


def _data(run: RunRecord) -> Any:
    """Return the split of a run or, until it has ended, the paths of its images."""
    return run.results.get("split") or _sources(run)


def _repeats(runs: Sequence[RunRecord]) -> bool:
    return len({run.seed for run in runs}) < len(runs)


def _place(run: RunRecord) -> Path:
    """Return the folder of a run without the seed in its name, as `gmix compare` names folders."""
    folder = run.folder.absolute()
    return folder.parent / folder.name.removesuffix(f"-{run.seed}")


def _names(groups: Sequence[Sequence[RunRecord]]) -> list[str]:
    """Name the groups by method; if a method has several, by the shortest unique end of the folder."""
    methods = Counter(group[0].method for group in groups)
    places = [_place(group[0]) if group[1:] else group[0].folder.absolute() for group in groups]
    choices = []
    for group, place in zip(groups, places, strict=True):
        method = group[0].method
        path = place if places.count(place) == 1 else group[0].folder.absolute()
        ends = ["/".join(path.parts[-count:]) for count in range(1, len(path.parts) + 1)]
        label = METHODS[method].label if method in METHODS else method
        choices.append([label] if methods[method] == 1 else ends)
    taken = Counter(name for names in choices for name in names)
    return [next((name for name in names if taken[name] == 1), names[-1]) for names in choices]


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = plain_file(folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except (OSError, ValueError):
        return
    for line in lines.splitlines():
        try:
            row = json.loads(line)
            row["step"] = int(row["step"])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):  # being written
            continue
        yield _sound(row, "losses", "validation", "pseudo")


def _results(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / "results.json")
    except (OSError, ValueError):  # not finished
        return {}
    return _sound(found, "images", "last", "best", "pseudo", "versions")


def _sound(found: dict[str, Any], *names: str) -> dict[str, Any]:
    """Drop the entries that should be mappings but are not."""
    return {k: v for k, v in found.items() if k not in names or isinstance(v, dict)}
