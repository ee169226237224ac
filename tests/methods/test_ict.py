"""ICT: mixes of unlabeled images."""

import math
from typing import Any

import pytest
import torch
from method_tester import MethodTester, batch_of
from naive import Batch, Losses, best, error, followed, full, labeled_entropy, ramp, share_of
from torch import Generator, Tensor


class TestICT(MethodTester):
    name = "ict"
    options = {"unsupervised": 0.7, "alpha": 0.6}
    ramps = [(0.25, 0.01)]
    needs_progress = True

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        x_l, y, x_u, valid = batch
        probs = full(followed(method)(x_u))
        confidence = best(probs)[1]
        gammas = torch._standard_gamma(torch.full((2, 4), 0.6), generator=g)
        lam = [float(min(a, b) / (a + b)) for a, b in gammas.T]
        assert max(lam) > 0.1
        colored = method.color(x_u, g)
        view, target, sure = colored.clone(), probs.clone(), confidence.clone()
        inside = valid.clone()
        for i, share in enumerate(lam):
            j = (i - 1) % 4
            view[i] = (1 - share) * colored[i] + share * colored[j]
            target[i] = (1 - share) * probs[i] + share * probs[j]
            sure[i] = (1 - share) * confidence[i] + share * confidence[j]
            inside[i] = valid[i] & valid[j]
        logits = method.net(torch.cat([x_l, view]))
        supervised = labeled_entropy(logits[:3], y)
        share = share_of(sure >= method.threshold, inside)
        unsupervised = share * error(logits[3:], target, inside)
        total = supervised + 0.7 * ramp(0.05, 0.25) * unsupervised
        return {"supervised": supervised, "unsupervised": unsupervised, "total": total}

    def test_an_image_without_another_one_is_seen_and_learned_as_it_is(self) -> None:
        method: Any = self.make(threshold=0.0).eval()
        method.color.p = 0.0
        seen: list[Tensor] = []
        method.net.model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        x_l, y, x_u = batch_of()
        alone = method(x_l, y, x_u[:1], progress=1.0)
        assert torch.equal(seen[-1][3:, :, :32, :24], x_u[:1])
        assert alone["unsupervised"] < 1e-10  # the teacher is the student, still

    @pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan])
    def test_what_is_no_parameter_of_a_beta_distribution_is_refused(self, alpha: float) -> None:
        with pytest.raises(ValueError, match=rf"`alpha` must be above 0, got {alpha}"):
            self.make(alpha=alpha)
