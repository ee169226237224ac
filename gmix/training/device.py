"""The device of a training, and its memory layout."""

from __future__ import annotations

import torch

from gmix.training.config import TrainConfig
from gmix.training.options import flag


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
