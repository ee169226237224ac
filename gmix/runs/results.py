"""Results of a run, for people and programs: metrics.jsonl and results.json."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import gmix
from gmix.config.train_config import TrainConfig
from gmix.evaluation import Scores
from gmix.runs.trackers import Log, no_log
from gmix.runtime.atomic import atomic_write_text, cannot_write


class Report(NamedTuple):
    """Progress since the last report."""

    step: int  # steps done
    steps: int  # since the last report
    losses: dict[str, float]  # mean of every named loss
    lr: float  # learning rate of the last group (decoder and heads) at the last step
    seconds: float  # per step, including the wait for data
    images: int  # per step, labeled and unlabeled

    @property
    def speed(self) -> float:
        """Return the number of images per second."""
        return self.images / self.seconds


@dataclass
class Tally:
    """Totals of a run that must survive a restart, besides weights and optimizer."""

    best: tuple[float, int] | None = None  # highest mIoU so far and its step
    step_seconds: float = 0.0  # of the training steps alone
    seconds: float = 0.0  # total, including everything else
    image_passes: int | None = None  # images through an encoder in one step
    peak_memory: int | None = None  # bytes
    skipped: list[int] = field(default_factory=list)  # steps whose loss was not finite
    split: str = ""  # a hash of which images were used for what
    left_out: list[str] = field(default_factory=list)  # images that could not be read


class Metrics:
    """Writer of `metrics.jsonl`: one JSON object per line, in the order of steps.

    Args:
        path: File to write; its lines about steps after `start` are dropped, because a resumed run repeats them. If
            None, nothing is written.
        names: Class names.
        start: Number of steps already done.

    Attributes:
        log: Called with each line as well, to show it elsewhere.
    """

    def __init__(self, path: Path | None, names: Sequence[str], start: int) -> None:
        self.path = path
        self.names = names
        self.log: Log = no_log
        self._judged: set[tuple[int, str]] = set()
        if path is None:
            return
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        kept = [line for line in lines if _step(line) <= start]
        for row in map(json.loads, kept):
            self._judged |= {
                (row["step"], kind) for kind in ("validation", "pseudo") if kind in row
            }
        atomic_write_text(path, "".join(line + "\n" for line in kept))

    def lacks_validation(self, step: int) -> bool:
        """Return whether the file has no validation of this step; False if nothing is written."""
        return self.path is not None and (step, "validation") not in self._judged

    def report(self, report: Report) -> None:
        """Write losses, learning rate and speed."""
        speed = {"seconds_per_step": report.seconds, "images_per_second": report.speed}
        self._write({"step": report.step, "losses": report.losses, "lr": report.lr, **speed})

    def scores(self, step: int, scores: Scores) -> None:
        """Write validation scores, only once for each step."""
        self._write_once(step, "validation", scores.to_dict(self.names))

    def pseudo(self, step: int, pseudo: dict[str, Any]) -> None:
        """Write the quality of the pseudo masks of the held-out images, only once for each step."""
        self._write_once(step, "pseudo", pseudo)

    def _write_once(self, step: int, kind: str, found: dict[str, Any]) -> None:
        if (step, kind) not in self._judged:
            self._write({"step": step, kind: found})
            self._judged.add((step, kind))

    def _write(self, row: dict[str, Any]) -> None:
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self.log(row)


def write_results(
    path: Path,
    config: TrainConfig,
    names: Sequence[str],
    counts: dict[str, int],
    tally: Tally,
    scores: Scores | None,
    pseudo: dict[str, Any] | None = None,
) -> None:
    """Write `results.json`: scores of the last weights, best mIoU, images, cost, versions."""
    best = None if tally.best is None else {"miou": tally.best[0], "step": tally.best[1]}
    last = None if scores is None else {"step": config.steps, **scores.to_dict(names)}
    results = {
        "method": config.method,
        "seed": config.seed,
        "steps": config.steps,
        "images": counts,
        "split": tally.split,
        "last": last,
        "best": best,
        "pseudo": None if pseudo is None else {"step": config.steps, **pseudo},
        "minutes": tally.seconds / 60,
        "seconds_per_step": tally.step_seconds / config.steps,
        "image_passes_per_step": tally.image_passes,
        "peak_memory_bytes": tally.peak_memory,
        "skipped_steps": tally.skipped,
        "left_out": tally.left_out,
        "versions": versions(),
    }
    atomic_write_text(path, json.dumps(results, indent=2) + "\n")


def versions() -> dict[str, str]:
    """Return the versions of all software that affects results."""
    names = ("torch", "torchvision", "segmentation-models-pytorch", "timm")
    packages = {name: version(name) for name in names}
    return {"gmix": gmix.__version__, "python": platform.python_version(), **packages}


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
    ):  # the last line of a killed run may be cut
        return float("inf")
