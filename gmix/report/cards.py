"""Computed results as captioned, coloured pictures: rows of scenes, cards of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from gmix import functional as G
from gmix.data import Classes, to_rgb
from gmix.nn.pairing import SimilarPairSelector
from gmix.report.pairs import Replay
from gmix.report.pictures import (
    BOTH,
    BROKEN,
    CHANGES,
    FIXED,
    WRONG,
    Color,
    Picture,
    Pixels,
    class_picture,
    compare_errors,
    describe,
    heat,
    layer,
    photo,
)
from gmix.report.scenes import Scene

PAIR = (
    "Each unlabeled image gets the labeled image of its batch with the nearest deepest features. "
    "Beside it: the one that chance would have given it."
)
RANDOM_PAIR = (
    "Each unlabeled image gets a labeled image of its batch at random, as this run wants it."
)
MIX = (
    "Partner and image are laid over each other, the network looks at both at once, and the "
    "partner's known share is taken out of what it says."
)
LEARN = (
    "The prediction of the image as it is, what is left of a mix, and what labeled pixels with similar "
    "features are: as far as this run uses them, they make the pseudo mask. The stronger a colour, the "
    "more the pixel counts in the loss."
)
WHY = {"even": "Evenly spaced", "worst": "Worst", "best": "Best"}


class Cell(NamedTuple):
    """A picture and its title."""

    title: str
    picture: Picture


class Card(NamedTuple):
    """Pictures that belong together.

    Attributes:
        title: Title of the card.
        why: Keyword to filter by.
        photo: Data URI of the image below the layers.
        cells: Pictures in order.
    """

    title: str
    why: str
    photo: str
    cells: list[Cell]


class Stage(NamedTuple):
    """A stage on the way to a pseudo mask: its description and pictures."""

    title: str
    text: str
    cells: list[Cell]


class PairCard(NamedTuple):
    """An unlabeled image, with its data URI and the stages it goes through."""

    title: str
    photo: str
    stages: list[Stage]


class Key(NamedTuple):
    """An entry of a legend: a name, its CSS colour, and its colour-blind safe colour."""

    name: str
    color: str
    safe: str


def palettes(classes: Classes) -> list[list[Color]]:
    """Return the data set's colours, and the colour-blind safe colours if they differ.

    Examples:
        >>> len(palettes(Classes.of(3))), len(palettes(Classes(("a", "b"), colors=((1, 2, 3), (4, 5, 6)))))
        (1, 2)
    """
    safe = Classes(classes.names).palette
    return [safe] if classes.palette == safe else [classes.palette, safe]


def class_keys(classes: Classes) -> list[Key]:
    """Make the legend of the classes."""
    own, safe = palettes(classes)[0], palettes(classes)[-1]
    return [
        Key(name, _hex(color), _hex(other))
        for name, color, other in zip(classes.names, own, safe, strict=True)
    ]


def change_keys(labels: Sequence[str]) -> list[Key]:
    """Make the legend of the last column of a scene's row."""
    if len(labels) == 1:
        return [Key(WRONG[0], _hex(WRONG[1]), _hex(WRONG[1]))]
    names = {"baseline": labels[0], "focus": labels[-1]}
    return [Key(t.format(**names), _hex(c), _hex(c)) for t, c in CHANGES.values()]


def scene_card(scene: Scene, labels: Sequence[str], classes: Classes) -> Card:
    """Make a card of the image, the true mask, each run's prediction, and its errors."""
    colors, names = palettes(classes), classes.names
    shown = photo(scene.image, f"The image {scene.name}")

    def cell(title: str, mask: Pixels, caption: str = "") -> Cell:
        alt = f"{title} of {scene.name}: {describe(mask, names)}"
        return Cell(title, class_picture(mask, colors, alt, caption))

    cells = [Cell("Image", shown), cell("Truth", scene.truth)]
    for label, mask, miou in zip(labels, scene.predicted, scene.mious, strict=True):
        cells.append(cell(label, mask, "" if miou != miou else f"mIoU {100 * miou:.1f}"))
    several = len(labels) > 1
    marks = compare_errors(
        scene.truth, scene.predicted[-1], scene.predicted[0] if several else None
    )
    known = max((scene.truth != 255).sum(), 1)
    shares = {mark: 100 * float((marks == mark).sum() / known) for mark in CHANGES}
    if several:
        paint = {mark: color for mark, (_, color) in CHANGES.items()}
        better, worse, wrong = (f"{shares[mark]:.0f} %" for mark in (FIXED, BROKEN, BOTH))
        text, title = f"{better} better, {worse} worse, {wrong} both wrong", "What changed"
    else:
        paint = dict.fromkeys(CHANGES, WRONG[1])
        text, title = f"{sum(shares.values()):.0f} % wrong", "Errors"
    cells.append(Cell(title, layer(marks, paint, f"{title} in {scene.name}: {text}", text)))
    return Card(scene.name, scene.why, shown.source, cells)


