"""Earlier weights of a network: when they are kept, and how they predict together."""

import copy
from typing import Any

import pytest
import torch
from tiny_nets import seeded, tiny_batch, tiny_net
from torch import Tensor, nn

from gmix.nn.snapshots import Snapshots, flatten, unflatten


class Told(nn.Module):
    """Says its weight."""

    def __init__(self, weight: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * torch.ones_like(x)


def taken_at(*moments: float, **options: Any) -> Snapshots:
    """The weight of each is the moment."""
    snapshots = Snapshots(Told(), **options)
    for moment in moments:
        snapshots.take(Told(moment), moment)
    return snapshots


def test_a_snapshot_is_taken_once_in_each_share_of_the_training_and_replaces_the_oldest() -> None:
    moments = [i / 40 for i in range(41)]
    snapshots = taken_at(*moments, kept=3, every=0.1)
    assert snapshots.taken == 10 and snapshots.moment == 10
    assert sorted(snapshots.weights.flatten().tolist()) == pytest.approx([0.8, 0.9, 1.0])
    one = taken_at(0.55, 0.56, 0.2, kept=3, every=0.1)  # at once, wherever a training begins
    assert one.taken == 1 and one.weights.flatten().tolist() == pytest.approx([0.55, 0, 0])


def test_progress_may_be_a_tensor() -> None:
    snapshots = Snapshots(Told(), every=0.5)
    for i in range(5):
        snapshots.take(Told(), torch.tensor(i / 4))
    assert snapshots.taken == 2


def test_with_one_or_none_it_is_that_one_or_0() -> None:
    x = torch.ones(2, 3, 4, 4)
    none, one = taken_at(models=3, every=0.1), taken_at(0.3, models=3, every=0.1)
    for seed in range(5):
        assert not none(Told(9.0), x, seeded(seed)).any()
        assert torch.allclose(one(Told(9.0), x, seeded(seed)), torch.tensor(0.3))


def test_a_snapshot_predicts_as_its_network_did_and_leaves_the_network_alone() -> None:
    net, x = tiny_net(), tiny_batch().x_labeled
    net.train()(x)  # statistics have moved
    snapshots = Snapshots(net, kept=2, models=2, every=0.5)
    snapshots.take(net, 0.5)
    expected = copy.deepcopy(net).eval()(x)
    net.load_state_dict(tiny_net(seed=7).state_dict())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    versions = [p._version for p in net.parameters()]
    found = snapshots(net, x, seeded(0))
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad and all(m.training for m in net.modules())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert versions == [p._version for p in net.parameters()]


def test_flat_weights_are_a_copy_that_can_be_put_back() -> None:
    net = tiny_net()
    flat, other = flatten(net), tiny_net(seed=5)
    for name, value in unflatten(other, flat).items():
        assert torch.equal(value, net.state_dict()[name])
    flat.zero_()
    assert any(p.any() for p in net.parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kept": 0}, "`kept` must be a whole number, at least 1, got 0"),
        ({"models": 0}, "`models` must be a whole number, at least 1, got 0"),
        ({"every": 0.0}, r"`every` is a share of the training in \(0, 1\], got 0.0"),
        ({"every": 1.5}, "got 1.5"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Snapshots(Told(), **options)
