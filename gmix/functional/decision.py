"""Decisions on the class of a pixel that maximise the expected mIoU rather than the pixel accuracy."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["expected_iou", "miou_biases"]


def expected_iou(probs: Tensor, decided: Tensor) -> Tensor:
    r"""Compute the expected IoU of each class under a decision, without any mask.

    $$E_k = \frac{\sum_i p_{ik} [d_i = k]}{\sum_i p_{ik} + \sum_i [d_i = k] - \sum_i p_{ik} [d_i = k]}$$

    The estimate is as good as the probabilities.

    Args:
        probs: `(P, K)` probabilities of P pixels, each row a distribution.
        decided: `(P,)` int64, the class decided for each pixel.

    Returns:
        `(K,)` in [0, 1].

    Examples:
        >>> expected_iou(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([0, 1]))
        tensor([0.6667, 0.5000])
    """
    classes = probs.shape[1]
    hit = probs.new_zeros(classes)
    hit = hit.index_add_(0, decided, probs.gather(1, decided[:, None])[:, 0])
    taken = torch.bincount(decided, minlength=classes)
    return hit / (probs.sum(0) + taken - hit).clamp(min=torch.finfo(probs.dtype).tiny)


def miou_biases(
    probs: Tensor,
    *,
    steps: tuple[float, ...] = (0.5, 0.25),
    limit: float = 2.0,
    least: float = 1e-4,
) -> Tensor:
    r"""Find the class biases whose decision has the largest expected mIoU.

    The most probable class is the best decision for pixel accuracy, but not for the mean IoU: a rare class that is
    likely on many pixels and the most likely on none has an IoU of 0. The decision is
    $\arg\max_k (\log p_k + b_k)$; $b$ is found by coordinate ascent from 0, with decreasing `steps`.

    Args:
        probs: `(P, K)` probabilities of pixels of images like those to be predicted; no masks are needed.
        steps: Amounts by which a bias is changed at a time.
        limit: Largest absolute value of a bias.
        least: Least increase of the mean IoU for which a bias is changed.

    Returns:
        `(K,)`.

    Examples:
        >>> probs = torch.tensor([[0.9, 0.1]] * 6 + [[0.55, 0.45]] * 4)
        >>> biases = miou_biases(probs)
        >>> (probs.log() + biases).argmax(1).tolist()
        [0, 0, 0, 0, 0, 0, 1, 1, 1, 1]
    """
    log = probs.clamp(min=torch.finfo(torch.float32).tiny).log()
    biases = probs.new_zeros(probs.shape[1])
    best = float(expected_iou(probs, log.argmax(1)).mean())
    for step in steps:
        moved = True
        while moved:
            moved = False
            for k in range(len(biases)):
                for change in (step, -step):
                    tried = biases.clone()
                    tried[k] += change
                    if tried[k].abs() > limit:
                        continue
                    mean = float(expected_iou(probs, (log + tried).argmax(1)).mean())
                    if mean > best + least:
                        best, biases, moved = mean, tried, True
    return biases
