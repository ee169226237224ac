"""GuidedMix as its authors released it: one step against naive code, and what makes it another algorithm."""

import math
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from method_tester import MethodTester
from naive import Batch, Losses, best, full, labeled_entropy
from tiny_nets import Labeled, seeded, tiny_batch, tiny_net
from torch import Generator, Tensor

from gmix import GuidedMixLoss, GuidedMixNet, RandomPairSelector
from gmix import functional as G
from gmix.builders.method import build_method
from gmix.config.train_config import TrainConfig
from gmix.methods import GuidedMix
from gmix.nn.mixed_head import MixedHead


def focal(logits: Tensor, labels: Tensor, counted: Tensor, gamma: float = 0.5) -> Any:
    """Binary focal loss, class by class."""
    total: Any = 0
    classes = logits.shape[1]
    for k in range(classes):
        chance = 1 / (1 + (-logits[:, k].double()).exp())
        right = torch.where(labels == (k if classes > 1 else 1), chance, 1 - chance)
        total = total - (0.5 * (1 - right) ** gamma * right.log())[counted].sum()
    return total / counted.sum() / classes


class TestOfficial(MethodTester):
    name = "official"
    weights = ()
    needs_progress = True
    brings = "mixed_head."
    learners = {"unsupervised": ("",)}  # all

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        x_l, y, x_u, valid = batch
        model, head = method.net.model, method.mixed_head
        maps = model.decoder(model.encoder(torch.cat([x_l, x_u])))
        logits = model.segmentation_head(maps)
        partner = torch.randint(3, (4,), generator=g).tolist()
        draw = torch.rand(4, generator=g)
        lam = torch.minimum(draw, 1 - draw).tolist()
        mixed = torch.stack(
            [lam[i] * maps[j] + (1 - lam[i]) * maps[3 + i] for i, j in enumerate(partner)]
        )
        joined = head.join(mixed)
        kept = (torch.rand(joined.shape[:2], generator=g) >= 0.1) / 0.9
        predicted = head.head(joined * kept[:, :, None, None])
        left = torch.stack([predicted[i] - lam[i] * logits[j] for i, j in enumerate(partner)])
        supervised = labeled_entropy(logits[:3], y)
        unsupervised = focal(left, best(full(logits[3:]))[0], valid)
        total = supervised + 10 * unsupervised
        return {"supervised": supervised, "unsupervised": unsupervised, "total": total}

    def pseudo_masks(self, method: GuidedMix, batch: Labeled) -> Tensor:
        return method.guide(*batch, seeded(0)).pseudo


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_focal_loss_is_the_loop_over_pixels(classes: int, gamma: float) -> None:
    g = seeded(0)
    logits = 3 * torch.randn(2, classes, 4, 3, generator=g)
    y = torch.randint(max(classes, 2), (2, 4, 3), generator=g)
    y[:, 0] = 7
    weight, total = torch.rand(2, 4, 3, generator=g), 0.0
    for i, r, c in np.ndindex(2, 4, 3):
        for k in range(classes if y[i, r, c] != 7 else 0):
            chance = 1 / (1 + math.exp(-logits[i, k, r, c]))
            right = chance if y[i, r, c] == (k if classes > 1 else 1) else 1 - chance
            total -= float(weight[i, r, c]) * (1 - right) ** gamma * math.log(right) / 2 / classes
    options: dict[str, Any] = {"gamma": gamma, "ignore_index": 7}
    found = G.sigmoid_focal_loss(logits, y, weight=weight, **options)
    assert found.item() == pytest.approx(total / 18, rel=1e-5)
    sure = (100 * torch.nn.functional.one_hot(y.clamp(max=classes), classes + 1) - 50.0).movedim(
        3, 1
    )[:, -classes:]
    sure.requires_grad_()
    G.sigmoid_focal_loss(sure, y, **options).backward()  # perfect answers have no infinite gradient
    assert sure.grad is not None and sure.grad.isfinite().all()
    assert G.sigmoid_focal_loss(logits, torch.full_like(y, 7), **options) == 0
    with pytest.raises(ValueError, match=r"`target` must have shape \(2, 4, 3\)"):
        G.sigmoid_focal_loss(logits, y[:1])


def test_all_three_variants_are_one_word() -> None:
    found = {}
    for variant in ("default", "paper", "official"):
        config = TrainConfig(method="guidedmix", variant=variant)
        methods: list[Any] = [
            GuidedMix(tiny_net(), variant=variant),  # type: ignore[arg-type]
            build_method(config, tiny_net()),
        ]
        assert repr(methods[0]) == repr(methods[1])
        found[variant] = methods[0]
    assert found["default"].mixed_head is None and found["paper"].mixed_head is None
    official = found["official"]
    assert isinstance(official.selector, RandomPairSelector) and official.teacher is None
    assert official.decoupler.normalize == "none" and official.classifier is None
    assert (official.criterion.objective, official.criterion.unsupervised) == ("focal", 10)


def test_options_of_official_parts_leave_the_others_as_they_are() -> None:
    method: Any = GuidedMix(
        tiny_net(),
        variant="official",
        mixed_head={"drop": 0.0},
        selector={"metric": "cosine"},
        mixer={"max_lambda": 0.3},
        criterion=GuidedMixLoss(classification=0.1),
    )
    assert (method.mixed_head.drop, method.selector.metric) == (0.0, "cosine")
    assert (method.mixer.max_lambda, method.criterion.unsupervised) == (0.3, 10)
    losses = method(*tiny_batch(), progress=0.5, generator=seeded(0))
    assert losses["classification"] > 0
    own = MixedHead(tiny_net())
    assert GuidedMix(tiny_net(), variant="official", mixed_head=own).mixed_head is own


def test_what_official_does_not_have_is_refused() -> None:
    for given, words in (
        ({"variant": "official", "teacher": {}}, "no part 'teacher': choose from"),
        ({"mixed_head": {}}, "no part 'mixed_head': choose from"),
        ({"variant": "official", "mixed_head": None}, "`mixed_head` cannot be None"),
        ({"variant": "official", "criterion": {"decoupling": 1.0}}, "there is no L_dec"),
    ):
        options: Any = given
        with pytest.raises(ValueError, match=words):
            GuidedMix(tiny_net(), **options)


@pytest.mark.parametrize("architecture", ["DeepLabV3", "FPN", "PSPNet", "GuidedMixUnet"])
def test_the_head_fits_the_decoder_of_any_architecture_and_is_not_deployed(
    architecture: str,
) -> None:
    import gmix

    kind: Any = getattr(gmix if architecture == "GuidedMixUnet" else smp, architecture)
    torch.manual_seed(0)
    net = GuidedMixNet(kind("resnet18", encoder_weights=None, classes=3))
    names = {*net.export().state_dict()}
    method = GuidedMix(net, variant="official")
    losses = method(*tiny_batch(2, 2, size=64), progress=0.5, generator=seeded(0))
    losses["total"].backward()
    assert all(p.grad is not None for p in method.mixed_head.parameters())  # type: ignore[union-attr]
    assert {*net.export().state_dict()} == names
