"""The page: a single HTML file that loads nothing else."""

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
    """The content of the page.

    Attributes:
        facts: Numbers and tables.
        scenes: Rows of validation images; empty if there are none.
        scored: Number of validation images scored to choose these, and number of all.
        class_keys: Legend of the classes.
        change_keys: Legend of the errors.
        pairs: Cards of the pair inspector; empty for methods without pairs.
        pair_step: The training step of these cards.
        curves: Charts over time.
        judged: Whether pseudo masks are among the charts.
        classes: Charts by class.
        focus: The run whose scores choose the scenes.
        safe: Whether to start with colour-blind safe colours.
        switch: Whether the data set's own colours differ from these.
        missing: Missing items, with reasons.
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
    """Render the page as HTML.

    Text from files (names of classes, images, settings) is escaped, and characters that would reverse the writing
    direction are made visible; only the charts, which have been treated in the same way, are inserted unescaped.
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
    return printable(value) if type(value) is str else value  # markup is a subclass of `str`
