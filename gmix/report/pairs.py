"""Replay of the last training batch of a GuidedMix run, step by step."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gmix.builders.data import find_data
from gmix.builders.network import Stats
from gmix.data import Classes
from gmix.deploy.evaluate import original_data
from gmix.methods import GuidedMix
from gmix.methods.guidedmix import Guidance
from gmix.nn.losses import GuidedMixLoss
from gmix.nn.modes import eval_mode
from gmix.nn.pairing import RandomPairSelector
from gmix.runs.checkpoint import list_checkpoints
from gmix.runtime.precision import mixed_precision
from gmix.training.fit import step_seed
from gmix.training.session import look_back


@dataclass(frozen=True)
class Replay:
    """A batch, and the steps that made its pseudo masks.

    Attributes:
        method: The method at that step, in eval mode.
        classes: Classes of the data set.
        step: Step of the checkpoint; the batch is its last one.
        x_labeled: `(N, C, H, W)`, normalised.
        y_labeled: `(N, H, W)`.
        x_unlabeled: `(M, C, H, W)`, normalised.
        valid: `(M, H, W)`, False on padding.
        guidance: The pseudo masks, and the steps on the way.
        random: `(M,)` partners drawn at random, for comparison; None if the method makes no pairs.
        weight: `(M, H, W)` in 0..1, the weight of each pixel in the loss.
        stats: Mean and standard deviation of the normalised images.
    """

    method: GuidedMix
    classes: Classes
    step: int
    x_labeled: Tensor
    y_labeled: Tensor
    x_unlabeled: Tensor
    valid: Tensor
    guidance: Guidance
    random: Tensor | None
    weight: Tensor
    stats: tuple[Stats, Stats]

    def pixels(self, x: Tensor) -> Tensor:
        """Convert a normalised image `(C, H, W)` back to 0..255."""
        mean, std = (torch.tensor(s, device=x.device).view(-1, 1, 1) for s in self.stats)
        return (255 * (x.float() * std + mean)).clamp(0, 255).cpu()


def replay_last_batch(folder: Path, device: torch.device) -> Replay:
    """Rebuild the last batch of a run, and its pseudo masks with the newest checkpoint.

    Batch t, augmentation, partners and lambda are a pure function of (seed, t), and a teacher is updated before it
    guides: on a CPU these are exactly the pseudo masks of that step. Only `variant="paper"` differs: it predicts in
    eval mode here, but in train mode during training.

    Args:
        folder: `--out` of a GuidedMix run.
        device: Device to compute on.

    Raises:
        ValueError: If there is no checkpoint, or the images are not where they were.
    """
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise ValueError("the run has no checkpoint yet")
    config, step = original_data(folder), checkpoints[-1].step
    session = look_back(config, checkpoints[-1], find_data(config), device)
    method = session.state.method
    if not isinstance(method, GuidedMix):
        raise ValueError(f"--method {config.method} makes no pairs")
    assert isinstance(method.criterion, GuidedMixLoss)  # flags make no other
    batch = session.stream[step - 1].split(config.accumulate)[0]
    x_labeled, y_labeled, x_unlabeled, valid = batch.to(device, session.settings.memory_format)
    assert x_unlabeled is not None and valid is not None  # GuidedMix has unlabeled images
    generator = torch.Generator(device).manual_seed(step_seed(config.seed, step - 1, "method"))
    with (
        eval_mode(method),
        torch.no_grad(),
        mixed_precision(device, session.settings.amp),
    ):
        guidance = method.guide(x_labeled, y_labeled, x_unlabeled, generator)
    method.eval()
    random = None
    if guidance.partners is not None:
        generator.manual_seed(step_seed(config.seed, step - 1, "random partners"))
        random = RandomPairSelector()(
            guidance.partners.query, guidance.partners.key, generator=generator
        )
    return Replay(
        method,
        session.data.classes,
        step,
        x_labeled,
        y_labeled,
        x_unlabeled,
        valid,
        guidance,
        random,
        method.criterion.weight(guidance.pseudo) * valid,
        session.stats,
    )


def draw_lambdas(method: GuidedMix, draws: int = 10000) -> Tensor:
    """Draw lambdas `(draws,)` from the mixer of a method."""
    images = torch.zeros(draws, 1, 1, 1)
    return method.mixer(images, images, generator=torch.Generator().manual_seed(0)).lam
