"""From names and YAML to a method made of objects."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gmix.adjustment import LogitAdjustment
from gmix.decoupler import SoftDecoupler
from gmix.losses import GuidedMixLoss
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
from gmix.mixer import LabeledUnlabeledMixer
from gmix.network import GuidedMixNet
from gmix.pairing import RandomPairSelector, SimilarPairSelector
from gmix.paste import ClassPaste
from gmix.reference import LabeledReference
from gmix.say import one_line
from gmix.teacher import EMATeacher
from gmix.training.build import image_stats
from gmix.training.config import TrainConfig
from gmix.training.options import lookup
from gmix.views import CutMix, StrongColor

# By what it needs: those that change colours have to know how images were normalised.
PLAIN: dict[str, Callable[..., Method]] = {"cct": CCT, "cps": CPS}
COLORED: dict[str, Callable[..., Method]] = {
    "mean_teacher": MeanTeacher,
    "cutmix": CutMixSeg,
    "classmix": ClassMix,
    "fixmatch": FixMatch,
    "unimatch": UniMatch,
}
METHODS = sorted([*PLAIN, *COLORED, "guidedmix", "supervised"])


def build_method(config: TrainConfig, net: GuidedMixNet) -> Method:
    """The method the flags name, around a network.

    Raises:
        ValueError: if the method, its variant or one of its arguments is unknown.
    """
    mean, std = image_stats(config)
    colored = {
        name: partial(published, build, mean=mean, std=std) for name, build in COLORED.items()
    }
    builders: dict[str, Callable[..., Method]] = {
        **PLAIN,
        **colored,
        "supervised": supervised,
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


def published(build: Callable[..., Method], net: GuidedMixNet, **given: Any) -> Method:
    """`--method fixmatch`, say: `{teacher: {decay: 0.99}}` makes that part, where a method takes one."""
    return build(net, **with_parts(given, {"teacher": partial(EMATeacher, net)}))


def supervised(net: GuidedMixNet, **given: Any) -> Supervised:
    """`--method supervised`: `{adjustment: {strength: 0.5}}` makes that part."""
    return Supervised(
        net, **with_parts(given, {"adjustment": partial(LogitAdjustment, net.classes)})
    )


def guidedmix(config: TrainConfig, net: GuidedMixNet, **given: Any) -> GuidedMix:
    """`--method guidedmix`: `{teacher: {decay: 0.999}}` makes that part with these arguments."""
    mean, std = image_stats(config)
    parts: dict[str, Callable[..., Any]] = {
        "mixer": LabeledUnlabeledMixer,
        "decoupler": SoftDecoupler,
        "adjustment": partial(LogitAdjustment, net.classes),
        "criterion": GuidedMixLoss,
        "teacher": partial(EMATeacher, net),
        "reference": partial(LabeledReference, net.model.encoder, net.classes),
        "color": partial(StrongColor, mean=mean, std=std),
        "paste": partial(ClassPaste, net.classes),
        "cutmix": CutMix,
    }
    selectors = {"similar": SimilarPairSelector, "random": RandomPairSelector}
    given = with_parts(given, parts)
    if "selector" in given:
        given["selector"] = lookup(str(given["selector"]), selectors, "selector")()
    variant: Any = config.variant
    return GuidedMix(net, variant=variant, mean=mean, std=std, **given)


def with_parts(given: dict[str, Any], parts: dict[str, Callable[..., Any]]) -> dict[str, Any]:
    """Arguments with the parts among them made of theirs: `{teacher: {decay: 0.999}}`."""
    made = dict(given)
    for name, value in given.items():
        if name in parts and isinstance(value, dict):
            made[name] = parts[name](**value)
        elif name in parts and value is not None:
            raise ValueError(f"{name} must be a mapping of its arguments or null, got {value!r}")
    return made
