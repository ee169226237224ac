"""Checkpoints that are whole or absent: a folder is written aside, then renamed into place."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

PREFIX = "checkpoint-"


class Checkpoint(NamedTuple):
    """A training state on disk."""

    step: int
    path: Path


def save_checkpoint(
    folder: Path,
    step: int,
    modules: dict[str, nn.Module],
    state: dict[str, Any],
    keep: int = 2,
) -> Path:
    """Write `folder/checkpoint-STEP/` and remove all but the newest `keep`.

    The weights of each module go into `NAME.safetensors`, everything else (plain values and
    tensors) into `state.pt`. A process killed at any moment leaves the earlier ones untouched.

    Args:
        folder: made if it does not exist.
        step: steps done.
        modules: what holds weights, by name.
        state: what does not, e.g. `{"optimizer": optimizer.state_dict()}`.
        keep: how many checkpoints stay.

    Returns:
        The folder written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"{PREFIX}{step:08d}"
    if final.exists():  # a resumed run that reaches the same step has the same state
        return final
    aside = folder / f".{final.name}.part"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for name, module in modules.items():
        save_file(contiguous(module), aside / f"{name}.safetensors")
    torch.save(state, aside / "state.pt")
    for path in (*aside.iterdir(), aside):
        _flush(path)
    aside.rename(final)
    _flush(folder)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old.path)
    return final


def load_checkpoint(
    path: Path, modules: dict[str, nn.Module], device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Load the modules' weights in place and return the rest of the state.

    Raises:
        ValueError: if the checkpoint does not fit the modules.
    """
    for name, module in modules.items():
        try:
            module.load_state_dict(load_file(path / f"{name}.safetensors", device=str(device)))
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"the checkpoint {path} does not fit this network: {reason}") from None
    state: dict[str, Any] = torch.load(path / "state.pt", map_location=device, weights_only=True)
    return state


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """All whole checkpoints, oldest first."""
    found = [
        Checkpoint(int(path.name.removeprefix(PREFIX)), path)
        for path in folder.glob(f"{PREFIX}*")
        if path.name.removeprefix(PREFIX).isdecimal()
    ]
    return sorted(found)


def contiguous(module: nn.Module) -> dict[str, Tensor]:
    """The module's state as safetensors wants it: contiguous, whatever the memory layout.

    Examples:
        >>> conv = nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last)
        >>> conv.weight.is_contiguous(), contiguous(conv)["weight"].is_contiguous()
        (False, True)
    """
    return {name: tensor.contiguous() for name, tensor in module.state_dict().items()}


def _flush(path: Path) -> None:
    """Make the kernel write a file, or a folder's entries, to the disk."""
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
