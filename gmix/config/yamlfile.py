"""Settings as YAML: read from a file, written to a run's folder, compared when the run is resumed."""

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
        ValueError: If the file cannot be read or is not a mapping.
    """
    return _read(Path(path), lambda path: path.read_text(encoding="utf-8"))


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the `config.yaml` of a run, which must be a regular file.

    Raises:
        ValueError: If it cannot be read or is not a mapping.
    """
    return _read(folder / "config.yaml", lambda path: read_plain(path, MOST_SETTINGS))


def _read(path: Path, read: Callable[[Path], str]) -> dict[str, Any]:
    try:
        text = read(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the configuration {path}: {error}") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """Parse YAML text into a mapping of flags; error messages call the text `source`.

    Raises:
        ValueError: If it is not a mapping, or holds a value that YAML 1.1 reads as something else than it looks like.

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
    except Exception as error:  # PyYAML raises all kinds of errors
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
    """Return PyYAML's safe loader, changed to read `1e-3` as a number."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    exponent = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", exponent, list("-+.0123456789"))
    return Loader


def check_number(text: str, source: str) -> None:
    """Refuse text that is read as a number it does not look like, such as `1:30` for 90.

    Raises:
        ValueError: If it is; the message begins with `source`.

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


# The unambiguous spelling of each type, and the advice for any other.
_PLAIN = {
    "int": (r"[-+]?(0|[1-9][0-9]*)", "write a decimal number"),
    "float": (r"[^_:]*", "write a decimal number"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "write true or false"),
    "timestamp": (r"(?!)", "write another value"),
}


def _check_scalar(node: Any) -> None:
    """Refuse octal, hexadecimal and sexagesimal numbers, dates, and booleans other than true and false."""
    import yaml

    pattern, better = _PLAIN.get(node.tag.rpartition(":")[2], (r"(?s).*", ""))
    if re.fullmatch(pattern, node.value) is None:
        found = yaml.SafeLoader("").construct_document(node)
        shown = found if type(found) in (int, float) else str(found).lower()
        shown = shown if isinstance(found, (int, float)) else "a date"
        raise _ReadOddly(f"{node.value} is {shown} in YAML 1.1: {better}")


# A few lines of nested aliases can expand to more than fits into memory.
YAML_NODES = 200_000


def _check_yaml(root: Any) -> None:
    """Refuse what PyYAML accepts silently: duplicate keys, keys of other types, endless aliases."""
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
    """Write the resolved configuration, with which `gmix train --config FILE` repeats the run."""
    import yaml

    fresh = replace(config, resume=False, dry_run=False, report="html")
    write_own(path, yaml.safe_dump(asdict(fresh), sort_keys=False))


# Settings that may change on resume, because they do not affect the result.
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
    """Refuse to resume a run with other settings than it was started with.

    Raises:
        ValueError: If a setting differs; the message names the first flag, both values and the remedy.
    """
    import yaml

    before = read_settings(path.parent)
    written = parse_yaml(yaml.safe_dump(asdict(config)), "the flags")  # tuples become lists
    for name, now in written.items():
        if name not in FREE_ON_RESUME and name in before and before[name] != now:
            raise ValueError(
                f"cannot resume {path.parent}: it was started with {flag(name)} {before[name]}, "
                f"now {flag(name)} is {now}{_PROCESSES if name == 'accumulate' else ''}; use the old value "
                "or another --out"
            )
