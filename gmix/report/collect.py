"""What is in the folders of runs, finished or not; whatever is missing is left out."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmix.training.yamlfile import read_yaml

Points = list[tuple[int, float]]

BASELINE, FOCUS = "supervised", "guidedmix"
NAMES = {
    "supervised": "Supervised",
    "guidedmix": "GuidedMix",
    "mean_teacher": "Mean Teacher",
    "cct": "CCT",
    "cps": "CPS",
    "cutmix": "CutMix-Seg",
    "classmix": "ClassMix",
    "fixmatch": "FixMatch",
    "unimatch": "UniMatch",
}


@dataclass(frozen=True)
class RunRecord:
    """What one run has written about itself.

    Attributes:
        folder: `--out` of its training.
        settings: `config.yaml`.
        rows: `metrics.jsonl`, a dictionary a line.
        results: `results.json`; empty before the end.
    """

    folder: Path
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    results: dict[str, Any]

    @property
    def method(self) -> str:
        """As `--method` calls it."""
        return str(self.settings.get("method", FOCUS)).lower()

    @property
    def seed(self) -> int:
        """Of the training."""
        return int(self.settings.get("seed", 0))

    @property
    def step(self) -> int:
        """Steps done, as far as they were reported."""
        steps: list[int] = [row["step"] for row in self.rows]
        return max([int(self.results.get("steps") or 0), *steps])

    @property
    def scores(self) -> dict[str, Any]:
        """Of the last weights, or the last validation of an unfinished run; empty without one."""
        last = self.results.get("last") or {}
        return last or next((r["validation"] for r in reversed(self.rows) if "validation" in r), {})

    def terms(self) -> list[str]:
        """The loss terms, in the order they were written."""
        return list(dict.fromkeys(name for row in self.rows for name in row.get("losses", {})))

    def series(self, *path: str) -> Points:
        """A number over time: `series("losses", "total")`, `series("validation", "miou")`."""
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
    """Runs that differ in nothing but their seed, as one column of the report."""

    label: str
    runs: list[RunRecord]

    @property
    def first(self) -> RunRecord:
        """The one whose pictures are shown."""
        return self.runs[0]

    @property
    def miou(self) -> float | None:
        """Mean over the seeds, 0..1."""
        return mean(run.scores.get("miou") for run in self.runs)

    def iou(self, name: str) -> float | None:
        """Of one class, mean over the seeds, 0..1; None if it never occurs."""
        return mean(run.scores.get("iou", {}).get(name) for run in self.runs)


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the numbers that are known; None if none is.

    Examples:
        >>> mean([1.0, None, 2.0]), mean([None])
        (1.5, None)
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(known) if known else None


def find_runs(folders: Sequence[str | Path]) -> list[Path]:
    """The runs that folders are or hold, as those of `gmix compare` and `gmix demo` do.

    Raises:
        ValueError: if one is no run and holds none.
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
    return list(dict.fromkeys(found))


def read_run(folder: Path) -> RunRecord:
    """Read what there is of a run.

    Raises:
        ValueError: if its `config.yaml` cannot be read.
    """
    settings = read_yaml(folder / "config.yaml")
    return RunRecord(folder, settings, list(_rows(folder)), _results(folder))


def group_runs(runs: Sequence[RunRecord]) -> list[Group]:
    """Put the seeds of a method together; supervised comes first, GuidedMix last.

    Where one method and seed occur twice, its runs go by the names of their folders.
    """
    twice = {
        method
        for (method, _), count in Counter((run.method, run.seed) for run in runs).items()
        if count > 1
    }
    groups: dict[str, list[RunRecord]] = {}
    for run in runs:
        name = NAMES.get(run.method, run.method)
        if run.method in twice:
            name = run.folder.absolute().name.removesuffix(f"-{run.seed}")
        groups.setdefault(name, []).append(run)
    place = {BASELINE: 0, FOCUS: 2}
    found = [Group(name, members) for name, members in groups.items()]
    return sorted(found, key=lambda group: place.get(group.first.method, 1))


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in lines.splitlines():
        try:
            row = json.loads(line)
            row["step"] = int(row["step"])
        except (ValueError, TypeError, KeyError):  # just being written
            continue
        yield _sound(row, "losses", "validation", "pseudo")


def _results(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not finished
        return {}
    known = found if isinstance(found, dict) else {}
    return _sound(known, "images", "last", "best", "pseudo", "versions")


def _sound(found: dict[str, Any], *names: str) -> dict[str, Any]:
    """Without those entries that should be mappings and are not."""
    return {k: v for k, v in found.items() if k not in names or isinstance(v, dict)}
