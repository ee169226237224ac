"""Logit adjustment: what is added, what is counted, and that it does what it is for."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_nets import seeded, tiny_batch, tiny_net
from torch import Tensor

from gmix import GuidedMixLoss, LogitAdjustment
from gmix import functional as G
from gmix.builders.method import build_method
from gmix.config.train_config import TrainConfig
from gmix.methods import GuidedMix, Supervised

seeds = st.integers(0, 2**31 - 1)


def masks(classes: int, seed: int) -> Tensor:
    """Unevenly many pixels of each class, some of none."""
    y = (torch.rand(2, 6, 7, generator=seeded(seed)) ** 3 * (classes + 1)).long()
    return torch.where(y == classes, 255, y)


def naive(logits: Tensor, seen: list[Tensor], strength: float, floor: float) -> np.ndarray:
    """One channel at a time."""
    out, k = logits.numpy().copy(), max(logits.shape[1], 2)
    counts = [sum(int((y == c).sum()) for y in seen) for c in range(k)]
    logs = [math.log(max(n / sum(counts), floor)) if n else 0.0 for n in counts]
    if logits.shape[1] == 1:
        return out + strength * (logs[1] - logs[0])
    for c in range(k):
        out[:, c] += strength * logs[c]
    return out


@given(seeds, st.integers(1, 5), st.floats(0, 2), st.floats(1e-4, 0.5))
def test_it_is_the_loop_over_channels(seed: int, k: int, strength: float, floor: float) -> None:
    logits = torch.randn(2, k, 6, 7, generator=seeded(seed))
    first, second = masks(max(k, 2), seed + 1), masks(max(k, 2), seed + 2)
    adjust = LogitAdjustment(k, strength, floor)
    adjust(logits, first)
    ours = adjust(logits, second)
    np.testing.assert_allclose(ours, naive(logits, [first, second], strength, floor), atol=1e-5)
    # In eval mode, as when pseudo masks are judged, nothing is counted.
    assert torch.equal(adjust.eval()(logits, first), ours)


def test_without_masks_nothing_is_added() -> None:
    logits = torch.randn(1, 3, 4, 4)
    assert torch.equal(LogitAdjustment(3)(logits, torch.full((1, 4, 4), 255)), logits)


@pytest.mark.parametrize("build", ["supervised", "guidedmix"])
def test_what_is_ignored_is_not_counted_whatever_its_value(build: str) -> None:
    x, y, x_u = tiny_batch()
    adjust = LogitAdjustment(3)
    if build == "supervised":
        method: Any = Supervised(tiny_net(), adjustment=adjust, ignore_index=1)
    else:
        method = GuidedMix(
            tiny_net(), adjustment=adjust, criterion=GuidedMixLoss(ignore_index=1), reference=None
        )
    method(x, torch.where(y == 255, 0, y), x_u, progress=1.0)
    zeros = (y == 0).sum() + (y == 255).sum()
    assert adjust.pixels.tolist() == [zeros, 0, (y == 2).sum()]


def test_masks_of_bytes_are_counted() -> None:
    adjust = LogitAdjustment(3)
    adjust.add(torch.tensor([[[0, 2, 2, 255]]], dtype=torch.uint8))
    assert adjust.pixels.tolist() == [1, 0, 2]


def test_more_than_255_classes_are_all_counted_or_refused() -> None:
    adjust, y = LogitAdjustment(300), torch.tensor([[[0, 255, 255, 299, -1]]])
    with pytest.raises(ValueError, match=r"of 300 classes 255 is one.*pass `ignore_index=-1`"):
        adjust.add(y)
    assert not adjust.pixels.any()
    adjust.add(y, ignore_index=-1)
    assert adjust.pixels[[0, 255, 299]].tolist() == [1, 2, 1] and adjust.pixels.sum() == 4


@pytest.mark.parametrize("classes", [1, 3])
def test_supervised_takes_the_loss_of_adjusted_logits(classes: int) -> None:
    x, y, _ = tiny_batch(classes=classes)
    net = tiny_net(classes)
    losses = Supervised(net, adjustment=LogitAdjustment(classes))(x, y)
    adjusted = torch.from_numpy(naive(net(x).detach(), [y], 0.5, 1e-3))
    torch.testing.assert_close(losses["supervised"], G.cross_entropy(adjusted, y))


def test_the_command_line_makes_it() -> None:
    config = TrainConfig(method="supervised", method_args={"adjustment": {"strength": 0.2}})
    method = build_method(config, tiny_net())
    assert isinstance(method, Supervised) and method.adjustment is not None
    assert method.adjustment.strength == 0.2
    config = TrainConfig(method_args={"adjustment": None})
    assert getattr(build_method(config, tiny_net()), "adjustment", 0) is None
    with pytest.raises(ValueError, match=r"adjustment must be a mapping .* got 0.5"):
        build_method(TrainConfig(method="supervised", method_args={"adjustment": 0.5}), tiny_net())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="`strength` must be at least 0, got -1"):
        LogitAdjustment(3, strength=-1)
    for floor in (0, 1.1):
        with pytest.raises(ValueError, match=rf"`floor` is a share in \(0, 1\], got {floor}"):
            LogitAdjustment(3, floor=floor)
    assert LogitAdjustment(3, floor=1).floor == 1
