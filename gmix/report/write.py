"""A single HTML file with the results of trainings: `gmix report`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from gmix.config.commands import ReportConfig
from gmix.errors import one_line
from gmix.methods import GuidedMix
from gmix.report.cards import Card, Key, PairCard, change_keys, class_keys, pair_card, scene_card
from gmix.report.charts import Chart, confusion_chart, histogram
from gmix.report.collect import FOCUS, Group, find_runs, group_runs, read_run
from gmix.report.curves import PSEUDO, classes_chart, curve_charts
from gmix.report.facts import Facts, gather_facts
from gmix.report.page import Page, render
from gmix.report.pairs import draw_lambdas, replay_last_batch
from gmix.report.scenes import Scenes, load_newest, look_at_scenes
from gmix.runs.saved import SavedModel
from gmix.runtime.atomic import make_folder
from gmix.runtime.console import warn
from gmix.runtime.device import prepare_device
from gmix.runtime.own import check_own, write_own

T = TypeVar("T")
PAIRS = 4


def write_report(folders: Sequence[str | Path], config: ReportConfig) -> Path:
    """Write the report of a run, or of several side by side.

    Args:
        folders: Folders of runs, or folders that hold runs, as those of `gmix compare` and `gmix demo`.
        config: The number of pictures, the colours, and the file.

    Returns:
        The file written.

    Raises:
        ValueError: If a folder holds no run, or if the file exists and is not gmix's, or it cannot be written.
    """
    out = Path(config.out) if config.out is not None else common_folder(folders) / "report.html"
    check_own([out])
    groups = group_runs([read_run(folder) for folder in find_runs(folders)])
    make_folder(out.parent)
    write_own(out, render(build_page(groups, config)))
    return out


def try_report(folders: Sequence[str | Path], config: ReportConfig | None = None) -> Path | None:
    """Write the report at the end of a training; an error is only a warning, so that the training stays good."""
    try:
        return write_report(folders, config or ReportConfig())
    except Exception as error:
        warn(f"no report was written: {one_line(error)}")
        return None


def common_folder(folders: Sequence[str | Path]) -> Path:
    """Return the folder that holds all folders; for a single folder, the folder itself.

    Examples:
        >>> common_folder(["runs/a"]).as_posix(), common_folder(["runs/a", "runs/b"]).as_posix()
        ('runs/a', 'runs')
    """
    if len(folders) == 1:
        return Path(folders[0])
    try:
        return Path(os.path.commonpath([os.fspath(folder) for folder in folders]))
    except ValueError:  # relative and absolute paths, or two drives
        return Path()


def build_page(groups: Sequence[Group], config: ReportConfig) -> Page:
    """Build the content of the page; items that cannot be made are listed in `missing`."""
    device = prepare_device(config.device, config.threads)
    missing: list[str] = []

    def attempt(what: str, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except Exception as error:  # a run may lack any of its files, or come from another machine
            missing.append(f"{what}: {one_line(error)}")
            return None

    focus = groups[-1]
    split = focus.first.results.get("split")
    alike = [g for g in groups if split is None or g.first.results.get("split") in (split, None)]
    models: dict[str, SavedModel] = {}
    for group in alike:
        load = partial(load_newest, group.first.folder, device)
        model = attempt(f"Pictures of {group.label}", load)
        if model is not None:
            models[group.label] = model

    def pictures() -> tuple[list[Card], list[Key], list[Key], Scenes]:
        labels = list(models)
        shown = next(group for group in groups if group.label == labels[-1])
        classes = models[labels[-1]].classes
        scenes = look_at_scenes(shown.first.folder, list(models.values()), config.images)
        cards = [scene_card(scene, labels, classes) for scene in scenes.chosen]
        return cards, class_keys(classes), change_keys(labels), scenes

    def pairs() -> tuple[list[PairCard], list[Key], int, list[Chart]]:
        replay = replay_last_batch(focus.first.folder, device)
        count = min(PAIRS, len(replay.x_unlabeled))
        charts = [] if replay.guidance.mix is None else [lambda_chart(replay.method)]
        cards = [pair_card(replay, index) for index in range(count)]
        return cards, class_keys(replay.classes), replay.step, charts

    guided = focus.first.method == FOCUS
    seen = attempt("Pictures", pictures) if models else None
    paired = attempt("Pairs", pairs) if guided else None
    cards, keys, changes, scenes = seen or ([], [], [], None)
    pair_cards, pair_keys, pair_step, lambdas = paired or ([], [], 0, [])
    curves = attempt("Curves", lambda: curve_charts(groups)) or []
    by_class = attempt("Classes", lambda: classes_chart(groups))
    facts: Facts = gather_facts(groups)
    confusion = None
    if scenes is not None:
        some = "all" if scenes.scored == scenes.images else f"{scenes.scored} evenly spaced of the"
        confusion = Chart(
            "Confusion matrix",
            f"{list(models)[-1]} on {some} {scenes.images} validation images; rows: true, in % of their "
            "pixels; columns: predicted",
            confusion_chart(scenes.confusion.counts.numpy(), [key.name for key in keys]),
        )
    keys = keys or pair_keys
    return Page(
        facts=facts,
        scenes=cards,
        scored=None if scenes is None else (scenes.scored, scenes.images),
        class_keys=keys,
        change_keys=changes,
        pairs=pair_cards,
        pair_step=pair_step,
        curves=[*curves, *lambdas],
        judged=any(chart.title.startswith(PSEUDO) for chart in curves),
        classes=[chart for chart in (by_class, confusion) if chart is not None],
        focus=list(models)[-1] if models else "",
        safe=config.palette == "colorblind",
        switch=any(key.color != key.safe for key in keys),
        missing=missing,
    )


def lambda_chart(method: GuidedMix) -> Chart:
    """Draw the distribution of lambda, the share of the labeled partner, in a run."""
    lambdas = draw_lambdas(method).numpy()
    return Chart(
        "Mixing weight λ",
        f"share of the labeled partner: {len(lambdas)} draws of this run's mixer, "
        f"mean {lambdas.mean():.2f}, at most {lambdas.max():.2f}",
        histogram(lambdas, "λ"),
    )
