"""The objects of a training: device, images, state and batches, built once for training and inspection."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from gmix.builders.data import AsTested, Data, build_data, build_stream, labeled_pixels
from gmix.builders.loading import Loader
from gmix.builders.method import check_batch_sizes
from gmix.builders.network import Stats, image_stats, layout
from gmix.builders.sizes import check_sizes
from gmix.config.options import parse_size
from gmix.config.train_config import TrainConfig
from gmix.data import Batch, TwoStream, eval_transform
from gmix.nn.network import GuidedMixNet
from gmix.nn.passes import count_first_step, count_passes
from gmix.runs.checkpoint import Checkpoint, load_checkpoint
from gmix.runs.results import Report
from gmix.runtime.compiled import compile_call
from gmix.runtime.device import prepare_device
from gmix.runtime.distributed import SINGLE_PROCESS, Processes
from gmix.runtime.precision import amp_dtype
from gmix.training.decide import DECIDING, decide_for_miou, unlabeled_pixels
from gmix.training.fit import FitSettings, fit
from gmix.training.nonfinite import Guard
from gmix.training.norm import renew_statistics, unlabeled_views
from gmix.training.state import TrainingState, build_state, restore

__all__ = ["Session", "fit_settings", "look_back", "open_session"]


@dataclass(frozen=True)
class Session:
    """A training that is ready to start: `open_session` builds it, and nothing is written.

    Attributes:
        config: The flags.
        processes: The processes that train together.
        device: The device of this process.
        data: The images.
        state: Everything that changes during training.
        stats: Mean and standard deviation of the images, per channel.
        stream: The batches of all processes.
    """

    config: TrainConfig
    processes: Processes
    device: torch.device
    data: Data
    state: TrainingState
    stats: tuple[Stats, Stats]
    stream: TwoStream

    @property
    def own_stream(self) -> TwoStream:
        """Return the stream of this process's share of each batch."""
        return self.stream.shard(self.processes.rank, self.processes.count)

    @property
    def size(self) -> tuple[int, int] | None:
        """Return the size that every image is resized to first; None: images are not resized."""
        return None if self.config.size is None else parse_size(self.config.size)

    @property
    def settings(self) -> FitSettings:
        """Return the settings for computing the gradients of a step."""
        chosen = fit_settings(self.config, self.device, self.processes)
        return replace(chosen, scaler=self.state.scaler)

    def resume(self, checkpoint: Checkpoint | None) -> list[str]:
        """Restore the state of a checkpoint, if there is one; the images are the current ones.

        Returns:
            Messages for the user.

        Raises:
            ValueError: If the checkpoint belongs to another training; then nothing has changed.
        """
        notes = []
        if checkpoint is not None:
            restore(self.state, checkpoint, self.device)
            notes = other_images(self.state.tally.split, self.data.split)
        tally = self.state.tally
        tally.split = self.data.split
        tally.left_out += [name for name in self.data.left_out if name not in tally.left_out]
        return notes

    def remember_labeled(self) -> None:
        """Show all labeled images to the method before its first step; its memory is part of its state."""
        labeled = AsTested(self.data.labeled, eval_transform(*self.stats))
        self.state.method.remember(labeled)

    def prepare_step(self, step: int, tell: Callable[[int], None]) -> None:
        """Compile the method if the flags ask for it, and count the image passes of a step.

        Args:
            step: The step about to be taken.
            tell: Called with the number of images that went through an encoder of this process in that step.
        """
        method = self.state.method
        if self.config.compile:
            tell(count_passes(method, self.own_stream[step].to(self.device)))
            compile_call(method, self.device)
        else:
            calls = len(self.processes.shard(self.config.accumulate))
            count_first_step(method, tell, calls=calls)

    def load(
        self,
        stream: TwoStream,
        steps: range,
        *,
        waiting: Callable[[], AbstractContextManager[Any]] = nullcontext,
        tell: Callable[[str], None] = lambda text: None,
    ) -> Loader:
        """Load batches, in as many processes as the flags say; see `Loader`."""
        known = self.state.tally.left_out
        return Loader(
            self.config, stream, steps, self.device, waiting=waiting, tell=tell, known=known
        )

    def fit(
        self,
        batches: Iterable[Batch],
        *,
        start: int = 0,
        guard: Guard | None = None,
        report_when: Callable[[int], bool],
    ) -> Iterator[Report]:
        """Train on batches, starting at step `start`; see `fit`."""
        return fit(
            self.state.method,
            batches,
            self.state.optimizer,
            steps=self.config.steps,
            start=start,
            settings=self.settings,
            average=self.state.average,
            guard=guard,
            report_when=report_when,
        )

    def finished_net(self, tell: Callable[[str], None]) -> GuidedMixNet:
        """Finish the current network with unlabeled images, in the same way for every method; a no-op without them.

        Args:
            tell: Called with messages for the user, for instance about images that cannot be read.

        Returns:
            The network to test and save; the network in training does not change.
        """
        config, (mean, std) = self.config, self.stats
        net = self.state.deployed
        if self.data.unlabeled is None:
            return net
        stream = build_stream(config, self.data, mean, std, finishing=True)
        if config.norm_batches > 0:
            views = unlabeled_views(
                self.load(stream, range(config.norm_batches), tell=tell),
                mean=mean,
                std=std,
                seed=config.seed,
                device=self.device,
                supervised=not config.learns_unlabeled,
            )
            net = renew_statistics(net, views)
        if config.decide_for == "miou":
            asked = self.load(stream, range(DECIDING), tell=tell)
            pixels = unlabeled_pixels(
                net, (batch.to(self.device) for batch in asked), seed=config.seed
            )
            net = decide_for_miou(net, pixels)
        return net


