"""Names of classes, files and settings reach terminals, pages and pictures as text, whatever is in them."""

import io
import re
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from test_predict import saved_model
from tiny_data import tiny_config, words, write_data

from gmix.cli.main import main
from gmix.compare.board import make_board, print_table
from gmix.compare.table import Table
from gmix.data import Classes
from gmix.evaluation import ConfusionMatrix, draw_confusion
from gmix.runs.card import model_card
from gmix.runs.progress import make_progress
from gmix.runtime.console import print_scores, say
from gmix.runtime.shown import in_code, in_figure, in_markdown, printable

HOSTILE = ["\x1b]0;owned\x07", "a|b", "<img src=x onerror=alert(1)>", "\u202egpj.exe", "`x` [y](z)"]
MARKDOWN = MarkdownIt("gfm-like", {"linkify": False})


class Terminal(io.TextIOWrapper):
    """A terminal of few letters."""

    def __init__(self, encoding: str, tty: bool) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty

    @property
    def text(self) -> str:
        self.flush()
        buffer: Any = self.buffer
        written: bytes = buffer.getvalue()
        return written.decode(self.encoding)


def scores(names: list[str]) -> dict[str, Any]:
    matrix = ConfusionMatrix(len(names))
    classes = torch.arange(len(names)).view(1, 1, -1)
    matrix.update(classes, classes)
    return matrix.scores().to_dict(names)


def test_no_formula_is_left_in_markdown() -> None:
    """Model cards and tables are read on GitHub, which typesets what is between dollars."""
    assert in_markdown("$x_1$ or $$y$$") == r"\$x_1\$ or \$\$y\$\$"


@given(st.text())
def test_nothing_that_is_obeyed_or_unseen_is_left(text: str) -> None:
    shown = printable(text)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cs", "Zl", "Zp"}
    assert {c for c in shown if unicodedata.category(c) == "Cf"} <= {"\u200c", "\u200d"}
    shown.encode()
    if text.isprintable():
        assert shown == text


@given(st.text(alphabet=st.sampled_from("ab \\`*_|~[]()<>&#;!$x1\n\x1b\u202e"), min_size=1))
def test_markdown_of_a_text_is_the_text(text: str) -> None:
    """Against a parser: what it reads is one cell with nothing but the text in it."""
    for cell in (in_markdown(f"a{text}a"), in_code(f"a{text}a")):
        tokens = MARKDOWN.parse(f"| h |\n|---|\n| {cell} |\n")
        cells = [token for token in tokens if token.type == "inline"]
        assert len(cells) == 2 and cells[1].children is not None
        assert {child.type for child in cells[1].children} <= {
            "text",
            "text_special",
            "code_inline",
        }
        read = "".join(child.content for child in cells[1].children)
        assert read == printable(f"a{text}a")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
@pytest.mark.parametrize("tty", [False, True])
def test_any_terminal_gets_all_lines(
    monkeypatch: pytest.MonkeyPatch, encoding: str, tty: bool
) -> None:
    monkeypatch.setattr(sys, "stdout", Terminal(encoding, tty))
    names = ["B\u00e4ume", "\u6c34", "\U0001f697", "\udcff", *HOSTILE]
    print_scores(scores(names))
    print_table(Table("\u6c34", ["class", "\u03bb"], [[name, "\u2013"] for name in names]))
    say(*names)
    with make_progress(3) as progress:
        progress.note(" ".join(names))
    with make_board() as board:
        board.note(" ".join(names))
    text = sys.stdout.text  # type: ignore[attr-defined]
    if not tty:  # else it has colours and moves of its own
        assert "\x1b" not in text
    assert "\x07" not in text and "\x1b]0" not in text and "\u202e" not in text
    assert re.search(r"^mIoU +100\.0$", text, re.MULTILINE)
    assert ("B\u00e4ume" if encoding != "ascii" else r"B\xe4ume") in text
    assert ("\u6c34" if encoding == "utf-8" else r"\u6c34") in text
    assert "\\x1b]0;owned\\x07" in text and "\\u202egpj.exe" in text


def test_a_training_on_an_ascii_terminal_comes_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data(tmp_path / "data")
    (data / "names.txt").write_text("Hintergrund\nB\u00e4ume\n\x1b[31mrot\x07\n", encoding="utf-8")
    monkeypatch.setattr(sys, "stdout", Terminal("ascii", tty=False))
    config = tiny_config(data, tmp_path / "out", method="supervised", steps=1, norm_batches=0)
    assert main(["train", *words(config)]) == 0
    text = sys.stdout.text  # type: ignore[attr-defined]
    assert r"B\xe4ume" in text and r"\x1b[31mrot\x07" in text
    assert "model and results are in" in text and "\x1b" not in text
    card = (tmp_path / "out" / "model" / "README.md").read_text(encoding="utf-8")
    assert "B\u00e4ume" in card and "\x1b" not in card


def test_a_model_card_holds_names_and_no_markup() -> None:
    saved = saved_model()
    names = tuple(HOSTILE)
    last = {"step": 5, **scores(HOSTILE)}
    training = {
        "dataset": None,
        "images": {"labeled": 3},
        "split": "1f2e",
        "recipe": None,
        "method": "supervised",
        "steps": 5,
        "seed": 0,
        "settings": {"method_args": {"a": "|`<b>\u202e"}},
        "versions": {"gmix": "0"},
        "scores": last,
    }
    card = model_card(replace(saved, classes=Classes(names), training=training))
    assert not {"\x1b", "\x07", "\u202e"} & set(card)
    tokens = MARKDOWN.parse(card.partition("\n---\n")[2])
    inline = [child for token in tokens for child in token.children or ()]
    kinds = {token.type for token in (*tokens, *inline)}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "em_open", "s_open"}
    for name in names:
        (row,) = [line for line in card.splitlines() if line.startswith(f"| {in_markdown(name)} |")]
        assert row.endswith("| 100.0 | 100.0 |")
    read = ["".join(c.content for c in token.children or ()) for token in tokens]
    assert all(printable(name) in read for name in names)
    assert "--method-args {'a': '|`<b>\\u202e'}" in read


def test_names_are_no_formulas_in_pictures(tmp_path: Path) -> None:
    names = ["$x^2$", "5 $", "_void", "\x1b\x07", "\u202ea", "\udcff", r"\frac$a$"]
    file = draw_confusion(torch.eye(7), names, tmp_path / "confusion.png")
    assert file.stat().st_size > 0
    assert in_figure("_void").strip() == "_void"
