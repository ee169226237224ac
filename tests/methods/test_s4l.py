"""S4L: its rotations, one step against naive code, and what must always hold of its head."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from method_tester import MethodTester, batch_of
from naive import Batch, Losses, entropy, labeled_entropy
from tiny_nets import seeded, tiny_net
from torch import Generator

from gmix.methods import S4L
from gmix.methods.s4l import rotate_squares


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31 - 1))
def test_squares_are_rotated_as_torch_does(height: int, width: int, seed: int) -> None:
    g, side = seeded(seed), min(height, width)
    x = torch.randint(9, (5, 2, height, width), generator=g)
    angle = torch.randint(4, (5,), generator=g)
    corner = torch.stack(
        [torch.randint(size - side + 1, (5,), generator=g) for size in (height, width)]
    )
    found = rotate_squares(x, angle, corner, side)
    for i, (top, left) in enumerate(corner.T.tolist()):
        square = x[i, :, top : top + side, left : left + side]
        assert torch.equal(found[i], torch.rot90(square, int(angle[i]), (1, 2)))


class TestS4L(MethodTester):
    name = "s4l"
    options = {"rotation": 0.3, "rotated": 0.7}
    weights = ("rotation", "rotated")
    brings = "head."
    learners = {"rotation": ("net.model.encoder", "head.")}
    labeled_too = {"rotated", "rotation"}

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        x_l, y, x_u, _ = batch
        u = torch.rand(3, 7, generator=g).tolist()
        angle = [int(4 * value) for value in u[0]]
        top = [int(9 * value) for value in u[1]]  # 32 - 24 + 1 places
        assert len(set(angle)) > 2 and len(set(top)) > 2
        x = torch.cat([x_l, x_u])
        turned = torch.stack(
            [
                torch.rot90(x[i, :, t : t + 24], a, (1, 2))
                for i, (a, t) in enumerate(zip(angle, top, strict=True))
            ]
        )
        masks = torch.stack(
            [torch.rot90(y[i, t : t + 24], angle[i]) for i, t in enumerate(top[:3])]
        )
        features = method.net.encode(turned)
        again = method.net.decode([f[:3] for f in features], (24, 24))
        answers = method.head(features[-1].mean((2, 3))).double()
        losses = [answers[i].exp().sum().log() - answers[i, a] for i, a in enumerate(angle)]
        supervised = labeled_entropy(method.net(x_l), y)
        rotated = entropy(again, masks, masks != 255, masks != 255)
        rotation = (sum(losses[:3]) / 3 + sum(losses[3:]) / 4) / 2
        total = supervised + 0.3 * rotation + 0.7 * rotated
        return {"supervised": supervised, "rotated": rotated, "rotation": rotation, "total": total}


def test_images_of_nothing_but_padding_have_no_angle() -> None:
    x_l, y, x_u = batch_of()
    valid = torch.ones(4, 32, 24, dtype=torch.bool)
    method: Any = TestS4L().make().eval()
    every = method(x_l, y, x_u, valid_unlabeled=valid, generator=seeded(0))["rotation"]
    assert torch.equal(every, method(x_l, y, x_u, generator=seeded(0))["rotation"])
    valid[2:] = False
    some = method(x_l, y, x_u, valid_unlabeled=valid, generator=seeded(0))
    others = x_u.clone()
    others[2:] = 5.0
    again = method(x_l, y, others, valid_unlabeled=valid, generator=seeded(0))
    assert torch.equal(some["rotation"], again["rotation"]) and some["rotation"] != every


def test_weights_below_0_are_refused() -> None:
    for name in ("rotation", "rotated"):
        options: Any = {name: -1.0}
        with pytest.raises(ValueError, match=f"`{name}` must be at least 0, got -1"):
            S4L(tiny_net(), **options)
