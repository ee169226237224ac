"""The parts of GuidedMix: the exchangeable parts, their options in each variant, and how they are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

from typing_extensions import TypedDict

from gmix import protocols
from gmix.nn.adjustment import LogitAdjustment
from gmix.nn.decoupler import SoftDecoupler
from gmix.nn.ema import EMATeacher
from gmix.nn.given import Options, make_part
from gmix.nn.losses import GuidedMixLoss
from gmix.nn.mixed_head import MixedHead
from gmix.nn.mixer import LabeledUnlabeledMixer
from gmix.nn.network import GuidedMixNet
from gmix.nn.pairing import RandomPairSelector, SimilarPairSelector
from gmix.nn.paste import ClassPaste
from gmix.nn.reference import LabeledReference
from gmix.nn.views import CutMix, GaussianBlur, StrongColor

__all__ = ["REQUIRED", "VARIANTS", "GuidedMixParts", "Variant", "check_criterion", "make_parts"]

Variant = Literal["default", "paper", "official"]


class GuidedMixParts(TypedDict, total=False):
    """The exchangeable parts of `GuidedMix`: each a part, a mapping of its options, or None to leave it out.

    Options that are not given keep the variant's values, whether the others come in a mapping or in a part. A
    selector may be given by name. `variant="official"` has the first six only, the others have no `mixed_head`.
    """

    selector: protocols.PairSelector | Literal["similar", "random"] | Options
    mixer: protocols.Mixer | Options
    decoupler: protocols.Decoupler | Options
    adjustment: protocols.LogitAdjuster | Options | None
    criterion: protocols.Criterion | Options
    mixed_head: MixedHead | Options
    teacher: protocols.Teacher | Options | None
    reference: protocols.Reference | Options | None
    color: protocols.Augmentation | Options | None
    blur: protocols.Augmentation | Options | None
    paste: protocols.RegionSampler | Options | None
    cutmix: protocols.BoxSampler | Options | None
    direct: float
    true_masks: bool
    pair_across: bool
    views: int
    drop: float


# The options of each part in each variant; None leaves the part out.
VARIANTS: dict[Variant, dict[str, Any]] = {
    # The settings measured in `docs/results.md`.
    "default": {
        "selector": {},
        "mixer": {"max_lambda": 0.3},
        "decoupler": {},
        "adjustment": None,
        "criterion": {
            "objective": "cross_entropy",
            "threshold": 0.95,
            "classification": 0.0,
            "decoupling": 0.0,
            "ramp_length": 0.0,
        },
        "teacher": {},
        "reference": {},
        "color": {"hue": 0.25},
        "blur": {},
        "paste": None,
        "cutmix": {},
        "direct": 1.0,
        "true_masks": True,
        "pair_across": False,
        "views": 1,
        "drop": 0.5,
    },
    # One network, squared error, every equation as printed.
    "paper": {
        "selector": {},
        "mixer": {},
        "decoupler": {},
        "adjustment": None,
        "criterion": {},
        "teacher": None,
        "reference": None,
        "color": None,
        "blur": None,
        "paste": None,
        "cutmix": None,
        "direct": 0.0,
        "true_masks": False,
        "pair_across": False,
        "views": 1,
        "drop": 0.0,
    },
    # The authors' released code: features are mixed, a second head predicts them, raw logits are subtracted.
    "official": {
        "selector": "random",
        "mixer": {},
        "decoupler": {"normalize": "none"},
        "adjustment": None,
        "criterion": {
            "objective": "focal",
            "unsupervised": 10.0,
            "classification": 0.0,
            "decoupling": 0.0,
            "ramp_length": 0.0,
        },
        "mixed_head": {},
    },
}

# What a variant has that does not name these parts.
ABSENT: dict[str, Any] = {
    **dict.fromkeys(("mixed_head", "teacher", "reference", "color", "blur", "paste", "cutmix")),
    "direct": 1.0,
    "true_masks": False,
    "pair_across": False,
    "views": 1,
    "drop": 0.0,
}


SELECTORS = {"random": RandomPairSelector, "similar": SimilarPairSelector}


def part_makers(net: GuidedMixNet) -> dict[str, Callable[..., Any]]:
    """Return the function that makes each part from its options."""
    encoder: Any = getattr(net, "encoder", None)  # which only the reference needs
    return {
        "selector": SimilarPairSelector,
        "mixer": LabeledUnlabeledMixer,
        "decoupler": SoftDecoupler,
        "adjustment": partial(LogitAdjustment, net.classes),
        "criterion": GuidedMixLoss,
        "mixed_head": partial(MixedHead, net),
        "teacher": partial(EMATeacher, net),
        "reference": partial(LabeledReference, encoder, net.classes),
        "color": StrongColor,
        "blur": GaussianBlur,
        "paste": partial(ClassPaste, net.classes),
        "cutmix": CutMix,
    }


def make_parts(
    net: GuidedMixNet,
    variant: Variant,
    given: GuidedMixParts,
    further: Mapping[str, Options],
) -> dict[str, Any]:
    """Make every part of a variant, except the given ones; `further` options apply to all variants."""
    parts = {**ABSENT, **VARIANTS[variant], **given}
    if isinstance(name := parts["selector"], str):
        if name.lower() not in SELECTORS:
            raise ValueError(f"selector {name} is unknown: choose one of {', '.join(SELECTORS)}")
        parts["selector"] = SELECTORS[name.lower()]()
    for name, make in part_makers(net).items():
        if parts[name] is not None:
            usual = VARIANTS[variant][name]
            options = {**(usual if isinstance(usual, Mapping) else {}), **further.get(name, {})}
            parts[name] = make_part(name, make, options, parts[name])
    return parts


REQUIRED = ("selector", "mixer", "decoupler", "criterion", "mixed_head")


def check_criterion(criterion: Any, ignore_index: int | None) -> None:
    """Refuse a criterion that lacks terms, or whose `ignore_index` differs from the method's."""
    needed = ("ignore_index", "threshold", "classification", "decoupling")
    if not all(hasattr(criterion, name) for name in needed):
        raise TypeError(
            f"`criterion` is the whole objective, a GuidedMixLoss, got {type(criterion).__name__}: "
            "pass another loss of the labeled images as `supervised`"
        )
    if ignore_index not in (None, criterion.ignore_index):
        raise ValueError(
            f"`ignore_index` is {ignore_index} here and {criterion.ignore_index} in `criterion`: say it once"
        )
