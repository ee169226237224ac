"""Training methods: one file each, one call for all."""

from gmix.methods.cct import CCT
from gmix.methods.classmix import ClassMix
from gmix.methods.cps import CPS
from gmix.methods.cutmix import CutMixSeg
from gmix.methods.fixmatch import FixMatch
from gmix.methods.guidedmix import Guidance, GuidedMix, GuidedMixParts, Mix, Partners
from gmix.methods.mean_teacher import MeanTeacher
from gmix.methods.method import Method, Step
from gmix.methods.supervised import Supervised
from gmix.methods.unimatch import UniMatch

__all__ = [
    "CCT",
    "CPS",
    "ClassMix",
    "CutMixSeg",
    "FixMatch",
    "Guidance",
    "GuidedMix",
    "GuidedMixParts",
    "MeanTeacher",
    "Method",
    "Mix",
    "Partners",
    "Step",
    "Supervised",
    "UniMatch",
]
