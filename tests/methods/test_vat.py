"""VAT: the worst-case step, of images or of features."""

import copy
from typing import Any

import naive
import pytest
import torch
from method_tester import MethodTester, batch_of
from naive import Batch, Losses, full, labeled_entropy
from tiny_nets import seeded, tiny_net
from torch import Generator, Tensor, nn

from gmix import GuidedMixNet
from gmix.methods import VAT
from gmix.methods.cct import adversarial


class TestVAT(MethodTester):
    name = "vat"
    options = {"unsupervised": 0.7, "epsilon": 7.5, "xi": 1.0}
    brings = ""

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        x_l, y, x_u, valid = batch
        still = copy.deepcopy(method.net).eval()
        features = method.net.encode(torch.cat([x_l, x_u])) if method.at == "features" else [x_u]
        start = features[-1][-4:].detach()
        state = g.get_state()
        draw, steps = torch.rand(start.shape, generator=g).double() - 0.5, []
        for i, (image, direction) in enumerate(zip(start, draw, strict=True)):
            predict, one = still, slice(i, i + 1)
            if method.at == "features":
                predict = Continued(still, [f[3 + i][None].detach() for f in features[:-1]])
            found = naive.adversarial(image[None], predict, direction[None], valid[one], xi=1.0)
            steps.append(7.5 / 2 * found)
        predict = still
        if method.at == "features":
            predict = Continued(still, [f[3:].detach() for f in features[:-1]])
        moved = adversarial(
            start, predict, xi=1.0, length=7.5, weight=valid, generator=g.set_state(state)
        )
        torch.testing.assert_close(moved, torch.cat(steps).float(), atol=1e-4, rtol=1e-3)
        # From here on with the rounded one: a gradient may jump between the two.
        if method.at == "images":
            logits = method.net(torch.cat([x_l, x_u, x_u + moved]))
        else:
            doubled = [torch.cat([f, f[3:]]) for f in features]
            added = torch.cat([torch.zeros(7, *moved.shape[1:]), moved])
            logits = method.net.decode([*doubled[:-1], doubled[-1] + added], (32, 24))
        before, after = full(logits[3:7]).detach(), full(logits[7:])
        supervised = labeled_entropy(logits[:3], y)
        unsupervised = (before * (before.log() - after.log())).sum(1)[valid].sum() / valid.sum()
        total = supervised + 0.7 * unsupervised
        return {"supervised": supervised, "unsupervised": unsupervised, "total": total}


class TestVATOnFeatures(TestVAT):
    name = "vat, features"
    test_a_few_steps_lower_the_total = None  # that it learns at all, its parent has shown


class Continued(nn.Module):
    """Logits from the deepest features, given the others."""

    def __init__(self, net: GuidedMixNet, given: list[Tensor]) -> None:
        super().__init__()
        self.net, self.given = net, given

    def forward(self, z: Tensor) -> Tensor:
        return self.net.decode([*(f.to(z.dtype) for f in self.given), z], (32, 24))


def test_a_step_is_found_in_float32_under_autocast() -> None:
    steps = []
    for enabled in (False, True):
        method = TestVAT().midway()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            steps.append(
                adversarial(batch_of().x_unlabeled, method.net.eval(), generator=seeded(0))
            )
    assert torch.equal(*steps)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"at": "logits"}, "`at` must be 'images' or 'features', got 'logits'"),
        ({"epsilon": 0.0}, "`epsilon` must be above 0, got 0.0"),
        ({"xi": -1.0}, "`xi` must be above 0, got -1.0"),
    ],
)
def test_steps_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VAT(tiny_net(), **options)
