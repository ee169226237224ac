"""gmix: semi-supervised semantic segmentation. A few masks, many images, one better model.

The parts are imported when they are first asked for, so that `gmix --help` need not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gmix import functional, methods, protocols
    from gmix.adjustment import LogitAdjustment
    from gmix.bank import ApproximateSearch, FeatureBank, Neighbors
    from gmix.decoupler import SoftDecoupler
    from gmix.losses import GuidedMixLoss
    from gmix.mitrans import MITransBlock, NonLocalBlock
    from gmix.mixer import LabeledUnlabeledMixer, Mixed
    from gmix.network import GuidedMixNet
    from gmix.pairing import RandomPairSelector, SimilarPairSelector
    from gmix.paste import ClassPaste
    from gmix.predict import predict_image
    from gmix.pseudo import PseudoMask
    from gmix.reference import LabeledReference
    from gmix.teacher import EMATeacher
    from gmix.training.saved import SavedModel
    from gmix.unet import GuidedMixUnet
    from gmix.views import CutMix, GaussianBlur, Pasted, StrongColor, StrongView

__version__ = "0.1.0"

__all__ = [
    "ApproximateSearch",
    "ClassPaste",
    "CutMix",
    "EMATeacher",
    "FeatureBank",
    "GaussianBlur",
    "GuidedMixLoss",
    "GuidedMixNet",
    "GuidedMixUnet",
    "LabeledReference",
    "LabeledUnlabeledMixer",
    "LogitAdjustment",
    "MITransBlock",
    "Mixed",
    "Neighbors",
    "NonLocalBlock",
    "Pasted",
    "PseudoMask",
    "RandomPairSelector",
    "SavedModel",
    "SimilarPairSelector",
    "SoftDecoupler",
    "StrongColor",
    "StrongView",
    "functional",
    "methods",
    "predict_image",
    "protocols",
]

_HOMES = {
    "ApproximateSearch": "bank",
    "ClassPaste": "paste",
    "CutMix": "views",
    "EMATeacher": "teacher",
    "FeatureBank": "bank",
    "GaussianBlur": "views",
    "GuidedMixLoss": "losses",
    "GuidedMixNet": "network",
    "GuidedMixUnet": "unet",
    "LabeledReference": "reference",
    "LabeledUnlabeledMixer": "mixer",
    "LogitAdjustment": "adjustment",
    "MITransBlock": "mitrans",
    "Mixed": "mixer",
    "Neighbors": "bank",
    "NonLocalBlock": "mitrans",
    "Pasted": "views",
    "PseudoMask": "pseudo",
    "RandomPairSelector": "pairing",
    "SavedModel": "training.saved",
    "SimilarPairSelector": "pairing",
    "SoftDecoupler": "decoupler",
    "StrongColor": "views",
    "StrongView": "views",
    "predict_image": "predict",
}

if not TYPE_CHECKING:  # they would take any name for a public one

    def __getattr__(name: str) -> object:
        if name in ("functional", "methods", "protocols"):
            return import_module(f"gmix.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module 'gmix' has no attribute {name!r}")
        return getattr(import_module(f"gmix.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
