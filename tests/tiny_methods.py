"""Every method of the table, quick enough for a test: what the tests of all methods go through."""

import inspect
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch

from gmix.methods import (
    CPS,
    GCT,
    METHODS,
    S4GAN,
    VAT,
    FixMatch,
    GuidedMix,
    Method,
    PrevMatch,
    UniMatch,
)
from gmix.methods.cct import DECODERS
from gmix.methods.gct import FlawDetector

ONE_OF_EACH = dict.fromkeys(DECODERS, 1)


@wraps(GCT)
def loud_gct(*args: Any, **options: Any) -> Method:
    """A GCT with a narrow detector that finds flaws everywhere; a new one hardly finds any."""
    method = GCT(*args, **options)
    method.detector = FlawDetector(method.net.classes + 3, width=16)
    with torch.no_grad():
        for p in method.detector.layers[-1].parameters():
            p.mul_(10)
        method.detector.layers[-1].bias.add_(12)
    return method


# Called with a network, and options.
BUILDERS: dict[str, Callable[..., Method]] = {
    **{name: entry.load() for name, entry in METHODS.items()},
    "cct": partial(METHODS["cct"].load(), decoders=ONE_OF_EACH),
    "u2pl": partial(METHODS["u2pl"].load(), bank=40),
    "gct": loud_gct,
    "cps, cutmix": partial(CPS, cutmix={}),
    "fixmatch, taught": partial(FixMatch, teacher={}),
    "unimatch, taught": partial(UniMatch, teacher={}),
    "prevmatch, taught": partial(PrevMatch, teacher={}),
    "vat, features": partial(VAT, at="features"),
    "s4gan, mlmt": partial(S4GAN, mlmt=True),
    "paper": partial(GuidedMix, variant="paper"),
    "official": partial(GuidedMix, variant="official"),
}


def takers(option: str) -> list[str]:
    """Names of the methods whose constructor takes an option by this name."""
    return [name for name, make in BUILDERS.items() if option in inspect.signature(make).parameters]
