"""Figures for a paper, from any run: activations by stage, decoupling step by step, methods side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gmix.config.commands import ReportConfig
from gmix.data import to_rgb
from gmix.nn.decoupler import SoftDecoupler
from gmix.nn.modes import eval_mode
from gmix.report.cards import most_likely, palettes
from gmix.report.collect import Group, find_runs, group_runs, read_run
from gmix.report.pairs import Replay, replay_last_batch
from gmix.report.pictures import Color, Pixels
from gmix.report.scenes import load_newest, look_at_even_scenes
from gmix.report.sheet import INK, PALE, picture_sheet
from gmix.runtime.atomic import make_folder
from gmix.runtime.device import prepare_device
from gmix.runtime.own import check_own, own_file

NO_MIX = "this run mixes nothing; one with `direct` below 1 in --method-args does: here is"


def draw_figure(folders: Sequence[str | Path], config: ReportConfig) -> Path:
    """Draw `config.figure` into `config.out`: pdf, png or svg.

    - `activations` (the paper's Fig. 3): mean absolute activation of each encoder stage, for unchanged unlabeled images
      and for images mixed with their partners.
    - `decoupling` (Fig. 5): a row per unlabeled image, a column per step on the way to its pseudo mask.
    - `comparison` (Fig. 6 and 7): a row per validation image, a column per run.

    Args:
        folders: Folders of runs; the first two figures show the last GuidedMix run among them.
        config: The figure, its file, the number of rows, and the colours.

    Returns:
        The file written.

    Raises:
        ValueError: If the runs lack what the figure shows, or if the file exists and is not gmix's, or it cannot be
            written.
    """
    path = Path(str(config.out))
    groups = group_runs([read_run(folder) for folder in find_runs(folders)])
    check_own([path])
    make_folder(path.parent)
    with own_file(path) as aside:
        _draw(groups, config, aside)
    return path


def _draw(groups: Sequence[Group], config: ReportConfig, path: Path) -> Path:
    device = prepare_device(config.device, config.threads)
    colors = -1 if config.palette == "colorblind" else 0
    if config.figure == "comparison":
        models = [load_newest(group.first.folder, device) for group in groups]
        scenes = look_at_even_scenes(groups[-1].first.folder, models, config.images)
        rows = [[scene.image, scene.truth, *scene.predicted] for scene in scenes]
        titles = ["image", "truth", *(group.label for group in groups)]
        classes = models[-1].classes
        palette = palettes(classes)[colors]
        return picture_sheet(same_size(rows), titles, classes.names, palette, path)
    replay = replay_last_batch(groups[-1].first.folder, device)
    if config.figure == "activations":
        return draw_activations(replay, path)
    return draw_decoupling(replay, palettes(replay.classes)[colors], config.images, path)


def draw_decoupling(replay: Replay, palette: Sequence[Color], count: int, path: Path) -> Path:
    """Draw Fig. 5: x_l, x_u, their mix, P_mix, P_l, D and the pseudo mask.

    Raises:
        ValueError: If the run mixes nothing.
    """
    partners, _, mix, pseudo = replay.guidance
    if partners is None or mix is None:
        raise ValueError(f"{NO_MIX} nothing to decouple")

    def seen(x: torch.Tensor) -> Pixels:
        return to_rgb(replay.pixels(x))

    decoupler = replay.method.decoupler
    assert isinstance(decoupler, SoftDecoupler)  # flags make no other
    soft = decoupler.mode == "soft"
    rows = []
    for index in range(min(count, len(replay.x_unlabeled))):
        partner = int(partners.chosen[index])
        rows.append(
            [
                seen(replay.x_labeled[partner]),
                seen(replay.x_unlabeled[index]),
                seen(mix.image[index]),
                most_likely(mix.predicted, index),
                most_likely(mix.labeled, index),
                most_likely(mix.decoupled, index),
                most_likely(pseudo, index),
            ]
        )
    return picture_sheet(
        rows,
        ["labeled", "unlabeled", "mix", "of the mix", "of the labeled", "decoupled", "pseudo mask"],
        replay.classes.names,
        palette,
        path,
        notes=[
            "$x_l$",
            "$x_u$",
            r"$\lambda x_l + (1-\lambda) x_u$",
            "$P_{mix}$",
            "true mask" if replay.method.true_masks else "$P_l$",
            r"$P_{mix} - \lambda P_l$" if soft else "$P_{mix} - P_l$",
            "what is learned",
        ],
    )


@torch.no_grad()
def mean_activations(replay: Replay) -> list[tuple[str, list[float], list[float]]]:
    """Compute the mean absolute activation of each image of the batch in each encoder stage.

    Returns:
        For each stage its name, and a number per image: for the unchanged unlabeled images, and for the mixes.

    Raises:
        ValueError: If the run mixes nothing.
    """
    method, mix = replay.method, replay.guidance.mix
    if mix is None:
        raise ValueError(f"{NO_MIX} nothing to compare")
    net = method.net if method.teacher is None else method.teacher.net
    found = []
    with eval_mode(net):
        plain, mixed = net.encode(replay.x_unlabeled), net.encode(mix.image)
    width = replay.x_unlabeled.shape[-1]
    for a, b in zip(plain, mixed, strict=True):
        if a.dim() != 4 or a.shape[1] <= replay.x_unlabeled.shape[1]:  # tokens; the image itself
            continue
        means = [x.abs().float().mean(dim=(1, 2, 3)).tolist() for x in (a, b)]
        found.append((f"1/{round(width / a.shape[-1])}", means[0], means[1]))
    return found


def draw_activations(replay: Replay, path: Path) -> Path:
    """Draw Fig. 3: mean absolute activations by encoder stage, plain and mixed, with standard deviations."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stages = mean_activations(replay)
    figure = Figure(figsize=(6, 3.4), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = np.arange(len(stages))
    for which, (label, color) in enumerate((("plain", PALE), ("mixed", "#0072b2"))):
        values = [(plain, mixed)[which] for _, plain, mixed in stages]
        means, spread = [np.mean(v) for v in values], [np.std(v) for v in values]
        style: dict[str, Any] = {"label": label, "color": color, "capsize": 3, "ecolor": INK}
        axes.bar(places + 0.38 * (which - 0.5), means, 0.34, yerr=spread, **style)
    axes.set_xticks(places, [stage[0] for stage in stages])
    axes.set_xlabel("encoder stage, by the size of its maps")
    axes.set_ylabel("mean absolute activation")
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, dpi=160)
    return path


def same_size(rows: Sequence[Sequence[Pixels]]) -> list[list[Pixels]]:
    """Fit pictures of any size into the shape of the first one, with white around them."""
    height, width = rows[0][0].shape[:2]
    return [[_fit(cell, height, width) for cell in row] for row in rows]


def _fit(cell: Pixels, height: int, width: int) -> Pixels:
    scale = min(height / cell.shape[0], width / cell.shape[1])
    tall, wide = max(1, round(scale * cell.shape[0])), max(1, round(scale * cell.shape[1]))
    how = Image.Resampling.NEAREST if cell.ndim == 2 else Image.Resampling.LANCZOS
    small = np.asarray(Image.fromarray(cell).resize((wide, tall), how))
    fitted = np.full((height, width, *cell.shape[2:]), 255, dtype=cell.dtype)
    top, left = (height - tall) // 2, (width - wide) // 2
    fitted[top : top + tall, left : left + wide] = small
    return fitted
