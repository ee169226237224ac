"""Configuration, data, optimizer and loop of a training."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_data import NAMES, tiny_config, write_data
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gmix.builders.data import build_data, build_stream
from gmix.config.files import training_files, validation_files
from gmix.config.options import check_range, lookup, parse_range, parse_size, read_windows
from gmix.config.train_config import TrainConfig
from gmix.config.yamlfile import check_unchanged, read_yaml, write_yaml
from gmix.data import Batch
from gmix.runs.progress import LiveProgress, PlainProgress
from gmix.runs.results import Report
from gmix.runtime.device import prepare_device
from gmix.training.fit import fit, mean_losses
from gmix.training.optim import build_optimizer, poly, set_lr
from gmix.training.session import open_session
from gmix.training.state import build_state
from gmix.training.train import train

HALF = (0.5, 0.5, 0.5)


# --- configuration ---------------------------------------------------------------------------


def test_configuration_survives_yaml(tmp_path: Path) -> None:
    config = TrainConfig(images="a", label_map={0: 0, 8: 1}, method_args={"x": [1]}, ema=0.9)
    write_yaml(config, tmp_path / "c.yaml")
    assert TrainConfig(**read_yaml(tmp_path / "c.yaml")) == config


def test_a_tuple_given_in_python_is_no_change_on_resume(tmp_path: Path) -> None:
    config = TrainConfig(model_args={"decoder_channels": (64, 32)}, label_map={0: 0, 8: 1})
    write_yaml(config, tmp_path / "config.yaml")
    check_unchanged(config, tmp_path / "config.yaml")
    config.model_args = {"decoder_channels": (64, 16)}
    with pytest.raises(ValueError, match=r"--model-args .*\[64, 32\].*, now .*\[64, 16\]"):
        check_unchanged(config, tmp_path / "config.yaml")


def test_why_more_processes_cannot_go_on_is_said(tmp_path: Path) -> None:
    write_yaml(TrainConfig(accumulate=2), tmp_path / "config.yaml")
    reason = r"--accumulate 2, now --accumulate is 4 \(a step has a micro-batch or more for each process\)"
    with pytest.raises(ValueError, match=reason):
        check_unchanged(TrainConfig(accumulate=4), tmp_path / "config.yaml")


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_sizes_are_height_then_width(height: int, width: int) -> None:
    assert parse_size(f"{height}x{width}") == (height, width)


@pytest.mark.parametrize("text", ["", "12", "12x", "axb", "0x4", "1x2x3", "-1x4", "9x100000"])
def test_wrong_size_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="--crop must be written HxW"):
        parse_size(text, "crop")


def test_ranges_are_low_then_high() -> None:
    assert parse_range("1-1", "scale", "0.5-2") == (1, 1)
    for text in ("2-1", "1-", "1.2.3-4", "0-1e400"):
        with pytest.raises(ValueError, match=r"--scale must be written LOW-HIGH, e\.g\. 0\.5-2: "):
            parse_range(text, "scale", "0.5-2")


def test_windows_leave_no_gap() -> None:
    assert read_windows(None, None, "shift") is None
    assert read_windows("12x31", None, "truncate") == ((12, 31), (8, 20))
    assert read_windows("1x1", None, "shift") == ((1, 1), (1, 1))
    assert read_windows("12x31", "5x31", "shift") == ((12, 31), (5, 31))
    for stride, edge in (("4x4", "shift"), (None, "truncate")):
        with pytest.raises(ValueError, match="are about windows: add --window HxW"):
            read_windows(None, stride, edge)  # type: ignore[arg-type]
    for stride in ("9x8", "8x9"):
        with pytest.raises(ValueError, match=f"--stride {stride} would leave gaps .* of 8x8"):
            read_windows("8x8", stride, "shift")


def test_names_are_looked_up_whatever_their_case() -> None:
    assert lookup("VOC", {"voc": 1, "coco": 2}, "--dataset") == 1
    with pytest.raises(ValueError, match="--dataset sbd is unknown: choose one of coco, voc"):
        lookup("sbd", {"voc": 1, "coco": 2}, "--dataset")


def test_the_largest_number_is_one_that_int32_holds() -> None:
    check_range("seed", 2**31 - 1, 0)
    with pytest.raises(ValueError, match="--seed must be at most 2147483647, got 2147483648"):
        check_range("seed", 2**31, 0)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_is_a_gpu_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    assert prepare_device("auto", 3) == prepare_device("auto") == torch.device(expected)
    assert threads == [3]


def test_a_decay_is_below_1() -> None:
    with pytest.raises(ValueError, match="--ema must lie between 0 and 1"):
        TrainConfig(ema=1.5)


def test_a_method_has_one_name_whatever_its_case(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, method="Supervised", batch_unlabeled=3, accumulate=2)
    assert config.method == "supervised"
    stream = build_stream(config, build_data(config), HALF, HALF)
    assert stream[0].x_unlabeled is None  # as supervised training has it


# --- files -----------------------------------------------------------------------------------


def test_images_without_mask_are_unlabeled(data: Path, tmp_path: Path) -> None:
    (images, masks), rest = training_files(tiny_config(data, tmp_path))
    assert [p.stem for p in images] == [p.stem for p in masks] == ["00", "01", "02", "03"]
    assert [p.stem for p in rest] == ["04", "05", "06", "07"]


def test_labels_keeps_evenly_spaced_masks(data: Path, tmp_path: Path) -> None:
    (images, _), rest = training_files(tiny_config(data, tmp_path, labels=2))
    assert [p.stem for p in images] == ["00", "02"]
    assert [p.stem for p in rest] == ["01", "03", "04", "05", "06", "07"]


def test_unlabeled_images_never_need_a_mask(tmp_path: Path) -> None:
    data = write_data(tmp_path / "d")
    for stem in ("01", "03"):  # dropped by --labels 2: these masks must not be opened
        (data / "masks" / f"{stem}.png").write_bytes(b"no picture")
    built = build_data(tiny_config(data, tmp_path, labels=2))
    assert built.counts == {"labeled": 2, "unlabeled": 6, "validation": 3}


def test_validation_images_are_never_trained_on(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, unlabeled=str(data / "val_images"))
    assert build_data(config).counts["unlabeled"] == 4


def test_odd_and_even_part_make_up_the_whole(data: Path, tmp_path: Path) -> None:
    def stems(part: str) -> list[str]:
        found = validation_files(tiny_config(data, tmp_path, val_part=part))
        assert found is not None
        return [p.stem for p in found[0]]

    assert (stems("odd"), stems("even")) == (["v0", "v2"], ["v1"])
    assert sorted(stems("odd") + stems("even")) == stems("all")


def test_supervised_and_guidedmix_see_the_same_labeled_batches(data: Path, tmp_path: Path) -> None:
    streams = []
    for method in ("supervised", "guidedmix"):
        config = tiny_config(data, tmp_path, method=method)
        streams.append(build_stream(config, build_data(config), HALF, HALF))
    for step in (0, 1, 5):
        alone, both = streams[0][step], streams[1][step]
        assert torch.equal(alone.x_labeled, both.x_labeled)
        assert torch.equal(alone.y_labeled, both.y_labeled)
        assert alone.x_unlabeled is None
        assert both.x_unlabeled is not None
    config = tiny_config(data, tmp_path, method="supervised")
    finishing = build_stream(config, build_data(config), HALF, HALF, finishing=True)
    for step in (0, 1, 5):  # all methods are finished with the same images
        seen, both = finishing[step].x_unlabeled, streams[1][step].x_unlabeled
        assert seen is not None and both is not None and torch.equal(seen, both)


# --- optimizer -------------------------------------------------------------------------------


@given(st.integers(1, 1000))
def test_poly_starts_at_one_and_falls(steps: int) -> None:
    factors = [poly(t, steps) for t in range(steps)]
    assert factors[0] == 1
    assert all(a > b > 0 for a, b in pairwise(factors))
    assert poly(steps, steps) == 0


def test_encoder_learns_more_slowly_and_a_teacher_not_at_all() -> None:
    encoder, head, teacher = nn.Linear(2, 2), nn.Linear(2, 1), nn.Linear(2, 2)
    teacher.requires_grad_(False)
    parameters = [p for m in (encoder, head, teacher) for p in m.parameters()]
    for name in ("adamw", "sgd"):
        optimizer = build_optimizer(parameters, encoder, name=name, lr=0.1, encoder_lr=0.5)
        first, second = optimizer.param_groups
        assert [id(p) for p in first["params"]] == [id(p) for p in encoder.parameters()]
        assert [id(p) for p in second["params"]] == [id(p) for p in head.parameters()]
        set_lr(optimizer, 0.5)
        set_lr(optimizer, 0.5)  # relative to the start, not to the last value
        assert (first["lr"], second["lr"]) == (0.025, 0.05)


def test_both_students_encoders_learn_more_slowly(data: Path, tmp_path: Path) -> None:
    rules = {"lr": 0.5, "encoder_lr": 0.25, "weight_decay": 0.0625}
    config = tiny_config(data, tmp_path / "out", method="cps", **rules)
    parts = build_state(config, 3, torch.device("cpu"))
    rates = {id(p): g["lr"] for g in parts.optimizer.param_groups for p in g["params"]}
    for net in (parts.method.net, parts.method.other):
        assert {rates[id(p)] for p in net.model.encoder.parameters()} == {0.5 * 0.25}
        assert {rates[id(p)] for p in net.model.decoder.parameters()} == {0.5}
    assert {group["weight_decay"] for group in parts.optimizer.param_groups} == {0.0625}


def test_a_step_is_adamw_as_printed() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2, bias=False)
    weight, lr, decay = layer.weight.detach().numpy().astype(np.float64), 0.1, 0.01
    optimizer = build_optimizer(layer.parameters(), nn.Identity(), lr=lr, weight_decay=decay)
    m = v = np.zeros_like(weight)
    for t in range(1, 4):
        layer.weight.grad = torch.randn(2, 3)
        grad = layer.weight.grad.numpy().astype(np.float64)
        m, v = 0.9 * m + 0.1 * grad, 0.999 * v + 0.001 * grad**2
        move = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        weight = weight - lr * decay * weight - lr * move
        optimizer.step()
    np.testing.assert_allclose(layer.weight.detach().numpy(), weight, rtol=1e-5)


def test_a_step_is_sgd_as_printed() -> None:
    layer, decay = nn.Linear(1, 1, bias=False), 0.01
    weight, velocity = layer.weight.item(), 0.0
    optimizer = build_optimizer(
        layer.parameters(), nn.Identity(), name="sgd", lr=0.1, weight_decay=decay
    )
    for grad in (1.0, -0.5, 2.0):
        layer.weight.grad = torch.full((1, 1), grad)
        velocity = 0.9 * velocity + grad + decay * weight
        weight -= 0.1 * velocity
        optimizer.step()
    assert layer.weight.item() == pytest.approx(weight, rel=1e-5)


# --- loop ------------------------------------------------------------------------------------


class Regression(nn.Module):
    """The simplest method: pull one weight to the mean of the batch, notice what it is given."""

    def __init__(self, spoil_at: int = -1) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1, bias=False)
        self.spoil_at = spoil_at
        self.calls: list[dict[str, Any]] = []

    def on_step_start(self, x: Tensor, y: Tensor) -> None:
        self.calls.append({})

    def forward(self, x: Tensor, y: Tensor, u: Tensor | None = None, **rest: Any) -> Any:
        draws = torch.rand(1, generator=rest["generator"]).item(), torch.rand(1).item()
        self.calls[-1] |= {"progress": rest["progress"], "draws": draws}
        loss = (self.net.weight - x.mean()).square().sum()
        if len(self.calls) == self.spoil_at:
            loss = loss * math.inf
        return {"square": loss, "total": loss}


def regression_batches() -> Iterator[Batch]:
    step = 0
    while True:
        yield Batch(torch.full((2, 1, 4, 4), float(step)), torch.zeros(2, 4, 4, dtype=torch.int64))
        step += 1


def regression(steps: int, every: int, spoil_at: int = -1) -> tuple[Regression, list[Any]]:
    torch.manual_seed(0)
    method = Regression(spoil_at)
    optimizer = torch.optim.SGD([{"params": method.parameters(), "initial_lr": 0.1}], lr=0.1)
    found = fit(
        method, regression_batches(), optimizer, steps=steps, report_when=lambda s: s % every == 0
    )
    return method, list(found)


def test_fit_does_what_a_plain_loop_does() -> None:
    method, reports = regression(steps=7, every=3)
    torch.manual_seed(0)
    weight = nn.Linear(1, 1, bias=False).weight.item()
    losses = []
    for t in range(7):
        losses.append((weight - t) ** 2)
        weight -= 0.1 * (1 - t / 7) ** 0.9 * 2 * (weight - t)
    assert [(r.step, r.steps, r.images) for r in reports] == [(3, 3, 2), (6, 3, 2), (7, 1, 2)]
    expected = [sum(losses[:3]) / 3, sum(losses[3:6]) / 3, losses[6]]
    assert [r.losses["total"] for r in reports] == pytest.approx(expected, rel=1e-5)
    assert method.net.weight.item() == pytest.approx(weight, rel=1e-5)
    assert [c["progress"] for c in method.calls] == [t / 7 for t in range(7)]


def test_the_average_moves_after_each_step() -> None:
    method = Regression()
    optimizer = torch.optim.SGD([{"params": method.parameters(), "initial_lr": 0.1}], lr=0.1)
    average = AveragedModel(method.net, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    reports = fit(
        method,
        regression_batches(),
        optimizer,
        steps=3,
        average=average,
        report_when=lambda s: True,
    )
    first, second, third = [method.net.weight.item() for _ in reports]
    expected = (first + second) / 4 + third / 2  # it starts at the first
    assert average.module.weight.item() == pytest.approx(expected, rel=1e-5)


def test_with_ema_the_average_is_deployed_statistics_and_all(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "out", method="supervised", ema=0.75)
    parts = build_state(config, 3, torch.device("cpu"))
    assert parts.average is not None and parts.deployed is parts.average.module
    for value in (1.0, 3.0):  # the first is copied
        with torch.no_grad():
            for name, tensor in parts.method.net.state_dict().items():
                if not name.endswith("num_batches_tracked"):
                    tensor.fill_(value)
        parts.average.update_parameters(parts.method.net)
    state = parts.deployed.state_dict()
    assert any("running_mean" in name for name in state)
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(tensor, torch.full_like(tensor, 0.75 * 1 + 0.25 * 3)), name
    plain = build_state(replace(config, ema=None), 3, torch.device("cpu"))
    assert plain.deployed is plain.method.net


def test_randomness_is_a_function_of_seed_and_step() -> None:
    first, _ = regression(4, 1)
    second, _ = regression(4, 2)
    draws = [c["draws"] for c in first.calls]
    assert draws == [c["draws"] for c in second.calls]
    assert len({value for pair in draws for value in pair}) == 8


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    with pytest.raises(FloatingPointError, match=r"not finite at step 5 \(square = inf"):
        regression(steps=8, every=3, spoil_at=5)


def test_means_are_named_and_checked() -> None:
    rows = [{"a": torch.tensor(float(i)), "total": torch.tensor(2.0 * i)} for i in range(4)]
    assert mean_losses(rows, first_step=1) == {"a": 1.5, "total": 3.0}
    rows[2]["a"] = torch.tensor(math.nan)
    with pytest.raises(FloatingPointError, match=r"step 12 \(a = nan, total = 4\)"):
        mean_losses(rows, first_step=10)


# --- everything together ---------------------------------------------------------------------


@pytest.mark.parametrize("method", ["supervised", "guidedmix"])
def test_training_learns(data: Path, tmp_path: Path, method: str) -> None:
    losses: list[float] = []
    config = tiny_config(
        data,
        tmp_path / "run",
        method=method,
        steps=24,
        crop="64x64",
        lr=3e-3,
        encoder_lr=1.0,
        jitter=0.0,
    )
    config.scale, config.checkpoint_every, config.rotate = "0.9-1.1", 0, 0.0
    result = train(config, on_report=lambda r: losses.append(r.losses["supervised"]))
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert 0 < result.miou <= 1


def test_what_a_run_leaves_behind(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = train(tiny_config(data, out, method="supervised", eval_every=2, seed=3))
    found = json.loads((out / "results.json").read_text())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert found["last"]["miou"] == result.miou
    assert found["last"]["step"] == found["steps"] == 6
    assert list(found["last"]["iou"]) == list(NAMES)
    scored = {row["step"]: row["validation"]["miou"] for row in rows if "validation" in row}
    assert list(scored) == [2, 4, 6]
    assert scored[6] == result.miou
    assert found["best"]["miou"] == max(scored.values()) == scored[found["best"]["step"]]
    # The unlabeled ones are what the network is finished with.
    assert found["images"] == {"labeled": 4, "unlabeled": 4, "validation": 3}
    assert (found["method"], found["seed"]) == ("supervised", 3)
    assert found["minutes"] > 0 < found["seconds_per_step"]
    assert {"gmix", "torch", "segmentation-models-pytorch", "timm"} <= found["versions"].keys()
    losses = [row for row in rows if "losses" in row]
    assert [row["step"] for row in losses] == [1, 2, 3, 4, 5, 6]
    assert all(row["images_per_second"] > 0 and "total" in row["losses"] for row in losses)


def test_a_run_can_be_repeated_from_its_config(data: Path, tmp_path: Path) -> None:
    first = train(tiny_config(data, tmp_path / "a", method="supervised", steps=2))
    config = TrainConfig(
        **{**read_yaml(tmp_path / "a" / "config.yaml"), "out": str(tmp_path / "b")}
    )
    second = train(config)
    weights = [load_file(r.out / "model" / "model.safetensors") for r in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert first.miou == second.miou


def test_without_validation_there_is_a_model_but_no_score(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "run", method="supervised", steps=1)
    config.val_images = config.val_masks = None
    result = train(config)
    assert result.scores is None
    assert math.isnan(result.miou)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["last"] is None
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def test_workers_and_cache_change_nothing(data: Path, tmp_path: Path) -> None:
    weights = []
    for name, changes in {"plain": {}, "other": {"workers": 2, "cache": True}}.items():
        config = tiny_config(data, tmp_path / name, method="supervised", steps=2, **changes)
        weights.append(load_file(train(config).out / "model" / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_progress_shows_losses_speed_time_left_and_miou(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(20, 20, {"ce": 1.0, "total": 1.5}, 1e-3, 0.5, 16)
    for kind in (PlainProgress, LiveProgress):
        with kind(140) as show:
            show.miou = 0.31
            show.note("hello [x]")
            show.report(report)
        text = capsys.readouterr().out
        for part in (
            "hello [x]",
            "20/140",
            "total 1.500",
            "ce 1.000",
            "32.0 images/s",
            "1:00 left",
        ):
            assert part in text
        assert "mIoU 31.0" in text


@pytest.mark.parametrize("method", ["guidedmix", "cps", "vat"])
def test_an_encoder_rate_of_0_freezes_the_encoder(data: Path, tmp_path: Path, method: str) -> None:
    """No weight, no statistic of its BatchNorm, and no gradient: a frozen encoder costs no backward pass."""
    config = tiny_config(data, tmp_path / "run", method=method, steps=2, encoder_lr=0.0)
    session = open_session(config)
    net = session.state.method.net
    before = {name: value.clone() for name, value in net.state_dict().items()}
    *_, report = session.fit((session.stream[i] for i in range(2)), report_when=lambda step: True)
    assert report.step == 2
    moved = {name for name, value in net.state_dict().items() if not value.equal(before[name])}
    assert moved and not any(name.startswith("model.encoder.") for name in moved)
    assert all(p.grad is None for p in net.encoder.parameters())