def open_session(
    config: TrainConfig,
    processes: Processes = SINGLE_PROCESS,
    *,
    device: torch.device | None = None,
    data: Data | None = None,
) -> Session:
    """Build a training with new weights; torch's generator is seeded for them.

    Args:
        config: The flags.
        processes: The processes that train together.
        device: Device to compute on; None: the device in the flags.
        data: The images; None: they are found and read once.

    Raises:
        ValueError: On bad input, in one sentence.
    """
    if device is None:
        device = prepare_device(processes.device or config.device, config.threads)
    if data is None:
        with processes.main_process_first() if config.download else nullcontext():
            data = build_data(config)
    pixels = labeled_pixels(data) if config.class_weights == "auto" else ()
    state = build_state(config, data.classes.channels, device, pixels)
    check_batch_sizes(config, state.method, config.accumulate)
    check_sizes(state.method.net, config, data.tested)
    stats = image_stats(config)
    return Session(
        config, processes, device, data, state, stats, build_stream(config, data, *stats)
    )


def look_back(
    config: TrainConfig, checkpoint: Checkpoint, data: Data, device: torch.device
) -> Session:
    """Open the session of an earlier training to inspect its method, with the weights of a checkpoint.

    Nothing is averaged or exchanged, and torch's generator does not change.

    Raises:
        ValueError: If the checkpoint does not fit.
    """
    alone = replace(config, ema=None, sync_norm=False)
    # Frozen encoders are not in the checkpoint: the seed makes the same ones again.
    with torch.random.fork_rng(devices=[]):
        session = open_session(alone, device=device, data=data)
    load_checkpoint(checkpoint.path, {"method": session.state.method}, device)
    return session


def fit_settings(
    config: TrainConfig, device: torch.device, processes: Processes = SINGLE_PROCESS
) -> FitSettings:
    """Derive the settings for computing gradients from the flags and, for `auto`, the device."""
    return FitSettings(
        seed=config.seed,
        amp=amp_dtype(config.amp, device),
        memory_format=layout(config),
        compiled=config.compile,
        accumulate=config.accumulate,
        processes=processes,
    )


def other_images(before: str, now: str) -> list[str]:
    """Return a message if a training resumes with other images: perhaps only a broken one was deleted.

    Args:
        before: `Data.split` of the steps done.
        now: `Data.split` of the steps to come.

    Examples:
        >>> other_images("1854c52b11fd", "1854c52b11fd")
        []
    """
    if before == now:
        return []
    return [
        f"the images are not those it was trained on so far (split {before}, now {now}): if that is not "
        "meant, start anew in another --out"
    ]
