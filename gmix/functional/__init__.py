"""The maths of GuidedMix-Net as pure functions: no state, no modules, no randomness except from a given generator.

Images are `(N, C, H, W)`, masks `(N, H, W)` int64, scores `(N, K, H, W)`, lambda `(N,)`. `K = 1` is the binary case:
one channel, the foreground. `probs` are probabilities, `logits` raw scores.
"""

from gmix.functional.decision import expected_iou, miou_biases
from gmix.functional.losses import (
    cross_entropy,
    ramp_up,
    sigmoid_focal_loss,
    soft_cross_entropy,
    squared_error,
)
from gmix.functional.masks import (
    certainty,
    fill_in,
    most_probable,
    pixels_of_classes,
    present_classes,
    probabilities,
    reweigh,
)
from gmix.functional.mixing import decouple, mix, nearest, sample_lambda
from gmix.functional.supervised import (
    balanced_weights,
    dice_loss,
    focal_loss,
    lovasz_softmax,
    ohem_cross_entropy,
)

__all__ = [
    "balanced_weights",
    "certainty",
    "cross_entropy",
    "decouple",
    "dice_loss",
    "expected_iou",
    "fill_in",
    "focal_loss",
    "lovasz_softmax",
    "miou_biases",
    "mix",
    "most_probable",
    "nearest",
    "ohem_cross_entropy",
    "pixels_of_classes",
    "present_classes",
    "probabilities",
    "ramp_up",
    "reweigh",
    "sample_lambda",
    "sigmoid_focal_loss",
    "soft_cross_entropy",
    "squared_error",
]
