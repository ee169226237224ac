"""Checkpoints: the state of a training, in a folder that is written atomically."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gmix.runtime.atomic import atomic_folder, remove_folder
from gmix.runtime.infile import read_plain, sha256
from gmix.runtime.tensorfile import check_tensors, load_plain, load_tensors

PREFIX = "checkpoint-"
STATE, SUMS = "state.pt", "SHA256SUMS"
MOST_SUMS = 2**20  # bytes


class Checkpoint(NamedTuple):
    """A checkpoint on disk."""

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

    The weights of each module go into `NAME.safetensors`, everything else (plain values and tensors) into `state.pt`,
    and the hashes of these files into `SHA256SUMS` (`sha256sum -c` reads it). A process killed at any moment leaves
    earlier checkpoints intact.

    Args:
        folder: Folder of the run, created if it does not exist.
        step: Number of steps done.
        modules: Modules with weights, by name.
        state: All other state, e.g. `{"optimizer": optimizer.state_dict()}`.
        keep: Number of checkpoints to keep.

    Returns:
        Folder of the checkpoint.

    Raises:
        ValueError: If it cannot be written; earlier checkpoints stay.
    """
    final = folder / f"{PREFIX}{step:08d}"
    if final.exists():  # a resumed run reaches the same step in the same state
        return final
    try:
        with atomic_folder(final) as aside:
            for name, module in modules.items():
                save_file(contiguous(module), aside / f"{name}.safetensors")
            with (aside / STATE).open("wb") as file:
                torch.save({"step": step, **state}, file)
            sums = [f"{sha256(path)}  {path.name}\n" for path in sorted(aside.iterdir())]
            (aside / SUMS).write_text("".join(sums), encoding="utf-8")
    except ValueError as error:
        kept = [checkpoint.path.name for checkpoint in list_checkpoints(folder)]
        rest = f"{kept[-1]} stays, to go on from with --resume" if kept else "there is none yet"
        raise ValueError(f"{error}; {rest}") from error
    remove_old(folder, keep)
    return final


def remove_old(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints."""
    for old in list_checkpoints(folder)[:-keep]:
        remove_folder(old.path)


def load_checkpoint(
    path: Path, modules: dict[str, nn.Module], device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Load the modules' weights in place and return the rest of the state.

    Raises:
        ValueError: If the checkpoint does not fit the modules, or cannot be read.
    """
    state = read_state(path, modules, device)
    load_weights(path, modules, device)
    return state


def read_state(
    path: Path, modules: dict[str, nn.Module], device: torch.device | str = "cpu"
) -> dict[str, Any]:
    """Read everything but the weights, after checking that those fit; no module is changed.

    Raises:
        ValueError: If the checkpoint does not fit the modules, or cannot be read.
    """
    with _unfit(path):
        for name, module in modules.items():
            check_tensors(path / f"{name}.safetensors", module.state_dict())
        state = load_plain(path / STATE, device)
        if not isinstance(state, dict):
            raise ValueError(f"{STATE} must hold a mapping, got a {type(state).__name__}")
        step = state.pop("step", step_of(path))
        if step != step_of(path):
            raise ValueError(f"it was written after step {step}: give its folder that name again")
    return state


def load_weights(
    path: Path, modules: dict[str, nn.Module], device: torch.device | str = "cpu"
) -> None:
    """Load the modules' weights in place.

    Raises:
        ValueError: If the checkpoint does not fit the modules, or cannot be read.
    """
    with _unfit(path):
        for name, module in modules.items():
            module.load_state_dict(load_tensors(path / f"{name}.safetensors", device))


@contextmanager
def _unfit(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # raised by two libraries, for any broken file
        reason = textwrap.shorten(" ".join(str(error).split()), 300, placeholder=" ...")
        raise ValueError(f"the checkpoint {path} does not fit this network: {reason}") from error


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Find the newest undamaged checkpoint, and rename newer ones to `damaged-...`.

    Returns:
        The checkpoint, or None if the folder has none; and messages about damaged ones.

    Raises:
        ValueError: If there are checkpoints, but all are damaged.
    """
    damaged: list[tuple[Path, str]] = []
    for found in reversed(list_checkpoints(folder)):
        reason = damage(found.path)
        if reason is None:
            for path, _ in damaged:
                aside = path.with_name(f"damaged-{path.name}")
                if aside.exists():  # the checkpoint of that step was damaged before
                    remove_folder(aside)
                path.rename(aside)
            notes = [f"{path.name} is damaged ({why}) and set aside" for path, why in damaged]
            return found, notes
        damaged.append((found.path, reason))
    if damaged:
        reasons = ", ".join(f"{path.name}: {why}" for path, why in damaged)
        raise ValueError(
            f"no checkpoint in {folder} can be read ({reasons}): start anew in another --out"
        )
    return None, []


def damage(path: Path) -> str | None:
    """Return what is wrong with the files of a checkpoint, if anything: disks fail, and copies are cut short."""
    try:
        lines = read_plain(path / SUMS, MOST_SUMS).splitlines()
        sums = {name: known for known, name in (line.split("  ", 1) for line in lines)}
    except OSError as error:
        return f"{SUMS}: {error.strerror}"
    except ValueError:
        return f"{SUMS} cannot be read"
    weights = {found.name for found in path.glob("*.safetensors")}
    if not sums.keys() >= {STATE, *weights}:
        return f"{SUMS} is cut short"
    for name, known in sums.items():
        if Path(name).name != name or "\\" in name:
            return f"{SUMS} names {name!r}, which is not in this folder"
        try:
            if sha256(path / name) != known:
                return f"{name} is not as it was written"
        except OSError as error:
            return f"{name}: {error.strerror}"
        except ValueError as error:
            return str(error)
    return None


def step_of(path: Path) -> int:
    """Return the step after which a checkpoint was written, from the name of its folder.

    Examples:
        >>> step_of(Path("run/checkpoint-00000500"))
        500
    """
    return int(path.name.removeprefix(PREFIX))


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """List all complete checkpoints, oldest first."""
    found = [
        Checkpoint(step_of(path), path)
        for path in folder.glob(f"{PREFIX}*")
        if path.name.removeprefix(PREFIX).isdecimal() and path.is_dir()
    ]
    return sorted(found)


def contiguous(module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a module with contiguous tensors, which safetensors requires.

    Examples:
        >>> conv = nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last)
        >>> conv.weight.is_contiguous(), contiguous(conv)["weight"].is_contiguous()
        (False, True)
    """
    return {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
