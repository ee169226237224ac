"""GCT: its flaw maps, its detector, one step against naive code, and who teaches whom."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from method_tester import MethodTester, batch_of
from naive import Batch, Losses, full, labeled_entropy
from tiny_nets import seeded, tiny_net
from torch import Generator, Tensor

from gmix.methods import GCT
from gmix.methods.gct import FlawDetector, HalfNorm, blur, decidable, flaws


def plain_blur(maps: Tensor, size: int) -> Tensor:
    """The weighted sum over each pixel's square, mirrored at the borders."""
    size += 1 - size % 2
    radius, deviation = size // 2, 0.3 * ((size - 1) / 2 - 1) + 0.8
    weights = {
        (r, c): math.exp(-(r * r + c * c) / 2 / deviation**2)
        for r in range(-radius, radius + 1)
        for c in range(-radius, radius + 1)
    }
    padded = np.pad(maps.numpy(), ((0, 0), (radius, radius), (radius, radius)), "reflect")
    out = np.zeros(maps.shape)
    h, w = maps.shape[1:]
    for (r, c), weight in weights.items():
        out += weight * padded[:, radius + r : radius + r + h, radius + c : radius + c + w]
    return torch.from_numpy(out / sum(weights.values()))


def plain_stretch(maps: Tensor) -> Tensor:
    return torch.stack([(m - m.min()) / (m.max() - m.min()) for m in maps])


