"""Methods with a discriminator: what it is, whom each loss trains, and what must always hold."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from method_tester import MethodTester, batch_of, some_valid
from naive import Batch, Losses, best, copied, entropy, full, labeled_entropy, share_of, true_maps
from tiny_nets import seeded, tiny_net
from torch import Generator, Tensor, nn

from gmix.methods import AdvSSL
from gmix.methods.advssl import Discriminator
from gmix.methods.s4gan import Critic
from gmix.nn.critic import SlowConv2d, StridedLayers, call_constant, score_loss


class AdversarialTester(MethodTester):
    """What holds for both."""

    brings = "discriminator."
    learners = {"discriminator": ("discriminator.",)}

    def move(self, method: Any, g: Generator) -> None:
        for p in method.discriminator.parameters():
            p.mul_(3)


class TestAdvSSL(AdversarialTester):
    name = "advssl"
    options = {"adversarial": 0.3, "adversarial_unlabeled": 0.2, "unsupervised": 0.7, "start": 0.0}
    divides = {3: {"threshold": 0.555}, 1: {"threshold": 0.496}}
    weights = ("adversarial", "adversarial_unlabeled", "unsupervised")
    draws = False
    needs_progress = True
    labeled_too = {"adversarial", "discriminator"}

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        x_l, y, x_u, valid = batch
        judge, classes, known = method.discriminator, method.net.classes, y != 255
        logits = method.net(torch.cat([x_l, x_u]))
        maps = full(logits)[:, -classes:].float()
        truth = true_maps(y, classes)
        judge.requires_grad_(False)  # as its authors do
        scores = judge(maps)[:, 0].double()
        judge.requires_grad_(True)
        real, fake = judge(truth)[:, 0].double(), judge(maps.detach())[:, 0].double()
        trusted = valid & (1 / (1 + (-scores[3:]).exp()) >= method.threshold)
        share_of(trusted, valid)
        both = torch.cat([known, valid])
        losses = {
            "supervised": labeled_entropy(logits[:3], y),
            "adversarial": (1 + (-scores[:3]).exp()).log()[known].mean(),
            "adversarial_unlabeled": (1 + (-scores[3:]).exp()).log()[valid].mean(),
            "unsupervised": entropy(logits[3:], best(full(logits[3:]))[0], trusted, trusted),
            "discriminator": (
                (1 + (-real).exp()).log()[known].mean() + (1 + fake.exp()).log()[both].mean()
            )
            / 2,
        }
        total = losses["supervised"] + losses["discriminator"] + 0.3 * losses["adversarial"]
        total = total + 0.2 * losses["adversarial_unlabeled"] + 0.7 * losses["unsupervised"]
        return {**losses, "total": total}

    def test_advssl_learns_trusted_labels_from_its_start_on(self) -> None:
        method = self.make(start=0.4)
        early, late, tensor = (
            method(*batch_of(), progress=told) for told in (0.39, 0.4, torch.tensor(0.4))
        )
        assert early["unsupervised"] == 0 < late["unsupervised"]
        assert torch.equal(late["total"], tensor["total"])
        torch.testing.assert_close(late["total"] - early["total"], 0.1 * late["unsupervised"])


class TestS4GAN(AdversarialTester):
    name = "s4gan"
    options = {"matching": 0.3, "unsupervised": 0.7}
    divides = {3: {"threshold": 0.8}, 1: {"threshold": 0.5}}
    weights = ("matching", "unsupervised")
    labeled_too = {"discriminator"}

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        x_l, y, x_u, valid = batch
        critic, classes = method.discriminator, method.net.classes
        logits = method.net(torch.cat([x_l, x_u]))
        maps = full(logits)[:, -classes:].float()
        made = maps[3:] * valid[:, None]
        truth = true_maps(y, classes)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        images = torch.cat([x_l, x_u]) * std[:, None, None] + mean[:, None, None]
        pairs = torch.cat([torch.cat([truth, made]), images.clamp(0, 1)], 1)
        critic.requires_grad_(False)
        features = critic(pairs, g)
        trust = 1 / (1 + (-critic.last(features[3:])[:, 0]).exp())
        critic.requires_grad_(True)
        scores = critic.last(critic(pairs.detach(), g))[:, 0].double()
        trusted = (trust > method.threshold)[:, None, None] & valid
        share_of(trusted, valid)
        labels = best(full(logits[3:]))[0]
        if method.branch is not None:
            with torch.no_grad():
                occurs = copied(method.branch_teacher, method.branch)(x_u)
            if classes > 1:
                gone = full(logits[3:]).clone()
                for i, k in np.ndindex(4, classes):
                    if 1 / (1 + math.exp(-float(occurs[i, k]))) < 0.2:
                        gone[i, k] = 0
                labels = best(gone)[0]
        real, fake = features[:3].double(), features[3:].double()
        losses = {
            "supervised": labeled_entropy(logits[:3], y),
            "matching": sum(
                (real[:, k].sum() / 3 - fake[:, k].sum() / 4).abs() for k in range(real.shape[1])
            )
            / real.shape[1],
            "unsupervised": entropy(logits[3:], labels, trusted, trusted),
            "discriminator": (
                (1 + (-scores[:3]).exp()).log().mean() + (1 + scores[3:].exp()).log().mean()
            )
            / 2,
        }
        total = losses["supervised"] + losses["discriminator"]
        total = total + 0.3 * losses["matching"] + 0.7 * losses["unsupervised"]
        if method.branch is not None:
            view = method.blur(method.color(x_u, g), g)
            found = method.branch(torch.cat([x_l, view])).double()
            present = torch.zeros(3, classes)
            for i, k in np.ndindex(3, classes):
                present[i, k] = float((y[i] == k + (classes == 1)).any())
            chance = 1 / (1 + (-found[:3]).exp())
            right = torch.where(present > 0, chance, 1 - chance)
            apart = [
                1 - (a * b).sum() / (a * a).sum().sqrt() / (b * b).sum().sqrt()
                for a, b in zip(found[3:], occurs.double(), strict=True)
            ]
            losses["classification"] = -right.log().mean()
            losses["consistency"] = sum(apart) / 4
            total = total + losses["classification"]  # before its ramp
        return {**losses, "total": total}


class TestMLMT(TestS4GAN):
    name = "s4gan, mlmt"
    needs_progress = True
    learners = {
        "discriminator": ("discriminator.",),
        "classification": ("branch.",),
        "consistency": ("branch.",),
    }
    labeled_too = {"discriminator", "classification"}
    may_vanish = {"consistency"}  # the cosine of two numbers of the same sign is 1

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        encoder = method.branch.net.encoder  # the first step copies it again
        encoder.load_state_dict(method.net.encoder.state_dict())
        return super().step(method, batch, g)

    @pytest.mark.parametrize("classes", [1, 3])
    def test_mlmt_removes_the_classes_it_does_not_see(self, classes: int) -> None:
        method: Any = self.make(classes)
        x_l, y, x_u = batch_of(classes)
        usual = method.pseudo_masks(x_l, y, x_u)
        method.on_step_start(x_l, y)
        last = method.branch_teacher.net.last
        with torch.no_grad():
            last.weight.zero_()
            last.bias.copy_(torch.tensor([-5.0, 5.0, 5.0])[:classes])
        found = method.pseudo_masks(x_l, y, x_u)
        assert not found[:, 0].any()
        if classes > 1:
            expected = usual[:, 1:] / usual[:, 1:].sum(1, keepdim=True)
            torch.testing.assert_close(found[:, 1:], expected)
            last.bias.data.fill_(-5.0)  # with nothing in the image, everything may be
            torch.testing.assert_close(method.pseudo_masks(x_l, y, x_u), usual)

    def test_mlmt_begins_to_agree_after_a_tenth_of_the_training(self) -> None:
        begun, half, done = (
            self.make()(*batch_of(), progress=told, generator=seeded(1))
            for told in (0.1, 0.35, 1.0)
        )
        for losses, omega in ((half, 0.5), (done, 1.0)):
            difference = losses["total"] - begun["total"]
            torch.testing.assert_close(
                difference, omega * losses["consistency"], atol=1e-5, rtol=1e-4
            )

    def test_the_branch_is_no_part_of_the_network_and_follows_once_a_step(self) -> None:
        method: Any = self.make()
        mine = {p.data_ptr() for p in method.net.parameters()}
        assert mine.isdisjoint(p.data_ptr() for p in method.branch.parameters())
        assert all(p.requires_grad for p in method.branch.parameters())
        assert {
            key.split(".")[2] for key, _ in method.branch.net.named_parameters(prefix="net")
        } == {"encoder"}
        method(*batch_of(), progress=0.5)
        method(*batch_of(), progress=0.5)  # another micro-batch
        assert method.branch_teacher.step == 1
        method.eval()(*batch_of(), progress=0.5)
        assert method.branch_teacher.step == 1


def padded_to(maps: Tensor, multiple: int) -> Tensor:
    n, channels, h, w = maps.shape
    out = torch.zeros(n, channels, -(-h // multiple) * multiple, -(-w // multiple) * multiple)
    out[..., :h, :w] = maps
    return out


def convolved(x: Tensor, layer: Any) -> Tensor:
    """A convolution as a matrix product over the patches of 4 x 4."""
    patches = F.unfold(x, 4, padding=1, stride=2)
    out = 0.1 * (layer.weight.flatten(1) @ patches + layer.bias[:, None])
    return out.view(len(x), -1, x.shape[2] // 2, x.shape[3] // 2)


@pytest.mark.parametrize("size", [(32, 32), (40, 17), (3, 65)])
def test_strided_layers_are_matrix_products(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layers, maps = StridedLayers(3, width=2), torch.randn(2, 3, *size)
    x = padded_to(maps, 16)
    for layer in layers.convolutions:
        x = convolved(x, layer)
        x = torch.where(x > 0, x, 0.2 * x)
    torch.testing.assert_close(layers(maps), x)
    assert layers.out_channels == x.shape[1] == 16
    dropped = layers(maps, 0.5, seeded(0))
    assert torch.equal(dropped, layers(maps, 0.5, seeded(0)))
    assert not torch.equal(dropped, layers(maps, 0.5, seeded(1)))


@pytest.mark.parametrize("size", [(32, 64), (35, 37), (5, 5)])
def test_a_discriminator_scores_each_pixel_of_any_map(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    judge, maps = Discriminator(3), torch.rand(2, 3, *size)
    cells = convolved(judge.layers(padded_to(maps, 32)), judge.last)
    pixels = F.interpolate(cells, scale_factor=32, mode="bilinear")[..., : size[0], : size[1]]
    torch.testing.assert_close(judge(maps), pixels)


def test_a_constant_call_is_the_call_without_gradients_of_weights() -> None:
    layers, maps = StridedLayers(3, width=2), torch.randn(1, 3, 16, 16, requires_grad=True)
    constant = call_constant(layers, maps)
    assert torch.equal(constant, layers(maps))
    (found,) = torch.autograd.grad(constant.sum(), maps)
    (expected,) = torch.autograd.grad(layers(maps).sum(), maps)
    assert torch.equal(found, expected)
    call_constant(layers, maps).sum().backward()
    assert all(p.grad is None and p.requires_grad for p in layers.parameters())


def test_a_slow_convolution_starts_as_another_and_moves_a_tenth_as_far() -> None:
    torch.manual_seed(0)
    usual = nn.Conv2d(3, 4, 4, stride=2, padding=1)
    torch.manual_seed(0)
    slow, x = SlowConv2d(3, 4), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(slow(x), usual(x))
    before = [p.detach().clone() for layer in (usual, slow) for p in layer.parameters()]
    for layer in (usual, slow):
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-2, weight_decay=0.0)
        layer(x).square().mean().backward()
        optimizer.step()
    after = [*usual.parameters(), *slow.parameters()]
    moves = [new.detach() - old for new, old in zip(after, before, strict=True)]
    for move, slower in zip(moves[:2], moves[2:], strict=True):
        torch.testing.assert_close(0.1 * slower, 0.1 * move, atol=1e-6, rtol=1e-3)


def test_ignored_pixels_and_padding_have_no_answer() -> None:
    """Gradients of scores there are 0: what the discriminator says of them does not matter."""
    scores = torch.randn(3, 1, 32, 24, requires_grad=True)
    counted = some_valid()[:3]
    score_loss(scores, 1, counted).backward()
    assert scores.grad is not None
    assert torch.equal(scores.grad[:, 0] != 0, counted)


def test_shares_of_advssl_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`start` must be in \[0, 1\], got 5000"):
        AdvSSL(tiny_net(), start=5000)


def test_s4gan_drops_half_of_the_critics_channels_in_training_only() -> None:
    torch.manual_seed(0)
    critic, maps = Critic(6), torch.rand(2, 6, 32, 32)
    assert not torch.equal(critic(maps, seeded(0)), critic(maps, seeded(1)))
    critic.eval()
    expected = critic.layers(maps).flatten(2).sum(2) / 4
    torch.testing.assert_close(critic(maps, seeded(0)), expected)
    torch.testing.assert_close(
        critic.score(expected).flatten(),
        0.1 * (expected @ critic.last.weight[0] + critic.last.bias),
    )
