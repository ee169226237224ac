"""16 bits where they are faster: everything autocast takes, but for depthwise convolutions; scaling for float16."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import tiny_config, write_data
from torch import nn
from torch.nn import functional as F

from gmix.config.train_config import TrainConfig
from gmix.runs.checkpoint import STATE, list_checkpoints
from gmix.runs.results import Report
from gmix.runtime.precision import LossScaler, amp_dtype, computes_in_bfloat16, mixed_precision
from gmix.runtime.tensorfile import load_plain, load_tensors
from gmix.training.nonfinite import Guard
from gmix.training.session import fit_settings, open_session
from gmix.training.train import train

CPU = torch.device("cpu")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("by_name", ["none", "settings", "weight", "all"])
def test_a_depthwise_convolution_is_the_float32_one(stride: int, by_name: str) -> None:
    x = torch.randn(2, 6, 9, 11, requires_grad=True)
    weight = torch.randn(12, 1, 3, 3, requires_grad=True)  # two filters a channel
    expected = F.conv2d(x, weight, None, stride, 1, 1, 6)
    with mixed_precision(CPU):
        if by_name == "none":
            found = F.conv2d(x, weight, None, stride, 1, 1, 6)
        else:
            first = {"settings": [x, weight], "weight": [x], "all": []}[by_name]
            named: dict[str, Any] = {"bias": None, "stride": stride, "padding": 1, "groups": 6}
            named |= dict(list({"input": x, "weight": weight}.items())[len(first) :])
            found = F.conv2d(*first, **named)
    assert torch.equal(found, expected)
    pull = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, (x, weight), pull),
        torch.autograd.grad(expected, (x, weight), pull),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_its_input_may_already_be_bfloat16() -> None:
    depthwise = nn.Conv2d(4, 4, 3, groups=4)
    x = torch.randn(1, 4, 8, 8).bfloat16()
    with mixed_precision(CPU):
        found = depthwise(x)
    assert torch.equal(found, depthwise(x.float()))


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(1, 8, 3), nn.Linear(8, 8)],
    ids=["dense", "grouped", "one channel", "linear"],
)
def test_everything_else_is_plain_autocast(layer: nn.Module) -> None:
    x = torch.randn(2, 4, 8, 8)
    if isinstance(layer, nn.Conv2d) and layer.in_channels == 1:
        x = x[:, :1]
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
    with mixed_precision(CPU):
        found = layer(x)
    assert found.dtype == torch.bfloat16 and torch.equal(found, expected)


def test_switched_off_nothing_changes_and_afterwards_neither() -> None:
    layer, x = nn.Conv2d(4, 4, 3), torch.randn(1, 4, 8, 8)
    with mixed_precision(CPU, None):
        assert layer(x).dtype == torch.float32
        depthwise = nn.Conv2d(4, 4, 3, groups=4).double()
        assert depthwise(x.double()).dtype == torch.float64
    with pytest.raises(RuntimeError, match="inside"), mixed_precision(CPU):
        raise RuntimeError("inside")
    assert layer(x).dtype == torch.float32


@pytest.mark.parametrize(
    ("able", "amp", "expected"),
    [
        ({"avx512_bf16": True, "avx512_f": True}, "auto", torch.bfloat16),
        ({"amx_bf16": True}, "auto", torch.bfloat16),
        ({"avx512_bf16": False, "avx512_f": True}, "auto", None),
        ({}, "auto", None),
        ({}, "bf16", torch.bfloat16),
        ({}, "fp16", torch.float16),
        ({"avx512_bf16": True}, "none", None),
    ],
)
def test_bfloat16_is_the_default_where_a_cpu_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], amp: Any, expected: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    config = TrainConfig(amp=amp)
    assert fit_settings(config, CPU).amp is expected
    assert TrainConfig().amp == "auto"


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((5, 2), None),
        ((6, 0), torch.float16),  # P100
        ((7, 0), torch.float16),  # V100
        ((7, 5), torch.float16),  # T4, RTX 20
        ((8, 0), torch.bfloat16),
        ((9, 0), torch.bfloat16),
    ],
)
def test_nvidias_from_ampere_on_compute_in_bfloat16_and_older_ones_in_float16(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert amp_dtype("auto", torch.device("cuda")) is expected
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    for other in map(torch.device, ("mps", "xpu")):
        assert not computes_in_bfloat16(other) and amp_dtype("auto", other) is None


# --- float16 ---------------------------------------------------------------------------------


def float16_config(data: Path, out: Path, **changes: Any) -> TrainConfig:
    settings: dict[str, Any] = {"amp": "fp16", "steps": 4, "norm_batches": 0, "method": "fixmatch"}
    settings |= {"checkpoint_every": 2, "val_images": None, "val_masks": None, **changes}
    return tiny_config(data, out, **settings)


def newest(out: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    path = list_checkpoints(out)[-1].path
    state: dict[str, Any] = load_plain(path / STATE, CPU)
    return load_tensors(path / "method.safetensors", CPU), state


def test_a_float16_training_resumes_with_its_scale(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    train(float16_config(data, tmp_path / "whole"))

    def stop(report: Report) -> None:
        if report.step == 3:
            raise OSError("the disk is full")

    with pytest.raises(ValueError, match="after step 3 of 4"):
        train(float16_config(data, tmp_path / "parts"), on_report=stop)
    train(float16_config(data, tmp_path / "parts", resume=True))
    (whole, one), (parts, other) = newest(tmp_path / "whole"), newest(tmp_path / "parts")
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert one["scaler"] == other["scaler"]
    assert one["scaler"]["_growth_tracker"] == 4  # no step has overflowed


def test_steps_that_overflow_are_left_out_and_are_no_failures(
    tmp_path: Path,
) -> None:
    data = write_data(tmp_path / "data")
    config = float16_config(data, tmp_path / "run", skip_nonfinite=1)
    session = open_session(config)
    scaler = session.state.scaler
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**127})
    before = [p.detach().clone() for p in session.state.method.net.parameters()]
    skipped: list[int] = []
    guard = Guard(0, skipped, lambda bad: None)
    reports = session.fit(
        (session.stream[step] for step in range(2)), guard=guard, report_when=lambda step: True
    )
    next(reports)
    weights = list(session.state.method.net.parameters())
    assert all(map(torch.equal, before, weights)) and scaler.get_scale() == 2.0**126
    scaler.load_state_dict({**scaler.state_dict(), "scale": 1024.0})
    next(reports)
    assert not all(map(torch.equal, before, weights)) and skipped == []


def test_the_scaled_step_is_the_unscaled_one() -> None:
    """By powers of two: exactly."""
    found = []
    for enabled in (False, True):
        weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        scaler = LossScaler("cpu", enabled=enabled)
        scaler.scale((weight**2).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        found.append(weight.detach())
    assert torch.equal(*found)


def test_gradients_that_always_overflow_end_the_training() -> None:
    scaler = LossScaler("cpu", enabled=True)
    scaler.check(1)
    scaler.load_state_dict({**scaler.state_dict(), "scale": 1e-5})
    with pytest.raises(
        FloatingPointError, match=r"overflow float16 at every step up to 7.*--amp bf16"
    ):
        scaler.check(7)
    LossScaler("cpu", enabled=False).check(7)


def test_only_a_state_of_a_scaler_is_restored() -> None:
    scaler = LossScaler("cpu", enabled=True)
    state = {**scaler.state_dict(), "scale": 4.0, "_growth_tracker": 3}
    assert scaler.fitting({**state, "growth_factor": 3.0}) == state  # rules stay its own
    assert scaler.fitting({}) == {} == LossScaler("cpu", enabled=False).fitting(state)
    for bad in (None, {"scale": 1.0}, {**state, "scale": float("nan")}, {**state, "scale": "2"}):
        with pytest.raises(ValueError, match="loss scaler"):
            scaler.fitting(bad)


def test_by_default_a_training_runs_in_bfloat16_and_channels_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: set[tuple[torch.dtype, bool]] = set()

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Conv2d) and module.groups == 1 and module.kernel_size != (1, 1):
            last = output.is_contiguous(memory_format=torch.channels_last)
            seen.add((output.dtype, last))

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    data = write_data(tmp_path / "data")
    settings = vars(tiny_config(data, tmp_path / "run", method="supervised", steps=1))
    # Networks are tested and finished in float32.
    alone = {"val_images": None, "val_masks": None, "norm_batches": 0, "decide_for": "pixels"}
    config = TrainConfig(**{**settings, "amp": "auto", "channels_last": True, **alone})
    handle = nn.modules.module.register_module_forward_hook(look)
    try:
        train(config)
    finally:
        handle.remove()
    assert seen == {(torch.bfloat16, True)}
