"""Methods from a configuration."""

from __future__ import annotations

import inspect
from typing import Any

from gmix.builders.network import image_stats
from gmix.config.options import lookup
from gmix.config.train_config import TrainConfig
from gmix.errors import one_line
from gmix.methods import METHODS, GuidedMix, Method
from gmix.nn.network import GuidedMixNet


def build_method(config: TrainConfig, net: GuidedMixNet) -> Method:
    """Build the method that the flags name, around a network.

    The constructor receives `variant`, and the `mean` and `std` of the normalisation, if it takes them.

    Raises:
        ValueError: If the method, its variant or one of its arguments is unknown.
    """
    mean, std = image_stats(config)
    kind = lookup(config.method, METHODS, "--method").load()
    offered = {"mean": mean, "std": std, "variant": config.variant}
    taken: dict[str, Any] = {
        name: value for name, value in offered.items() if name in inspect.signature(kind).parameters
    }
    try:
        if config.variant != "default" and "variant" not in taken:
            raise ValueError(f"it has no --variant {config.variant}")
        method: Method = kind(net, **taken, **config.method_args)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--method {config.method}: {one_line(error)}") from error
    return method


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
