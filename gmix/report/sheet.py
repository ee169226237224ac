"""A sheet of pictures for slides: a row per image, a column per view of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gmix.runtime.shown import in_figure

Colour = tuple[int, int, int]
Pixels = npt.NDArray[Any]

IGNORED: Colour = (255, 255, 255)
INK, PALE = "#1b1f24", "#6b7280"
DPI = 160
LEGEND = 11  # points
# Inches in a legend: a square with the space after it, and the space between two entries.
SQUARE, BETWEEN = (1.1 + 0.8) * LEGEND / 72, 1.4 * LEGEND / 72


def colour_mask(mask: Pixels, palette: Sequence[Colour]) -> npt.NDArray[np.uint8]:
    """Paint a class map; every id without a colour (255, say) becomes white.

    Args:
        mask: Class ids `(H, W)`.
        palette: One RGB colour in 0..255 for each class.

    Returns:
        The picture `(H, W, 3)`.

    Examples:
        >>> colour_mask(np.array([[0, 1, 255]]), [(0, 0, 0), (200, 0, 0)]).tolist()
        [[[0, 0, 0], [200, 0, 0], [255, 255, 255]]]
    """
    table = np.array([*palette, IGNORED], dtype=np.uint8)
    ids = mask.astype(np.int64)  # `len(palette)` may not fit the caller's type
    known = (ids >= 0) & (ids < len(palette))
    return table[np.where(known, ids, len(palette))]


def picture_sheet(
    rows: Sequence[Sequence[Pixels]],
    titles: Sequence[str],
    names: Sequence[str],
    palette: Sequence[Colour],
    path: Path,
    *,
    notes: Sequence[str] = (),
    heading: str = "",
) -> Path:
    """Draw images and class maps in a grid, with a legend of the class colours.

    Args:
        rows: One row for each image. A cell `(H, W, 3)` in 0..255 is shown unchanged; a cell
            `(H, W)` holds class ids and is painted with `palette`.
        titles: One title for each column, shown unchanged.
        names: One name for each class, for the legend, shown unchanged.
        palette: One RGB colour in 0..255 for each class.
        path: The file to write; its suffix sets the format (png, pdf, svg).
        notes: A second, paler line under each title, which may hold formulas; none if empty.
        heading: A line above the sheet.

    Returns:
        `path`.

    Raises:
        ValueError: If a row does not have one cell for each title, or a cell has another shape.

    Examples:
        >>> import tempfile
        >>> image, mask = np.zeros((8, 8, 3), np.uint8), np.eye(8, dtype=int)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = picture_sheet(
        ...         [(image, mask)], ["image", "truth"], ["sky", "bird"],
        ...         [(0, 0, 0), (230, 150, 0)], Path(folder) / "sheet.png",
        ...     )
        ...     file.stat().st_size > 0
        True
    """
    _check(rows, titles, names, palette)
    names, titles, heading = [*map(in_figure, names)], [*map(in_figure, titles)], in_figure(heading)
    # The object interface, not pyplot: no global state and no window.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    cell, gap, side = 2.0, 0.09, 0.25
    height, width = rows[0][0].shape[:2]
    tall = cell * height / width
    top = (0.75 if heading else 0.2) + (0.62 if notes else 0.36)
    entry = SQUARE + text_width(names, LEGEND)
    inner = max(len(titles) * cell + (len(titles) - 1) * gap, entry)
    legend_columns = min(len(names), int((inner + BETWEEN) / (entry + BETWEEN)))
    bottom = 0.3 + 0.3 * -(-len(names) // legend_columns)
    total_width = 2 * side + inner
    total_height = top + bottom + len(rows) * tall + (len(rows) - 1) * gap

    figure = Figure(figsize=(total_width, total_height), facecolor="white")
    FigureCanvasAgg(figure)

    def box(row: int, column: int) -> tuple[float, float, float, float]:
        left = side + column * (cell + gap)
        low = total_height - top - (row + 1) * tall - row * gap
        return (left / total_width, low / total_height, cell / total_width, tall / total_height)

    for i, row in enumerate(rows):
        for j, pixels in enumerate(row):
            axes = figure.add_axes(box(i, j))
            picture = pixels if pixels.ndim == 3 else colour_mask(pixels, palette)
            axes.imshow(picture, interpolation="nearest", aspect="auto")
            axes.set_axis_off()

    def write(text: str, inches: float, column: int, **style: Any) -> None:
        x = (side + column * (cell + gap)) / total_width
        figure.text(x, 1 - inches / total_height, text, va="baseline", ha="left", **style)

    if heading:
        write(heading, 0.45, 0, fontsize=16, fontweight="bold", color=INK)
    for j, title in enumerate(titles):
        write(title, top - (0.36 if notes else 0.1), j, fontsize=13, fontweight="bold", color=INK)
    for j, note in enumerate(notes):
        write(note, top - 0.12, j, fontsize=10.5, color=PALE)
    figure.legend(
        handles=[
            Patch(facecolor=np.array(colour) / 255, label=name)
            for name, colour in zip(names, palette, strict=True)
        ],
        loc="lower left",
        bbox_to_anchor=(side / total_width, 0.1 / total_height),
        borderaxespad=0,
        borderpad=0,
        ncols=legend_columns,
        frameon=False,
        fontsize=LEGEND,
        labelcolor=INK,
        handlelength=1.1,
        handleheight=1.1,
        handletextpad=0.8,
        columnspacing=1.4,
    )
    figure.savefig(path, dpi=DPI)
    return path


def text_width(texts: Sequence[str], points: float) -> float:
    """Measure the width of the widest of several lines of text, in inches.

    Examples:
        >>> text_width(["m", "mmm"], 11) > text_width(["iii"], 11) > text_width([""], 11)
        True
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=DPI)
    renderer = FigureCanvasAgg(figure).get_renderer()
    drawn = [figure.text(0, 0, text, fontsize=points) for text in texts]
    return float(max(text.get_window_extent(renderer).width for text in drawn)) / DPI


def _check(
    rows: Sequence[Sequence[Pixels]],
    titles: Sequence[str],
    names: Sequence[str],
    palette: Sequence[Colour],
) -> None:
    if not rows:
        raise ValueError("`rows` is empty: a sheet needs at least one row of pictures")
    if len(names) != len(palette):
        raise ValueError(
            f"`names` and `palette` must have one entry for each class, "
            f"got {len(names)} names and {len(palette)} colours"
        )
    for i, row in enumerate(rows):
        if len(row) != len(titles):
            raise ValueError(
                f"each row must have one cell for each of the {len(titles)} titles, "
                f"row {i} has {len(row)}"
            )
        for j, pixels in enumerate(row):
            if pixels.ndim != 2 and pixels.shape[2:] != (3,):
                raise ValueError(
                    f"a cell must be an image (H, W, 3) or class ids (H, W), "
                    f"row {i} column {j} is {tuple(pixels.shape)}"
                )
