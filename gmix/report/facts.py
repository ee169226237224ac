"""The numbers of a report: results, data, settings and cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gmix import __version__
from gmix.compare.table import Table, points
from gmix.config.options import flag
from gmix.report.collect import BASELINE, DEFAULTS, Group, RunRecord, compare_groups


@dataclass(frozen=True)
class Facts:
    """The numbers of a report.

    Attributes:
        title: The methods.
        sentence: The result in one sentence.
        about: Network, data set, split and seeds.
        tiles: Large numbers: value and caption.
        warnings: Reasons why the numbers are hard to compare.
        tables: Results and cost, settings, versions.
    """

    title: str
    sentence: str
    about: str
    tiles: list[tuple[str, str]]
    warnings: list[str]
    tables: list[Table]


def gather_facts(groups: Sequence[Group]) -> Facts:
    """Gather all numbers of a report."""
    labels = [group.label for group in groups]
    return Facts(
        title=" and ".join([", ".join(labels[:-1]), labels[-1]]) if labels[1:] else labels[0],
        sentence=sentence(groups),
        about=about(groups),
        tiles=tiles(groups),
        warnings=warnings(groups),
        tables=[runs_table(groups), *settings_tables(groups), versions_table(groups)],
    )


def sentence(groups: Sequence[Group]) -> str:
    """Describe the result in one sentence."""
    focus, run = groups[-1], groups[-1].first
    images = run.results.get("images", {})
    source = f"{images['labeled']} labeled" if "labeled" in images else ""
    if images.get("unlabeled"):
        source += f" and {images['unlabeled']} unlabeled"
    source = f" from {source} images" if source else ""
    if focus.miou is None:
        steps = f"{run.step} steps" if run.results else so_far(run)
        others = [f"{group.label} reaches {points(group.miou)} mIoU" for group in known(groups)]
        rest = f"; {', '.join(others)}" if others else ""
        return f"{focus.label} has trained for {steps}{source}; there is no validation yet{rest}."
    seeds = f" (mean of {len(focus.counted)} seeds)" if len(focus.counted) > 1 else ""
    reached = f"{focus.label} reaches {points(focus.miou)} mIoU{seeds} {when(focus)}{source}"
    change, means = gain(groups), against_baseline(groups)
    if change is None or means is None:
        return f"{reached}."
    base = groups[0]
    words = {True: "above", False: "below"}[change >= 0]
    difference = f"{abs(change):.1f} points {words} {base.label}"
    # From the rounded values, so that the reader's own subtraction agrees.
    if base.seeds == focus.seeds:
        return f"{reached}: {difference} ({points(means[0])}), with the same masks."
    return (
        f"{reached}; over the seeds both have, {difference} "
        f"({points(means[1])} and {points(means[0])}), with the same masks."
    )


def known(groups: Sequence[Group]) -> list[Group]:
    """List the groups with comparable scores, the last group first, because it is the subject of the report."""
    focus, *others = reversed(groups)
    alike = [group for group in reversed(others) if not other_images(group, focus)]
    return [group for group in (focus, *alike) if group.miou is not None]


def other_images(group: Group, focus: Group) -> bool:
    """Return whether a group was trained or judged on other images; False until both have ended."""
    one, other = (each.first.results.get("split") for each in (group, focus))
    return bool(one and other and one != other)


def so_far(run: RunRecord) -> str:
    """Describe the progress of an unfinished run."""
    return f"{run.step} of {run.settings.get('steps', '?')} steps"


def when(group: Group) -> str:
    """Describe the step of the scores of a group; an unfinished run has taken more steps since."""
    run = group.first
    steps = {one.scored_step for one in group.counted}
    if group.finished:
        return f"after {run.step} steps"
    if len(steps) > 1:
        return f"after {min(steps)} to {max(steps)} of {run.settings.get('steps', '?')} steps"
    return f"after {run.scored_step} of {run.settings.get('steps', '?')} steps"


def about(groups: Sequence[Group]) -> str:
    """Describe network, data and seeds in a few words."""
    settings, results = groups[-1].first.settings, groups[-1].first.results
    known = settings.get("dataset") or ("voc" if settings.get("voc") else None)
    seeds = max(len(group.runs) for group in groups)
    images = results.get("images", {}).get("validation")
    parts = [
        f"{settings.get('arch')} with {settings.get('encoder')}",
        f"data set {known}" if known else "",
        f"judged on {images} images" if images else "",
        f"split {results['split']}" if results.get("split") else "",
        f"{seeds} seeds" if seeds > 1 else f"seed {groups[-1].first.seed} alone",
    ]
    return " · ".join(filter(None, parts))


def gain(groups: Sequence[Group]) -> float | None:
    """Compute the gain of the last group over the baseline, in rounded points of mIoU; None without a baseline."""
    means = against_baseline(groups)
    return None if means is None else round(100 * means[1], 1) - round(100 * means[0], 1)


def against_baseline(groups: Sequence[Group]) -> list[float] | None:
    """Return the mIoU of the baseline and of the last group; None if they cannot be compared."""
    if groups[0].first.method != BASELINE or len(groups) < 2:
        return None
    return compare_groups(groups[0], groups[-1], lambda run: run.miou)


def tiles(groups: Sequence[Group]) -> list[tuple[str, str]]:
    """Choose the numbers to show in large type."""
    focus, run = groups[-1], groups[-1].first
    found = []
    for group in known(groups):
        late = "" if group.finished else f" {when(group)}"
        found.append((points(group.miou), f"mIoU of {group.label}{late}"))
    change = gain(groups)
    if change is not None:
        seeds = "" if groups[0].seeds == focus.seeds else ", seeds both have"
        what = f"points against {groups[0].label}{seeds}"
        found.insert(1, (f"{change:+.1f}".replace("-", "−"), what))
    images = run.results.get("images", {})
    for kind, what in (("labeled", "images with masks"), ("unlabeled", "images without masks")):
        if images.get(kind):
            found.append((f"{images[kind]:,}", what))
    minutes = run.results.get("minutes")
    if minutes is not None:
        found.append((duration(minutes), f"training of {focus.label}"))
    return found


def warnings(groups: Sequence[Group]) -> list[str]:
    """List groups with other splits, and unfinished runs."""
    found = []
    focus = groups[-1]
    for group in groups[:-1]:
        if other_images(group, focus):
            one, other = (each.first.results["split"] for each in (group, focus))
            found.append(
                f"{group.label} was trained or judged on other images (split {one}) than "
                f"{focus.label} (split {other}): its numbers do not compare, and it is left out of "
                "the pictures."
            )
    for group in groups:
        for run in group.runs:
            if not run.results:
                found.append(f"{group.label}, seed {run.seed}: not finished, {so_far(run)}.")
    return found


def runs_table(groups: Sequence[Group]) -> Table:
    """Make the table of results and cost, with a row per run."""
    head = ["run", "seed", "steps", "mIoU", "best", "time", "s/step", "passes/step", "memory"]
    rows = [[group.label, *run_row(run)] for group in groups for run in group.runs]
    return Table("Runs, results and cost", [*head, "split"], rows)


def run_row(run: RunRecord) -> list[str]:
    """Make the cells of a run."""
    found, best = run.results, run.results.get("best") or {}
    memory = found.get("peak_memory_bytes")
    seconds, passes = found.get("seconds_per_step"), found.get("image_passes_per_step")
    return [
        str(run.seed),
        str(run.step),
        reached(run),
        f"{points(best['miou'])} at {best['step']}" if best else "–",
        "–" if "minutes" not in found else duration(found["minutes"]),
        "–" if seconds is None else f"{seconds:.3f}",
        "–" if passes is None else f"{passes:g}",
        "–" if memory is None else f"{memory / 2**30:.2f} GiB",
        str(found.get("split") or "–"),
    ]


def reached(run: RunRecord) -> str:
    """Format the mIoU of a run, with its step if the run is unfinished."""
    return points(run.miou) + ("" if run.results or not run.scores else f" at {run.scored_step}")


def settings_tables(groups: Sequence[Group]) -> list[Table]:
    """Make the tables of settings that differ between runs, and of common settings that are not the default."""
    differ, alike = [], []
    for name, default in vars(DEFAULTS).items():
        values = [different(run.setting(name) for run in group.runs) for group in groups]
        if name == "out" or all(value == [default] for value in values):
            continue
        if all(value == values[0] for value in values):
            alike.append([flag(name), written(values[0])])
        else:
            differ.append([flag(name), *map(written, values)])
    head = ["flag", *(group.label for group in groups)]
    tables = [Table("Settings that differ", head, differ)] if differ else []
    caption = "Settings of all runs" if len(groups) > 1 else "Settings"
    return [*tables, Table(f"{caption} that are not the default", ["flag", "value"], alike)]


def different(values: Iterable[Any]) -> list[Any]:
    """List each value once.

    Examples:
        >>> different([{"a": 1}, 2, {"a": 1}])
        [{'a': 1}, 2]
    """
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return found


def versions_table(groups: Sequence[Group]) -> Table:
    """Make the table of versions, with a single column if all runs used the same."""
    found = [group.first.results.get("versions", {}) for group in groups]
    labels = [group.label for group in groups]
    if all(versions == found[0] for versions in found):
        found, labels = found[:1], ["version"]
    names = list(dict.fromkeys(name for versions in found for name in versions))
    rows = [[name, *(versions.get(name, "–") for versions in found)] for name in names]
    return Table("Versions", ["package", *labels], rows or [["gmix", __version__]])


def duration(minutes: float) -> str:
    """Format a duration for people.

    Examples:
        >>> duration(0.61), duration(12.3), duration(90)
        ('37 s', '12 min', '1.5 h')
    """
    if minutes < 1.5:
        return f"{60 * minutes:.0f} s"
    return f"{minutes:.0f} min" if minutes < 60 else f"{minutes / 60:.1f} h"


def written(value: Any) -> str:
    """Format a setting for people.

    Examples:
        >>> written(None), written(True), written({"decay": 0.9})
        ('–', 'yes', 'decay: 0.9')
    """
    if value is None or value == {}:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {written(inner)}" for key, inner in value.items())
    return ", ".join(map(written, value)) if isinstance(value, list) else str(value)
