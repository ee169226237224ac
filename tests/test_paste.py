"""Pasting by class: which pixels are chosen, how often, and what a step makes of them."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_nets import seeded, tiny_batch, tiny_net
from torch import Tensor

from gmix import ClassPaste, GuidedMixLoss
from gmix.methods import GuidedMix

seeds = st.integers(0, 2**31 - 1)


def naive_region(y: Tensor, classes: int, p: float, u: Tensor) -> np.ndarray:
    """One mask at a time; `u` are the numbers drawn, one a class and one more."""
    out = np.zeros(y.shape, dtype=bool)
    total = [(y == k).sum().item() for k in range(classes)]
    for i, mask in enumerate(y.numpy()):
        here = [k for k in range(classes) if (mask == k).any()]
        if here and u[i, -1] < p:
            # the clock that rings first: exponential waiting times, with 1 / pixels as rates
            waiting = {k: -np.log(u[i, k].item()) * total[k] for k in here}
            out[i] = mask == min(here, key=waiting.__getitem__)
    return out


@given(seeds, st.integers(1, 5), st.floats(0, 1))
def test_it_is_the_loop_over_masks(seed: int, classes: int, p: float) -> None:
    k = max(classes, 2)
    y = torch.randint(-1, k + 1, (4, 5, 6), generator=seeded(seed))
    y = torch.where(y == k, 255, y)  # and -1
    u = torch.rand(4, k + 1, generator=seeded(seed + 1))
    region = ClassPaste(classes, p)(y, generator=seeded(seed + 1))
    np.testing.assert_array_equal(region.numpy(), naive_region(y, k, p, u))


@pytest.mark.parametrize("drawn", [0.0, 1 - 2**-24])  # the least and the greatest of float32
def test_no_draw_leaves_a_mask_of_one_class_out(
    monkeypatch: pytest.MonkeyPatch, drawn: float
) -> None:
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, drawn))
    assert ClassPaste(3, p=1.0)(torch.full((2, 4, 4), 2)).all()


# One view, which is the image itself.
PLAIN: Any = {"color": None, "blur": None, "cutmix": None, "views": 1, "drop": 0.0}


def test_pixels_that_are_ignored_are_never_pasted_whatever_their_value() -> None:
    x_l, y, x_u = tiny_batch()
    seen = {}
    criterion = GuidedMixLoss(objective="soft_cross_entropy", decoupling=0.0, ignore_index=0)
    method = GuidedMix(tiny_net(), paste=ClassPaste(3, p=1.0), criterion=criterion, **PLAIN)
    method.net.model.encoder.register_forward_pre_hook(lambda _, args: seen.update(x=args[0][3:]))
    method(x_l, torch.zeros_like(y), x_u, progress=1.0, generator=seeded(0))
    assert torch.equal(seen["x"], x_u)
    method(x_l, torch.full_like(y, 2), x_u, progress=1.0, generator=seeded(0))
    assert not torch.equal(seen["x"], x_u)


def test_masks_without_a_class_and_p_0_paste_nothing() -> None:
    assert not ClassPaste(3, p=1.0)(torch.full((2, 4, 4), 255)).any()
    assert not ClassPaste(3, p=0.0)(torch.zeros(2, 4, 4, dtype=torch.int64)).any()
    with pytest.raises(ValueError, match=r"`p` is a probability in \[0, 1\], got 1.5"):
        ClassPaste(3, p=1.5)


@pytest.mark.parametrize("classes", [1, 3])
def test_the_student_learns_the_true_mask_of_what_is_pasted(classes: int) -> None:
    """With all of a one-class partner pasted, the unlabeled image is that labeled image."""
    x_l, _, x_u = tiny_batch(labeled=1, classes=classes)
    y = torch.ones(1, 32, 32, dtype=torch.int64)
    method = GuidedMix(tiny_net(classes), paste=ClassPaste(classes, p=1.0), **PLAIN)
    seen: dict[str, Tensor] = {}

    def remember(_: object, args: object, given: dict[str, Tensor]) -> None:
        seen.update(given)

    method.criterion.register_forward_pre_hook(remember, with_kwargs=True)
    images: list[Tensor] = []
    method.net.model.encoder.register_forward_pre_hook(lambda _, args: images.append(args[0]))
    method(x_l, y, x_u, progress=1.0, valid_unlabeled=torch.zeros(4, 32, 32, dtype=torch.bool))
    assert torch.equal(images[-1], x_l.expand(5, -1, -1, -1))
    expected = torch.zeros_like(seen["pseudo"])
    expected[:, -1 if classes == 1 else 1] = 1
    assert torch.equal(seen["pseudo"], expected)
    assert seen["valid"].all()  # padding that is pasted over is no padding any more
