"""VAT: the worst-case step, of images or of features."""

import copy
from functools import partial
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
from gmix.methods import vat as vat_file
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


@pytest.mark.parametrize("classes", [1, 3, 7])
@pytest.mark.parametrize("at", ["images", "features"])
def test_an_adversarial_step_changes_predictions_and_no_statistics(at: str, classes: int) -> None:
    """More than a random step of its length; and BatchNorm has seen each image as often as it learned from it."""
    method: Any = TestVAT().midway(classes, at=at, epsilon=2.0)
    batch, passes = batch_of(classes), []
    for layer in method.net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(lambda m, i, o: passes.append(m.training))
    before = next(m for m in method.net.modules() if isinstance(m, nn.BatchNorm2d))
    count = int(before.num_batches_tracked)
    found = method(*batch, generator=seeded(0))["unsupervised"]
    assert int(before.num_batches_tracked) == count + 1 and 0 < sum(passes) < len(passes)
    assert all(m.training for m in method.modules())
    random = []
    for seed in range(5):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vat_file, "adversarial", partial(random_step, seeded(seed)))
            random.append(copy.deepcopy(method)(*batch)["unsupervised"].item())
    assert found > 1.5 * sum(random) / 5


def random_step(g: torch.Generator, z: Tensor, _: Any, *, length: float, **rest: Any) -> Tensor:
    step = torch.randn(z.shape, generator=g)
    return length * step / step.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def test_a_step_is_found_in_float32_under_autocast() -> None:
    steps = []
    for enabled in (False, True):
        method = TestVAT().midway()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            steps.append(
                adversarial(batch_of().x_unlabeled, method.net.eval(), generator=seeded(0))
            )
    assert torch.equal(*steps)


def test_padding_has_no_say_in_an_adversarial_step() -> None:
    net, x = TestVAT().midway().net.eval(), batch_of().x_unlabeled
    nothing = torch.zeros(4, 32, 24)
    assert not adversarial(x, net, weight=nothing, generator=seeded(0)).any()
    left = nothing.clone()
    left[..., :4] = 1
    step = adversarial(x, net, weight=left, generator=seeded(0))
    assert step[..., :8].square().sum() > 0.5 * step.square().sum()


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
