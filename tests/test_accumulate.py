"""A step in micro-batches is the step: the same gradients, one move of the teacher, less memory."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_data_stream import same
from tiny_data import tiny_config, words
from tiny_methods import BUILDERS
from tiny_nets import tiny_batch, tiny_net
from torch import Tensor, nn

from gmix import GuidedMixNet
from gmix.cli.main import main
from gmix.config.train_config import CompareConfig, TrainConfig
from gmix.data import Batch
from gmix.methods import (
    GuidedMix,
    MeanTeacher,
    Method,
    Supervised,
)
from gmix.training.fit import FitSettings, fit
from gmix.training.micro_batches import MicroBatchStatistics
from gmix.training.train import train


def without_norm(net: GuidedMixNet) -> GuidedMixNet:
    """The network with nothing in place of BatchNorm: no image has to do with another."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    return net


def batches(count: int, ignored: bool = False) -> list[Batch]:
    found = []
    for i in range(count):
        x, y, u = tiny_batch(4, 8, seed=i)
        if ignored:
            y[0] = 255
        found.append(Batch(x, y, u, torch.ones(8, 32, 32, dtype=torch.bool)))
    return found


def after(
    method: Method, accumulate: int, steps: int = 3, **changes: Any
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Weights and losses after some steps of SGD."""
    parameters = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD([{"params": parameters, "initial_lr": 0.05}], lr=0.05)
    data = batches(steps, **changes)
    settings = FitSettings(accumulate=accumulate)
    reports = fit(
        method, data, optimizer, steps=steps, settings=settings, report_when=lambda s: True
    )
    losses = [report.losses for report in reports]
    return {k: v.clone() for k, v in method.state_dict().items()}, losses


def farthest(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a)


@pytest.mark.parametrize("parts", [2, 4])
def test_supervised_in_parts_is_supervised(parts: int) -> None:
    start = {k: v.clone() for k, v in without_norm(tiny_net()).state_dict().items()}
    whole, losses = after(Supervised(without_norm(tiny_net())), 1)
    split, split_losses = after(Supervised(without_norm(tiny_net())), parts)
    assert farthest(whole, split) < 1e-5
    for one, other in zip(losses, split_losses, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert farthest({k: whole[f"net.{k}"] for k in start}, start) > 1e-3  # it has learned at all


def test_frozen_statistics_are_as_good_as_none() -> None:
    """BatchNorm in eval mode: `train()` of the method must not wake it."""

    def frozen() -> Method:
        method = Supervised(tiny_net())
        for module in method.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
                module.train = lambda mode=True, module=module: module  # type: ignore
        return method

    assert farthest(after(frozen(), 1)[0], after(frozen(), 4)[0]) < 1e-5


def test_statistics_are_the_mean_over_parts_that_all_begin_where_the_step_did() -> None:
    torch.manual_seed(0)
    norm, parts = nn.BatchNorm1d(2), torch.randn(3, 8, 2)
    norm(torch.randn(8, 2))  # a step before
    alone = [copy.deepcopy(norm) for _ in parts]
    statistics = MicroBatchStatistics(norm, len(parts))
    for part, layer in zip(parts, alone, strict=True):
        layer(part)
        norm(part)
        statistics.end_micro_batch()
    statistics.end_step(list)
    for name in ("running_mean", "running_var"):
        expected = torch.stack([getattr(layer, name) for layer in alone]).mean(0)
        torch.testing.assert_close(getattr(norm, name), expected)
    assert norm.num_batches_tracked == 2


def test_a_norm_without_statistics_has_none_to_keep() -> None:
    statistics = MicroBatchStatistics(nn.BatchNorm1d(2, track_running_stats=False), 2)
    statistics.end_micro_batch()
    statistics.end_step(list)
    assert statistics.running == statistics.counts == []


def test_what_the_documentation_says_is_different_is() -> None:
    whole, split = (after(Supervised(tiny_net()), parts)[0] for parts in (1, 2))
    assert farthest(whole, split) > 1e-4  # BatchNorm sees a part
    nets = [Supervised(without_norm(tiny_net())) for _ in range(2)]
    whole, split = (
        after(net, parts, ignored=True)[0] for net, parts in zip(nets, (1, 2), strict=True)
    )
    assert 1e-5 < farthest(whole, split) < 0.05  # a part with less valid pixels counts the same


def test_a_mean_teacher_in_parts_is_a_mean_teacher() -> None:
    """Labeled, unlabeled and the teacher's one move a step; no colours are drawn."""
    nets = [MeanTeacher(without_norm(tiny_net()), ramp_length=0.0) for _ in range(2)]
    for method in nets:
        del method.color
        object.__setattr__(method, "color", lambda x, generator: x)
    (whole, losses), (split, split_losses) = (
        after(method, parts) for method, parts in zip(nets, (1, 4), strict=True)
    )
    assert losses[-1]["unsupervised"] > 0
    assert farthest(whole, split) < 1e-5
    assert losses[-1] == pytest.approx(split_losses[-1], abs=1e-5)
    assert whole["teacher.step"] == split["teacher.step"] == 3


@pytest.mark.parametrize("name", BUILDERS)
def test_every_method_works_in_parts_and_moves_its_teacher_once(name: str) -> None:
    torch.manual_seed(0)
    method: Any = BUILDERS[name](tiny_net())
    state, losses = after(method, 2, steps=2)
    assert all(value == value for row in losses for value in row.values())
    if getattr(method, "teacher", None) is not None:
        assert state["teacher.step"] == 2


def test_labeled_pixels_of_every_part_are_counted() -> None:
    methods: list[Any] = [GuidedMix(tiny_net(), adjustment={}) for _ in range(2)]
    for method, parts in zip(methods, (1, 2), strict=True):
        after(method, parts, steps=2)
    whole, split = (method.adjustment.pixels for method in methods)
    assert torch.equal(whole, split) and whole.sum() > 0


def test_one_part_is_the_whole_batch() -> None:
    batch = batches(1)[0]
    (only,) = batch.split(1)
    assert same(only, batch)
    parts = batch.split(4)
    assert [len(p.x_labeled) for p in parts] == [1] * 4
    for one, tensors in zip(batch, zip(*parts, strict=True), strict=True):
        assert one is not None and torch.equal(one, torch.cat(tensors))
    alone = Batch(batch.x_labeled, batch.y_labeled).split(2)
    assert all(p.x_unlabeled is p.valid_unlabeled is None for p in alone)


# --- the flag --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "parts"), [(3, 4, 2), (4, 3, 2), (4, 4, 3), (2, 2, 4)]
)
def test_parts_that_do_not_fit_are_refused_in_one_sentence(
    labeled: int, unlabeled: int, parts: int
) -> None:
    sizes: dict[str, Any] = {"batch_labeled": labeled, "batch_unlabeled": unlabeled}
    message = (
        f"--accumulate must divide --batch-labeled {labeled} and --batch-unlabeled {unlabeled}"
    )
    for kind in (TrainConfig, CompareConfig):
        with pytest.raises(ValueError, match=message):
            kind(**sizes, accumulate=parts)
    with pytest.raises(ValueError, match="--accumulate must be at least 1, got 0"):
        TrainConfig(accumulate=0)


