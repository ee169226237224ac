"""S4L: its rotations, one step against naive code, and what must always hold of its head."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from step_check import check_step
from test_methods import batch_of, entropy, labeled_entropy, make, moved
from tiny_nets import seeded, tiny_batch, tiny_net
from torch import Tensor

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


def plain_s4l(
    method: Any, x_l: Tensor, y: Tensor, x_u: Tensor, valid: Tensor, g: torch.Generator
) -> dict[str, Any]:
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
    masks = torch.stack([torch.rot90(y[i, t : t + 24], angle[i]) for i, t in enumerate(top[:3])])
    features = method.net.encode(turned)
    again = method.net.decode([f[:3] for f in features], (24, 24))
    answers = method.head(features[-1].mean((2, 3))).double()
    losses = [answers[i].exp().sum().log() - answers[i, a] for i, a in enumerate(angle)]
    supervised = labeled_entropy(method.net(x_l), y)
    rotated = entropy(again, masks, masks != 255, masks != 255)
    rotation = (sum(losses[:3]) / 3 + sum(losses[3:]) / 4) / 2
    total = supervised + 0.3 * rotation + 0.7 * rotated
    return {"supervised": supervised, "rotated": rotated, "rotation": rotation, "total": total}


@pytest.mark.parametrize(("classes", "padded"), [(3, False), (3, True), (1, True)])
def test_a_step_is_this_plain_code(classes: int, padded: bool) -> None:
    method = moved(make("s4l", classes, rotation=0.3, rotated=0.7))
    check_step(method, plain_s4l, classes, padded)


def test_images_of_nothing_but_padding_have_no_angle() -> None:
    x_l, y, x_u = batch_of()
    valid = torch.ones(4, 32, 24, dtype=torch.bool)
    method: Any = make("s4l").eval()
    every = method(x_l, y, x_u, valid_unlabeled=valid, generator=seeded(0))["rotation"]
    assert torch.equal(every, method(x_l, y, x_u, generator=seeded(0))["rotation"])
    valid[2:] = False
    some = method(x_l, y, x_u, valid_unlabeled=valid, generator=seeded(0))
    others = x_u.clone()
    others[2:] = 5.0
    again = method(x_l, y, others, valid_unlabeled=valid, generator=seeded(0))
    assert torch.equal(some["rotation"], again["rotation"]) and some["rotation"] != every


def test_all_angles_and_places_are_drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    from gmix.methods import s4l

    calls: list[tuple[Tensor, Tensor, int]] = []

    def noted(x: Tensor, angle: Tensor, corner: Tensor, side: int) -> Tensor:
        calls.append((angle, corner, side))
        return rotate_squares(x, angle, corner, side)

    monkeypatch.setattr(s4l, "rotate_squares", noted)
    method, g = S4L(tiny_net()).eval(), seeded(0)
    x, y, x_u = tiny_batch(16, 16)
    with torch.no_grad():
        for _ in range(20):
            method(x[..., :28, :], y[..., :28, :], x_u[..., :28, :], generator=g)
    angles, corners = (
        torch.cat([c[0] for c in calls[::3]]),
        torch.cat([c[1] for c in calls[::3]], 1),
    )
    assert {side for _, _, side in calls} == {28} and not corners[0].any()
    for found, number in ((angles, 4), (corners[1], 5)):
        counts = found.bincount().tolist()
        assert len(counts) == number
        spread = 4 * math.sqrt(640 / number)
        assert all(abs(count - 640 / number) < spread for count in counts)


def test_the_head_is_saved_with_the_method_and_never_deployed() -> None:
    method = S4L(tiny_net())
    own = {key for key in method.state_dict() if not key.startswith("net.")}
    assert own == {"head.weight", "head.bias"}
    assert {*method.net.export().state_dict()} == {*tiny_net().export().state_dict()}
    for name in ("rotation", "rotated"):
        options: Any = {name: -1.0}
        with pytest.raises(ValueError, match=f"`{name}` must be at least 0, got -1"):
            S4L(tiny_net(), **options)
