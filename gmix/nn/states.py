"""Checks that a saved state fits a module, with one-sentence errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from gmix.nn.frozen import HoldsFrozenEncoder

__all__ = ["ChecksState", "check_state"]


class ChecksState(nn.Module):
    """Refuse a state that does not fit, before anything is loaded."""

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load a state; if it does not fit, raise a one-sentence error and change nothing."""
        if strict and isinstance(state_dict, Mapping):
            check_state(self, state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Also called through a parent. Only torch's own loading knows there whether names may be missing.
        own = self.state_dict()
        if differ := other_shapes(own, state_dict, prefix):
            raise RuntimeError(_sentence(self, differ, len(own)))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def check_state(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Refuse a state with other names or shapes, before anything is loaded; torch would print a line for each.

    Raises:
        RuntimeError: As torch does, but naming only the first difference and their number.

    Examples:
        >>> check_state(nn.Linear(2, 3), nn.Linear(2, 4).state_dict())
        Traceback (most recent call last):
        RuntimeError: the state is of another Linear: weight is (4, 2) in it and (3, 2) here, 2 entries differ ...
    """
    own = module.state_dict()
    differ = other_shapes(own, state)
    differ += [f"{name} is missing from it" for name in own if name not in state]
    differ += [f"{name} is unknown here" for name in state if name not in own]
    differ += [
        fault
        for prefix, part in module.named_modules(prefix="")
        if isinstance(part, HoldsFrozenEncoder)
        and (fault := part.state_fault(state, prefix + "." if prefix else "")) is not None
    ]
    if differ:
        raise RuntimeError(_sentence(module, differ, len(own)))


def other_shapes(own: Mapping[str, Any], state: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Describe the entries of a state, below a prefix, that are no tensors or of another shape than in `own`."""
    return [
        f"{prefix}{name} is {_shape(found)} in it and {_shape(value)} here"
        for name, value in own.items()
        if isinstance(value, Tensor)
        and f"{prefix}{name}" in state
        and _shape(found := state[f"{prefix}{name}"]) != _shape(value)
    ]


def _shape(found: Any) -> tuple[int, ...] | str:
    return tuple(found.shape) if isinstance(found, Tensor) else f"of type {type(found).__name__}"


def _sentence(module: nn.Module, differ: list[str], count: int) -> str:
    return (
        f"the state is of another {type(module).__name__}: {differ[0]}, {len(differ)} entries differ of "
        f"{count}; build it with the classes, encoder and parts it was saved with"
    )
