"""Flags, help text and YAML keys of a command, built from a dataclass of options."""

from __future__ import annotations

import re
from argparse import Action, BooleanOptionalAction, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import Field, fields
from types import NoneType
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from gmix.config.options import flag, parse_methods, suggest
from gmix.config.recipes import read_recipe
from gmix.config.yamlfile import check_number, parse_yaml, read_yaml
from gmix.errors import UsageError

C = TypeVar("C")


def parse(kind: type[C], prog: str, about: str, words: Sequence[str], epilog: str = "") -> C:
    """Parse flags into a dataclass.

    `--config FILE` and recipes hold the same options. Flags given here override the file, and the file overrides the
    recipe.

    Args:
        kind: Dataclass whose fields were declared with `gmix.config.options.option`.
        prog: Name of the command, for its help text.
        about: One-sentence description of the command.
        words: The command-line arguments.
        epilog: Text printed below the help text.

    Raises:
        UsageError: If a flag is unknown or a value has the wrong type.
        SystemExit: After `--help`.

    Examples:
        >>> from gmix.config.train_config import TrainConfig
        >>> parse(TrainConfig, "gmix train", "", ["--steps", "7", "--batch-labeled", "2"]).steps
        7
        >>> parse(TrainConfig, "gmix train", "", ["--steps", "many"])
        Traceback (most recent call last):
        gmix.errors.UsageError: --steps expects a whole number, got many
    """
    hints, refused = hints_of(kind), refused_by(kind)
    parser = build_parser(kind, prog, about, epilog)
    spelled = spelled_values(words, hints)
    given = read(parser.parse_args, words)
    settings = settings_of_files(given, hints, refused, words)
    if settings:
        checked = read(parser.parse_object, deepcopy(settings))  # which it modifies
        parser.set_defaults({name: checked[name] for name in settings})
        given = read(parser.parse_args, words)
        spelled = settings | spelled
    given |= {
        name: value
        for name, value in spelled.items()
        if hints[name] == dict[str, Any] and not any(w.startswith(f"{flag(name)}.") for w in words)
    }
    del given["config"]
    return kind(**given)


def hints_of(kind: type[Any]) -> dict[str, Any]:
    """Return the type of each option of a command."""
    types = get_type_hints(kind)
    return {item.name: types[item.name] for item in fields(kind) if item.init}


def refused_by(kind: type[Any]) -> dict[str, Field[Any]]:
    """Return the inherited fields that a command does not offer as flags."""
    return {item.name: item for item in fields(kind) if not item.init}


