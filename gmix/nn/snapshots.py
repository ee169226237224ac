"""Weights that a network had earlier in its training, whose predictions serve as targets."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gmix.functional.shapes import within
from gmix.nn.losses import check_count
from gmix.nn.modes import eval_mode
from gmix.nn.states import ChecksState

__all__ = ["Snapshots"]


class Snapshots(ChecksState):
    """Keep the last weights of a network, and predict as a random, randomly weighted mean of some of them.

    Nothing depends on values that a GPU would have to be waited for, so that a step can be compiled: `models` networks
    predict in every call, of which the mean may give some the weight 0.

    Args:
        net: The network whose weights are to be kept; it is not part of this module.
        kept: Number of snapshots, of which a new one replaces the oldest.
        models: Largest number of snapshots in a prediction.
        every: Share of the training between two snapshots, in (0, 1].

    Attributes:
        weights: `(kept, P)`: each row the parameters and statistics of a snapshot, flattened.
        taken: Number of snapshots taken so far.
        moment: When the last was taken, in units of `every`.

    Raises:
        ValueError: If an option is out of range.

    Examples:
        >>> net, x = nn.Linear(1, 1, bias=False), torch.ones(1, 1)
        >>> snapshots = Snapshots(net, kept=2, models=1, every=0.1)
        >>> for progress, weight in ((0.05, 1.0), (0.1, 2.0), (0.15, 3.0)):  # too early, due, too early
        ...     _ = nn.init.constant_(net.weight, weight)
        ...     snapshots.take(net, progress)
        >>> snapshots.taken.item(), snapshots(net, x).item(), net(x).item()
        (1, 2.0, 3.0)
    """

    def __init__(
        self, net: nn.Module, kept: int = 8, models: int = 3, every: float = 0.025
    ) -> None:
        super().__init__()
        check_count("kept", kept)
        check_count("models", models)
        if not (within(every, 0, 1) and every > 0):
            raise ValueError(f"`every` is a share of the training in (0, 1], got {every}")
        self.models = min(models, kept)
        self.every = every
        self.weights: Tensor
        self.taken: Tensor
        self.moment: Tensor
        flat = flatten(net)
        self.register_buffer("weights", flat.new_zeros(kept, len(flat)))
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64, device=flat.device))
        self.register_buffer("moment", torch.zeros((), dtype=torch.int64, device=flat.device))

    @torch.no_grad()
    def take(self, net: nn.Module, progress: float | Tensor) -> None:
        """Keep the weights of `net` if `every` has passed since the last snapshot, or since the start."""
        now = torch.as_tensor(progress / self.every, device=self.moment.device).floor().long()
        due = now > self.moment
        oldest = (self.taken % len(self.weights)).view(1)
        kept = self.weights.index_select(0, oldest)
        self.weights.index_copy_(0, oldest, torch.where(due, flatten(net)[None], kept))
        self.taken += due
        self.moment.copy_(torch.maximum(now, self.moment))

    @torch.no_grad()
    def forward(
        self, net: nn.Module, x: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """Compute the mean logits of 1 to `models` snapshots in eval mode; 0 if there is none. `net` lends its modules.

        How many is drawn evenly, which without replacement, and their weights from a flat Dirichlet distribution.
        """
        device = self.weights.device
        there = torch.arange(len(self.weights), device=device) < self.taken
        draw = torch.rand(len(self.weights), generator=generator, device=device)
        chosen = torch.where(there, draw, -1.0).topk(self.models).indices
        number = 1 + torch.rand((), generator=generator, device=device).mul(self.models).long()
        used = torch.arange(self.models, device=device) < torch.minimum(number, self.taken)
        share = -torch.rand(self.models, generator=generator, device=device).neg().log1p() * used
        share = share / share.sum().clamp(min=torch.finfo(share.dtype).tiny)
        total = torch.zeros((), device=device)
        with eval_mode(net):
            for one, weight in zip(chosen, share, strict=True):
                flat = self.weights.index_select(0, one.view(1))[0]
                logits = torch.func.functional_call(net, unflatten(net, flat), (x,))
                total = total + weight * logits.float()
        return total


def state_of(net: nn.Module) -> dict[str, Tensor]:
    """Return parameters and statistics by name, but no counters."""
    everything = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return {name: value for name, value in everything.items() if value.is_floating_point()}


def flatten(net: nn.Module) -> Tensor:
    """Return a copy of parameters and statistics as a vector."""
    return torch.cat([value.detach().flatten() for value in state_of(net).values()])


def unflatten(net: nn.Module, flat: Tensor) -> dict[str, Tensor]:
    """Return parameters and statistics by name, from a vector of those of a network like `net`."""
    state = state_of(net)
    parts = torch.split(flat, [value.numel() for value in state.values()])
    return {
        name: part.view(value.shape)
        for (name, value), part in zip(state.items(), parts, strict=True)
    }