def plain_flaws(probs: Tensor, y: Tensor) -> Tensor:
    """Of all classes."""
    error = torch.zeros(y.shape, dtype=torch.float64)
    for i, r, c in np.ndindex(*y.shape):
        if y[i, r, c] != 255:
            error[i, r, c] = 1 - probs[i, int(y[i, r, c]), r, c]
    once = plain_blur(error, 24 // 8)
    wide = np.pad(once.numpy(), ((0, 0), (1, 1), (1, 1)), "reflect")
    dilated = once.clone()
    for i, r, c in np.ndindex(*y.shape):
        dilated[i, r, c] = wide[i, r : r + 3, c : c + 3].max()
    return plain_stretch(plain_blur(dilated, 24 // 4))


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7])
def test_a_blur_is_the_weighted_sum_over_each_square(size: int) -> None:
    maps = torch.rand(2, 9, 8, generator=seeded(0), dtype=torch.float64)
    found = blur(maps[:, None], size)[:, 0]
    torch.testing.assert_close(found.double(), plain_blur(maps, size), atol=1e-6, rtol=1e-5)
    ones = torch.ones(1, 1, 9, 8)
    torch.testing.assert_close(blur(ones, size), ones)


@pytest.mark.parametrize("classes", [1, 3])
def test_flaws_are_the_blurred_errors_of_each_image(classes: int) -> None:
    g = seeded(0)
    y = torch.randint(max(classes, 2), (2, 32, 24), generator=g)
    y[:, :5] = 255
    logits = torch.randn(2, classes, 32, 24, generator=g)
    probs = full(logits)
    found = flaws(probs[:, -classes:].float(), y)
    torch.testing.assert_close(found.double(), plain_flaws(probs, y), atol=1e-5, rtol=1e-4)
    right = F.one_hot(torch.zeros_like(y), max(classes, 2)).movedim(3, 1).float()[:, -classes:]
    assert not flaws(right, torch.zeros_like(y)).any()  # no error, no flaw


def test_flaws_that_are_nowhere_clear_are_none() -> None:
    maps = torch.zeros(2, 32, 32)
    maps[0, 8:16, 8:16], maps[1, 8:16, 8:16], maps[:, 20:] = 0.05, 0.5, -3.0
    found = decidable(maps)
    assert not found[0].any() and found[1].max() > 0.99 and not found[1, 20:].any()


@pytest.mark.parametrize("size", [(32, 32), (40, 17), (5, 65)])
def test_a_detector_looks_at_images_of_any_size(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    detector = FlawDetector(5, width=2)
    maps = torch.rand(2, 5, *size)
    found = detector(maps)
    assert found.shape == (2, 1, *size)
    x = torch.zeros(2, 5, -(-size[0] // 32) * 32, -(-size[1] // 32) * 32)
    x[..., : size[0], : size[1]] = maps
    widths = [2, 4, 4, 8, 8, 16, 16, 1]
    convolutions = [m for m in detector.modules() if hasattr(m, "kernel_size")]
    assert [m.out_channels for m in convolutions] == widths
    for number, layer in enumerate(convolutions):
        stride = 1 if number in (2, 4, 6, 7) else 2
        x = F.conv2d(x, 0.1 * layer.weight, 0.1 * layer.bias, stride, 1)
        if number < 7:
            c = x.shape[1]
            over = x[:, : c // 2].transpose(0, 1).flatten(1)
            mean, var = over.mean(1), over.var(1, correction=0)
            batch = (x[:, : c // 2] - mean.view(1, -1, 1, 1)) / (
                var.view(1, -1, 1, 1) + 1e-5
            ).sqrt()
            own = x[:, c // 2 :]
            var = own.var((2, 3), correction=0, keepdim=True)
            x = torch.cat([batch, (own - own.mean((2, 3), keepdim=True)) / (var + 1e-5).sqrt()], 1)
            x = torch.where(x > 0, x, 0.2 * x)
    whole = [32 * -(-s // 32) for s in size]
    x = F.interpolate(x, size=whole, mode="bilinear", align_corners=True)
    torch.testing.assert_close(found, x[..., : size[0], : size[1]], atol=1e-4, rtol=1e-3)
    assert next(m for m in detector.modules() if isinstance(m, HalfNorm)).image.num_features == 1


class TestGCT(MethodTester):
    name = "gct"
    options = {"correction": 0.3, "consistency": 0.7, "detector": 0.2, "flawed": 0.3}
    weights = ("correction", "consistency", "detector")
    needs_progress = True
    draws = False
    students = 2
    brings = "detector."
    learners = {
        **dict.fromkeys(("supervised", "consistency", "correction"), ("net.model", "other.model")),
        "detector": ("detector.",),
    }
    labeled_too = {"consistency", "correction", "detector"}

    def move(self, method: Any, g: Generator) -> None:
        next(method.other.model.encoder.parameters()).mul_(0.9)

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        x_l, y, x_u, valid = batch
        detector, classes = method.detector, method.net.classes
        x, counted = torch.cat([x_l, x_u]), torch.cat([torch.ones_like(valid[:3]), valid])
        logits = [net(x) for net in (method.net, method.other)]
        probs = [full(z) for z in logits]
        maps = [torch.cat([x, p[:, -classes:].float()], 1) for p in probs]
        detector.requires_grad_(False)
        seen = [detector(m)[:, 0].double() for m in maps]
        detector.requires_grad_(True)
        again = [detector(m.detach())[:3, 0].double() for m in maps]
        handled = []
        for found in seen:
            smooth = plain_blur((found.detach() * counted).clamp(min=0), 24 // 16)
            assert (smooth.amax((1, 2)) > 0.1).all()  # `loud_gct` sees to it
            handled.append(plain_stretch(smooth))
        wrong: dict[str, Any] = {"consistency": 0, "correction": 0, "detector": 0}
        seldom = [0, 0, 0]
        for i, r, c in np.ndindex(*counted.shape):
            if not counted[i, r, c]:
                continue
            a, b = (float(h[i, r, c]) for h in handled)
            if a > method.flawed and b > method.flawed:
                wrong["correction"] += seen[0][i, r, c] ** 2 + seen[1][i, r, c] ** 2
                seldom[2] += 1
            elif a != b:
                worse = 0 if a > b else 1
                own, better = probs[worse][i, :, r, c], probs[1 - worse][i, :, r, c].detach()
                wrong["consistency"] += ((own - better) ** 2).sum() / len(own)
                seldom[worse] += 1
        assert min(seldom) > 20, seldom
        losses = {name: wrong[name] / counted.sum() for name in ("consistency", "correction")}
        for p, found in zip(probs, again, strict=True):
            truth = plain_flaws(p[:3].detach(), y)
            wrong["detector"] += ((found - truth) ** 2)[y != 255].mean() / 2
        losses["detector"] = wrong["detector"]
        losses["supervised"] = sum(labeled_entropy(z[:3], y) for z in logits)
        omega = math.exp(-5 * (1 - 0.05 / 0.15) ** 2)
        total = losses["supervised"] + 0.7 * omega * losses["consistency"]
        losses["total"] = total + 0.3 * losses["correction"] + 0.2 * losses["detector"]
        return losses


@pytest.mark.parametrize(
    ("flaw", "learns"), [((0.0, 0.0), ""), ((0.9, 0.1), "net"), ((0.1, 0.9), "other")]
)
def test_the_worse_student_learns_the_better_one(
    flaw: tuple[float, float], learns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gmix.methods import gct

    told = iter(flaw)
    monkeypatch.setattr(gct, "decidable", lambda found: torch.full_like(found, next(told)))
    method: Any = TestGCT().midway()
    losses = method(*batch_of(), progress=1.0)
    assert losses["correction"] == 0
    assert (losses["consistency"] > 0) == bool(learns)
    for name in ("net", "other"):
        head = getattr(method, name).last_layer.weight
        (found,) = torch.autograd.grad(losses["consistency"], head, retain_graph=True)
        assert bool(found.any()) == (name == learns), name


def test_weights_and_shares_out_of_range_are_refused() -> None:
    for name in ("flawed", "ramp_length"):
        options: Any = {name: 1.5}
        with pytest.raises(ValueError, match=rf"`{name}` must be in \[0, 1\], got 1.5"):
            GCT(tiny_net(), **options)
    with pytest.raises(ValueError, match="`consistency` must be at least 0, got -1"):
        GCT(tiny_net(), consistency=-1)
