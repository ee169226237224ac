"""Exception types of gmix beyond ValueError and TypeError, and `one_line` to format any exception."""

from __future__ import annotations


class UsageError(ValueError):
    """A command line or configuration file that cannot be understood; the message is one line."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))


class BatchError(ValueError):
    """A batch that cannot be built.

    Attributes:
        reason: What happened.
        remedy: What to do before going on.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason, remedy)
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


class NonFinite(FloatingPointError):
    """A training step whose loss is not finite.

    Attributes:
        step: Number of the step, counted from 1.
        terms: Value of each named loss.

    Examples:
        >>> NonFinite(5, {"ce": 1.5, "total": float("inf")})
        NonFinite('the loss is not finite at step 5 (ce = 1.5, total = inf)')
    """

    def __init__(self, step: int, terms: dict[str, float]) -> None:
        self.step = step
        self.terms = terms
        said = ", ".join(f"{name} = {value:g}" for name, value in terms.items())
        super().__init__(f"the loss is not finite at step {step} ({said})")


class Interrupted(Exception):
    """A training that was asked to stop, saved its state and can continue with `--resume`."""


class CutShort(BaseException):
    """The end of a wait; a `BaseException`, so that error handlers do not catch it."""


def one_line(error: BaseException) -> str:
    r"""Return the message of an exception on one line.

    Examples:
        >>> one_line(RuntimeError("first\n  second"))
        'first second'
    """
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split()) or type(error).__name__
