"""gmix: semi-supervised semantic segmentation. A few masks, many images, one better model.

Components are imported on first use, so that `gmix --help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gmix import functional, methods, protocols
    from gmix.deploy.predict import predict_image
    from gmix.nn.adjustment import LogitAdjustment
    from gmix.nn.decoupler import SoftDecoupler
    from gmix.nn.ema import EMATeacher
    from gmix.nn.fixed import FixedTeacher
    from gmix.nn.losses import GuidedMixLoss
    from gmix.nn.mitrans import MITransBlock, NonLocalBlock
    from gmix.nn.mixer import LabeledUnlabeledMixer, Mixed
    from gmix.nn.multilabel import MultiLabelNet
    from gmix.nn.network import GuidedMixNet
    from gmix.nn.pairing import RandomPairSelector, SimilarPairSelector
    from gmix.nn.paste import ClassPaste
    from gmix.nn.pseudo import PseudoMask
    from gmix.nn.reference import LabeledReference
    from gmix.nn.supervised import (
        CrossEntropyLoss,
        DiceLoss,
        FocalLoss,
        LossSum,
        LovaszLoss,
        OHEMLoss,
    )
    from gmix.nn.unet import GuidedMixUnet
    from gmix.nn.views import CutMix, GaussianBlur, Pasted, StrongColor, StrongView
    from gmix.runs.saved import SavedModel

__version__ = "0.1.0"

__all__ = [
    "ClassPaste",
    "CrossEntropyLoss",
    "CutMix",
    "DiceLoss",
    "EMATeacher",
    "FixedTeacher",
    "FocalLoss",
    "GaussianBlur",
    "GuidedMixLoss",
    "GuidedMixNet",
    "GuidedMixUnet",
    "LabeledReference",
    "LabeledUnlabeledMixer",
    "LogitAdjustment",
    "LossSum",
    "LovaszLoss",
    "MITransBlock",
    "Mixed",
    "MultiLabelNet",
    "NonLocalBlock",
    "OHEMLoss",
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
    "ClassPaste": "nn.paste",
    "CrossEntropyLoss": "nn.supervised",
    "CutMix": "nn.views",
    "DiceLoss": "nn.supervised",
    "EMATeacher": "nn.ema",
    "FixedTeacher": "nn.fixed",
    "FocalLoss": "nn.supervised",
    "GaussianBlur": "nn.views",
    "GuidedMixLoss": "nn.losses",
    "GuidedMixNet": "nn.network",
    "GuidedMixUnet": "nn.unet",
    "LabeledReference": "nn.reference",
    "LabeledUnlabeledMixer": "nn.mixer",
    "LogitAdjustment": "nn.adjustment",
    "LossSum": "nn.supervised",
    "LovaszLoss": "nn.supervised",
    "MITransBlock": "nn.mitrans",
    "Mixed": "nn.mixer",
    "MultiLabelNet": "nn.multilabel",
    "NonLocalBlock": "nn.mitrans",
    "OHEMLoss": "nn.supervised",
    "Pasted": "nn.views",
    "PseudoMask": "nn.pseudo",
    "RandomPairSelector": "nn.pairing",
    "SavedModel": "runs.saved",
    "SimilarPairSelector": "nn.pairing",
    "SoftDecoupler": "nn.decoupler",
    "StrongColor": "nn.views",
    "StrongView": "nn.views",
    "predict_image": "deploy.predict",
}

if not TYPE_CHECKING:  # type checkers would accept any name as public

    def __getattr__(name: str) -> object:
        if name in ("functional", "methods", "protocols"):
            return import_module(f"gmix.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module 'gmix' has no attribute {name!r}")
        return getattr(import_module(f"gmix.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
