"""From predictions to mIoU: the confusion matrix, and whole, sliding or multi-scale inference."""

from gmix.evaluation.confusion import ConfusionMatrix, Scores
from gmix.evaluation.inference import (
    Inference,
    Predict,
    class_map,
    fit,
    most_likely,
    predict_multiscale,
    predict_sliding,
    sliding_bands,
    to_logits,
)
from gmix.evaluation.paired import Gain, paired_gain, tallies
from gmix.evaluation.picture import draw_confusion
from gmix.evaluation.scoring import (
    CenterCrop,
    add_other_processes,
    class_maps,
    count_pixels,
    evaluate,
)
from gmix.nn.modes import eval_mode

__all__ = [
    "CenterCrop",
    "ConfusionMatrix",
    "Gain",
    "Inference",
    "Predict",
    "Scores",
    "add_other_processes",
    "class_map",
    "class_maps",
    "count_pixels",
    "draw_confusion",
    "eval_mode",
    "evaluate",
    "fit",
    "most_likely",
    "paired_gain",
    "predict_multiscale",
    "predict_sliding",
    "sliding_bands",
    "tallies",
    "to_logits",
]
