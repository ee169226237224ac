"""Training methods: one file each, the same call for all, and a table of them.

To add a method, write its file and its entry in `METHODS`. The command line, its help and completion, reports and tests
read the table. Importing this file is cheap (no torch): a class is imported when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import resolve_name
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # for type checkers: gmix.methods.NAME
    from gmix.methods.advssl import AdvSSL as AdvSSL
    from gmix.methods.cct import CCT as CCT
    from gmix.methods.classmix import ClassMix as ClassMix
    from gmix.methods.corrmatch import CorrMatch as CorrMatch
    from gmix.methods.cps import CPS as CPS
    from gmix.methods.cutmix import CutMixSeg as CutMixSeg
    from gmix.methods.fixmatch import FixMatch as FixMatch
    from gmix.methods.gct import GCT as GCT
    from gmix.methods.guidedmix import Guidance as Guidance
    from gmix.methods.guidedmix import GuidedMix as GuidedMix
    from gmix.methods.guidedmix import GuidedMixParts as GuidedMixParts
    from gmix.methods.guidedmix import Mix as Mix
    from gmix.methods.guidedmix import Partners as Partners
    from gmix.methods.ict import ICT as ICT
    from gmix.methods.mean_teacher import MeanTeacher as MeanTeacher
    from gmix.methods.method import Method as Method
    from gmix.methods.method import Step as Step
    from gmix.methods.prevmatch import PrevMatch as PrevMatch
    from gmix.methods.s4gan import S4GAN as S4GAN
    from gmix.methods.s4l import S4L as S4L
    from gmix.methods.supervised import Supervised as Supervised
    from gmix.methods.u2pl import U2PL as U2PL
    from gmix.methods.unimatch import UniMatch as UniMatch
    from gmix.methods.unimatch_v2 import UniMatchV2 as UniMatchV2
    from gmix.methods.vat import VAT as VAT


class Entry(NamedTuple):
    """A method as the command line and the reports know it.

    Attributes:
        path: The path of its class, `module:Class`.
        label: Its name in reports.
        learns_from: The targets that it learns from, in a few words.
        unlabeled: Whether it learns from unlabeled images; equals `needs_unlabeled` of its class.
    """

    path: str
    label: str
    learns_from: str
    unlabeled: bool = True

    def load(self) -> type[Method]:
        """Import the class."""
        method: type[Method] = resolve_name(self.path)
        return method


METHODS = {
    "supervised": Entry(
        "gmix.methods.supervised:Supervised", "Supervised", "the masks", unlabeled=False
    ),
    "mean_teacher": Entry(
        "gmix.methods.mean_teacher:MeanTeacher", "Mean Teacher", "an EMA teacher's probabilities"
    ),
    "ict": Entry("gmix.methods.ict:ICT", "ICT", "a teacher's probabilities, mixed"),
    "vat": Entry("gmix.methods.vat:VAT", "VAT", "its own prediction before a worst-case step"),
    "advssl": Entry(
        "gmix.methods.advssl:AdvSSL", "AdvSSL", "its own labels, where a discriminator trusts them"
    ),
    "s4gan": Entry(
        "gmix.methods.s4gan:S4GAN", "s4GAN", "its own labels of images that a critic trusts"
    ),
    "s4l": Entry("gmix.methods.s4l:S4L", "S4L", "how images are rotated"),
    "cct": Entry("gmix.methods.cct:CCT", "CCT", "the main decoder, in 30 auxiliary ones"),
    "cutmix": Entry(
        "gmix.methods.cutmix:CutMixSeg", "CutMix-Seg", "a teacher's probabilities, pasted"
    ),
    "classmix": Entry(
        "gmix.methods.classmix:ClassMix", "ClassMix", "a teacher's labels, pasted by class"
    ),
    "cps": Entry("gmix.methods.cps:CPS", "CPS", "another student's labels"),
    "gct": Entry(
        "gmix.methods.gct:GCT", "GCT", "another student, where a detector finds it better"
    ),
    "u2pl": Entry(
        "gmix.methods.u2pl:U2PL", "U2PL", "a teacher's reliable labels; the others as negatives"
    ),
    "fixmatch": Entry(
        "gmix.methods.fixmatch:FixMatch", "FixMatch", "its own sure labels, or a teacher's"
    ),
    "unimatch": Entry(
        "gmix.methods.unimatch:UniMatch",
        "UniMatch",
        "its own sure labels, or a teacher's, three times",
    ),
    "unimatch_v2": Entry(
        "gmix.methods.unimatch_v2:UniMatchV2", "UniMatch V2", "a teacher's sure labels, twice"
    ),
    "prevmatch": Entry(
        "gmix.methods.prevmatch:PrevMatch",
        "PrevMatch",
        "its own sure labels, and those of earlier networks",
    ),
    "corrmatch": Entry(
        "gmix.methods.corrmatch:CorrMatch",
        "CorrMatch",
        "its own sure labels, spread along correlations",
    ),
    "guidedmix": Entry(
        "gmix.methods.guidedmix:GuidedMix",
        "GuidedMix",
        "a teacher's sure labels, guided by labeled images",
    ),
}

_HOMES = {
    **{name: module for module, _, name in (m.path.partition(":") for m in METHODS.values())},
    **dict.fromkeys(("Method", "Step"), "gmix.methods.method"),
    **dict.fromkeys(("Guidance", "GuidedMixParts", "Mix", "Partners"), "gmix.methods.guidedmix"),
}

__all__ = sorted(_HOMES)

if not TYPE_CHECKING:  # type checkers would accept any name as public

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module 'gmix.methods' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__]
