"""The learning-rate schedule and the parameter groups."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn


def poly(step: int, steps: int, power: float = 0.9) -> float:
    """Compute the factor of the learning rate at a step: `(1 - step / steps) ** power`.

    Args:
        step: The step about to be taken, 0 .. steps - 1.
        steps: Length of the training.
        power: 0.9 in the paper (Sec. 4.2) and in DeepLab before it.

    Examples:
        >>> [round(poly(t, 4), 3) for t in range(4)]
        [1.0, 0.772, 0.536, 0.287]
    """
    return float((1 - step / steps) ** power)


def build_optimizer(
    parameters: Iterable[nn.Parameter],
    encoder: nn.Module,
    *,
    name: Literal["adamw", "sgd"] = "adamw",
    lr: float = 1e-3,
    encoder_lr: float = 0.3,
    weight_decay: float = 1e-4,
) -> torch.optim.Optimizer:
    """Build AdamW or SGD (momentum 0.9) with two groups: the pretrained encoder learns more slowly.

    Args:
        parameters: The parameters of a method; those without gradient (a teacher's) are skipped.
        encoder: The module whose parameters get the rate `lr * encoder_lr`.
        name: "adamw" or "sgd".
        lr: Learning rate of all other parameters.
        encoder_lr: Factor of the learning rate of the encoder.
        weight_decay: Weight decay of both groups.

    Examples:
        >>> encoder, head = nn.Linear(2, 2), nn.Linear(2, 1)
        >>> parameters = [*encoder.parameters(), *head.parameters()]
        >>> optimizer = build_optimizer(parameters, encoder, lr=0.1)
        >>> [(round(g["lr"], 3), len(g["params"])) for g in optimizer.param_groups]
        [(0.03, 2), (0.1, 2)]
    """
    inside = {id(p) for p in encoder.parameters()}
    trained = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in inside], "lr": lr * encoder_lr},
        {"params": [p for p in trained if id(p) not in inside], "lr": lr},
    ]
    for group in groups:
        group["initial_lr"] = group["lr"]
    # One kernel for all parameters instead of several for each, which matters on a CPU.
    fused = all(p.device.type in ("cpu", "cuda") for p in trained)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=weight_decay, fused=fused)
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=fused)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times the rate it started with."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["initial_lr"]


def fitting_state(optimizer: torch.optim.Optimizer, found: Any) -> dict[str, Any]:
    """Check that a saved state fits this optimizer: torch accepts any state, and may end the process.

    Only tensors are taken; rates and other options stay those of the optimizer.

    Args:
        optimizer: The optimizer to continue with.
        found: The content of the file at the place of its `state_dict()`.

    Returns:
        A state for its `load_state_dict`.

    Raises:
        ValueError: If names, shapes or types differ from those after a step of the optimizer.

    Examples:
        >>> weight = nn.Parameter(torch.ones(3))
        >>> optimizer = torch.optim.SGD([weight], momentum=0.9)
        >>> fitting_state(optimizer, {"state": {0: {"momentum_buffer": torch.ones(4)}}})
        Traceback (most recent call last):
        ValueError: momentum_buffer of parameter 0 must have the shape (3,), got (4,)
    """
    state = found.get("state") if isinstance(found, dict) else None
    if not isinstance(state, dict):
        raise ValueError("it holds no state of an optimizer")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    wanted = _one_step(optimizer)
    taken: dict[int, dict[str, Tensor]] = {}
    for index, entries in state.items():
        if not (isinstance(index, int) and 0 <= index < len(parameters)):
            raise ValueError(f"it holds a state of parameter {index} of {len(parameters)}")
        if not (isinstance(entries, dict) and entries.keys() == wanted.keys()):
            names = sorted(map(str, entries)) if isinstance(entries, dict) else entries
            raise ValueError(
                f"the state of parameter {index} must be {sorted(wanted)}, got {names}"
            )
        taken[index] = {}
        for name, value in entries.items():
            like = parameters[index] if wanted[name].dim() else wanted[name]
            plain = isinstance(value, Tensor) and value.layout == torch.strided
            if not (plain and value.is_floating_point() and value.device.type != "meta"):
                raise ValueError(f"{name} of parameter {index} is no tensor of numbers")
            if value.shape != like.shape:
                raise ValueError(
                    f"{name} of parameter {index} must have the shape {tuple(like.shape)}, "
                    f"got {tuple(value.shape)}"
                )
            # Elements of a tensor from a file may share memory.
            taken[index][name] = value.detach().clone()
    return {"state": taken, "param_groups": optimizer.state_dict()["param_groups"]}


def _one_step(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the state that the optimizer keeps per parameter, from a step of a copy."""
    twin, weight = copy.copy(optimizer), nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    twin.param_groups = [{**optimizer.param_groups[0], "params": [weight]}]
    twin.state = defaultdict(dict)
    twin.step()
    return dict(twin.state[weight])