def pair_card(replay: Replay, index: int) -> PairCard:
    """Make a card of an unlabeled image on its way to a pseudo mask."""
    guidance, names = replay.guidance, replay.classes.names
    colors = palettes(replay.classes)
    whole = f"unlabeled image {index + 1}"

    def image(title: str, x: Tensor, caption: str = "") -> Cell:
        return Cell(title, photo(to_rgb(replay.pixels(x)), f"{title} of {whole}", caption))

    def mask(title: str, classes: Pixels, caption: str = "") -> Cell:
        alt = f"{title} of {whole}: {describe(classes, names)}"
        return Cell(title, class_picture(classes, colors, alt, caption))

    def likely(title: str, probs: Tensor, caption: str = "") -> Cell:
        return mask(title, most_likely(probs, index), caption)

    found = image("Unlabeled image", replay.x_unlabeled[index], "no mask is opened")
    stages = []
    if guidance.partners is not None and replay.random is not None:
        partner, other = int(guidance.partners.chosen[index]), int(replay.random[index])
        query, key = guidance.partners.query[index], guidance.partners.key
        near, far = (float((key[place] - query).float().norm()) for place in (partner, other))
        count = len(replay.x_labeled)
        nearby = f"distance {near:.3g}, one of {count} labeled"
        shown = image("Its partner", replay.x_labeled[partner], nearby)
        chance = "the same one" if partner == other else f"distance {far:.3g}, not used"
        pair = [found, shown, image("A random partner", replay.x_labeled[other], chance)]
        similar = isinstance(replay.method.selector, SimilarPairSelector)
        stages.append(Stage("Pair", PAIR if similar else RANDOM_PAIR, pair))
        if guidance.mix is not None:
            taken = "true mask" if replay.method.true_masks else "prediction"
            labeled = most_likely(guidance.mix.labeled, index)
            part = mask("Taken out", labeled, f"λ times the partner's {taken}")
            mixed = [
                image("The mix", guidance.mix.image[index], f"λ = {guidance.mix.lam[index]:.2f}"),
                likely("Seen in the mix", guidance.mix.predicted, "prediction of the mix"),
                part._replace(picture=part.picture._replace(under=shown.picture.source)),
                likely("Decoupled", guidance.mix.decoupled, "most probable class of what is left"),
            ]
            stages.append(Stage("Mix and decouple", MIX, mixed))
    confidence, _ = G.most_probable(guidance.pseudo[index : index + 1])
    sure = confidence[0].float().cpu().numpy()
    average = f"{100 * float(sure.mean()):.0f} % on average"
    weight = replay.weight[index].float().cpu().numpy()
    inside = replay.valid[index].cpu().numpy()
    share = float(weight[inside].mean()) if inside.any() else 0.0
    kept = f"{100 * share:.0f} % of the full weight"
    pseudo = most_likely(guidance.pseudo, index)
    low = 1 / max(replay.classes.num_classes, 2)
    learned = [
        likely("Seen directly", guidance.direct, "prediction without a partner"),
        mask("Pseudo mask", pseudo, "target of the student"),
        Cell(
            "Confidence",
            heat((sure - low) / (1 - low), f"Confidence in {whole}: {average}", average),
        ),
        Cell(
            "What is kept",
            class_picture(pseudo, colors, f"What is kept of {whole}: {kept}", kept, weight),
        ),
    ]
    stages.append(Stage("Learn", LEARN, learned if stages else [found, *learned]))
    return PairCard(f"Unlabeled image {index + 1}", found.picture.source, stages)


def most_likely(probs: Tensor, index: int) -> Pixels:
    """Return the most probable class of each pixel of an image."""
    _, labels = G.most_probable(probs[index : index + 1])
    classes: Pixels = labels[0].cpu().numpy().astype(np.uint8)
    return classes


def _hex(color: Sequence[int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)
