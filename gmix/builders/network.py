"""Network from a configuration, and the input statistics of its encoder."""

from __future__ import annotations

import torch

from gmix.config.architecture import build_architecture, find_architecture
from gmix.config.train_config import TrainConfig
from gmix.errors import one_line
from gmix.nn.network import GuidedMixNet
from gmix.nn.weights import encoder_stats, load_encoder_weights

Stats = tuple[float, ...]


def image_stats(config: TrainConfig) -> tuple[Stats, Stats]:
    """Return the mean and standard deviation per channel that the encoder expects, for images in 0..1.

    With other than three channels, each gets the average of the RGB values.
    """
    mean, std = encoder_stats(config.encoder)
    if config.channels == 3:
        return mean, std
    return (sum(mean) / 3,) * config.channels, (sum(std) / 3,) * config.channels


def build_net(config: TrainConfig, channels: int) -> GuidedMixNet:
    """Build the SMP model of the configuration, load its encoder's weights and wrap it for training.

    An `encoder_lr` of 0 freezes the encoder.

    Raises:
        ValueError: If architecture, encoder or weights are unknown or do not fit.
    """
    architecture = find_architecture(config.arch)
    from_smp = config.encoder_weights == "imagenet"
    try:
        given = {
            "encoder_name": config.encoder,
            "encoder_weights": "imagenet" if from_smp else None,
            "in_channels": config.channels,
            "classes": channels,
        }
        if twice := sorted(given.keys() & config.model_args.keys()):
            raise ValueError(f"--model-args says {twice[0]}, which is a flag of its own")
        model = build_architecture(architecture, {**given, **config.model_args})
    except Exception as error:  # anything SMP, timm or a download raises
        hint = "; if the weights cannot be downloaded: --encoder-weights lite0, none or a file"
        raise ValueError(
            f"cannot build {config.arch} with the encoder {config.encoder}: {one_line(error)}"
            f"{hint if from_smp else ''}"
        ) from error
    if not from_smp and config.encoder_weights != "none":
        load_encoder_weights(model, config.encoder_weights)
    net = GuidedMixNet(model, mitrans=config.mitrans)
    if config.encoder_lr == 0:
        # Without gradients a step is cheaper, and BatchNorm's statistics stay too.
        net.encoder.requires_grad_(False)
    return net


def layout(config: TrainConfig) -> torch.memory_format:
    """Return the memory format of images and weights."""
    return torch.channels_last if config.channels_last else torch.contiguous_format
