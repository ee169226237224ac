"""From names and YAML to a method made of objects."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gmix.methods import (
    CCT,
    CPS,
    ClassMix,
    CutMixSeg,
    FixMatch,
    GuidedMix,
    MeanTeacher,
    Method,
    Supervised,
    UniMatch,
)
from gmix.network import GuidedMixNet
from gmix.pairing import RandomPairSelector, SimilarPairSelector
from gmix.say import one_line
from gmix.training.build import image_stats
from gmix.training.config import TrainConfig
from gmix.training.options import lookup

# By what it needs: those that change colours have to know how images were normalised.
PLAIN: dict[str, Callable[..., Method]] = {"cct": CCT, "cps": CPS, "supervised": Supervised}
COLORED: dict[str, Callable[..., Method]] = {
    "mean_teacher": MeanTeacher,
    "cutmix": CutMixSeg,
    "classmix": ClassMix,
    "fixmatch": FixMatch,
    "unimatch": UniMatch,
}
METHODS = sorted([*PLAIN, *COLORED, "guidedmix"])


def build_method(config: TrainConfig, net: GuidedMixNet) -> Method:
    """The method the flags name, around a network.

    Raises:
        ValueError: if the method, its variant or one of its arguments is unknown.
    """
    mean, std = image_stats(config)
    builders: dict[str, Callable[..., Method]] = {
        **PLAIN,
        **{name: partial(build, mean=mean, std=std) for name, build in COLORED.items()},
        "guidedmix": partial(guidedmix, config),
    }
    build = lookup(config.method, builders, "--method")
    try:
        if config.variant != "default" and config.method != "guidedmix":
            raise ValueError(f"it has no --variant {config.variant}")
        method: Method = build(net, **config.method_args)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--method {config.method}: {one_line(error)}") from error
    return method


def refuse_few(config: TrainConfig, method: Method, parts: int) -> None:
    """Make sure that a method finds the images it needs in each part of a step.

    Raises:
        ValueError: if it does not.
    """
    if method.needs_unlabeled and config.batch_unlabeled == 0:
        raise ValueError(
            f"--method {config.method} learns from unlabeled images: --batch-unlabeled must be at least 1, "
            "got 0 (--method supervised needs none)"
        )
    pairs = isinstance(method, GuidedMix) and method.criterion.decoupling > 0
    if pairs and config.batch_labeled < 2 * parts:
        raise ValueError(
            f"the decoupling loss of --method {config.method} needs two labeled images in each part of a step "
            f"(--accumulate, processes): --batch-labeled must be at least {2 * parts}, got {config.batch_labeled}"
        )


def guidedmix(config: TrainConfig, net: GuidedMixNet, **given: Any) -> GuidedMix:
    """`--method guidedmix`: selectors go by their names, too."""
    mean, std = image_stats(config)
    selectors = {"similar": SimilarPairSelector, "random": RandomPairSelector}
    if isinstance(given.get("selector"), str):
        given["selector"] = lookup(given["selector"], selectors, "selector")()
    variant: Any = config.variant
    return GuidedMix(net, variant=variant, mean=mean, std=std, **given)
