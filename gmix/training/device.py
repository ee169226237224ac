"""The device of a training, and what it is told of memory layout and precision."""

from __future__ import annotations

from typing import Any

import torch

from gmix.training.config import TrainConfig
from gmix.training.options import flag
from gmix.training.precision import computes_in_bfloat16


def prepare_device(name: str, threads: int | None = None) -> torch.device:
    """The device of that name ("auto": a GPU if there is one), and the number of CPU threads.

    Raises:
        ValueError: if there is no such device.

    Examples:
        >>> prepare_device("cpu")
        device(type='cpu')
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{flag('device')} {name} cannot be used here: {reason}") from None
    return device


def layout(config: TrainConfig) -> torch.memory_format:
    """Memory format of images and weights."""
    return torch.channels_last if config.channels_last else torch.contiguous_format


def fit_settings(config: TrainConfig, device: torch.device) -> dict[str, Any]:
    """The arguments of `fit` that flags decide, and the device where they leave it to that."""
    native = config.amp == "auto" and computes_in_bfloat16(device)
    return {
        "steps": config.steps,
        "seed": config.seed,
        "amp": native or config.amp == "bf16",
        "memory_format": layout(config),
        "compiled": config.compile,
        "accumulate": config.accumulate,
    }
