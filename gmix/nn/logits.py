"""The logits in what a segmentation model returns: a tensor, a mapping, an object, or the queries of a Mask2Former."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_shape", "describe", "find_logits"]

INSTEAD = "wrap it in an nn.Module whose forward returns only the tensor of logits (N, K, H, W)"


def find_logits(output: Any) -> Tensor:
    r"""Return the logits `(N, K, h, w)` in the output of a model, at the size the model gives them.

    | output | logits |
    |---|---|
    | a tensor, or a list or tuple of one | itself |
    | a mapping with `"out"` or `"logits"` | that entry: torchvision, `transformers` |
    | an object with `.logits` | that attribute: `transformers` |
    | an object with `.class_queries_logits` and `.masks_queries_logits`: Mask2Former | $\log \sum_q p_q(k)\,m_q$ |

    A Mask2Former gives a class distribution $p_q$ and a mask $m_q$ per query. The sum is its semantic score, the one
    its authors take the largest of. Softmax of its logarithm is the score divided by the sum over the classes, so that
    cross-entropy and confidences mean what they mean elsewhere. (The authors train with a loss for each query, which
    needs masks of whole segments.)

    Raises:
        TypeError: If there are no logits.
        ValueError: If they are not of shape `(N, K, h, w)`.

    Examples:
        >>> find_logits({"out": torch.zeros(2, 5, 8, 8), "aux": torch.ones(2, 5, 8, 8)}).sum().item()
        0.0
        >>> find_logits({"seg": torch.zeros(2, 5, 8, 8)})
        Traceback (most recent call last):
        TypeError: the model returns a dict of seg, without logits: wrap it in an nn.Module whose ...
    """
    found = output
    if isinstance(found, list | tuple) and len(found) == 1 and not hasattr(found, "logits"):
        found = found[0]
    queries = [_entry(found, f"{name}_queries_logits") for name in ("class", "masks")]
    if all(isinstance(part, Tensor) for part in queries):
        found = _semantic(*queries)
    for name in ("logits", "out"):
        if isinstance(entry := _entry(found, name), Tensor):
            found = entry
    if not isinstance(found, Tensor):
        raise TypeError(f"the model returns {describe(output)}, without logits: {INSTEAD}")
    if found.dim() != 4 or not found.is_floating_point():
        raise ValueError(
            f"the model must return logits (N, K, H, W) of floating point, got {tuple(found.shape)} of "
            f"{found.dtype}: {INSTEAD}"
        )
    return found


def _semantic(classes: Tensor, masks: Tensor) -> Tensor:
    """Compute log scores `(N, K, h, w)` from `(N, Q, K + 1)` and `(N, Q, h, w)`; the last class is none."""
    if classes.shape[-1] < 3:
        raise ValueError(
            "the model scores a single class, which has no logit to compare with: build it with num_labels=2, "
            "background and foreground"
        )
    with torch.autocast(classes.device.type, enabled=False):
        probs = classes.float().softmax(-1)[..., :-1]
        scores = torch.einsum("nqk,nqhw->nkhw", probs, masks.float().sigmoid())
        return scores.clamp(min=1e-6).log()


def _entry(output: Any, name: str) -> Any:
    if isinstance(output, Mapping):
        return output.get(name)
    return getattr(output, name, None)


def check_shape(logits: Tensor, images: int, classes: int) -> Tensor:
    """Return the logits; refuse those of another number of images or classes than the trial found.

    Raises:
        ValueError: If there are others.

    Examples:
        >>> check_shape(torch.zeros(2, 4, 8, 8), images=2, classes=3)
        Traceback (most recent call last):
        ValueError: the model must return logits (2, 3, H, W) in training and evaluation, got (2, 4, 8, 8): wrap it ...
    """
    if logits.shape[:2] != (images, classes):
        raise ValueError(
            f"the model must return logits ({images}, {classes}, H, W) in training and evaluation, "
            f"got {tuple(logits.shape)}: {INSTEAD}"
        )
    return logits


def describe(output: Any) -> str:
    """Say what a model or loss returned, in a few words.

    Examples:
        >>> describe({"loss": 1.0}), describe((1, 2)), describe(None), describe(torch.zeros(2))
        ('a dict of loss', 'a tuple of 2', 'None', 'shape (2,) of torch.float32')
    """
    if output is None:
        return "None"
    if isinstance(output, Tensor):
        return f"shape {tuple(output.shape)} of {output.dtype}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {', '.join(map(str, output)) or 'nothing'}"
    if isinstance(output, list | tuple):
        return f"a {type(output).__name__} of {len(output)}"
    return f"a {type(output).__name__}"
