"""Methods from a configuration."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from gmix.builders.network import image_stats
from gmix.config.options import LOSSES, WEIGHTED, lookup, parse_class_weights, parse_loss
from gmix.config.train_config import TrainConfig
from gmix.errors import one_line
from gmix.functional import balanced_weights
from gmix.methods import METHODS, GuidedMix, Method
from gmix.nn import supervised
from gmix.nn.network import GuidedMixNet
from gmix.protocols import SupervisedLoss


def build_method(config: TrainConfig, net: GuidedMixNet, pixels: Sequence[int] = ()) -> Method:
    """Build the method that the flags name, around a network.

    The constructor receives `variant`, the `mean` and `std` of the normalisation, and the loss of the labeled images
    as `supervised` (if it is not plain cross-entropy), if it takes them.

    Args:
        config: The flags.
        net: The network to train.
        pixels: Number of labeled pixels of each class, for `--class-weights auto`.

    Raises:
        ValueError: If the method, its variant or one of its arguments is unknown, or the class weights do not fit.
    """
    mean, std = image_stats(config)
    kind = lookup(config.method, METHODS, "--method").load()
    offered: dict[str, Any] = {"mean": mean, "std": std, "variant": config.variant}
    loss = build_loss(config, net.classes, pixels)
    if loss is not None:
        offered["supervised"] = loss
    taken: dict[str, Any] = {
        name: value for name, value in offered.items() if name in inspect.signature(kind).parameters
    }
    try:
        if config.variant != "default" and "variant" not in taken:
            raise ValueError(f"it has no --variant {config.variant}")
        if loss is not None and "supervised" not in taken:
            raise ValueError("it takes no other --loss than ce, and no --class-weights")
        method: Method = kind(net, **taken, **config.method_args)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--method {config.method}: {one_line(error)}") from error
    return method


def build_loss(
    config: TrainConfig, channels: int, pixels: Sequence[int] = ()
) -> SupervisedLoss | None:
    """Build the loss of the labeled images that the flags name; None is cross-entropy, which every method has.

    Args:
        config: The flags.
        channels: Logit channels of the network; 1 is binary.
        pixels: Number of labeled pixels of each class, for `--class-weights auto`.

    Raises:
        ValueError: If there is not one weight per class.

    Examples:
        >>> build_loss(TrainConfig(loss="ce"), 3)
        >>> build_loss(TrainConfig(loss="focal", class_weights="auto"), 3, [60, 30, 10])
        FocalLoss(gamma=2.0, class_weights=[0.5556, 1.1111, 3.3333], ignore_index=255)
    """
    terms = parse_loss(config.loss)
    weights: list[float] | None = None
    if config.class_weights == "auto":
        weights = balanced_weights(torch.tensor(pixels, dtype=torch.int64)).tolist()
    elif config.class_weights is not None:
        weights = parse_class_weights(config.class_weights)
    if weights is not None and len(weights) != max(channels, 2):
        raise ValueError(
            f"--class-weights must hold one number per class, {max(channels, 2)}, got {len(weights)}"
        )
    if weights is None and terms == [(1.0, "ce")]:
        return None
    losses = []
    for weight, name in terms:
        kind: Any = getattr(supervised, LOSSES[name])
        losses.append((weight, kind(class_weights=weights) if name in WEIGHTED else kind()))
    return losses[0][1] if len(losses) == 1 and losses[0][0] == 1 else supervised.LossSum(losses)


def check_batch_sizes(config: TrainConfig, method: Method, micro_batches: int) -> None:
    """Check that each micro-batch holds the images that a method needs.

    Raises:
        ValueError: If it does not.
    """
    if method.needs_unlabeled and config.batch_unlabeled == 0:
        raise ValueError(
            f"--method {config.method} learns from unlabeled images: --batch-unlabeled must be at least 1, "
            "got 0 (--method supervised needs none)"
        )
    pairs = isinstance(method, GuidedMix) and method.criterion.decoupling > 0
    if pairs and config.batch_labeled < 2 * micro_batches:
        raise ValueError(
            f"the decoupling loss of --method {config.method} needs two labeled images in each micro-batch "
            "(--accumulate, processes): "
            f"--batch-labeled must be at least {2 * micro_batches}, got {config.batch_labeled}"
        )
