"""Charts as inline SVG with the colours and the font of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gmix.report.collect import Points
from gmix.runtime.shown import in_figure

# matplotlib has no CSS: it draws in these colours, which are then replaced by those of the page.
INK, PALE, LINE, ACCENT, ON_ACCENT = "#010101", "#020202", "#030303", "#040404", "#050505"
GAIN, LOSS = "#060606", "#070707"
SERIES = [f"#0800{number:02x}" for number in range(8)]
_CSS = {
    INK: "currentColor",
    PALE: "var(--pale)",
    LINE: "var(--line)",
    ACCENT: "var(--accent)",
    ON_ACCENT: "var(--on-accent)",
    GAIN: "var(--gain)",
    LOSS: "var(--loss)",
    **{color: f"var(--s{number})" for number, color in enumerate(SERIES)},
}
WIDTH, HEIGHT = 4.2, 2.5  # inches; a phone is about as wide
SMALL = 10.5  # points


class Line(NamedTuple):
    """A curve."""

    label: str
    points: Points
    color: str
    dashed: bool = False


class Chart(NamedTuple):
    """A drawing, its title and a note."""

    title: str
    note: str
    svg: str


def line_chart(lines: Sequence[Line], *, percent: bool = False) -> str:
    """Draw curves over training steps.

    Args:
        lines: One or more lines, each with at least one point.
        percent: Whether values are shares, which are shown in percent.

    Examples:
        >>> drawn = line_chart([Line("total", [(1, 2.0), (2, 1.5)], SERIES[0])])
        >>> drawn.startswith("<svg"), "var(--s0)" in drawn, "http:" in drawn.replace("www.w3.org", "")
        (True, True, True)
    """
    figure, axes = _axes(WIDTH, HEIGHT)
    scale = 100 if percent else 1
    for line in lines:
        steps, values = zip(*line.points, strict=True)
        axes.plot(
            steps,
            [scale * value for value in values],
            color=line.color,
            linestyle=(0, (4, 2)) if line.dashed else "-",
            linewidth=1.8,
            marker="o" if len(steps) < 12 else None,
            markersize=3.5,
            label=in_figure(line.label),
        )
    axes.set_xlabel("step", fontsize=SMALL, color=PALE)
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    axes.margins(x=0.02, y=0.12)
    if percent:  # not 94 to 106 around a constant 100
        low, high = axes.get_ylim()
        high = min(high, 102)
        axes.set_ylim(max(0, min(low, high - 8)), high)
    labels = list(dict.fromkeys(line.label for line in lines))
    if len(labels) > 1:
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside upper left",
            ncols=min(3, len(labels)),
            frameon=False,
            fontsize=SMALL,
            labelcolor=INK,
            handlelength=1.8,
            columnspacing=1.2,
        )
    return to_svg(figure)


def histogram(values: npt.NDArray[Any], label: str) -> str:
    """Draw a histogram, in percent of all values."""
    figure, axes = _axes(WIDTH, HEIGHT)
    weights = np.full(len(values), 100 / len(values))
    axes.hist(values, bins=20, weights=weights, color=ACCENT, alpha=0.75, rwidth=0.92)
    axes.set_xlabel(label, fontsize=SMALL, color=PALE)
    axes.set_ylabel("% of draws", fontsize=SMALL, color=PALE)
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    return to_svg(figure)


def class_bars(
    names: Sequence[str],
    groups: Sequence[tuple[str, list[float | None]]],
    colors: Sequence[str],
    changes: Sequence[float | None],
) -> str:
    """Draw the IoU of each class, with a bar per group, and for the last group its value and change.

    Args:
        names: Names of the classes.
        groups: Label, and IoU of each class in 0..1; None for a class that does not occur.
        colors: A colour for each group.
        changes: Change of the last group in each class; None if there is no change to show.
    """
    thick = 0.19 if len(groups) > 1 else 0.26
    rows = thick * len(groups) + 0.14
    figure, axes = _axes(5.2, 0.7 + rows * len(names))
    for place, ((label, values), color) in enumerate(zip(groups, colors, strict=True)):
        middle = [row * rows + (place - (len(groups) - 1) / 2) * thick for row in range(len(names))]
        axes.barh(
            middle,
            [100 * (v or 0) for v in values],
            thick * 0.86,
            color=color,
            label=in_figure(label),
        )
    for row, (after, change) in enumerate(zip(groups[-1][1], changes, strict=True)):
        known = [values[row] for _, values in groups if values[row] is not None]
        end = 100 * max((value for value in known if value is not None), default=0)
        if after is None:
            text, color = "does not occur", PALE
        elif change is None:
            text, color = f"{100 * after:.1f}", INK
        else:
            points = round(100 * change, 1)
            text = f"{100 * after:.1f}  ({points:+.1f})".replace("-", "−")
            color = GAIN if points > 0 else LOSS if points < 0 else PALE
        axes.text(end + 1.5, row * rows, text, va="center", fontsize=SMALL, color=color)
    axes.set_yticks(
        [row * rows for row in range(len(names))], map(in_figure, names), fontsize=SMALL
    )
    axes.set_ylim(len(names) * rows - rows / 2, -rows / 2)
    axes.set_xlim(0, 125)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.grid(axis="x", color=LINE, linewidth=0.7)
    axes.tick_params(axis="y", labelcolor=INK)
    if len(groups) > 1:
        figure.legend(
            loc="outside upper left",
            ncols=3,
            frameon=False,
            fontsize=SMALL,
            labelcolor=INK,
            handlelength=1.1,
        )
    return to_svg(figure)


def confusion_chart(counts: npt.NDArray[Any], names: Sequence[str]) -> str:
    """Draw a confusion matrix; rows are true classes and add up to 100 %, or are empty without true pixels."""
    from matplotlib.patches import Rectangle

    classes, names = len(names), [*map(in_figure, names)]
    cell = 0.46 if classes <= 12 else 0.3 if classes <= 30 else 0.12
    side = cell * classes
    room = 0.09 * max(map(len, names)) + 0.2
    figure, axes = _axes(side + room, side + room)
    true = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, true, out=np.zeros(counts.shape), where=true > 0)
    for row, column in np.argwhere(shares >= 0.005):
        share = float(shares[row, column])
        # Transparent, not pale: the background of the page may be white or black.
        axes.add_patch(
            Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, color=ACCENT, alpha=share**0.6, lw=0)
        )
        if classes <= 30:
            axes.text(
                *(column, row, f"{100 * share:.0f}"),
                ha="center",
                va="center",
                fontsize=SMALL if classes <= 12 else 7,
                color=ON_ACCENT if share**0.6 > 0.6 else INK,
            )
    size = SMALL if classes <= 30 else 5
    axes.set_xticks(range(classes), names, rotation=90, fontsize=size)
    axes.set_yticks(range(classes), names, fontsize=size)
    axes.tick_params(labeltop=True, labelbottom=False, labelcolor=INK)
    axes.set_xlim(-0.5, classes - 0.5)
    axes.set_ylim(classes - 0.5, -0.5)
    axes.set_aspect("equal")
    for edge in range(classes + 1):
        axes.axhline(edge - 0.5, color=LINE, linewidth=0.6)
        axes.axvline(edge - 0.5, color=LINE, linewidth=0.6)
    return to_svg(figure)


def to_svg(figure: Any) -> str:
    """Convert a figure to an `<svg>` element with real text, CSS colours and the size of its box."""
    from matplotlib import rc_context

    drawn = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "gmix"}):
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the ids would repeat in every chart
    width = re.search(r'width="([\d.]+)pt"', text)
    assert width is not None  # matplotlib always writes it
    size = f'style="max-width: {1.45 * float(width[1]):.0f}px"'
    text = re.sub(r' width="[\d.]+pt"', f' aria-hidden="true" {size}', text, count=1)
    text = re.sub(r' height="[\d.]+pt"', "", text, count=1)
    for color, css in _CSS.items():
        text = text.replace(color, css)
    return text


def _axes(width: float, height: float) -> tuple[Any, Any]:
    # The object interface, not pyplot: no global state and no window.
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    for name, spine in axes.spines.items():
        spine.set_color(LINE)
        spine.set_visible(name == "bottom")
    axes.tick_params(length=0, labelsize=SMALL, labelcolor=PALE)
    axes.set_axisbelow(True)
    return figure, axes
