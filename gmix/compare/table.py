"""The two tables of a comparison, from the results of all runs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from gmix.compare.plan import BASELINE, UPPER
from gmix.runtime.shown import in_markdown

Record = dict[str, Any]  # a line of compare.jsonl
NOTHING = "–"
GAP = "gap to all masks closed"


class Table(NamedTuple):
    """A table of text."""

    title: str
    head: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        r"""Format the table as Markdown below its title.

        Examples:
            >>> print(Table("T", ["a", "b"], [["x|y", "1"]]).markdown())
            ## T
            <BLANKLINE>
            | a | b |
            |---|---|
            | x\|y | 1 |
        """
        lines = [self.head, ["---"] * len(self.head), *self.rows]
        cells = [list(map(in_markdown, line)) for line in lines]
        text = ["|" + "|".join(line) + "|" for line in cells[1:2]]
        first, *rest = ("| " + " | ".join(line) + " |" for line in (cells[0], *cells[2:]))
        return "\n".join([f"## {in_markdown(self.title)}", "", first, *text, *rest])


def scores_table(records: Sequence[Record], methods: Sequence[str]) -> Table:
    """Make the table of scores, cost and quality of the pseudo masks, with a row per method.

    Args:
        records: Records of the finished runs.
        methods: The rows, in order; methods without a finished run are skipped.
    """
    rows = [scores_row(records, method) for method in methods if of(records, method)]
    if UPPER not in methods:
        for row in rows:
            del row[GAP]
    return Table("Scores", list(rows[0]) if rows else [], [list(row.values()) for row in rows])


def scores_row(records: Sequence[Record], method: str) -> dict[str, str]:
    """Make the cells of a method, by column title."""
    own = of(records, method)
    last = [record["last"]["miou"] for record in own]
    precision = mean(pseudo(record, "precision") for record in own)
    coverage = mean(pseudo(record, "coverage") for record in own)
    seconds = mean(record["seconds_per_step"] for record in own)
    passes = mean(record["image_passes_per_step"] for record in own)
    return {
        "method": method,
        "mIoU of the last weights": mean_and_spread(last),
        "each seed": ", ".join(points(value) for value in last),
        "best checkpoint (chosen with the validation masks)": points(
            mean(record["best"]["miou"] for record in own)
        ),
        "points against supervised": NOTHING
        if method == BASELINE
        else describe_gain(gain(records, method)),
        GAP: NOTHING if method in (BASELINE, UPPER) else share(gap_closed(records, method)),
        "seconds a step": number(seconds, "{:.3f}"),
        "image passes a step": number(passes, "{:g}"),
        "peak memory": memory([record["peak_memory_bytes"] for record in own]),
        "pseudo masks: precision / coverage": NOTHING
        if coverage is None
        else f"{share(precision)} / {share(coverage)}",
    }


def classes_table(records: Sequence[Record], methods: Sequence[str]) -> Table:
    """Make the table of the mean IoU of the last weights, with a row per class and a column per method.

    Examples:
        >>> records = [{"method": "cct", "iou": {"cat": 0.5}}, {"method": "cct", "iou": {"cat": 0.6}}]
        >>> classes_table(records, ["cct", "cps"])
        Table(title='IoU by class', head=['class', 'cct'], rows=[['cat', '55.0']])
    """
    shown = [method for method in methods if of(records, method)]
    names = list(records[0]["iou"]) if records else []
    rows = [
        [name, *(points(mean(r["iou"][name] for r in of(records, method))) for method in shown)]
        for name in names
    ]
    return Table("IoU by class", ["class", *shown], rows)


def gain(records: Sequence[Record], method: str, *others: str) -> float | None:
    """Compute the mean mIoU of a method minus that of the baseline, over the seeds that both (and `others`) have.

    Examples:
        >>> records = [
        ...     {"method": method, "seed": seed, "last": {"miou": miou}}
        ...     for method, seed, miou in [("supervised", 0, 0.25), ("cps", 0, 0.5), ("cps", 1, 1.0)]
        ... ]
        >>> gain(records, "cps"), gain(records, "cct")
        (0.25, None)
    """
    names = (BASELINE, method, *others)
    means = shared_means(*({r["seed"]: r["last"]["miou"] for r in of(records, n)} for n in names))
    return None if means is None else means[1] - means[0]


def shared_means(*rows: Mapping[int, float | None]) -> list[float] | None:
    """Compute the mean of each row over the seeds that all rows have; None if they share no seed.

    Args:
        *rows: A number, or None, for each seed.

    Examples:
        >>> shared_means({0: 0.25, 1: 0.5}, {0: 0.75, 1: None}), shared_means({0: 0.25}, {1: 0.5})
        ([0.25, 0.75], None)
    """
    known = [{seed: value for seed, value in row.items() if value is not None} for row in rows]
    seeds = set(known[0]).intersection(*known)
    return [statistics.fmean(row[seed] for seed in seeds) for row in known] if seeds else None


def gap_closed(records: Sequence[Record], method: str) -> float | None:
    """Compute the share of the gain with all masks that the method reaches without them; None if there is no gain."""
    gap = gain(records, UPPER, method)
    own = gain(records, method, UPPER)
    return None if own is None or gap is None or gap <= 0 else own / gap


def describe_gain(value: float | None) -> str:
    """Format a gain in points, with words if it is a loss.

    Examples:
        >>> describe_gain(0.0125), describe_gain(-0.02), describe_gain(None)
        ('+1.2', '-2.0, below supervised', '–')
    """
    if value is None:
        return NOTHING
    return f"{100 * value:+.1f}{', below supervised' if value < 0 else ''}"


def mean_and_spread(values: Sequence[float | None]) -> str:
    """Format mean ± standard deviation (of a sample: n - 1); a single value has no deviation.

    Examples:
        >>> mean_and_spread([0.4, 0.5]), mean_and_spread([0.4])
        ('45.0 ± 7.1', '40.0')
    """
    known = [100 * value for value in values if value is not None]
    if not known:
        return NOTHING
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}"


def memory(values: Sequence[int | None]) -> str:
    """Format the highest number of bytes.

    Examples:
        >>> memory([2_500_000, 3_000_000_000, None]), memory([None])
        ('3,000 MB', '–')
    """
    return number(
        max((value for value in values if value is not None), default=None), "{:,.0f} MB", 1e-6
    )


def mean(values: Iterable[float | None]) -> float | None:
    """Compute the mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def points(value: float | None) -> str:
    """Format a share in percent with one decimal."""
    return number(value, "{:.1f}", 100)


def share(value: float | None) -> str:
    """Format a share in whole percent."""
    return number(value, "{:.0f}%", 100)


def number(value: float | None, form: str, factor: float = 1) -> str:
    """Format a number, or a dash for None."""
    return NOTHING if value is None else form.format(factor * value)


def of(records: Sequence[Record], method: str) -> list[Record]:
    """Select the records of a method."""
    return [record for record in records if record["method"] == method]


def pseudo(record: Record, name: str) -> float | None:
    """Return a score of the pseudo masks of a run; None if they were not judged."""
    return None if record["pseudo"] is None else record["pseudo"][name]
