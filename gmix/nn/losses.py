"""The training objective of GuidedMix-Net, every term under its own name (Eq. 9-12)."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmix import functional as G
from gmix.functional.shapes import check_ignore_index, per_pixel, within
from gmix.nn.given import remember_given

__all__ = [
    "GuidedMixLoss",
    "check_count",
    "check_positive",
    "check_unit_interval",
    "check_weight",
]

OBJECTIVES = ("squared_error", "soft_cross_entropy", "cross_entropy", "focal")
Objective = Literal["squared_error", "soft_cross_entropy", "cross_entropy", "focal"]


class GuidedMixLoss(nn.Module):
    r"""Add up to four loss terms, and return each by name.

    $$L = L_{sup} + w_{cla} L_{cla} + \omega(t)\,(w_{usup} L_{usup} + w_{dec} L_{dec})$$

    | name | equation | meaning |
    |---|---|---|
    | `supervised` | Eq. 1 | cross-entropy of the labeled images; 255 ignored |
    | `classification` | Sec. 3.1.1 | multi-label BCE: the classes that occur in each labeled image |
    | `unsupervised` | Eq. 10 | predictions for unlabeled images against their pseudo masks (detached here) |
    | `decoupling` | Eq. 11-12 | squared error of a decoupled labeled pair against its known part (detached here) |

    $\omega(t) = \exp(-5(1-t/T)^2)$ until `ramp_length` of the training is done
    ([`ramp_up`][gmix.functional.ramp_up]). A term whose inputs are missing is not in the result. The terms are
    returned unweighted; `total` is the weighted sum.

    The unsupervised term is one of four: `"squared_error"` against the pseudo mask's distribution (the paper),
    `"soft_cross_entropy"` against the same distribution, `"cross_entropy"` against its most probable class
    (FixMatch), or `"focal"` against that class
    ([`sigmoid_focal_loss`][gmix.functional.sigmoid_focal_loss] with $\gamma = 0.5$, as in the paper's released code).
    All but the first use only pixels whose most probable class has a probability of at least
    `threshold`, and weight them by their [`certainty`][gmix.functional.certainty] to the power of `certainty`. Their
    mean is over all pixels, so unsure pseudo masks give a small loss. Padding is never learned. The mean excludes it,
    except with `"soft_cross_entropy"`, where it counts as unsure pixels.

    Args:
        objective: Form of the unsupervised term, one of the four above.
        threshold: Least confidence of a pixel that counts, in [0, 1]; not for the squared error.
        certainty: Exponent of the certainty, at least 0; 0 gives all pixels the same weight. Not for the squared error.
        classification: Weight $w_{cla}$.
        unsupervised: Weight $w_{usup}$.
        decoupling: Weight $w_{dec}$.
        ramp_length: Share of the training during which $\omega$ rises to 1, in [0, 1]; 0 for no ramp. The paper
            gives no value.
        ignore_index: Mask value without a class.

    Shape:
        - `logits_labeled` `(N, K, H, W)` and `y_labeled` `(N, H, W)` int64.
        - `supervised`, a scalar: the supervised term, if another loss than cross-entropy computed it.
        - `class_logits` `(N, K)`.
        - `logits_unlabeled`, `pseudo` (probabilities): `(M, K, H, W)`; `valid` `(M, H, W)` bool, False on padding.
        - `probs_decoupled`, `decoupled_target`: `(N, K, H, W)`.

    Returns:
        The named terms and `"total"`, float32 scalars.

    Raises:
        ValueError: If a term has only one of its two inputs, an unlabeled term has no `progress`, a weight is
            negative, or shapes do not fit.

    Reference:
        GuidedMix-Net, Eq. 1 and 9-12.

    Examples:
        >>> import torch
        >>> criterion = GuidedMixLoss(ramp_length=0.3)
        >>> y = torch.zeros(1, 4, 4, dtype=torch.long)
        >>> losses = criterion(torch.zeros(1, 3, 4, 4), y, class_logits=torch.zeros(1, 3))
        >>> {name: round(value.item(), 4) for name, value in losses.items()}
        {'supervised': 1.0986, 'classification': 0.6931, 'total': 1.7918}
    """

    __call__: Callable[..., dict[str, Tensor]]

    @remember_given
    def __init__(
        self,
        *,
        objective: Objective = "squared_error",
        threshold: float = 0.0,
        certainty: float = 0.0,
        classification: float = 1.0,
        unsupervised: float = 1.0,
        decoupling: float = 1.0,
        ramp_length: float = 0.3,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        if objective not in OBJECTIVES:
            raise ValueError(f"`objective` must be one of {OBJECTIVES}, got {objective!r}")
        check_unit_interval("threshold", threshold)
        check_weight("certainty", certainty)
        check_weight("classification", classification)
        check_weight("unsupervised", unsupervised)
        check_weight("decoupling", decoupling)
        check_unit_interval("ramp_length", ramp_length)
        check_ignore_index(1, ignore_index)
        self.objective = objective
        self.threshold = threshold
        self.certainty = certainty
        self.classification = classification
        self.unsupervised = unsupervised
        self.decoupling = decoupling
        self.ramp_length = ramp_length
        self.ignore_index = ignore_index

    def forward(
        self,
        logits_labeled: Tensor,
        y_labeled: Tensor,
        *,
        supervised: Tensor | None = None,
        class_logits: Tensor | None = None,
        logits_unlabeled: Tensor | None = None,
        pseudo: Tensor | None = None,
        valid: Tensor | None = None,
        probs_decoupled: Tensor | None = None,
        decoupled_target: Tensor | None = None,
        progress: float | Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute the terms whose inputs are given, and their weighted sum as `total`."""
        _check_both("logits_unlabeled", logits_unlabeled, "pseudo", pseudo)
        _check_both("probs_decoupled", probs_decoupled, "decoupled_target", decoupled_target)
        if supervised is None:
            supervised = G.cross_entropy(logits_labeled, y_labeled, ignore_index=self.ignore_index)
        losses = {"supervised": supervised}
        total = losses["supervised"]
        if class_logits is not None:
            present = G.present_classes(
                y_labeled, class_logits.shape[1], ignore_index=self.ignore_index
            )
            losses["classification"] = F.binary_cross_entropy_with_logits(
                class_logits.float(), present
            )
            total = total + self.classification * losses["classification"]
        ramped = logits_unlabeled is not None or probs_decoupled is not None
        if ramped and progress is None:
            raise ValueError(
                "`progress`, the share of the training that is done, is needed for the weight of the unlabeled "
                "terms: pass progress=step / steps (1.0: no ramp)"
            )
        omega = 1.0 if progress is None else G.ramp_up(progress, self.ramp_length)
        if logits_unlabeled is not None and pseudo is not None:
            losses["unsupervised"] = self._unsupervised(logits_unlabeled, pseudo.detach(), valid)
            total = total + omega * self.unsupervised * losses["unsupervised"]
        if probs_decoupled is not None and decoupled_target is not None:
            losses["decoupling"] = G.squared_error(probs_decoupled, decoupled_target.detach())
            total = total + omega * self.decoupling * losses["decoupling"]
        losses["total"] = total
        return losses

    def weight(self, pseudo: Tensor) -> Tensor:
        """Compute the weight of each pixel of pseudo masks `(M, K, H, W)` in the unsupervised term: `(M, H, W)`."""
        confidence, _ = G.most_probable(pseudo)
        if self.objective == "squared_error":
            return torch.ones_like(confidence)
        sure = (confidence >= self.threshold).float()
        return sure * G.certainty(pseudo) ** self.certainty if self.certainty > 0 else sure

    def _unsupervised(self, logits: Tensor, pseudo: Tensor, valid: Tensor | None) -> Tensor:
        if valid is not None:
            per_pixel(valid, logits, "valid")
        if self.objective == "squared_error":
            return G.squared_error(G.probabilities(logits), pseudo, valid=valid)
        weight = self.weight(pseudo)
        if self.objective == "soft_cross_entropy":
            return G.soft_cross_entropy(
                logits, pseudo, weight=weight if valid is None else weight * valid
            )
        _, labels = G.most_probable(pseudo)
        if valid is not None:
            labels = labels.masked_fill(~valid, self.ignore_index)
        options: dict[str, Any] = {"weight": weight, "ignore_index": self.ignore_index}
        if self.objective == "focal":
            return G.sigmoid_focal_loss(logits, labels, gamma=0.5, **options)
        return G.cross_entropy(logits, labels, **options)

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return (
            f"objective={self.objective!r}, threshold={self.threshold}, "
            f"certainty={self.certainty}, classification={self.classification}, unsupervised={self.unsupervised}, "
            f"decoupling={self.decoupling}, ramp_length={self.ramp_length}"
        )


def check_unit_interval(name: str, value: float) -> None:
    """Refuse a probability or a share outside [0, 1]."""
    if not within(value, 0, 1):
        raise ValueError(f"`{name}` must be in [0, 1], got {value!r}")


def check_weight(name: str, value: float) -> None:
    """Refuse what cannot be the weight of a loss, NaN among it."""
    if not within(value, 0):
        raise ValueError(f"`{name}` must be at least 0, got {value!r}")


def check_positive(name: str, value: float) -> None:
    """Refuse what is not a number above 0."""
    if not (within(value, 0) and value > 0):
        raise ValueError(f"`{name}` must be above 0, got {value!r}")


def check_count(name: str, value: int, least: int = 1) -> None:
    """Refuse what is not a whole number, at least `least`."""
    if not within(value, least, kind=Integral):
        raise ValueError(f"`{name}` must be a whole number, at least {least}, got {value!r}")


def _check_both(name_a: str, a: object, name_b: str, b: object) -> None:
    if (a is None) != (b is None):
        raise ValueError(f"`{name_a}` and `{name_b}` belong together: pass both or neither")
