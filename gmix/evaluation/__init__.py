"""From predictions to mIoU: the confusion matrix, and whole, sliding or multi-scale inference."""

from gmix.evaluation.confusion import ConfusionMatrix, Scores
from gmix.evaluation.inference import (
    class_map,
    evaluate,
    predict_multiscale,
    predict_sliding,
    to_probs,
)
from gmix.modes import eval_mode

__all__ = [
    "ConfusionMatrix",
    "Scores",
    "class_map",
    "eval_mode",
    "evaluate",
    "predict_multiscale",
    "predict_sliding",
    "to_probs",
]
