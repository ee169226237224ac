"""The charts of a run, or of several."""

from __future__ import annotations

from collections.abc import Sequence

from gmix.report.charts import ACCENT, PALE, SERIES, Chart, Line, class_bars, line_chart
from gmix.report.collect import BASELINE, Group, RunRecord, compare_groups

PSEUDO = "Pseudo masks"
MEANING = {
    "total": "what is minimised: the weighted sum of the terms",
    "supervised": "cross-entropy of the labeled images",
    "classification": "which classes occur in a labeled image",
    "unsupervised": "unlabeled images towards their pseudo masks",
    "decoupling": "decoupled labeled pairs towards what is known of them",
}


def colors(groups: Sequence[Group]) -> list[str]:
    """Choose a colour per group: grey for the baseline, the accent for the last group, other hues between."""
    hues = [SERIES[place % len(SERIES)] for place in range(len(groups))]
    hues[-1] = ACCENT
    if len(groups) > 1 and groups[0].first.method == BASELINE:
        hues[0] = PALE
    return hues


def curve_charts(groups: Sequence[Group]) -> list[Chart]:
    """Draw the mIoU over time, the quality of the pseudo masks, and every loss term."""
    charts = []
    drawn = _lines(groups, "validation", "miou")
    if drawn:
        note = "on the validation images, in percent, during training"
        charts.append(Chart("mIoU", note, line_chart(drawn, percent=True)))
    quality = [
        ("precision", "share of the sure pixels that are right, in percent"),
        ("coverage", "share of the pixels that are sure enough to be learned, in percent"),
    ]
    for name, note in quality:
        drawn = _lines(groups, "pseudo", name)
        if drawn:
            charts.append(Chart(f"{PSEUDO}: {name}", note, line_chart(drawn, percent=True)))
    terms = dict.fromkeys(term for group in groups for run in group.runs for term in run.terms())
    terms = {"total": None, **terms} if "total" in terms else terms
    for term in terms:
        drawn = _lines(groups, "losses", term)
        if drawn:
            charts.append(Chart(f"Loss: {term}", MEANING.get(term, ""), line_chart(drawn)))
    return charts


def classes_chart(groups: Sequence[Group]) -> Chart | None:
    """Draw the IoU of each class; None before the first validation."""
    known = [group for group in groups if group.miou is not None]
    if not known:
        return None
    names = list(known[-1].first.scores["iou"])
    hues = colors(groups)
    shown = [hue for group, hue in zip(groups, hues, strict=True) if group in known]
    bars = [(group.label, [group.iou(name) for name in names]) for group in known]
    first, last = known[0], known[-1]
    changes = [_change(first, last, name) for name in names]
    note = "in percent, on all validation images"
    if len(known) > 1:
        note += f"; numbers: {last.label}"
    if any(change is not None for change in changes):
        note += f", and its change against {first.label}"
        note += "" if first.seeds == last.seeds else " over the seeds both have"
    return Chart("IoU of each class", note, class_bars(names, bars, shown, changes))


def _change(before: Group, after: Group, name: str) -> float | None:
    """Compute the change of the IoU of a class, over the seeds that both groups have."""

    def iou(run: RunRecord) -> float | None:
        return run.iou(name)

    means = None if before is after else compare_groups(before, after, iou)
    return None if means is None else means[1] - means[0]


def _lines(groups: Sequence[Group], *path: str) -> list[Line]:
    """Make a line per run; no lines if there is a single step, as after the first validation."""
    lines = []
    for group, color in zip(groups, colors(groups), strict=True):
        for run in group.runs:
            points = run.series(*path)
            if points:
                lines.append(Line(group.label, points, color, dashed=color == PALE))
    steps = {step for line in lines for step, _ in line.points}
    return lines if len(steps) > 1 else []
