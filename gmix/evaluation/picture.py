"""The confusion matrix as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from gmix.runtime.shown import in_figure

INK, PALE = "#1b1f24", "#6b7280"
NUMBERS = 30
"""With more classes than this the cells are too small for numbers and show only shades."""


def draw_confusion(counts: Tensor, names: Sequence[str], path: Path) -> Path:
    """Draw a confusion matrix: rows are true classes and add up to 100%, columns are predicted classes.

    `R_kj = C_kj / sum_j C_kj`; the diagonal is the recall of a class. The row of a class without true
    pixels is grey.

    Args:
        counts: `ConfusionMatrix.counts`, `(K, K)`.
        names: One name for each class.
        path: The file to write; its suffix sets the format (png, pdf, svg).

    Returns:
        `path`.

    Raises:
        ValueError: If there is not one name for each class.

    Examples:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = draw_confusion(torch.eye(2), ["cat", "cow"], Path(folder) / "confusion.png")
        ...     file.stat().st_size > 0
        True
    """
    classes = len(names)
    if tuple(counts.shape) != (classes, classes):
        raise ValueError(
            f"`counts` must be square with one row for each of the {classes} names, "
            f"got {tuple(counts.shape)}"
        )
    names = [in_figure(name) for name in names]
    # The object interface, not pyplot: no global state and no window.
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    table = counts.double().numpy()
    true = table.sum(axis=1, keepdims=True)
    shares = np.divide(100 * table, true, out=np.full_like(table, np.nan), where=true > 0)

    # All in inches: cells have the same size whatever the names, and the picture grows with the names.
    cell = 0.6 if classes <= 8 else 0.42 if classes <= NUMBERS else 0.2
    font = 10.0 if classes <= 8 else 9.0 if classes <= NUMBERS else 8.0
    side = cell * classes
    room = 0.1 + 0.0085 * font * max(map(len, names))  # for the names
    left, top, right, bottom = room + 0.2, room + 0.75, 0.9, 0.25
    width, height = max(left + side + right, 4.9), top + side + bottom
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)

    axes = figure.add_axes((left / width, bottom / height, side / width, side / height))
    shades = colormaps["Blues"].with_extremes(bad="#d9dce1")
    darkness = PowerNorm(0.6, vmin=0, vmax=100)  # makes a confusion of a few percent visible
    image = axes.imshow(shares, cmap=shades, norm=darkness, interpolation="nearest")
    axes.set_xticks(range(classes), names, rotation=90, fontsize=font, color=INK)
    axes.set_yticks(range(classes), names, fontsize=font, color=INK)
    axes.tick_params(length=0, top=False, bottom=False, labeltop=True, labelbottom=False)
    axes.set_xticks(np.arange(classes - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(classes - 1) + 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_color(PALE)
    if classes <= NUMBERS:
        for row, column in np.argwhere(shares >= 0.5):
            share = shares[row, column]
            ink = "white" if darkness(share) > 0.55 else INK
            number = axes.text(column, row, f"{share:.0f}", color=ink, fontsize=font)
            number.set(ha="center", va="center")

    tall = min(side, 4.0)
    low = bottom + side - tall
    bar = figure.add_axes(((left + side + 0.18) / width, low / height, 0.14 / width, tall / height))
    scale = figure.colorbar(image, cax=bar)
    scale.set_ticks([0, 10, 50, 100], labels=["0%", "10%", "50%", "100%"], fontsize=9, color=INK)
    scale.outline.set_visible(False)
    bar.tick_params(length=0)

    def write(text: str, inches: float, **style: Any) -> None:
        figure.text(0.2 / width, 1 - inches / height, text, va="baseline", **style)

    write("Confusion matrix", 0.35, fontsize=13, fontweight="bold", color=INK)
    note = "rows: true, in % of their pixels; columns: predicted"
    note += "; grey: no true pixels" if (true == 0).any() else ""
    write(note, 0.58, fontsize=9, color=PALE)
    figure.savefig(path, dpi=160)
    return path
