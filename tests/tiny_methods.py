"""Every method of the table, quick enough for a test: what the tests of all methods go through."""

import inspect
from collections.abc import Callable
from functools import partial

from gmix.methods import METHODS, S4GAN, VAT, FixMatch, GuidedMix, Method, PrevMatch, UniMatch
from gmix.methods.cct import DECODERS

ONE_OF_EACH = dict.fromkeys(DECODERS, 1)

# Called with a network, and options.
BUILDERS: dict[str, Callable[..., Method]] = {
    **{name: entry.load() for name, entry in METHODS.items()},
    "cct": partial(METHODS["cct"].load(), decoders=ONE_OF_EACH),
    "u2pl": partial(METHODS["u2pl"].load(), bank=40),
    "fixmatch, taught": partial(FixMatch, teacher={}),
    "unimatch, taught": partial(UniMatch, teacher={}),
    "prevmatch, taught": partial(PrevMatch, teacher={}),
    "vat, features": partial(VAT, at="features"),
    "s4gan, mlmt": partial(S4GAN, mlmt=True),
    "paper": partial(GuidedMix, variant="paper"),
}


def takers(option: str) -> list[str]:
    """Names of the methods whose constructor takes an option by this name."""
    return [name for name, make in BUILDERS.items() if option in inspect.signature(make).parameters]
