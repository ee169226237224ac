"""What a training saves when something fails between two steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gmix.say import explain

__all__ = ["everything_saved", "rescue"]


@contextmanager
def rescue(save: Callable[[], None], step: int, steps: int) -> Iterator[None]:
    """Save the state of the training if what happens within fails, which is not part of a step.

    Args:
        save: writes a checkpoint.
        step: steps done.
        steps: of the whole training.

    Raises:
        ValueError: what failed, in one sentence that also says how to go on; other errors than those of data and
            files are raised as they are.

    Examples:
        >>> with rescue(lambda: None, 3, 9):
        ...     raise ValueError("cannot read image a.png")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: cannot read image a.png; stopped after step 3 of 9, everything is saved: mend that, and ...
    """
    try:
        yield
    except Exception as error:
        try:
            save()
        except ValueError as second:  # which says what is left
            raise ValueError(f"{explain(error)}; {second}") from error
        if not isinstance(error, (ValueError, OSError)):
            raise
        remedy = "mend that, and repeat the command with --resume"
        raise ValueError(f"{explain(error)}; {everything_saved(step, steps)}: {remedy}") from error


def everything_saved(step: int, steps: int) -> str:
    """Say where a training stopped.

    Examples:
        >>> everything_saved(3, 9)
        'stopped after step 3 of 9, everything is saved'
    """
    return f"stopped after step {step} of {steps}, everything is saved"
