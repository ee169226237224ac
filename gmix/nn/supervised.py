"""Losses of labeled images as modules, for `supervised=` of every method: their settings, weights and sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gmix import functional as G
from gmix.functional.supervised import check_gamma, check_hard
from gmix.protocols import SupervisedLoss

__all__ = [
    "CrossEntropyLoss",
    "DiceLoss",
    "FocalLoss",
    "LossSum",
    "LovaszLoss",
    "OHEMLoss",
]


class _Loss(nn.Module):
    """A loss of labeled images, with or without class weights."""

    __call__: Callable[[Tensor, Tensor], Tensor]

    def __init__(
        self, class_weights: Sequence[float] | Tensor | None = None, ignore_index: int = 255
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None)
        if class_weights is not None:
            weights = torch.as_tensor(class_weights, dtype=torch.float32).detach().clone()
            good = weights.dim() == 1 and bool((weights > 0).all() & weights.isfinite().all())
            if not good:
                raise ValueError(
                    f"`class_weights` must be one finite number above 0 per class, got {weights.tolist()}"
                )
            self.class_weights = weights

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        weights = self.class_weights
        shown = (
            "" if weights is None else f"class_weights={[round(w, 4) for w in weights.tolist()]}, "
        )
        return f"{shown}ignore_index={self.ignore_index}"


class CrossEntropyLoss(_Loss):
    r"""Compute cross-entropy, the loss of the labeled images if nothing else is said, with class weights if given.

    The equation is that of [`cross_entropy`][gmix.functional.cross_entropy].

    Args:
        class_weights: The weight of each class, above 0: K numbers, or two in the binary case;
            [`balanced_weights`][gmix.functional.balanced_weights] computes some. Saved with the method.
        ignore_index: Mask value without a class.

    Shape:
        - `logits` `(N, K, H, W)`; K = 1 is binary. `y` `(N, H, W)` int64.

    Returns:
        A float32 scalar; 0 if no pixel has a class.

    Raises:
        ValueError: If a weight is not above 0, or their number is not that of the classes.

    Examples:
        >>> logits = torch.tensor([2.0, 2.0, 0.0, 0.0]).view(1, 2, 1, 2)
        >>> CrossEntropyLoss([1.0, 3.0])(logits, torch.tensor([[[0, 1]]]))
        tensor(1.6269)
    """

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """Compute the loss of logits `(N, K, H, W)` and masks `(N, H, W)`."""
        return G.cross_entropy(
            logits, y, class_weights=self.class_weights, ignore_index=self.ignore_index
        )


class OHEMLoss(_Loss):
    r"""Compute the cross-entropy of the hard pixels alone (online hard example mining).

    The equation is that of [`ohem_cross_entropy`][gmix.functional.ohem_cross_entropy].

    Args:
        threshold: Pixels are learned whose class has at most this probability, in (0, 1].
        min_kept: The fewest pixels that are learned, above 0: a number, or below 1 a share of the pixels with a class.
        class_weights: The weight of each class, above 0. Saved with the method.
        ignore_index: Mask value without a class.

    Shape:
        - `logits` `(N, K, H, W)`; K = 1 is binary. `y` `(N, H, W)` int64.

    Returns:
        A float32 scalar; 0 if no pixel has a class.

    Raises:
        ValueError: If a setting is out of range.

    Reference:
        `ProbOhemCrossEntropy2d` of TorchSemiSeg (CPS), as in UniMatch.

    Examples:
        >>> logits = torch.tensor([3.0, 1.0, -1.0]).view(1, 1, 1, 3)
        >>> OHEMLoss(min_kept=1)(logits, torch.ones(1, 1, 3).long())
        tensor(1.3133)
    """

    def __init__(
        self,
        threshold: float = 0.7,
        min_kept: float = 0.1,
        class_weights: Sequence[float] | Tensor | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(class_weights, ignore_index)
        check_hard(threshold, min_kept)
        self.threshold = threshold
        self.min_kept = min_kept

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """Compute the loss of logits `(N, K, H, W)` and masks `(N, H, W)`."""
        return G.ohem_cross_entropy(
            logits,
            y,
            threshold=self.threshold,
            min_kept=self.min_kept,
            class_weights=self.class_weights,
            ignore_index=self.ignore_index,
        )

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return f"threshold={self.threshold}, min_kept={self.min_kept}, {super().extra_repr()}"


class FocalLoss(_Loss):
    r"""Compute the focal loss of the softmax: cross-entropy that counts pixels less the surer they are right.

    The equation is that of [`focal_loss`][gmix.functional.focal_loss], which says why it is not SMP's.

    Args:
        gamma: Exponent, at least 0; 0 is cross-entropy.
        class_weights: The weight of each class, above 0. Saved with the method.
        ignore_index: Mask value without a class.

    Shape:
        - `logits` `(N, K, H, W)`; K = 1 is binary. `y` `(N, H, W)` int64.

    Returns:
        A float32 scalar; 0 if no pixel has a class.

    Raises:
        ValueError: If a setting is out of range.

    Reference:
        Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.

    Examples:
        >>> FocalLoss()(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 255]]]))
        tensor(0.1733)
    """

    def __init__(
        self,
        gamma: float = 2.0,
        class_weights: Sequence[float] | Tensor | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(class_weights, ignore_index)
        check_gamma(gamma)
        self.gamma = gamma

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """Compute the loss of logits `(N, K, H, W)` and masks `(N, H, W)`."""
        return G.focal_loss(
            logits,
            y,
            gamma=self.gamma,
            class_weights=self.class_weights,
            ignore_index=self.ignore_index,
        )

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return f"gamma={self.gamma}, {super().extra_repr()}"


class DiceLoss(_Loss):
    r"""Compute the soft Dice loss of the batch: overlap of each class, however few pixels it has.

    The equation is that of [`dice_loss`][gmix.functional.dice_loss]: SMP's, in float32. It has no class weights,
    because it weighs classes alike already.

    Args:
        ignore_index: Mask value without a class.

    Shape:
        - `logits` `(N, K, H, W)`; K = 1 is binary. `y` `(N, H, W)` int64.

    Returns:
        A float32 scalar; 0 if no pixel has a class.

    Reference:
        Milletari et al., "V-Net", 3DV 2016.

    Examples:
        >>> DiceLoss()(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]]))
        tensor(0.5000)
    """

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__(None, ignore_index)

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """Compute the loss of logits `(N, K, H, W)` and masks `(N, H, W)`."""
        return G.dice_loss(logits, y, ignore_index=self.ignore_index)


class LovaszLoss(_Loss):
    r"""Compute the Lovász-Softmax loss of the batch, a surrogate of 1 - mIoU.

    The equation is that of [`lovasz_softmax`][gmix.functional.lovasz_softmax], which says why it is not SMP's. It
    has no class weights, because it weighs classes alike already.

    Args:
        ignore_index: Mask value without a class.

    Shape:
        - `logits` `(N, K, H, W)`; K = 1 is binary. `y` `(N, H, W)` int64.

    Returns:
        A float32 scalar; 0 if no pixel has a class.

    Reference:
        Berman, Rannen Triki, Blaschko, "The Lovász-Softmax loss", CVPR 2018.

    Examples:
        >>> LovaszLoss()(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]]))
        tensor(0.5000)
    """

    def __init__(self, ignore_index: int = 255) -> None:
        super().__init__(None, ignore_index)

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """Compute the loss of logits `(N, K, H, W)` and masks `(N, H, W)`."""
        return G.lovasz_softmax(logits, y, ignore_index=self.ignore_index)


class LossSum(nn.Module):
    r"""Add losses of labeled images: $\sum_i w_i L_i$.

    Args:
        terms: Pairs of a weight above 0 and a loss: one of these, one of SMP's, or any other that can be called with
            logits and masks.

    Shape:
        - `logits` `(N, K, H, W)`; K = 1 is binary. `y` `(N, H, W)` int64.

    Returns:
        A float32 scalar.

    Raises:
        TypeError: If a loss cannot be called.
        ValueError: If there is no term, or a weight is not above 0.

    Examples:
        >>> both = LossSum([(1.0, CrossEntropyLoss()), (0.5, DiceLoss())])
        >>> both(torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]]))  # 0.6931 + 0.25
        tensor(0.9431)
    """

    __call__: Callable[[Tensor, Tensor], Tensor]

    def __init__(self, terms: Sequence[tuple[float, SupervisedLoss]]) -> None:
        super().__init__()
        if not terms:
            raise ValueError("a sum of losses needs at least one pair of a weight and a loss")
        for weight, loss in terms:
            if not 0 < weight < math.inf:
                raise ValueError(f"the weight of a loss must be a number above 0, got {weight}")
            if not callable(loss) or isinstance(loss, type):
                raise TypeError(f"expected a loss to call with logits and masks, got {loss!r}")
        self.weights = [weight for weight, _ in terms]
        self.losses = [loss for _, loss in terms]
        # Registered, so that what they hold moves and is saved with the sum.
        self.parts = nn.ModuleList(loss for loss in self.losses if isinstance(loss, nn.Module))

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """Compute the sum for logits `(N, K, H, W)` and masks `(N, H, W)`."""
        total = logits.new_zeros((), dtype=torch.float32)
        for weight, loss in zip(self.weights, self.losses, strict=True):
            total = total + weight * loss(logits, y)
        return total

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return f"weights={self.weights}"
