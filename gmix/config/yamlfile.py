"""Settings as YAML: read from a file, written into a run, compared when it is resumed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from gmix.config.options import flag
from gmix.config.train_config import TrainConfig
from gmix.runtime.infile import read_plain
from gmix.runtime.own import write_own

MOST_SETTINGS = 2**20  # bytes


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a mapping of flags (`batch-labeled` or `batch_labeled`) from a YAML file.

    Raises:
        ValueError: If the file cannot be read or is no mapping.
    """
    return _read(Path(path), lambda path: path.read_text(encoding="utf-8"))


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the `config.yaml` of a run, which is a file and not what a shell pipes in.

    Raises:
        ValueError: If it cannot be read or is no mapping.
    """
    return _read(folder / "config.yaml", lambda path: read_plain(path, MOST_SETTINGS))


def _read(path: Path, read: Callable[[Path], str]) -> dict[str, Any]:
    try:
        text = read(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the configuration {path}: {error}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """A mapping of flags from the text of a YAML file; `source` is what errors call it.

    Raises:
        ValueError: If it is no mapping, or holds what YAML 1.1 reads as something else than it looks like.

    Examples:
        >>> parse_yaml("batch-labeled: 4", "mine.yaml")
        {'batch_labeled': 4}
        >>> parse_yaml("steps: 010", "mine.yaml")
        Traceback (most recent call last):
        ValueError: mine.yaml: 010 is 8 in YAML 1.1: write a decimal number, or put quotes around it if it is text
    """
    import yaml

    try:
        _check_yaml(yaml.compose(text, yaml.SafeLoader))
        found = yaml.load(text, _loader())
    except _ReadOddly as odd:
        raise ValueError(f"{source}: {odd}, or put quotes around it if it is text") from None
    except Exception as error:  # PyYAML raises nearly anything on what it cannot understand
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{source} is not valid YAML: {reason}") from None
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise ValueError(
            f"{source} must hold lines like `steps: 100`, got a {type(found).__name__}"
        )
    settings: dict[str, Any] = {}
    for key, value in found.items():
        name = str(key).replace("-", "_")
        if name in settings:
            raise ValueError(f"{source} gives {name} twice: keep one of the lines")
        settings[name] = value
    return settings


@cache
def _loader() -> Any:
    """PyYAML's safe loader, for which `1e-3` is a number and not text."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    exponent = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+.0123456789"))
    return Loader


def check_number(text: str, source: str) -> None:
    """Refuse what is read as a number that it does not look like, such as `1:30` for 90.

    Raises:
        ValueError: If it is; `source` is what it calls the text's place.

    Examples:
        >>> check_number("1_8", "--labels")
        Traceback (most recent call last):
        ValueError: --labels: 1_8 is 18 in YAML 1.1: write a decimal number
    """
    import yaml

    loader = yaml.SafeLoader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    if tag.endswith((":int", ":float")):
        try:
            _check_scalar(yaml.ScalarNode(tag, text))
        except _ReadOddly as odd:
            raise ValueError(f"{source}: {odd}") from None


class _ReadOddly(ValueError):
    """A value that YAML 1.1 reads as something else than it looks like."""


# What says plainly what it is, and what to do with anything else.
_PLAIN = {
    "int": (r"[-+]?(0|[1-9][0-9]*)", "write a decimal number"),
    "float": (r"[^_:]*", "write a decimal number"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "write true or false"),
    "timestamp": (r"(?!)", "write another value"),
}


def _check_scalar(node: Any) -> None:
    """Refuse octal, hexadecimal and sexagesimal numbers, `yes` and `off`, and dates."""
    import yaml

    pattern, better = _PLAIN.get(node.tag.rpartition(":")[2], (r"(?s).*", ""))
    if re.fullmatch(pattern, node.value) is None:
        found = yaml.SafeLoader("").construct_document(node)
        shown = found if type(found) in (int, float) else str(found).lower()
        shown = shown if isinstance(found, (int, float)) else "a date"
        raise _ReadOddly(f"{node.value} is {shown} in YAML 1.1: {better}")


# A few lines of aliases of aliases can stand for more than any memory holds.
YAML_NODES = 200_000


def _check_yaml(root: Any) -> None:
    """Refuse what PyYAML takes without a word: keys given twice or of another kind, endless aliases."""
    waiting, count = [root], 0
    while waiting:
        node, count = waiting.pop(), count + 1
        if count > YAML_NODES:
            raise ValueError(f"it has more than {YAML_NODES} values, or aliases without end")
        if node is not None and isinstance(node.value, str):
            _check_scalar(node)
        inside = [] if node is None or isinstance(node.value, str) else node.value
        pairs = [pair for pair in inside if isinstance(pair, tuple)]
        keys = [key.value for key, _ in pairs if isinstance(key.value, str)]
        odd = [key.value for key, _ in pairs if key.tag.endswith((":float", ":bool"))]
        if odd:
            raise ValueError(f"{odd[0]} is no key: expected a word or a whole number")
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"{twice} is given twice: keep one of the two")
        waiting += [part for pair in pairs for part in pair] if pairs else inside


def write_yaml(config: TrainConfig, path: Path) -> None:
    """Write the resolved configuration: `gmix train --config FILE` repeats the run."""
    import yaml

    fresh = replace(config, resume=False, dry_run=False, report="html")
    write_own(path, yaml.safe_dump(asdict(fresh), sort_keys=False))


# Where a run may go on elsewhere, or report more often, without changing its result.
FREE_ON_RESUME = {
    "resume",
    "out",
    "held_out",
    "download",
    "workers",
    "cache",
    "log_every",
    "trackers",
    "eval_every",
    "checkpoint_every",
    "keep_last",
    "keep_best",
    "skip_nonfinite",
    "skip_damaged",
    "report",
    "guard",
    "dry_run",
}


_PROCESSES = " (a step has a micro-batch or more for each process)"


def check_unchanged(config: TrainConfig, path: Path) -> None:
    """Refuse to resume a run under other settings than it was started with.

    Raises:
        ValueError: Naming the first flag that differs, both values and the remedy.
    """
    import yaml

    before = read_settings(path.parent)
    written = parse_yaml(yaml.safe_dump(asdict(config)), "the flags")  # there a tuple is a list
    for name, now in written.items():
        if name not in FREE_ON_RESUME and name in before and before[name] != now:
            raise ValueError(
                f"cannot resume {path.parent}: it was started with {flag(name)} {before[name]}, "
                f"now {flag(name)} is {now}{_PROCESSES if name == 'accumulate' else ''}; use the old value "
                "or another --out"
            )
