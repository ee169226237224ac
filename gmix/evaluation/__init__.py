"""From predictions to mIoU: the confusion matrix, and whole, sliding or multi-scale inference."""

from gmix.evaluation.confusion import ConfusionMatrix, Scores
from gmix.evaluation.inference import (
    class_map,
    most_likely,
    predict_multiscale,
    predict_sliding,
    sliding_bands,
    to_logits,
)
from gmix.evaluation.picture import draw_confusion
from gmix.evaluation.scoring import (
    IncomparableCenter,
    Predict,
    add_other_processes,
    class_maps,
    count_pixels,
    evaluate,
)
from gmix.modes import eval_mode

__all__ = [
    "ConfusionMatrix",
    "IncomparableCenter",
    "Predict",
    "Scores",
    "add_other_processes",
    "class_map",
    "class_maps",
    "count_pixels",
    "draw_confusion",
    "eval_mode",
    "evaluate",
    "most_likely",
    "predict_multiscale",
    "predict_sliding",
    "sliding_bands",
    "to_logits",
]
