"""The results of a comparison, and the files that hold them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from gmix.compare.plan import UPPER, Run, table_rows
from gmix.compare.table import Record, Table, classes_table, scores_table
from gmix.config.train_config import CompareConfig
from gmix.runtime.infile import read_json
from gmix.runtime.own import write_own
from gmix.runtime.shown import printable


@dataclass
class Comparison:
    """The results of a comparison.

    Attributes:
        config: The flags.
        runs: All trainings, finished or not.
        done: Results of the finished trainings, by name.
        failures: Reasons why a run has no result, by name.
    """

    config: CompareConfig
    runs: list[Run]
    done: dict[str, Record] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @property
    def records(self) -> list[Record]:
        """Return the records of the finished runs, in order."""
        return [self.done[run.name] for run in self.runs if run.name in self.done]

    @property
    def tables(self) -> list[Table]:
        """Return the tables of scores and of IoU by class."""
        rows = table_rows(self.config)
        return [scores_table(self.records, rows), classes_table(self.records, rows)]

    @property
    def notes(self) -> list[str]:
        """Return what readers must know about the tables, a sentence each."""
        c = self.config
        found = [
            f"{c.steps} steps with {c.batch_labeled} labeled and {c.batch_unlabeled} unlabeled "
            f"images each, {c.arch} with {c.encoder}; the same labeled batches in every run of a "
            f"seed. mIoU in percent on the validation images, {describe_seeds(c.all_seeds())}."
        ]
        if c.full:
            found.append(
                f"{UPPER}: supervised training with all masks, so with other labeled batches: the upper bound."
            )
        if known := describe_split(self.records):
            found.append(known)
        if not any(record["pseudo"] for record in self.records):
            found.append(f"No pseudo masks were judged: {why_unjudged(c)}.")
        if missing := [run.name for run in self.runs if run.name not in self.done]:
            found.append(f"Not finished: {', '.join(missing)}.")
        return found

    @property
    def files(self) -> list[Path]:
        """Return the files that `write` writes."""
        return [Path(str(self.config.out)) / f"compare.{name}" for name in ("jsonl", "md")]

    def write(self) -> None:
        """Write `compare.jsonl` and `compare.md`, each completely or not at all.

        Raises:
            ValueError: If a file cannot be written, in one sentence.
        """
        lines = [json.dumps(record) + "\n" for record in self.records]
        tables = [table.markdown() for table in self.tables]
        texts = ["# Comparison", *map(printable, self.notes), *tables]
        for path, text in zip(self.files, ("".join(lines), "\n\n".join(texts) + "\n"), strict=True):
            write_own(path, text)


def read_record(run: Run) -> Record:
    """Make a line of compare.jsonl from the results of a finished training."""
    found = read_json(run.folder / "results.json")
    last = found["last"]
    same = (
        "split",
        "seconds_per_step",
        "image_passes_per_step",
        "peak_memory_bytes",
        "minutes",
        "pseudo",
    )
    return {
        "method": run.method,
        "seed": run.seed,
        "last": {"miou": last["miou"], "step": last["step"]},
        "best": found["best"],
        "iou": last["iou"],
        "images": found["images"],
        **{name: found[name] for name in same},
        "versions": found["versions"],
    }


def describe_split(records: list[Record]) -> str | None:
    """Describe the split, or warn if the runs used different images; None if no run is finished.

    Examples:
        >>> describe_split([{"method": "cps", "split": "1a"}, {"method": "cct", "split": "1a"}])
        'Split 1a.'
        >>> describe_split([{"method": "cps", "split": "1a"}, {"method": "cct", "split": "2b"}])
        'The runs are of different splits: 1a, 2b. Do not compare them.'
    """
    splits = sorted({record["split"] for record in records if record["method"] != UPPER})
    if len(splits) > 1:
        return f"The runs are of different splits: {', '.join(splits)}. Do not compare them."
    return f"Split {splits[0]}." if splits else None


def describe_seeds(seeds: list[int]) -> str:
    """Describe the seeds, and how their scores are combined.

    Examples:
        >>> describe_seeds([4]), describe_seeds([4, 5])
        ('seed 4', 'mean ± standard deviation over the seeds 4, 5')
    """
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"mean ± standard deviation over the seeds {', '.join(map(str, seeds))}"


def why_unjudged(config: CompareConfig) -> str:
    """Explain why the column of the pseudo masks is empty."""
    if config.held_out == 0:
        return "--held-out is 0"
    if config.labels is None:
        return "every mask is learned from (--labels N would leave some unused)"
    return "--labels leaves no mask of an unlabeled image unused"
