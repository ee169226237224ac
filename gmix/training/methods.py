"""From names and YAML to a method made of objects."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from gmix.decoupler import SoftDecoupler
from gmix.losses import GuidedMixLoss
from gmix.methods import GuidedMix, Supervised
from gmix.mixer import LabeledUnlabeledMixer
from gmix.network import GuidedMixNet
from gmix.pairing import RandomPairSelector, SimilarPairSelector
from gmix.reference import LabeledReference
from gmix.teacher import EMATeacher
from gmix.training.build import lookup, one_line
from gmix.training.config import TrainConfig
from gmix.views import CutMix, StrongColor
from gmix.weights import encoder_stats


def build_method(config: TrainConfig, net: GuidedMixNet) -> nn.Module:
    """The method the flags name, around a network.

    Raises:
        ValueError: if the method, its variant or one of its arguments is unknown.
    """
    build = lookup(config.method, {"supervised": supervised, "guidedmix": guidedmix}, "--method")
    try:
        method: nn.Module = build(config, net)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--method {config.method}: {one_line(error)}") from error
    return method


def supervised(config: TrainConfig, net: GuidedMixNet) -> Supervised:
    """`--method supervised`."""
    if config.variant != "default":
        raise ValueError(f"it has no --variant {config.variant}")
    return Supervised(net, **config.method_args)


def guidedmix(config: TrainConfig, net: GuidedMixNet) -> GuidedMix:
    """`--method guidedmix`: `{teacher: {decay: 0.999}}` makes that part with these arguments."""
    mean, std = encoder_stats(config.encoder)
    parts: dict[str, Callable[..., Any]] = {
        "mixer": LabeledUnlabeledMixer,
        "decoupler": SoftDecoupler,
        "criterion": GuidedMixLoss,
        "teacher": partial(EMATeacher, net),
        "reference": partial(LabeledReference, net.model.encoder, net.classes),
        "color": partial(StrongColor, mean=mean, std=std),
        "cutmix": CutMix,
    }
    selectors = {"similar": SimilarPairSelector, "random": RandomPairSelector}
    given = dict(config.method_args)
    for name, value in given.items():
        if name in parts and isinstance(value, dict):
            given[name] = parts[name](**value)
        elif name == "selector":
            given[name] = lookup(str(value), selectors, "selector")()
        elif name in parts and value is not None:
            raise ValueError(f"{name} must be a mapping of its arguments or null, got {value!r}")
    variant: Any = config.variant
    return GuidedMix(net, variant=variant, mean=mean, std=std, **given)
