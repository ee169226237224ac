"""Pseudo masks: against one pixel at a time, with and without padding, binary and not."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_nets import seeded
from torch import Tensor

from gmix import CutMix
from gmix.nn.pseudo import PseudoMask

seeds = st.integers(0, 2**31 - 1)
kinds = st.sampled_from([1, 3])


def distribution(scores: list[float]) -> list[float]:
    """The classes' probabilities at one pixel; of background and foreground if there is one score."""
    if len(scores) == 1:
        scores = [0.0, scores[0]]
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    return [power / sum(powers) for power in powers]


def drawn(seed: int, classes: int, padded: bool) -> tuple[Tensor, Tensor | None, torch.Generator]:
    g = seeded(seed)
    logits = 2 * torch.randn(3, classes, 4, 5, generator=g)
    valid = torch.rand(3, 4, 5, generator=g) < 0.6 if padded else None
    return logits, valid, g


@given(seeds, kinds, st.booleans(), st.sampled_from([255, 77, -1]))
def test_a_pseudo_mask_is_each_pixels_most_probable_class(
    seed: int, classes: int, padded: bool, ignore_index: int
) -> None:
    logits, valid, _ = drawn(seed, classes, padded)
    logits.requires_grad_()
    before = logits.detach().clone(), None if valid is None else valid.clone()
    pseudo = PseudoMask.of(logits, valid, ignore_index)
    assert isinstance(pseudo, PseudoMask) and pseudo.labels.dtype == torch.int64
    assert pseudo.labels.shape == pseudo.confidence.shape == (3, 4, 5)
    assert not pseudo.confidence.requires_grad and pseudo.confidence.dtype == torch.float32
    for i, r, c in np.ndindex(3, 4, 5):
        probs = distribution(logits[i, :, r, c].tolist())
        inside = valid is None or bool(valid[i, r, c])
        label = max(range(len(probs)), key=probs.__getitem__)
        assert pseudo.labels[i, r, c] == (label if inside else ignore_index)
        sure = pseudo.confidence[i, r, c].item()
        assert sure == pytest.approx(max(probs) if inside else 0.0, abs=1e-6)
    assert torch.equal(logits, before[0])
    assert valid is None or torch.equal(valid, before[1])


@given(seeds, kinds, st.booleans())
def test_pasting_takes_labels_and_confidence_from_the_same_pixels(
    seed: int, classes: int, padded: bool
) -> None:
    logits, valid, g = drawn(seed, classes, padded)
    pseudo = PseudoMask.of(logits, valid)
    before = pseudo.labels.clone(), pseudo.confidence.clone()
    pasted = CutMix(p=0.8)(logits, g)
    new = pseudo.paste(pasted)
    assert isinstance(new, PseudoMask)
    for i, r, c in np.ndindex(3, 4, 5):
        j = int(pasted.source[i]) if pasted.box[i, r, c] else i
        assert new.labels[i, r, c] == before[0][j, r, c]
        assert new.confidence[i, r, c] == before[1][j, r, c]
    assert torch.equal(pseudo.labels, before[0]) and torch.equal(pseudo.confidence, before[1])


@given(seeds, kinds, st.booleans(), st.sampled_from([0.0, 0.6, 0.8]), st.sampled_from([255, -1]))
def test_the_loss_counts_sure_pixels_and_divides_by_all_but_padding(
    seed: int, classes: int, padded: bool, threshold: float, ignore_index: int
) -> None:
    logits, valid, g = drawn(seed, classes, padded)
    student = torch.randn(3, classes, 4, 5, generator=g, requires_grad=True)
    pseudo = PseudoMask.of(logits, valid, ignore_index)
    loss = pseudo.loss(student, threshold, ignore_index)
    total, counted, silent = 0.0, 0, []
    for i, r, c in np.ndindex(3, 4, 5):
        taught = distribution(logits[i, :, r, c].tolist())
        if valid is not None and not valid[i, r, c]:
            silent.append((i, r, c))
            continue
        counted += 1
        if max(taught) < threshold:
            silent.append((i, r, c))
            continue
        label = max(range(len(taught)), key=taught.__getitem__)
        total -= math.log(distribution(student[i, :, r, c].tolist())[label])
    assert loss.item() == pytest.approx(total / max(counted, 1), abs=1e-5, rel=1e-5)
    share = (3 * 4 * 5 - len(silent)) / max(counted, 1)
    assert pseudo.share(threshold, ignore_index).item() == pytest.approx(share)
    loss.backward()
    for i, r, c in np.ndindex(3, 4, 5):
        assert student.grad is not None
        assert student.grad[i, :, r, c].any() == ((i, r, c) not in silent)


@pytest.mark.parametrize(("classes", "score"), [(1, 2.0), (1, -2.0), (3, 2.0)])
def test_a_pixel_that_just_reaches_the_threshold_is_sure(classes: int, score: float) -> None:
    logits = torch.zeros(1, classes, 1, 1)
    logits[:, -1] = score
    pseudo = PseudoMask.of(logits)
    threshold = pseudo.confidence.item()
    assert pseudo.loss(logits, threshold) > 0
    assert pseudo.loss(logits, threshold + 1e-6) == 0
    assert (pseudo.share(threshold), pseudo.share(threshold + 1e-6)) == (1, 0)


@pytest.mark.parametrize("classes", [1, 3])
def test_only_padding_gives_0_not_nan(classes: int) -> None:
    logits = torch.randn(2, classes, 3, 3, requires_grad=True)
    pseudo = PseudoMask.of(logits, torch.zeros(2, 3, 3, dtype=torch.bool))
    loss: Any = pseudo.loss(logits)
    loss.backward()
    assert loss == 0 and pseudo.share(0.5) == 0 and not logits.grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("classes", [1, 3])
def test_a_pseudo_mask_of_half_precision_is_that_of_full(classes: int) -> None:
    logits = torch.randn(2, classes, 8, 8, generator=seeded(0)).bfloat16()
    half, single = PseudoMask.of(logits), PseudoMask.of(logits.float())
    assert torch.equal(half.labels, single.labels)
    assert torch.equal(half.confidence, single.confidence)
    assert half.confidence.dtype == torch.float32
