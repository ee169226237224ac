"""Learning-rate schedule and parameter groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn


def poly(step: int, steps: int, power: float = 0.9) -> float:
    """The factor of the learning rate at a step: `(1 - step / steps) ** power`.

    Args:
        step: step about to be taken, 0 .. steps - 1.
        steps: length of the training.
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
    """AdamW or SGD (momentum 0.9) with two groups: the pretrained encoder learns more slowly.

    Args:
        parameters: what a method owns; those without gradient (a teacher's) are left out.
        encoder: its parameters get the rate `lr * encoder_lr`.
        name: "adamw" or "sgd".
        lr: learning rate of everything but the encoder.
        encoder_lr: factor for the encoder.
        weight_decay: for both groups.

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
    # One kernel for all parameters instead of several for each, which a CPU feels.
    fused = all(p.device.type in ("cpu", "cuda") for p in trained)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, weight_decay=weight_decay, fused=fused)
    return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay, fused=fused)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` times the rate it started with."""
    for group in optimizer.param_groups:
        group["lr"] = factor * group["initial_lr"]
