"""The display of a running comparison: a live table in a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gmix.compare.plan import Run
from gmix.compare.table import NOTHING, Record, Table, mean, of, points
from gmix.runtime.console import say, show_anything
from gmix.runtime.infile import plain_file
from gmix.runtime.shown import printable

TAIL = 65536  # bytes of metrics.jsonl: the last reports and, most likely, a validation


class PlainBoard:
    """A line when a run starts and when it ends, for log files."""

    def __enter__(self) -> PlainBoard:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def note(self, text: str) -> None:
        """Show a line that stays on the screen."""
        say(text)

    def update(self, runs: Sequence[Run], records: Sequence[Record], now: Iterable[Run]) -> None:
        """Show the progress of all runs.

        Args:
            runs: All runs.
            records: Records of the finished runs.
            now: The running ones.
        """


class LiveBoard(PlainBoard):
    """A rich table with a row per method, below the notes."""

    def __init__(self) -> None:
        from rich.live import Live

        self.live = Live(refresh_per_second=2)

    def __enter__(self) -> LiveBoard:
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def note(self, text: str) -> None:
        """Show a line above the table."""
        self.live.console.print(printable(text), highlight=False, markup=False)

    def update(self, runs: Sequence[Run], records: Sequence[Record], now: Iterable[Run]) -> None:
        """Redraw the table."""
        self.live.update(rich_table(state_table(runs, records, now)))


def make_board() -> PlainBoard:
    """Make a live table in a terminal, a plain board elsewhere."""
    show_anything()
    return LiveBoard() if sys.stdout.isatty() else PlainBoard()


def state_table(runs: Sequence[Run], records: Sequence[Record], now: Iterable[Run]) -> Table:
    """Make a table of the progress of each method."""
    head = ["method", "seeds done", "running", "its last mIoU", "mean of the finished"]
    running = list(now)
    rows = []
    for method in dict.fromkeys(run.method for run in runs):
        done = of(records, method)
        here = [(run, how_far(run.folder)) for run in running if run.method == method]
        steps = [f"seed {run.seed}: {far.step}/{run.config.steps}" for run, far in here]
        rows.append(
            [
                method,
                f"{len(done)}/{sum(run.method == method for run in runs)}",
                "\n".join(steps) or NOTHING,
                "\n".join(points(far.miou) for _, far in here) or NOTHING,
                points(mean(record["last"]["miou"] for record in done)),
            ]
        )
    return Table("", head, rows)


class HowFar(NamedTuple):
    """The last step and mIoU that a run has reported."""

    step: int
    miou: float | None


def how_far(folder: Path) -> HowFar:
    """Read the end of a run's `metrics.jsonl`."""
    step, miou = 0, None
    try:
        with plain_file(folder / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL))
            lines = file.read().splitlines()
    except (OSError, ValueError):  # it has not started
        lines = []
    for line in lines:
        try:
            row = json.loads(line)
            step = row["step"]
            miou = row.get("validation", {"miou": miou})["miou"]
        except (
            ValueError,
            TypeError,
            KeyError,
            RecursionError,
        ):  # cut at the start, or just being written
            continue
    return HowFar(step, miou)


def print_table(table: Table) -> None:
    """Print a table fitted to the width of the terminal, or as Markdown into a file or pipe."""
    show_anything()
    if not sys.stdout.isatty():
        print(f"\n{table.markdown()}")
        return
    from rich.console import Console

    Console().print(rich_table(table))


def rich_table(table: Table) -> Any:
    """Convert a table to a rich table."""
    from rich.table import Table as RichTable
    from rich.text import Text

    def text(cell: str) -> Text:
        return Text("\n".join(map(printable, cell.split("\n"))))

    shown = RichTable(title=table.title or None, title_justify="left")
    for place, name in enumerate(table.head):
        shown.add_column(text(name), justify="right" if place else "left")
    for row in table.rows:
        shown.add_row(*map(text, row))
    return shown
