"""The state of a training: built from flags, saved, and restored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gmix.builders.method import build_method
from gmix.builders.network import build_net, layout
from gmix.config.train_config import TrainConfig
from gmix.config.yamlfile import check_unchanged
from gmix.nn.network import GuidedMixNet
from gmix.runs.checkpoint import (
    Checkpoint,
    list_checkpoints,
    load_weights,
    newest_checkpoint,
    read_state,
    save_checkpoint,
)
from gmix.runs.results import Tally
from gmix.runtime.own import check_own
from gmix.runtime.precision import LossScaler, amp_dtype
from gmix.runtime.typed import from_mapping
from gmix.training.optim import build_optimizer, fitting_state

# The files of a training, which something else may have written before. Other files in these folders stay.
WRITTEN = (
    *("metrics.jsonl", "results.json"),
    *(
        f"{folder}/{name}"
        for folder in ("model", "best")
        for name in (
            "config.json",
            "model.safetensors",
            "gmix.json",
            "gmix.safetensors",
            "README.md",
        )
    ),
)


@dataclass
class TrainingState:
    """Everything that changes during training."""

    method: Any
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    tally: Tally
    scaler: LossScaler

    @property
    def deployed(self) -> GuidedMixNet:
        """Return the network that is evaluated and saved, but for its BatchNorm statistics."""
        average: Any = self.average
        net: GuidedMixNet = self.method.net if average is None else average.module
        return net

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Return all modules with weights."""
        average = {} if self.average is None else {"average": self.average}
        return {"method": self.method, **average}

    def save(self, folder: Path, step: int, keep: int = 2) -> Path:
        """Write a checkpoint after `step` steps."""
        state = {
            "optimizer": self.optimizer.state_dict(),
            "tally": vars(self.tally),
            "scaler": self.scaler.state_dict(),
        }
        return save_checkpoint(folder, step, self.modules, state, keep)


def build_state(
    config: TrainConfig, channels: int, device: torch.device, pixels: Sequence[int] = ()
) -> TrainingState:
    """Build all that changes during training, on the device, with new weights; see `build_method`."""
    torch.manual_seed(config.seed)
    net = build_net(config, channels)
    method = build_method(config, net, pixels).to(device).to(memory_format=layout(config))
    if config.sync_norm:
        if device.type != "cuda":
            raise ValueError(
                f"--sync-norm needs GPUs, torch's SyncBatchNorm does not run on {device}: leave it out"
            )
        nn.SyncBatchNorm.convert_sync_batchnorm(method)  # type: ignore[no-untyped-call]
    nets = [module for module in method.modules() if isinstance(module, GuidedMixNet)]
    optimizer = build_optimizer(
        method.parameters(),
        nn.ModuleList(net.encoder for net in nets),
        name=config.optimizer,
        lr=config.lr,
        encoder_lr=config.encoder_lr,
        weight_decay=config.weight_decay,
    )
    average: AveragedModel | None = None
    if config.ema is not None:
        rule: Any = get_ema_multi_avg_fn
        average = AveragedModel(net, multi_avg_fn=rule(config.ema), use_buffers=True)
    scaler = LossScaler(device.type, enabled=amp_dtype(config.amp, device) is torch.float16)
    return TrainingState(method, optimizer, average, Tally(), scaler)


def restore(state: TrainingState, checkpoint: Checkpoint, device: torch.device) -> None:
    """Load a checkpoint into `state`; if anything in it does not fit, nothing changes.

    Raises:
        ValueError: If it belongs to another training.
    """
    saved = read_state(checkpoint.path, state.modules, device)
    try:
        optimizer = fitting_state(state.optimizer, saved.get("optimizer"))
        tally = from_mapping(Tally, saved.get("tally"))
        scale = state.scaler.fitting(saved.get("scaler"))
    except ValueError as error:
        reason = f"does not fit this training: {error}"
        raise ValueError(f"the checkpoint {checkpoint.path} {reason}") from error
    load_weights(checkpoint.path, state.modules, device)
    state.optimizer.load_state_dict(optimizer)
    if scale:
        state.scaler.load_state_dict(scale)
    state.tally = tally


def find_checkpoint(config: TrainConfig, out: Path) -> tuple[Checkpoint | None, list[str]]:
    """Find the checkpoint to resume from, if any, and messages about others.

    Raises:
        ValueError: If a run would be overwritten, or resumed with other settings.
    """
    if not list_checkpoints(out):
        ended = any((out / name).exists() for name in ("results.json", "model"))
        if ended and (out / "config.yaml").exists():  # other programs use these names, too
            raise ValueError(
                f"{out} holds a finished run whose checkpoints are gone: choose another --out"
            )
        check_own([out / "config.yaml"])
        if not (
            out / "config.yaml"
        ).exists():  # a run writes it first: without it, the other files are not a run's
            check_own(out / name for name in WRITTEN)
        return None, []
    if not config.resume:
        raise ValueError(
            f"{out} already holds a run: add --resume to go on with it, or choose another --out"
        )
    check_unchanged(config, out / "config.yaml")
    found, notes = newest_checkpoint(out)
    if found is not None and found.step > config.steps:
        raise ValueError(
            f"cannot resume {out}: {found.path.name} is beyond --steps {config.steps}; remove it to go on "
            "from the one before, or start anew in another --out"
        )
    return found, notes
