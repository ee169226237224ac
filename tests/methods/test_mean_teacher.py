"""Mean Teacher."""

from typing import Any

import torch
from method_tester import MethodTester
from naive import Batch, Losses, error, followed, full, labeled_entropy, ramp
from torch import Generator


class TestMeanTeacher(MethodTester):
    name = "mean_teacher"
    options = {"unsupervised": 0.7}
    ramps = [(0.08, 1.0)]
    needs_progress = True

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        x_l, y, x_u, valid = batch
        target = full(followed(method)(x_u))
        logits = method.net(torch.cat([x_l, method.color(x_u, g)]))
        supervised = labeled_entropy(logits[:3], y)
        unsupervised = error(logits[3:], target, valid)
        total = supervised + 0.7 * ramp(0.05, 0.08) * unsupervised
        return {"supervised": supervised, "unsupervised": unsupervised, "total": total}
