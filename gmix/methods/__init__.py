"""Training methods: one file each, one call for all."""

from gmix.methods.guidedmix import Guidance, GuidedMix, GuidedMixParts
from gmix.methods.supervised import Supervised

__all__ = ["Guidance", "GuidedMix", "GuidedMixParts", "Supervised"]
