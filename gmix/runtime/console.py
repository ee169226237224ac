"""Console output: results, warnings and errors in plain words."""

from __future__ import annotations

import codecs
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from gmix.runtime.shown import printable

# Characters used by gmix that older terminals lack.
_PLAIN = {"–": "-", "−": "-", "…": "...", "·": "-", "λ": "lambda"}


def say(*lines: object) -> None:
    r"""Print lines that may hold names of files and classes, escaping control codes and unencodable characters.

    Examples:
        >>> say("see runs/\x1b[31m", 3)
        see runs/\x1b[31m
        3
    """
    show_anything()
    for line in lines:
        print(printable(str(line)), flush=True)


def warn(text: str) -> None:
    """Print a one-line warning about a result to stderr."""
    show_anything()
    print("gmix: warning:", printable(" ".join(text.split())), file=sys.stderr)


def show_anything() -> None:
    """Let stdout and stderr replace characters their encoding lacks instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="gmix-plain")


def _in_plain_signs(error: Any) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(char) or ascii(char)[1:-1] for char in lacking), error.end


codecs.register_error("gmix-plain", _in_plain_signs)


def print_scores(scores: dict[str, object]) -> None:
    """Print a small table: IoU and Dice of each class, then their means.

    Examples:
        >>> print_scores({
        ...     "miou": 0.5, "iou": {"cat": 0.5, "cow": None}, "pixel_accuracy": 0.75,
        ...     "mean_dice": 2 / 3, "dice": {"cat": 2 / 3, "cow": None},
        ... })
                         IoU   Dice
        cat             50.0   66.7
        cow            does not occur
        mIoU            50.0
        mean Dice              66.7
        pixel accuracy  75.0
    """
    iou, dice = scores["iou"], scores["dice"]
    assert isinstance(iou, dict) and isinstance(dice, dict)
    names = {name: printable(name) for name in iou}
    width = max(map(len, (*names.values(), "pixel accuracy")))
    say(f"{'':{width}} {'IoU':>5}  {'Dice':>5}")
    for name, value in iou.items():
        absent = "does not occur"
        both = absent if value is None else f"{100 * value:5.1f}  {100 * dice[name]:5.1f}"
        say(f"{names[name]:{width}} {both}")
    for name, key, column in (
        ("mIoU", "miou", 0),
        ("mean Dice", "mean_dice", 7),
        ("pixel accuracy", "pixel_accuracy", 0),
    ):
        value = scores[key]
        shown = f"{100 * value:5.1f}" if isinstance(value, float) else "no pixels"
        say(f"{name:{width}} {'':{column}}{shown}")


def explain(error: Exception) -> str:
    r"""Return a one-line message for any exception.

    Examples:
        >>> explain(ValueError("two\nlines"))
        'two lines'
        >>> explain(ModuleNotFoundError("No module named 'rich'", name="rich"))
        'the package rich is missing: run `pip install "gmix[train]"`'
        >>> len(explain(RuntimeError("what a compiler says " * 1000))) < 600
        True
    """
    text = str(error)
    if isinstance(error, ModuleNotFoundError):
        extras = {"sklearn": "demo", "webdataset": "shards"}
        extras |= dict.fromkeys(("onnx", "onnxscript", "onnxruntime"), "export")
        extra = extras.get(error.name or "", "train")
        return f'the package {error.name} is missing: run `pip install "gmix[{extra}]"`'
    if text.startswith("Caught ") and "Original Traceback" in text:  # raised in a loader process
        text = text.rstrip().rsplit("\n", 1)[-1].partition(": ")[2] or text
    elif not isinstance(error, (ValueError, TypeError, ImportError, OSError, ArithmeticError)):
        # A compiler's message may be very long.
        text = f"{type(error).__name__}: {textwrap.shorten(text, 500)} (--debug shows where)"
    return " ".join(text.split())


def describe_failures(reasons: dict[str, str], runs: int) -> str:
    """Return which runs failed and why, on one line.

    Examples:
        >>> describe_failures({"cps-0": "no mask", "cps-1": "no mask", "cct-0": "no image"}, 9)
        '3 of 9 runs failed: cps-0, cps-1: no mask; cct-0: no image'
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    parts = [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]
    return f"{len(reasons)} of {runs} runs failed: {'; '.join(parts)}"


def report_left_out(reasons: Sequence[str], images: int) -> int:
    """Report which images were left out and why, and return the exit code."""
    if not reasons:
        return 0
    return print_error(f"{len(reasons)} of {images} images were left out: {'; '.join(reasons)}", 1)


def is_main_process() -> bool:
    """Return whether this is the process that prints results: the first of those a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def print_error(text: str, code: int) -> int:
    """Print a one-line error to stderr and return the exit code."""
    line = " ".join(text.split())  # a file name may hold line breaks and terminal control codes
    name = "gmix:" if is_main_process() else f"gmix, process {os.environ['RANK']}:"
    show_anything()
    print(name, printable(line), file=sys.stderr)
    return code
