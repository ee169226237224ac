"""What gmix raises beside ValueError and TypeError, and an exception on one line."""

from __future__ import annotations


class UsageError(ValueError):
    """A command line or configuration file that cannot be understood; says why on one line."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))


class BatchError(ValueError):
    """Why a batch cannot be made.

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
    """A step whose loss is not finite.

    Attributes:
        step: Its number, the first being 1.
        terms: The named losses.

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
    """The training was asked to stop, saved its state, and can go on with `--resume`."""


class CutShort(BaseException):
    """Ends a wait; no handler of errors may take it for one."""


def one_line(error: BaseException) -> str:
    """What an exception says, on one line.

    Examples:
        >>> one_line(RuntimeError("first\\n  second"))
        'first second'
    """
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split()) or type(error).__name__
