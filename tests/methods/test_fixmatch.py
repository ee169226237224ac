"""FixMatch, its own teacher or with one."""

from typing import Any

import pytest
import torch
from method_tester import MethodTester
from naive import Batch, Losses, best, entropy, followed, full, labeled_entropy, paste, share_of
from tiny_nets import tiny_net
from torch import Generator

from gmix.builders.method import build_method
from gmix.config.train_config import TrainConfig


class TestFixMatch(MethodTester):
    name = "fixmatch"
    options = {"unsupervised": 0.7}
    brings = ""

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        x_l, y, x_u, valid = batch
        view, pasted = method.strong(x_u, g)
        assert pasted.box.any()
        if method.teacher is None:
            weak, strong = method.net(torch.cat([x_l, x_u])), method.net(view)
            labeled, weak = weak[:3], weak[3:]
        else:
            weak = followed(method)(x_u)
            labeled, strong = method.net(torch.cat([x_l, view])).split([3, 4])
        labels, confidence = best(full(weak))
        labels, confidence, inside = (paste(v, pasted) for v in (labels, confidence, valid))
        sure = confidence >= method.threshold
        share_of(sure, inside)
        supervised = labeled_entropy(labeled, y)
        unsupervised = entropy(strong, labels, inside, sure)
        total = supervised + 0.7 * unsupervised
        return {"supervised": supervised, "unsupervised": unsupervised, "total": total}


class TestFixMatchTaught(TestFixMatch):
    name = "fixmatch, taught"
    brings = "teacher.net."
    test_a_few_steps_lower_the_total = None  # that it learns at all, its parent has shown


@pytest.mark.parametrize("name", ["fixmatch", "unimatch", "prevmatch"])
def test_a_teacher_is_asked_for_by_a_mapping(name: str) -> None:
    assert made_from_flags(name, {}).teacher is None
    assert made_from_flags(name, {"teacher": {"decay": 0.9}}).teacher.decay == 0.9
    with pytest.raises(ValueError, match=r"teacher must be a mapping of its options, .* got 0\.9"):
        made_from_flags(name, {"teacher": 0.9})


def made_from_flags(name: str, given: dict[str, Any]) -> Any:
    return build_method(TrainConfig(method=name, method_args=given), tiny_net())
