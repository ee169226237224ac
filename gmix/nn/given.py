"""Parts that remember which of their options were given, so that a method can fill in the others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

__all__ = ["Options", "make_part", "optional_part", "remember_given"]

Options = Mapping[str, Any]

P = ParamSpec("P")
Part = TypeVar("Part")


def remember_given(
    init: Callable[Concatenate[Part, P], None],
) -> Callable[Concatenate[Part, P], None]:
    """Make an `__init__` note the names of the arguments it is called with.

    Examples:
        >>> class Blur:
        ...     @remember_given
        ...     def __init__(self, p: float = 0.5, sigma: float = 1.0) -> None: ...
        >>> sorted(Blur(sigma=2.0).given_options)
        ['sigma']
    """
    signature = inspect.signature(init)

    @wraps(init)
    def remembering(self: Part, /, *args: P.args, **kwargs: P.kwargs) -> None:
        init(self, *args, **kwargs)
        names = [*signature.bind(self, *args, **kwargs).arguments][1:]
        vars(self).update(given_options=frozenset(names), completed=False)

    return remembering


def make_part(name: str, make: Callable[..., Any], options: Options, given: Any = None) -> Any:
    """Make a part of a method, or complete a given one with `options`.

    Args:
        name: Name of the part, for errors.
        make: Makes the part from its options.
        options: The method's defaults, which replace those of `make`.
        given: Options that take precedence, or a part. The method uses the part itself, not a copy. A part whose class
            does not remember its options is left unchanged.

    Raises:
        TypeError: If `given` is neither, or `make` does not have an option.
        ValueError: If another method has completed the part in another way.

    Examples:
        >>> from gmix import LabeledUnlabeledMixer
        >>> options = {"max_lambda": 0.3}
        >>> make_part("mixer", LabeledUnlabeledMixer, options, {"alpha": 2.0})
        LabeledUnlabeledMixer(alpha=2.0, max_lambda=0.3)
        >>> make_part("mixer", LabeledUnlabeledMixer, options, LabeledUnlabeledMixer(alpha=2.0))
        LabeledUnlabeledMixer(alpha=2.0, max_lambda=0.3)
    """
    if given is None or isinstance(given, Mapping):
        return make(**{**options, **(given or {})})
    kind: Any = getattr(make, "func", make)  # unwraps a `functools.partial`
    if not callable(given) or isinstance(given, type):
        raise TypeError(
            f"{name} must be a mapping of its options, {kind.__name__} or None, got {given!r}"
        )
    if isinstance(given, kind) and hasattr(given, "given_options"):
        fill_in(name, given, make, options)
    return given


def optional_part(name: str, make: Callable[..., Any], given: Any) -> Any:
    """Make an optional part: None unless the part, or a mapping of its options, is given."""
    return None if given is None else make_part(name, make, {}, given)


def fill_in(name: str, part: Any, make: Callable[..., Any], options: Options) -> None:
    """Set the `options` that a part was not given."""
    unsaid = options.keys() - part.given_options
    if unsaid:
        model = make(**options)  # checks the options, and holds them as the part does
        new = {key: getattr(model, key) for key in sorted(unsaid)}
        changed = [key for key, value in new.items() if not equal(getattr(part, key), value)]
        if part.completed and changed:
            raise ValueError(
                f"this {name} belongs to a method that has {changed[0]}={getattr(part, changed[0])!r}, here it "
                f"would become {new[changed[0]]!r}: make one for each method, or say this option yourself"
            )
        for key, value in new.items():
            setattr(part, key, value)
    part.completed = True


def equal(one: Any, other: Any) -> bool:
    """Compare two values of an option, which may be tensors."""
    return bool(torch.as_tensor(one == other).all())