def test_supervised_does_not_mind_an_unlabeled_batch_it_does_not_have() -> None:
    config = TrainConfig(method="supervised", batch_labeled=6, batch_unlabeled=8, accumulate=3)
    assert config.accumulate == 3


def test_a_run_in_parts_is_resumed_and_counted_like_any_other(data: Path, tmp_path: Path) -> None:
    def weights(out: Path) -> dict[str, Tensor]:
        return load_file(out / "model" / "model.safetensors")

    settings: dict[str, Any] = {"method": "fixmatch", "accumulate": 2, "steps": 4}
    settings |= {"checkpoint_every": 2, "batch_unlabeled": 4}
    whole = tiny_config(data, tmp_path / "whole", **settings)
    train(whole)
    stopped = tmp_path / "stopped"
    assert main(["train", *words(tiny_config(data, stopped, **settings))]) == 0
    (stopped / "results.json").unlink()
    for path in (stopped / "checkpoint-00000004").iterdir():
        path.unlink()
    (stopped / "checkpoint-00000004").rmdir()
    train(tiny_config(data, stopped, **settings, resume=True))
    first, second = weights(tmp_path / "whole"), weights(stopped)
    assert all(torch.equal(first[name], second[name]) for name in first)
    found = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert found["image_passes_per_step"] == 2 + 4 + 4  # labeled, weak, strong: as in one go
    rows = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    report = json.loads(rows[0])
    assert report["images_per_second"] * report["seconds_per_step"] == pytest.approx(6)
    other = {**settings, "accumulate": 1}
    with pytest.raises(ValueError, match=r"it was started with --accumulate 2, now .* is 1"):
        train(tiny_config(data, stopped, **other, resume=True))
