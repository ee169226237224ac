"""Steps whose loss is not finite: skipped on request, otherwise saved for inspection."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gmix.errors import NonFinite


class Guard:
    """Skip steps whose loss or gradient is not finite, and undo what they changed.

    The cost: the host waits for the device at every step, and the state that a forward pass changes (statistics of
    BatchNorm, teachers, memories) is copied before it.

    Args:
        allowed: Largest number of skipped steps; one more ends the training.
        skipped: Numbers of the skipped steps; new ones are appended.
        tell: Called at each skipped step, with the method restored.
    """

    def __init__(self, allowed: int, skipped: list[int], tell: Callable[[NonFinite], None]) -> None:
        self.allowed = allowed
        self.skipped = skipped
        self.tell = tell
        self._before: dict[str, Tensor] = {}

    def remember(self, method: nn.Module) -> None:
        """Copy the state that is not changed by the optimizer alone; call it before a step."""
        learned = {name for name, p in method.named_parameters() if p.requires_grad}
        state = method.state_dict()
        self._before = {name: state[name].clone() for name in state if name not in learned}

    def passes(
        self, step: int, losses: dict[str, Tensor], method: nn.Module, gradients: bool = True
    ) -> bool:
        """Return whether the step is finite, after the backward pass; otherwise restore the method.

        Args:
            step: Number of the step.
            losses: Its named losses.
            method: The method, with gradients.
            gradients: Whether they must be finite, too; a loss scaler leaves out steps where they are not by itself.

        Raises:
            NonFinite: If more steps than allowed are not finite.
        """
        values = torch.stack([loss.float() for loss in losses.values()]).tolist()
        terms = dict(zip(losses, values, strict=True))
        if gradients:  # nothing is clipped: only the norm is needed
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
    """Check that all weights are finite, so that they are worth saving.

    Raises:
        FloatingPointError: If a weight is not finite.
    """
    finite = [parameter.isfinite().all() for parameter in method.parameters()]
    if not torch.stack(finite).all():
        raise FloatingPointError(
            f"weights are not finite after step {step}, though its loss was: no checkpoint is written, "
            "the one before stays; try a lower --lr, --amp none, or --skip-nonfinite N"
        )