def build_parser(kind: type[Any], prog: str, about: str, epilog: str) -> Any:
    """Build the parser of a command; the arguments are those of `parse`."""
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    hints, refused, defaults = hints_of(kind), refused_by(kind), kind()

    class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
        """Formatter that prints one line per flag: its description and its default."""

        def __init__(self, prog: str, *args: Any, **rest: Any) -> None:
            super().__init__(prog, max_help_position=32, width=118)  # type: ignore[no-untyped-call]

        def _get_help_string(self, action: Action) -> str:
            shown = isinstance(action.default, (str, int, float)) and action.dest in hints
            if not shown or isinstance(action.default, bool):
                return action.help or ""
            return f"{action.help}  [{action.default}]"

        def _format_action_invocation(self, action: Action) -> str:
            if isinstance(action, BooleanOptionalAction):
                return action.option_strings[1 if action.default else 0]
            return super()._format_action_invocation(action)

    class Parser(ArgumentParser):  # type: ignore[misc, unused-ignore]
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UsageError(plain(message, hints, refused))

    parser = Parser(
        prog=prog,
        usage=f"{prog} [flags]",
        description=about,
        epilog=epilog,
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    common = parser.add_argument_group("any of these flags can be a line of a YAML file")
    common.add_argument("--config", metavar="FILE", help="read flags from FILE, e.g. `steps: 100`")
    groups: dict[str, Any] = {}
    for item in fields(kind):
        if item.name not in hints:
            continue
        title = item.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        how: dict[str, Any] = {"type": hints[item.name], "metavar": item.metadata["metavar"]}
        if hints[item.name] is bool:
            how = {"action": BooleanOptionalAction}
        default, text = getattr(defaults, item.name), item.metadata["help"]
        groups[title].add_argument(flag(item.name), default=default, help=text, **how)
    return parser


def read(method: Callable[[Any], Any], what: Any) -> dict[str, Any]:
    """Call a parser method and convert its errors.

    Raises:
        UsageError: If the method raises an error.
    """
    try:
        found: dict[str, Any] = method(what).as_dict()
    except UsageError:
        raise
    except Exception as error:  # PyYAML raises all kinds of errors, e.g. on "!!int ''"
        raise UsageError(f"a value cannot be read: {type(error).__name__}: {error}") from None
    return found


def spelled_values(words: Sequence[str], hints: dict[str, Any]) -> dict[str, Any]:
    """Return the mappings among the flags as written, keeping quoted text as text.

    Raises:
        UsageError: If the parser would read a value as something else than it looks like.
    """
    spelled: dict[str, Any] = {}
    for before, word in zip(["", *words], words, strict=False):
        name, _, text = word.partition("=") if word.startswith("--") else (before, "", word)
        spelled |= read_value(name, text, hints)
    return spelled


def settings_of_files(
    given: dict[str, Any],
    hints: dict[str, Any],
    refused: dict[str, Field[Any]],
    words: Sequence[str],
) -> dict[str, Any]:
    """Read the settings of `--config FILE` and of the recipe; the file overrides the recipe.

    Args:
        given: Options given on the command line.
        hints: Type of each option.
        refused: Options that the command does not offer.
        words: The command line.

    Raises:
        UsageError: If a key is unknown, or a value does not have its type.
    """
    settings = {} if given["config"] is None else read_yaml(given["config"])
    recipe = given.get("recipe") or settings.get("recipe")
    if recipe is not None:
        own = read_recipe(str(recipe))
        if "method_args" in own:
            option = "method" if "method" in hints else "methods"
            said = any(word.split("=")[0] == flag(option) for word in words)
            name = given[option] if said else {**own, **settings}.get(option, given[option])
            own["method_args"] = arguments_of(own["method_args"], str(name), option)
        settings = {**own, **settings}
    source = given["config"] or f"the recipe {recipe}"
    for name, item in refused.items():  # files of other commands may give the default
        if name in settings and settings.pop(name) != item.default:
            raise UsageError(f"{source}: {misplaced(item)}")
    for name, value in settings.items():
        if name not in hints:
            raise UsageError(f"{source}: unknown key {name}{suggest(name, list(hints))}")
        if value is None and NoneType not in get_args(hints[name]):
            wanted = expected(hints[name])
            raise UsageError(f"{source}: {flag(name)} expects {wanted}, got nothing")
        if hints[name] is bool and not isinstance(value, bool):  # any other counts as true
            raise UsageError(f"{source}: {flag(name)} expects true or false, got {value!r}")
        if isinstance(value, str):
            read_value(flag(name), value, hints)
    return settings


def arguments_of(by_method: dict[str, Any], names: str, option: str) -> dict[str, Any]:
    """Return the `method_args` of a recipe, which has a mapping for each method, as the command takes them.

    Args:
        by_method: Arguments of each method that the recipe has any for.
        names: Value of `--method` or `--methods`.
        option: `method` returns the arguments of this method, `methods` those of each of them.

    Examples:
        >>> by_method = {"unimatch": {"threshold": 0.0}, "cps": {"cross": 6.0}}
        >>> arguments_of(by_method, "cps", "method"), arguments_of(by_method, "cct", "method")
        ({'cross': 6.0}, {})
        >>> arguments_of(by_method, "supervised,cps", "methods")
        {'cps': {'cross': 6.0}}
    """
    chosen = {name: by_method[name] for name in parse_methods(names) if name in by_method}
    if option == "methods":
        return chosen
    arguments: dict[str, Any] = next(iter(chosen.values()), {})
    return arguments


def read_value(name: str, text: str, hints: dict[str, Any]) -> dict[str, Any]:
    """Refuse a value that YAML 1.1 reads as something else than it looks like.

    Args:
        name: A flag, or `--method-args.KEY`.
        text: Value of the flag.
        hints: Type of each option.

    Returns:
        Name and value of the flag if the value is a mapping, else an empty mapping.

    Raises:
        ValueError: If the value is refused.
    """
    top, _, key = name.removeprefix("--").replace("-", "_").partition(".")
    hint = str(hints.get(top))
    if "dict" in hint and not key:
        if text.lstrip().startswith(("{", "[")) or ": " in text:
            return {top: parse_yaml(text, name)}  # stricter than the parser
    elif "int" in hint or "float" in hint or key:
        try:
            check_number(text, name)
        except ValueError as error:
            raise UsageError(str(error)) from None
    return {}


def misplaced(item: Field[Any]) -> str:
    """Return the message for a flag that the command does not offer."""
    return f"{flag(item.name)} has no place here: {item.metadata['help']}"


def plain(message: str, hints: dict[str, Any], refused: dict[str, Field[Any]]) -> str:
    """Translate an error message of the parser into the terms of this library."""
    found = re.match(r'(?:Validation failed: )?\s*Parser key "(\w+)', message)
    if found and found[1] in hints:
        value = message.rsplit("alue: ", 1)[-1].strip()
        return f"{flag(found[1])} expects {expected(hints[found[1]])}, got {value}"
    unknown = re.search(r"(?i)unrecognized arguments: ([^\s=]+)", message)
    if unknown:
        for item in refused.values():
            if unknown[1] == flag(item.name):
                return misplaced(item)
        return f"unknown flag {unknown[1]}{suggest(unknown[1], [flag(name) for name in hints])}"
    return " ".join(message.split())


def expected(hint: Any) -> str:
    """Describe a type in plain words.

    Examples:
        >>> expected(int | None), expected(Literal["adamw", "sgd"])
        ('a whole number', 'adamw or sgd')
    """
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if get_origin(hint) is Literal:
        return " or ".join(get_args(hint))
    if get_origin(hint) is dict or hint is dict:
        return "a mapping such as {name: value}"
    if get_origin(hint) is list:
        return "a list such as [1, 2]"
    if hint in names:
        return names[hint]
    return " or ".join(expected(part) for part in get_args(hint) if part is not NoneType)


def missing(config: Any, *names: str) -> UsageError:
    """Return the error for the first of these flags that was not given.

    Examples:
        >>> from gmix.config.train_config import TrainConfig
        >>> missing(TrainConfig(), "out")
        UsageError('--out DIR is missing: where everything is written')
    """
    name = next(name for name in names if getattr(config, name) is None)
    said = type(config).__dataclass_fields__[name].metadata
    return UsageError(f"{flag(name)} {said['metavar']} is missing: {said['help']}")
