"""Progress of a training: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from gmix.runtime.console import say, show_anything
from gmix.runtime.shown import printable

if TYPE_CHECKING:
    from gmix.runs.results import Report


class PlainProgress:
    """Progress as one line per report, suitable for log files.

    Args:
        steps: Number of steps of the training.
        start: Number of steps already done.
    """

    def __init__(self, steps: int, start: int = 0) -> None:
        self.steps = steps
        self.start = start
        self.miou: float | None = None

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def note(self, text: str) -> None:
        """Print a message between reports."""
        say(text)

    def report(self, report: Report) -> None:
        """Show a report of `fit`."""
        line = describe(report, self.steps, self.miou)
        self.note(f"step {report.step}/{self.steps}  {describe_losses(report)}  {line}")


class SilentProgress(PlainProgress):
    """No output, for all processes but the main one."""

    def note(self, text: str) -> None:
        """Print nothing."""


class LiveProgress(PlainProgress):
    """A rich progress bar and the losses, below the messages."""

    def __init__(self, steps: int, start: int = 0) -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.text import Text

        super().__init__(steps, start)
        text = TextColumn("{task.description}", markup=False)
        self.bar = Progress(BarColumn(bar_width=24), MofNCompleteColumn(), text)
        self.task = self.bar.add_task("first steps ...", total=steps, completed=start)
        self.losses = Text()
        self.live = Live(Group(self.bar, self.losses))

    def __enter__(self) -> LiveProgress:
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def note(self, text: str) -> None:
        """Print a message above the bar."""
        self.live.console.print(printable(text), highlight=False, markup=False)

    def report(self, report: Report) -> None:
        """Show a report of `fit`."""
        self.losses.plain = describe_losses(report)
        line = describe(report, self.steps, self.miou)
        self.bar.update(self.task, completed=report.step, description=line)


def make_progress(steps: int, start: int = 0) -> PlainProgress:
    """Return a live bar in a terminal, else plain lines."""
    show_anything()
    return LiveProgress(steps, start) if sys.stdout.isatty() else PlainProgress(steps, start)


def describe(report: Report, steps: int, miou: float | None) -> str:
    """Format speed, time left and last mIoU.

    Examples:
        >>> from gmix.training.fit import Report
        >>> report = Report(20, 20, {"ce": 1.0, "total": 1.5}, 1e-3, 0.5, 16)
        >>> describe(report, 140, 0.31)
        '32.0 images/s  1:00 left  mIoU 31.0'
        >>> describe_losses(report)
        'total 1.500  ce 1.000'
    """
    parts = [
        f"{report.speed:.1f} images/s",
        f"{clock((steps - report.step) * report.seconds)} left",
    ]
    if miou is not None:
        parts.append(f"mIoU {100 * miou:.1f}")
    return "  ".join(parts)


def describe_losses(report: Report) -> str:
    """Format all named losses, the total first."""
    names = sorted(report.losses, key=lambda name: name != "total")
    return "  ".join(f"{name} {report.losses[name]:.3f}" for name in names)


def clock(seconds: float) -> str:
    """Format seconds as minutes and seconds, with hours if there are any.

    Examples:
        >>> clock(60), clock(3725)
        ('1:00', '1:02:05')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
