"""The picture sheet: colours, layout, errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from matplotlib.figure import Figure
from PIL import Image

from gmix.report import colour_mask, picture_sheet

PALETTE = [(10, 20, 30), (200, 0, 0), (0, 180, 90)]
NAMES = ["ground", "roof", "tree"]


@given(arrays.arrays(np.int64, (5, 7), elements=st.sampled_from([0, 1, 2, 3, 255, -1])))
def test_colour_mask_agrees_with_a_loop(mask: np.ndarray) -> None:
    painted = colour_mask(mask, PALETTE)
    assert painted.shape == (5, 7, 3)
    assert painted.dtype == np.uint8
    for y, x in np.ndindex(mask.shape):
        expected = PALETTE[mask[y, x]] if 0 <= mask[y, x] < 3 else (255, 255, 255)
        assert tuple(painted[y, x]) == expected


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.uint16])
def test_masks_of_any_integer_type_are_painted_alike(kind: type) -> None:
    palette = [(i, 255 - i, 7) for i in range(150)]
    painted = colour_mask(np.array([[0, 100, 127]], dtype=kind), palette)
    assert painted.tolist() == [[[0, 255, 7], [100, 155, 7], [127, 128, 7]]]


def row(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(0, 255, (20, 30, 3), dtype=np.uint8), rng.integers(0, 3, (20, 30))


def shown(sheet: Path) -> set[tuple[int, ...]]:
    with Image.open(sheet) as file:
        pixels = np.asarray(file.convert("RGB"))
    return {tuple(colour) for colour in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}


def test_every_class_of_the_cells_appears_in_its_colour(tmp_path: Path) -> None:
    image, mask = np.full((4, 4, 3), 77, np.uint8), np.array([[0, 2], [255, 2]])
    sheet = picture_sheet([(image, mask)], ["image", "truth"], NAMES, PALETTE, tmp_path / "a.png")
    assert {(77, 77, 77), PALETTE[0], PALETTE[2]} <= shown(sheet)


def test_the_legend_shows_classes_no_cell_has(tmp_path: Path) -> None:
    cell = np.zeros((4, 4), int)
    sheet = picture_sheet([(cell,)], ["truth"], NAMES, PALETTE, tmp_path / "a.png")
    assert PALETTE[1] in shown(sheet)


def test_the_sheet_grows_with_rows_and_columns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = []
    for rows, columns in ((1, 2), (3, 2), (1, 4)):
        cells = [row(rng) * (columns // 2) for _ in range(rows)]
        titles = [f"column {i}" for i in range(columns)]
        path = tmp_path / f"{rows}x{columns}.png"
        with Image.open(picture_sheet(cells, titles, NAMES, PALETTE, path)) as file:
            sizes.append(file.size)
    (width, height), (width3, height3), (width4, height4) = sizes
    assert (width3, height4) == (width, height)
    assert height3 > 2 * height - 200
    assert width4 > 1.8 * width


@pytest.mark.parametrize("columns", [1, 3, 7])
@pytest.mark.parametrize("names", [NAMES, ["traffic sign"] * 30, ["a rather long name " * 3, "b"]])
def test_no_entry_of_the_legend_is_cut_off(
    tmp_path: Path, columns: int, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(figure: Figure, *arguments: Any, **keywords: Any) -> None:
        figure.draw_without_rendering()
        legend, whole = figure.legends[0], figure.bbox
        shown = [*legend.get_texts(), *legend.get_patches()]
        assert len(legend.get_texts()) == len(names)
        for box in (artist.get_window_extent() for artist in shown):
            assert whole.x0 <= box.x0 < box.x1 <= whole.x1 and whole.y0 <= box.y0
        lowest = min(axes.bbox.y0 for axes in figure.axes)
        assert all(artist.get_window_extent().y1 <= lowest for artist in shown)
        checked.append(legend)

    checked: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", check)
    cell = np.zeros((4, 4), int)
    palette = [(0, 0, 0)] * len(names)
    picture_sheet([[cell] * columns], ["a"] * columns, names, palette, tmp_path / "a.png")
    assert checked
    if columns == 7:  # the room is used
        lines = {round(text.get_window_extent().y0) for text in checked[0].get_texts()}
        assert len(lines) < len(names)


@pytest.mark.parametrize(
    ("rows", "titles", "names", "message"),
    [
        ([], ["a"], NAMES, "`rows` is empty"),
        ([(np.zeros((4, 4), int),)], ["a", "b"], NAMES, "each of the 2 titles, row 0 has 1"),
        ([(np.zeros((4, 4), int),)], ["a"], NAMES[:2], "got 2 names and 3 colours"),
        ([(np.zeros((4, 4, 4)),)], ["a"], NAMES, "row 0 column 0 is (4, 4, 4)"),
        ([(np.zeros(4),)], ["a"], NAMES, "row 0 column 0 is (4,)"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(
    tmp_path: Path, rows: list, titles: list, names: list, message: str
) -> None:
    with pytest.raises(ValueError) as error:
        picture_sheet(rows, titles, names, PALETTE, tmp_path / "a.png")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "a.png").exists()
