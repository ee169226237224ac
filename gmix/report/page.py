"""The page: one HTML file that fetches nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmix import __version__
from gmix.report.cards import WHY, Card, Key, PairCard
from gmix.report.charts import Chart
from gmix.report.facts import Facts
from gmix.runtime.shown import printable


@dataclass(frozen=True)
class Page:
    """Everything that is on the page.

    Attributes:
        facts: numbers and tables.
        scenes: rows of validation images; empty if there are none.
        scored: how many of how many validation images were scored to choose them.
        class_keys: legend of the classes.
        change_keys: legend of the errors.
        pairs: cards of the pair inspector; empty for methods without pairs.
        pair_step: the training step they are from.
        curves: charts over time.
        judged: whether pseudo masks are among them.
        classes: charts by class.
        focus: the run that chose the scenes.
        safe: start with colours that colour-blind people tell apart.
        switch: whether the data set's own colours are others.
        missing: what was left out, and why.
    """

    facts: Facts
    scenes: list[Card]
    scored: tuple[int, int] | None
    class_keys: list[Key]
    change_keys: list[Key]
    pairs: list[PairCard]
    pair_step: int
    curves: list[Chart]
    judged: bool
    classes: list[Chart]
    focus: str
    safe: bool
    switch: bool
    missing: list[str]


def render(page: Page) -> str:
    """The page as HTML.

    Whatever comes from files (names of classes, images, settings) is escaped, and what would turn the order of the
    letters around it is shown; only the charts, for which the same was done, go in as they are.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    source = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    kinds = [why for why in WHY if any(card.why == why for card in page.scenes)]
    return environment.from_string(source).render(
        page=page, facts=page.facts, kinds=kinds, why=WHY, version=__version__
    )


def _shown(value: Any) -> Any:
    return printable(value) if type(value) is str else value  # markup is a kind of `str`
