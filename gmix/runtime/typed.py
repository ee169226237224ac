"""Type checks of values read from files, against the fields of a dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


def from_mapping(kind: type[T], found: Any) -> T:
    """Build a dataclass from a mapping read from a file; unknown entries are ignored.

    Raises:
        ValueError: If it is not a mapping, or an entry is missing or has the wrong type.

    Examples:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Point:
        ...     x: int
        ...     name: str | None = None
        >>> from_mapping(Point, {"x": 3, "colour": "red"})
        Point(x=3, name=None)
        >>> from_mapping(Point, {"x": "three"})
        Traceback (most recent call last):
        ValueError: x must be int, got 'three'
    """
    if not isinstance(found, Mapping):
        raise ValueError(f"expected a mapping, got {_short(found)}")
    hints = get_type_hints(kind)
    known = fields(kind)  # type: ignore[arg-type]
    for item in known:
        if item.name not in found:
            if item.default is MISSING and item.default_factory is MISSING:
                raise ValueError(f"{item.name} is missing")
        elif not fits(found[item.name], hints[item.name]):
            words = item.type if isinstance(item.type, str) else item.type.__name__
            raise ValueError(f"{item.name} must be {words}, got {_short(found[item.name])}")
    return kind(**{item.name: found[item.name] for item in known if item.name in found})


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value has a (possibly nested) type; an int is also a `float`, a bool is neither.

    Examples:
        >>> fits([1, 2.5], list[float]), fits({"a": 1}, dict[str, str]), fits(True, int)
        (True, False, False)
        >>> fits((0.5, 3), tuple[float, int] | None), fits([0.5, 3], tuple[float, int])
        (True, False)
    """
    kind: Any = get_origin(hint) or hint
    inner = get_args(hint)
    if kind is Any:
        return True
    if kind in (Union, UnionType):
        return any(fits(value, part) for part in inner)
    if kind is Literal:
        return value in inner
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    if not isinstance(value, NoneType if kind is None else kind):
        return False
    value = cast(Any, value)
    if kind is dict and inner:
        return all(fits(key, inner[0]) and fits(item, inner[1]) for key, item in value.items())
    if kind is tuple and inner and inner[-1] is not ...:
        return len(value) == len(inner) and all(map(fits, value, inner))
    return not inner or all(fits(item, inner[0]) for item in value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]} ..."
