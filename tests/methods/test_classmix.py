"""ClassMix: half of the classes, with all their pixels."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_tester import MethodTester
from naive import Batch, Losses, best, entropy, followed, full, labeled_entropy, share_of
from tiny_nets import seeded
from torch import Generator

from gmix.methods.classmix import half_of_classes


class TestClassMix(MethodTester):
    name = "classmix"
    options = {"unsupervised": 0.7}

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        x_l, y, x_u, valid = batch
        probs = full(followed(method)(x_u))
        labels, confidence = best(probs)
        draw = torch.rand(4, probs.shape[1], generator=g)
        image, mask, sure, inside = x_u.clone(), labels.clone(), confidence.clone(), valid.clone()
        for i in range(4):
            present = {int(k) for k in labels[i][valid[i]]}
            assert len(present) > 1
            order = sorted(present, key=lambda k, i=i: float(draw[i, k]), reverse=True)
            chosen = order[: len(present) // 2]
            for r, c in np.ndindex(32, 24):
                if not (valid[i, r, c] and int(labels[i, r, c]) in chosen):
                    j = (i + 1) % 4
                    image[i, :, r, c] = x_u[j, :, r, c]
                    mask[i, r, c] = labels[j, r, c]
                    sure[i, r, c], inside[i, r, c] = confidence[j, r, c], valid[j, r, c]
        view = method.blur(method.color(image, g), g)
        logits = method.net(torch.cat([x_l, view]))
        supervised = labeled_entropy(logits[:3], y)
        share = share_of(sure >= method.threshold, inside)
        unsupervised = share * entropy(logits[3:], mask, inside, inside)
        total = supervised + 0.7 * unsupervised
        return {"supervised": supervised, "unsupervised": unsupervised, "total": total}


@given(
    st.integers(0, 2**31 - 1),
    st.integers(2, 7),
    st.integers(1, 4),
    st.integers(1, 6),
    st.integers(1, 6),
)
def test_half_of_the_classes_with_all_their_pixels(
    seed: int, classes: int, n: int, h: int, w: int
) -> None:
    g = seeded(seed)
    labels = torch.randint(classes, (n, h, w), generator=g)
    outside = torch.tensor([classes, 254, 255])[torch.randint(3, (n, h, w), generator=g)]
    labels = torch.where(torch.rand(n, h, w, generator=g) < 0.2, outside, labels)
    before = labels.clone()
    chosen = half_of_classes(labels, classes, g)
    assert chosen.shape == labels.shape and chosen.dtype == torch.bool
    assert torch.equal(labels, before)
    for mask, marked in zip(labels.tolist(), chosen.tolist(), strict=True):
        present: set[int] = set()
        picked: set[int] = set()
        left: set[int] = set()
        for row, marks in zip(mask, marked, strict=True):
            for label, mark in zip(row, marks, strict=True):
                if label < classes:
                    present.add(label)
                    (picked if mark else left).add(label)
                else:
                    assert not mark
        assert picked.isdisjoint(left) and len(picked) == len(present) // 2
