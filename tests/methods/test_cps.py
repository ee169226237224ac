"""CPS: the second student."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from method_tester import MethodTester, batch_of
from naive import Batch, Losses, best, entropy, full, labeled_entropy, paste
from tiny_nets import seeded, tiny_net
from torch import Generator, nn

from gmix import CutMix, GuidedMixNet, GuidedMixUnet
from gmix.methods import CPS
from gmix.nn.mitrans import NonLocalBlock, PixelShuffleBlock


class TestCPS(MethodTester):
    name = "cps"
    options = {"cross": 0.7}
    weights = ("cross",)
    draws = False
    students = 2
    brings = "other."
    learners = dict.fromkeys(("supervised", "cross"), ("net.model", "other.model"))
    labeled_too = {"cross"}

    def move(self, method: Any, g: Generator) -> None:
        next(method.other.model.encoder.parameters()).mul_(0.9)

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        x_l, y, x_u, valid = batch
        inside = torch.cat([torch.ones(3, 32, 24, dtype=torch.bool), valid])
        one, other = (net(torch.cat([x_l, x_u])) for net in (method.net, method.other))
        first, second = best(full(one))[0], best(full(other))[0]
        assert 0.1 < (first == second).float().mean() < 0.9
        supervised = labeled_entropy(one[:3], y) + labeled_entropy(other[:3], y)
        cross = entropy(one, second, inside, inside) + entropy(other, first, inside, inside)
        return {"supervised": supervised, "cross": cross, "total": supervised + 0.7 * cross}


class TestCPSWithCutMix(TestCPS):
    name = "cps, cutmix"
    draws = True
    labeled_too = set()

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        x_l, y, x_u, valid = batch
        pasted, losses = method.cutmix(x_u, g), {}
        assert 0.2 < pasted.box.float().mean() < 0.55 and pasted.box.flatten(1).any(1).all()
        students = method.net, method.other
        with torch.no_grad():
            labels = [paste(best(full(student(x_u)))[0], pasted) for student in students]
        assert 0.1 < (labels[0] == labels[1]).float().mean() < 0.9
        inside = paste(valid, pasted)
        outputs = [student(torch.cat([x_l, paste(x_u, pasted)])) for student in students]
        losses["supervised"] = sum(labeled_entropy(logits[:3], y) for logits in outputs)
        losses["cross"] = sum(
            entropy(logits[3:], told, inside, inside)
            for logits, told in zip(outputs, labels[::-1], strict=True)
        )
        return {**losses, "total": losses["supervised"] + 0.7 * losses["cross"]}


def test_the_second_student_starts_elsewhere_from_the_same_encoder() -> None:
    net = TestCPS().midway().net
    before = {key: value.clone() for key, value in net.state_dict().items()}
    method = CPS(net)
    assert method.net is net
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    other = method.other.state_dict()
    assert other.keys() == before.keys()
    for key, value in before.items():
        drawn = key.startswith(("model.decoder", "model.segmentation_head")) and value.dim() == 4
        if drawn or key.startswith("model.encoder"):
            assert torch.equal(other[key], value) != drawn, key
    mine = {p.data_ptr() for p in net.parameters()}
    assert mine.isdisjoint(p.data_ptr() for p in method.other.parameters())


def test_a_decoder_drawn_anew_is_as_smp_draws_it() -> None:
    net = TestCPS().midway().net
    encoder = {key: value.clone() for key, value in net.model.encoder.state_dict().items()}
    torch.manual_seed(0)
    net.reset_decoder()
    first = {key: value.clone() for key, value in net.state_dict().items()}
    net.reset_decoder()
    assert all(torch.equal(encoder[k], v) for k, v in net.model.encoder.state_dict().items())
    for key, p in net.model.named_parameters():
        if key.startswith("encoder"):
            continue
        fan_in, fan_out = p[0].numel(), p.shape[0] * p[0, 0].numel() if p.dim() == 4 else 0
        if p.dim() == 4:  # uniform, in the bounds of Kaiming (decoder) or Xavier (head)
            assert not torch.equal(first["model." + key], p)
            head = key.startswith("segmentation_head")
            bound = math.sqrt(6 / (fan_in + fan_out)) if head else math.sqrt(6 / fan_in)
            assert 0.8 * bound < p.abs().max() <= bound, key
        else:
            assert torch.equal(p, torch.full_like(p, float(key.endswith("weight")))), key


def test_attention_and_pixel_shuffles_drawn_anew_start_as_they_are_built() -> None:
    torch.manual_seed(0)
    net = GuidedMixNet(
        GuidedMixUnet("resnet18", 3, None, decoder_channels=(8, 8, 8), pyramid_channels=16)
    )
    for p in net.parameters():
        nn.init.normal_(p)
    first = CPS(net).other.model.decoder
    (attention,) = (m for m in first.modules() if isinstance(m, NonLocalBlock))
    assert not attention.out.weight.any() and not attention.out.bias.any()
    assert attention.query.weight.any()
    blocks = [m for m in first.modules() if isinstance(m, PixelShuffleBlock)]
    assert len(blocks) == 3
    for block in blocks:
        x = torch.randn(1, block.expand.in_channels, 4, 4)
        up = block.shuffle(block.expand(x))
        assert up.any() and torch.equal(up, F.interpolate(up[..., ::2, ::2], scale_factor=2))


@pytest.mark.parametrize("where", ["net", "net.model", "net.model.encoder"])
def test_a_network_wrapped_after_the_method_was_made_is_named(where: str) -> None:
    method = TestCPS().make()
    owner, _, name = where.rpartition(".")
    setattr(method.get_submodule(owner), name, nn.DataParallel(method.get_submodule(where)))
    with pytest.raises(TypeError, match=rf"^`{where}` is wrapped in .*: wrap the method instead"):
        method(*batch_of(), progress=0.5)


def test_weights_loaded_after_the_method_was_made_reach_the_second_student() -> None:
    source = tiny_net(seed=5, mitrans=True)
    late, early = CPS(tiny_net(mitrans=True)), CPS(tiny_net(seed=5, mitrans=True))
    torch.manual_seed(7)  # whose decoders are the same draw
    late.other.reset_decoder()
    torch.manual_seed(7)
    early.other.reset_decoder()
    late.net.load_state_dict(source.state_dict())
    for seed in range(2):  # the second call must not copy again
        losses, expected = (m(*batch_of(), generator=seeded(seed))["total"] for m in (late, early))
        assert torch.equal(losses, expected)
        for method, loss in ((late, losses), (early, expected)):
            optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert all(map(torch.equal, late.state_dict().values(), early.state_dict().values()))


def test_a_second_student_keeps_its_own_weights() -> None:
    given, resumed, trained = CPS(tiny_net()), CPS(tiny_net(seed=3)), CPS(tiny_net())
    given.other.model.encoder.load_state_dict(tiny_net(seed=9).model.encoder.state_dict())
    trained.on_step_start(*batch_of()[:2])
    with torch.no_grad():
        next(trained.other.model.encoder.parameters()).add_(1)
    resumed.load_state_dict(trained.state_dict())
    for method in (given, resumed):
        before = {name: value.clone() for name, value in method.other.state_dict().items()}
        method.on_step_start(*batch_of()[:2])
        after = method.other.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_weight_is_the_authors_for_voc_unless_it_is_given() -> None:
    found: Any = [CPS(tiny_net(), **options).weight for options in ({}, {"cutmix": {}})]
    assert found == [1.5, 1.0]
    assert CPS(tiny_net(), cross=5, cutmix={}).weight == 5
    with pytest.raises(ValueError, match="`cross` must be at least 0, got -1"):
        CPS(tiny_net(), cross=-1)


def test_the_boxes_are_a_part() -> None:
    for given in ({"p": 0.0}, CutMix(p=0.0)):
        method: Any = CPS(tiny_net(), cutmix=given)
        assert (method.cutmix.p, method.cutmix.area) == (0.0, (0.25, 0.5))
        assert not method.cutmix(batch_of().x_unlabeled, seeded(0)).box.any()
