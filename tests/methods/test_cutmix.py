"""CutMix-Seg, and the share of sure pixels that it has in common with ICT and ClassMix."""

import copy
from typing import Any

import pytest
import torch
from method_tester import MethodTester
from naive import Batch, Losses, best, error, followed, full, labeled_entropy, paste, share_of
from tiny_methods import BUILDERS
from tiny_nets import seeded, tiny_batch, tiny_net
from torch import Generator, Tensor, nn


class TestCutMix(MethodTester):
    name = "cutmix"
    options = {"unsupervised": 0.7}

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        x_l, y, x_u, valid = batch
        target = full(followed(method)(x_u))
        pasted = method.cutmix(x_u, g)
        view = paste(method.color(x_u, g), pasted)
        target, inside = paste(target, pasted), paste(valid, pasted)
        assert pasted.box.flatten(1).any(1).all()
        share = share_of(best(target)[1] >= method.threshold, inside)
        logits = method.net(torch.cat([x_l, view]))
        supervised = labeled_entropy(logits[:3], y)
        unsupervised = share * error(logits[3:], target, inside)
        total = supervised + 0.7 * unsupervised
        return {"supervised": supervised, "unsupervised": unsupervised, "total": total}


class Told(nn.Module):
    """A teacher that says what it is told."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[: len(x)]


@pytest.mark.parametrize("name", ["cutmix", "ict", "classmix"])
def test_how_sure_the_teacher_is_of_padding_does_not_matter(name: str) -> None:
    """The share of sure pixels is a share of those that are not padding."""
    inside = torch.zeros(2, 32, 32, dtype=torch.bool)
    inside[:, :, :16] = True
    found = {}
    for sure_inside in (True, False):
        sure = torch.where(inside == sure_inside, 9.0, 0.1)
        logits = torch.stack([torch.zeros_like(sure), sure, torch.zeros_like(sure)], 1)
        method: Any = BUILDERS[name](tiny_net(), threshold=0.9).eval()
        method.teacher.net = Told(logits)
        lenient = copy.deepcopy(method)
        lenient.threshold = 0.0
        x_l, y, x_u = tiny_batch(2, 2)
        one, all_sure = (
            m(x_l, y, x_u, valid_unlabeled=inside, progress=1.0, generator=seeded(0))[
                "unsupervised"
            ]
            for m in (method, lenient)
        )
        found[sure_inside] = (one / all_sure).item()
    assert found == {True: pytest.approx(1.0), False: pytest.approx(0.0)}
