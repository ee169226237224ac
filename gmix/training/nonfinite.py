"""Steps whose loss is not finite: left out on request, else kept to be looked at."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gmix.errors import NonFinite


class Guard:
    """Leaves out steps whose loss or gradient is not finite, as if they had not been.

    The price: the host waits for the device at every step, and what a forward pass changes (statistics of
    BatchNorm, teachers, memories) is copied before.

    Args:
        allowed: how many; one more ends the training.
        skipped: the numbers of those there were; grows.
        tell: called at each of them, with the method as it was before.
    """

    def __init__(self, allowed: int, skipped: list[int], tell: Callable[[NonFinite], None]) -> None:
        self.allowed = allowed
        self.skipped = skipped
        self.tell = tell
        self._before: dict[str, Tensor] = {}

    def remember(self, method: nn.Module) -> None:
        """Before a step: copy all that is not changed by the optimizer alone."""
        learned = {name for name, p in method.named_parameters() if p.requires_grad}
        state = method.state_dict()
        self._before = {name: state[name].clone() for name in state if name not in learned}

    def passes(self, step: int, losses: dict[str, Tensor], method: nn.Module) -> bool:
        """After the backward pass: whether the step counts; else the method is as it was before.

        Raises:
            NonFinite: if it is one too many.
        """
        values = torch.stack([loss.float() for loss in losses.values()]).tolist()
        terms = dict(zip(losses, values, strict=True))
        # Nothing is clipped: the norm is all that is wanted.
        terms["gradient"] = float(nn.utils.clip_grad_norm_(method.parameters(), math.inf))
        if all(map(math.isfinite, terms.values())):
            return True
        state = method.state_dict()
        for name, before in self._before.items():
            state[name].copy_(before)
        bad = NonFinite(step, terms)
        if len(self.skipped) >= self.allowed:
            raise bad
        self.tell(bad)
        self.skipped.append(step)
        return False


def check_finite(method: nn.Module, step: int) -> None:
    """Make sure that the weights are worth keeping.

    Raises:
        FloatingPointError: if one of them is not finite.
    """
    finite = [parameter.isfinite().all() for parameter in method.parameters()]
    if not torch.stack(finite).all():
        raise FloatingPointError(
            f"weights are not finite after step {step}, though its loss was: no checkpoint is written, "
            "the one before stays; try a lower --lr, --amp none, or --skip-nonfinite N"
        )
