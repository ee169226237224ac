"""bfloat16 where it is faster: everything autocast takes, but for depthwise convolutions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import tiny_config, write_data
from torch import nn
from torch.nn import functional as F

from gmix.config.train_config import TrainConfig
from gmix.runtime.precision import computes_in_bfloat16, mixed_precision
from gmix.training.session import fit_settings
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
    with mixed_precision(CPU, enabled=False):
        assert layer(x).dtype == torch.float32
        depthwise = nn.Conv2d(4, 4, 3, groups=4).double()
        assert depthwise(x.double()).dtype == torch.float64
    with pytest.raises(RuntimeError, match="inside"), mixed_precision(CPU):
        raise RuntimeError("inside")
    assert layer(x).dtype == torch.float32


@pytest.mark.parametrize(
    ("able", "amp", "expected"),
    [
        ({"avx512_bf16": True, "avx512_f": True}, "auto", True),
        ({"amx_bf16": True}, "auto", True),
        ({"avx512_bf16": False, "avx512_f": True}, "auto", False),
        ({}, "auto", False),
        ({}, "bf16", True),
        ({"avx512_bf16": True}, "none", False),
    ],
)
def test_bfloat16_is_the_default_where_a_cpu_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], amp: Any, expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    config = TrainConfig(amp=amp)
    assert fit_settings(config, CPU).amp is expected
    assert TrainConfig().amp == "auto"


def test_and_on_nvidias_from_ampere_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for capability, expected in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert computes_in_bfloat16(torch.device("cuda")) is expected
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    assert not any(computes_in_bfloat16(torch.device(other)) for other in ("mps", "xpu"))


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
