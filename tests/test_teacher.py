"""The EMA teacher against a loop over numbers, and what a teacher must never do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_nets import seeded
from torch import nn

from gmix import EMATeacher


def student(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


@settings(max_examples=15)
@given(st.integers(0, 999), st.sampled_from([0.0, 0.5, 0.99]), st.integers(1, 8))
def test_update_is_the_loop_over_numbers(seed: int, decay: float, steps: int) -> None:
    net, g = student(seed), seeded(seed)
    teacher = EMATeacher(net, decay)
    expected = [p.detach().double().numpy().copy() for p in net.parameters()]
    for t in range(steps):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn(p.shape, generator=g))
        teacher.update(net)
        keep = min(decay, (1 + t) / (10 + t)) if t else 0.0  # the first update copies
        for i, p in enumerate(net.parameters()):
            expected[i] = keep * expected[i] + (1 - keep) * p.detach().double().numpy()
    for own, wanted in zip(teacher.net.parameters(), expected, strict=True):
        torch.testing.assert_close(own, torch.from_numpy(wanted).float(), atol=1e-5, rtol=1e-5)
    assert teacher.step.item() == steps


def test_buffers_are_copied() -> None:
    net = student().train()
    teacher = EMATeacher(net)
    for _ in range(3):
        net(torch.randn(4, 3, 8, 8) + 5)
        teacher.update(net)
    assert net[1].num_batches_tracked == 3
    for own, other in zip(teacher.net.buffers(), net.buffers(), strict=True):
        assert torch.equal(own, other) and own.data_ptr() != other.data_ptr()


def test_it_is_a_copy_that_leaves_the_student_alone() -> None:
    net = student()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    teacher = EMATeacher(net, decay=0.5)
    with torch.no_grad():
        for p in teacher.net.parameters():
            p.add_(1.0)
    teacher.update(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training and all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_out_of_range(decay: float) -> None:
    with pytest.raises(ValueError, match=r"`decay` must be in \[0, 1\), got"):
        EMATeacher(nn.Linear(1, 1), decay)
