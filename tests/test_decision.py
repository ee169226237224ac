"""The decision for the largest expected mIoU, against counting pixel by pixel and trying every bias."""

import copy
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_data import tiny_config, write_data
from tiny_nets import seeded, tiny_net
from torch import Tensor

from gmix import functional as G
from gmix.builders.data import build_data, build_stream
from gmix.builders.network import image_stats
from gmix.data import Batch
from gmix.runs.saved import SavedModel
from gmix.training.decide import decide_for_miou, unlabeled_pixels
from gmix.training.train import train


def random_probs(seed: int, pixels: int, classes: int) -> Tensor:
    scale = torch.linspace(4, 1, classes)  # the last classes are rarely the likeliest
    return (torch.randn(pixels, classes, generator=seeded(seed)) * 2 + scale).softmax(1)


def naive_iou(probs: list[list[float]], decided: list[int]) -> list[float]:
    out = []
    for k in range(len(probs[0])):
        both = sum(p[k] for p, d in zip(probs, decided, strict=True) if d == k)
        either = sum(1 if d == k else p[k] for p, d in zip(probs, decided, strict=True))
        out.append(both / either if either else 0.0)
    return out


@given(st.integers(0, 999), st.integers(1, 40), st.integers(2, 5))
def test_expected_iou_is_the_count(seed: int, pixels: int, classes: int) -> None:
    probs = random_probs(seed, pixels, classes).double()
    decided = torch.randint(classes, (pixels,), generator=seeded(seed + 1))
    expected = naive_iou(probs.tolist(), decided.tolist())
    assert G.expected_iou(probs, decided).tolist() == pytest.approx(expected)


def test_of_certain_probabilities_it_is_the_iou() -> None:
    truth = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    decided = torch.tensor([0, 1, 1, 1, 2, 2, 0])
    probs = torch.nn.functional.one_hot(truth, 3).float()
    assert G.expected_iou(probs, decided).tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3])


@settings(max_examples=10)
@given(st.integers(0, 999))
def test_no_bias_of_one_class_is_better_and_none_at_all_never(seed: int) -> None:
    probs = random_probs(seed, 60, 3)
    biases = G.miou_biases(probs)

    def value(tried: Tensor) -> float:
        return float(G.expected_iou(probs, (probs.log() + tried).argmax(1)).mean())

    assert value(biases) >= value(torch.zeros(3))
    for k, change in product(range(3), (-0.25, 0.25)):
        tried = biases.clone()
        tried[k] += change
        assert tried[k].abs() > 2.0 or value(tried) <= value(biases) + 1e-4


def test_a_sure_network_is_left_as_it_is() -> None:
    truth = torch.randint(4, (500,), generator=seeded(0))
    probs = torch.nn.functional.one_hot(truth, 4) * 0.96 + 0.01
    assert not G.miou_biases(probs).any()


def test_a_rare_class_that_is_never_the_likeliest_is_named() -> None:
    """Three in a hundred pixels are of class 1 with probability 0.4: decided for it they have an IoU of 0.4."""
    probs = torch.tensor([[0.99, 0.01]] * 97 + [[0.6, 0.4]] * 3)
    decided = (probs.log() + G.miou_biases(probs)).argmax(1)
    assert decided.tolist() == [0] * 97 + [1] * 3


@pytest.mark.parametrize("classes", [1, 3])
def test_the_biases_are_part_of_the_last_layer(classes: int) -> None:
    net = tiny_net(classes).eval()
    before = copy.deepcopy(net.state_dict())
    x = torch.randn(2, 3, 32, 32, generator=seeded(0))
    probs = random_probs(0, 300, max(classes, 2))
    biases = G.miou_biases(probs)
    assert biases.any()
    decided = decide_for_miou(net, probs)
    shift = biases[1:] - biases[:1] if classes == 1 else biases
    torch.testing.assert_close(decided(x), net(x) + shift[:, None, None])
    assert torch.equal(decided.export()(x), decided(x))
    assert all(torch.equal(v, before[name]) for name, v in net.state_dict().items())


@pytest.mark.parametrize("classes", [1, 3])
def test_pixels_are_those_of_the_unlabeled_images_without_padding(classes: int) -> None:
    net = tiny_net(classes)
    x = torch.randn(3, 3, 32, 32, generator=seeded(0))
    valid = torch.zeros(3, 32, 32, dtype=torch.bool)
    valid[1, 4:6, 7] = True
    nothing = torch.zeros(1, 3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.int64)
    found = unlabeled_pixels(net, [Batch(*nothing, x, valid)])
    with torch.no_grad():
        probs = G.probabilities(net.eval()(x))[1, :, 4:6, 7].T
    if classes == 1:
        probs = torch.cat([1 - probs, probs], 1)
    for row in probs:
        assert (found - row).abs().sum(1).min() < 1e-5
    assert found.shape == (2, max(classes, 2))


@pytest.mark.parametrize("method", ["supervised", "fixmatch"])
def test_every_method_is_finished_alike(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data(tmp_path / "data")
    shift, asked = torch.tensor([0.0, 1.0, -1.0]), list[Tensor]()

    def decided(probs: Tensor) -> Tensor:
        asked.append(probs)
        return shift

    monkeypatch.setattr(G, "miou_biases", decided)
    import decision  # benchmarks/decision.py

    nets: dict[str, Any] = {}
    for what in ("miou", "pixels"):
        config = tiny_config(
            data, tmp_path / what, method=method, decide_for=what, steps=2, norm_batches=0
        )
        train(config)
        nets[what] = SavedModel.from_pretrained(tmp_path / what).net
    biases = [net.last_layer.bias.detach() for net in nets.values()]
    torch.testing.assert_close(biases[0], biases[1] + shift)
    undone = decision.undecided(tmp_path / "miou").net.state_dict()
    assert all(torch.equal(undone[k], v) for k, v in nets["pixels"].state_dict().items())
    # Decided on what the network says of the first ten unlabeled batches.
    stream = build_stream(config, build_data(config), *image_stats(config), finishing=True)
    seen = []
    for batch in (stream[t] for t in range(10)):
        assert batch.x_unlabeled is not None and batch.valid_unlabeled is not None
        with torch.no_grad():
            probs = nets["pixels"](batch.x_unlabeled).softmax(1)
        seen.append(probs.movedim(1, -1)[batch.valid_unlabeled])
    torch.testing.assert_close(asked[0].sort(0).values, torch.cat(seen).sort(0).values)
