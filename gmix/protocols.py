"""Roles in a method, and the interface of each. Any class with that interface fits; there is no base class.

An `nn.Module` that plays a role moves to devices, and is saved, with its method. Type checkers accept any `nn.Module`
in place of a callable, because torch does not declare call signatures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gmix.nn.mixer import Mixed
    from gmix.nn.network import GuidedMixNet
    from gmix.nn.views import Pasted

__all__ = [
    "Augmentation",
    "BoxSampler",
    "Criterion",
    "Decoupler",
    "LabeledDataset",
    "LogitAdjuster",
    "MapDataset",
    "Mixer",
    "Network",
    "PairSelector",
    "Reference",
    "RegionSampler",
    "SupervisedLoss",
    "Teacher",
]

Item = TypeVar("Item", covariant=True)


class Network(Protocol):
    """A network that methods train, an `nn.Module`; `gmix.GuidedMixNet` makes one of a model.

    Some methods need more of `GuidedMixNet`, and say so: `embedding_dim` (CCT, CorrMatch, U2PL, S4L), `padded`
    (the first three), `in_channels` (S4GAN, GCT), `encoder` (the reference of GuidedMix), a second network (CPS, GCT).
    """

    @property
    def classes(self) -> int:
        """Return K, the channels of the logits; 1 is binary."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits `(N, K, H, W)` of images `(N, C, H, W)`: `decode(encode(x), (H, W))`."""
        ...

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return features of images, each with N rows; the last is the deepest map, `(N, D, h, w)`."""
        ...

    def decode(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Return logits `(N, K, *size)` of features of N images of this size; features may be changed or chosen."""
        ...

    def pool(self, features: list[Tensor]) -> Tensor:
        """Return one embedding of each image, `(N, D)`."""
        ...


class PairSelector(Protocol):
    """Choose a partner for each query embedding; gmix has `SimilarPairSelector` and `RandomPairSelector`."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        exclude_self: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return int64 `(N,)`, in `[0, M)`, for embeddings `(N, D)` and `(M, D)`.

        With `exclude_self`, both are embeddings of the same images, and no image is its own partner.
        """
        ...


class Mixer(Protocol):
    """Mix images with their partners, row by row; gmix has `LabeledUnlabeledMixer`."""

    def __call__(
        self,
        labeled: Tensor,
        unlabeled: Tensor,
        lam: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Mixed:
        """Return the mixed images `(N, C, H, W)` and the labeled share of each (`lam`, if it is given)."""
        ...


class Decoupler(Protocol):
    """Remove the labeled part from the prediction of a mixed image; gmix has `SoftDecoupler`."""

    def __call__(self, probs_mixed: Tensor, probs_labeled: Tensor, lam: Tensor) -> Tensor:
        """Return probabilities `(N, K, H, W)` from two tensors of that shape and lambda `(N,)`."""
        ...


class Augmentation(Protocol):
    """Change the values of images without moving any pixel; gmix has `StrongColor` and `GaussianBlur`."""

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return images of the shape of `x`, `(N, C, H, W)`."""
        ...


class BoxSampler(Protocol):
    """Draw the boxes that are pasted from one image of a batch into another; gmix has `CutMix`."""

    def __call__(self, x: Tensor, generator: torch.Generator | None = None) -> Pasted:
        """Return a box and a source image for each image of `x`, `(N, C, H, W)`."""
        ...


class RegionSampler(Protocol):
    """Draw the pixels that are pasted from labeled images into unlabeled ones; gmix has `ClassPaste`."""

    def __call__(self, y: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return a bool mask `(N, H, W)` for masks `(N, H, W)`."""
        ...


class LogitAdjuster(Protocol):
    """Adjust the logits of labeled images before their loss is computed; gmix has `LogitAdjustment`."""

    def __call__(self, logits: Tensor) -> Tensor:
        """Return adjusted logits of the same shape, `(N, K, H, W)`."""
        ...

    def add(self, y: Tensor, *, ignore_index: int) -> None:
        """Count the classes in masks `(N, H, W)`; called once with each labeled batch."""


class SupervisedLoss(Protocol):
    """Loss of labeled images; gmix has `CrossEntropyLoss`, `DiceLoss` and others; functions and SMP's losses fit."""

    def __call__(self, logits: Tensor, y: Tensor, /) -> Tensor:
        """Return a scalar for float32 logits `(N, K, H, W)` and masks `(N, H, W)`."""
        ...


class Criterion(Protocol):
    """Sum of all loss terms of GuidedMix; gmix has `GuidedMixLoss`. Terms of weight 0 are not computed."""

    @property
    def ignore_index(self) -> int:
        """Return the mask value that stands for no class."""
        ...

    @property
    def threshold(self) -> float:
        """Return the lowest confidence at which a pixel is learned."""
        ...

    @property
    def classification(self) -> float:
        """Return the weight of the image-level classes; `class_logits` are passed if it is above 0."""
        ...

    @property
    def decoupling(self) -> float:
        """Return the weight of L_dec; above 0, `probs_decoupled` and `decoupled_target` are passed."""
        ...

    def __call__(
        self,
        logits_labeled: Tensor,
        y_labeled: Tensor,
        *,
        supervised: Tensor,
        logits_unlabeled: Tensor,
        pseudo: Tensor,
        valid: Tensor | None,
        progress: float | Tensor,
        class_logits: Tensor | None = None,
        probs_decoupled: Tensor | None = None,
        decoupled_target: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return named scalar losses, with their weighted sum as `total`."""
        ...


class Teacher(Protocol):
    """An `nn.Module` that labels unlabeled images and follows the student; gmix has `EMATeacher`."""

    @property
    def net(self) -> GuidedMixNet:
        """Return the network whose predictions are learned, in eval mode and without gradients."""
        ...

    def update(self, student: GuidedMixNet) -> None:
        """Follow the student; called once before each optimizer step."""


class Reference(Protocol):
    """Guide predictions with labeled images seen before training; gmix has `LabeledReference`."""

    def __call__(self, probs: Tensor, x: Tensor) -> Tensor:
        """Return probabilities of the shape of `probs`, `(N, K, H, W)`, for the images `x`, `(N, C, H, W)`."""
        ...

    def remember(self, labeled: LabeledDataset, *, ignore_index: int) -> None:
        """Look at the labeled images, preprocessed as in testing, and their masks."""

    @property
    def remembers(self) -> bool:
        """Return whether any images have been remembered."""
        ...


class MapDataset(Protocol[Item]):
    """A map-style data set: a list, or a `torch.utils.data.Dataset` with a length."""

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, index: int, /) -> Item:
        """Return the item at `index`."""
        ...


LabeledDataset: TypeAlias = MapDataset[tuple[Tensor, Tensor]]
"""Images `(C, H, W)` with their masks `(H, W)`."""
