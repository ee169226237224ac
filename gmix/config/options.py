"""Declaration and checks of flags, and the help texts that several commands share.

Importing this module is cheap (no torch), so that `gmix --help` answers at once.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import field
from itertools import chain
from typing import Any, Literal

from gmix.errors import one_line
from gmix.methods import METHODS
from gmix.runtime.infile import read_plain


def option(default: Any, group: str, metavar: str, help: str) -> Any:
    """Declare a dataclass field with its help text; the command line is built from these fields."""
    metadata = {"group": group, "metavar": metavar, "help": help}
    if default is dict:
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def omitted_flag(default: Any, why: str) -> Any:
    """Declare an inherited field that a command does not offer as a flag; `why` tells users who try it."""
    return field(init=False, default=default, metadata={"help": why})


COMPARE = "the comparison"
RECIPE = "a recipe: voc_1-8_r101, cityscapes_100_r101, cpu, medical, ... (docs/recipes.md)"
DATA = "your data: plain folders"
KNOWN = "your data: a known data set (instead of the folders above)"
CLASSES = "classes and labels"
MODEL = "the network"
METHOD = "the method"
INPUT = "what the network sees"
OPTIM = "optimisation"
SAVED = "the trained model"
IMAGES = "images"
TEST = "how images are tested"
MACHINE = "the machine"
OUTPUT = "output"
SPLIT = "the split"

WINDOW = ("HxW", "predict overlapping windows and average them (default: whole images)")
STRIDE = ("HxW", "from window to window (default: two thirds of --window)")
EDGE = ("HOW", "shift the last windows back into the image, or truncate them")

Edge = Literal["shift", "truncate"]

DATASETS = "voc, sbd, context, cityscapes, ade20k, coco, coco_stuff, camvid"


# The losses of labeled images, by their names on the command line: classes of `gmix.nn.supervised`.
LOSSES = {
    "ce": "CrossEntropyLoss",
    "ohem": "OHEMLoss",
    "focal": "FocalLoss",
    "dice": "DiceLoss",
    "lovasz": "LovaszLoss",
}
WEIGHTED = ("ce", "ohem", "focal")  # those that take class weights


def flag(name: str) -> str:
    """Return the command-line spelling of a field."""
    return "--" + name.replace("_", "-")


def suggest(word: str, known: Sequence[str]) -> str:
    """Return a hint at the closest known word, or an empty string.

    Examples:
        >>> suggest("--crops", ["--crop", "--size"])
        ', did you mean --crop?'
    """
    near = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {near[0]}?" if near else ""


def lookup(name: str, table: dict[str, Any], what: str) -> Any:
    """Return an entry of a table, ignoring the case of the name."""
    if name.lower() not in table:
        raise ValueError(f"{what} {name} is unknown: choose one of {', '.join(sorted(table))}")
    return table[name.lower()]


def check_range(name: str, value: int, least: int, most: int = 2**31 - 1) -> None:
    """Refuse a value outside the range of its field."""
    if value < least:
        raise ValueError(f"{flag(name)} must be at least {least}, got {value}")
    if value > most:
        raise ValueError(f"{flag(name)} must be at most {most}, got {value}")


def check_threads(threads: int | None) -> None:
    """Refuse an unrealistic number of CPU threads; None leaves the choice to torch."""
    if threads is not None:
        check_range("threads", threads, 1, 1024)


def parse_size(text: str, name: str = "size") -> tuple[int, int]:
    """Parse `HxW`.

    Raises:
        ValueError: If the text is not two positive whole numbers joined by `x`.
    """
    parts = text.lower().split("x")
    good = [part for part in parts if part.isdecimal() and len(part) < 6 and int(part) > 0]
    if len(parts) != 2 or good != parts:
        raise ValueError(
            f"{flag(name)} must be written HxW, e.g. 120x160, at most 99999 each, got {text!r}"
        )
    return int(parts[0]), int(parts[1])


def parse_range(text: str, name: str, example: str) -> tuple[float, float]:
    """Parse `LOW-HIGH`; either may be negative.

    Raises:
        ValueError: If the text is not two numbers, or the first is larger than the second.

    Examples:
        >>> parse_range("-1000-400", "value_range", "0-4095")
        (-1000.0, 400.0)
    """
    found = re.fullmatch(r"\s*(-?[\d.]+(?:e-?\d+)?)-(-?[\d.]+(?:e-?\d+)?)\s*", text)
    try:
        low, high = (float(part) for part in found.groups()) if found else (1.0, 0.0)
    except ValueError:
        low, high = 1.0, 0.0
    if not -math.inf < low <= high < math.inf:
        raise ValueError(f"{flag(name)} must be written LOW-HIGH, e.g. {example}: {text!r}")
    return low, high


def parse_methods(text: str) -> list[str]:
    """List the methods in `NAME,NAME`, without duplicates, in the order given; `all` names every method.

    Examples:
        >>> parse_methods("UniMatch, cps,unimatch"), parse_methods("cps,all")[:2]
        (['unimatch', 'cps'], ['cps', 'supervised'])
    """
    names = [name.strip().lower() for name in text.split(",")]
    listed = (METHODS if name == "all" else [name] for name in filter(None, names))
    return list(dict.fromkeys(chain.from_iterable(listed)))


def parse_loss(text: str) -> list[tuple[float, str]]:
    """Parse a weighted sum of losses, `0.5*ce+lovasz`, into weights and names.

    Raises:
        ValueError: If a loss is unknown or occurs twice, or a weight is not a number above 0.

    Examples:
        >>> parse_loss("0.5*CE + lovasz")
        [(0.5, 'ce'), (1.0, 'lovasz')]
        >>> parse_loss("ce+dise")
        Traceback (most recent call last):
        ValueError: --loss: dise is no loss (ce, ohem, focal, dice, lovasz), did you mean dice?
    """
    terms: dict[str, float] = {}
    for term in text.lower().split("+"):
        factor, star, name = (part.strip() for part in term.rpartition("*"))
        if name not in LOSSES:
            what = f"{name} is no loss" if name else f"a name is missing in {text!r}"
            raise ValueError(f"--loss: {what} ({', '.join(LOSSES)}){suggest(name, list(LOSSES))}")
        if name in terms:
            raise ValueError(f"--loss {text} names {name} twice: add up its weights")
        try:
            terms[name] = float(factor) if star else 1.0
        except ValueError:
            terms[name] = math.nan
        if not 0 < terms[name] < math.inf:
            raise ValueError(
                f"--loss: the weight of {name} must be a number above 0, e.g. 0.5*{name}, got {factor!r}"
            )
    return [(weight, name) for name, weight in terms.items()]


def write_loss(terms: Sequence[tuple[float, str]]) -> str:
    """Return the one spelling of a sum of losses, which `parse_loss` reads.

    Examples:
        >>> write_loss([(0.5, "ce"), (1.0, "lovasz"), (2.0, "dice")])
        '0.5*ce+lovasz+2*dice'
    """
    factors = [repr(weight).removesuffix(".0").replace("e+", "e") for weight, _ in terms]
    return "+".join(
        name if factor == "1" else f"{factor}*{name}"
        for factor, (_, name) in zip(factors, terms, strict=True)
    )


def parse_class_weights(text: str) -> list[float]:
    """Parse one number above 0 per class, in the order of the classes.

    Args:
        text: A text file of one number per line or, as in `config.yaml`, the numbers, with commas.

    Raises:
        ValueError: If the file cannot be read, or holds anything else.

    Examples:
        >>> parse_class_weights("0.5,2")
        [0.5, 2.0]
        >>> parse_class_weights("0.5,0")
        Traceback (most recent call last):
        ValueError: --class-weights must be finite numbers above 0, one per class, got 0 as number 2
    """
    words = text.split(",")
    if len(words) == 1:
        try:
            words = [line for line in map(str.strip, read_plain(text).splitlines()) if line]
        except (OSError, ValueError) as error:
            raise ValueError(
                f"--class-weights: cannot read {text}, expected auto or a file of numbers: {one_line(error)}"
            ) from None
    weights: list[float] = []
    for index, word in enumerate(words, 1):
        try:
            weights.append(float(word))
        except ValueError:
            weights.append(math.nan)
        if not 0 < weights[-1] < math.inf:
            raise ValueError(
                "--class-weights must be finite numbers above 0, one per class, "
                f"got {word.strip()[:40]} as number {index}"
            )
    if len(weights) < 2:
        raise ValueError(
            f"--class-weights must be one number per class, two if binary, got {len(weights)} in {text}"
        )
    return weights


def read_windows(
    window: str | None, stride: str | None, edge: Edge
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Parse window and stride into height and width each; None for whole images.

    Raises:
        ValueError: If the flags are not written `HxW`, or contradict each other.

    Examples:
        >>> read_windows("513x513", None, "shift")
        ((513, 513), (342, 342))
    """
    if window is None:
        if stride is not None or edge != "shift":
            raise ValueError("--stride and --edge are about windows: add --window HxW")
        return None
    height, width = parse_size(window, "window")
    down, right = max(1, height * 2 // 3), max(1, width * 2 // 3)
    if stride is not None:
        down, right = parse_size(stride, "stride")
    if down > height or right > width:
        raise ValueError(
            f"--stride {stride} would leave gaps between windows of {window}: "
            "it must be at most --window"
        )
    return (height, width), (down, right)
