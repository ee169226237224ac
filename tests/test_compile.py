"""torch.compile takes networks and methods whole, and what they compute stays the same."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_data import tiny_config, words
from tiny_methods import BUILDERS
from tiny_nets import small_net, tiny_batch, tiny_net
from torch import Tensor, nn
from torch._dynamo.utils import counters

from gmix.cli.main import main
from gmix.methods import Method
from gmix.runtime.precision import mixed_precision
from gmix.training.train import train

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


def built(name: str, **options: Any) -> Method:
    """Alike each time: the network's seed is what a method draws from."""
    fewer = {"models": 1} if name == "prevmatch" else {}  # networks to trace
    return BUILDERS[name](small_net(**options), **fewer).train()


def step(
    method: nn.Module, call: Callable[..., dict[str, Tensor]], progress: float
) -> list[Tensor]:
    """The losses of a step, then the gradients."""
    method.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    losses = call(*tiny_batch(), progress=torch.tensor(progress))
    losses["total"].backward()
    torch.optim.SGD(
        method.parameters(), lr=0.0
    ).step()  # a step that leaves the weights as they are
    return [*losses.values(), *(p.grad for p in method.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", [name for name in BUILDERS if "taught" not in name])
def test_a_method_is_one_graph_that_computes_the_same(name: str) -> None:
    plain, method = (built(name) for _ in range(2))
    compiled = torch.compile(method, backend="eager", fullgraph=True)
    for progress in (0.01, 0.4):
        expected, found = step(plain, plain, progress), step(method, compiled, progress)
        assert len(found) == len(expected) > 10
        assert all(map(torch.equal, found, expected))
    for ours, theirs in zip(method.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)  # statistics, teachers, memories
    assert counters["stats"]["unique_graphs"] == 1


@pytest.mark.skipif(
    torch.__version__ < "2.12" and sys.version_info < (3, 11),
    reason="torch 2.10 cannot import its own compiler of backward passes on Python 3.10",
)
def test_backward_is_compiled_as_well() -> None:
    plain, method = (built("paper", mitrans=True) for _ in range(2))
    compiled = torch.compile(method, backend="aot_eager", fullgraph=True)
    for found, expected in zip(step(method, compiled, 0.3), step(plain, plain, 0.3), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_a_network_is_one_graph_and_so_is_one_in_bfloat16() -> None:
    net, x = tiny_net(mitrans=True).train(), tiny_batch().x_labeled
    plain = net(x)
    assert torch.equal(torch.compile(net, backend="eager", fullgraph=True)(x), plain)
    layer = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, groups=6))
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    with mixed_precision(torch.device("cpu")):
        assert compiled(x).dtype == torch.float32  # the depthwise one
        assert torch.equal(compiled(x), layer(x))


QUICK: dict[str, Any] = {
    "method": "fixmatch",
    "steps": 4,
    "checkpoint_every": 2,
}


def test_a_compiled_training_is_saved_counted_and_resumed_like_any_other(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(tiny_config(data, tmp_path / "plain", **QUICK)).out
    # Not inductor, which takes minutes.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    config = tiny_config(data, tmp_path / "compiled", compile=True, **QUICK)
    out = train(config).out
    assert counters["stats"]["unique_graphs"] == 2  # one is that of the check

    last = "checkpoint-00000004"
    names = [
        {path.name: set(load_file(path)) for path in (folder / last).glob("*.safetensors")}
        for folder in (out, plain)
    ]
    assert names[0] == names[1] and names[0]
    passes = [
        json.loads((folder / "results.json").read_text("utf-8"))["image_passes_per_step"]
        for folder in (out, plain)
    ]
    assert passes[0] == passes[1] > 0

    weights = (out / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(out / last)
    torch._dynamo.reset()
    train(replace(config, resume=True))
    assert (out / "model" / "model.safetensors").read_bytes() == weights


def test_without_a_compiler_one_line_says_so(
    capsys: Capture, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_compiler(*_: Any) -> Any:
        raise RuntimeError("No working C++ compiler found in\n cpp.cxx: None")

    monkeypatch.setattr(torch, "compile", lambda _: no_compiler)
    config = tiny_config(data, tmp_path / "out", compile=True, **QUICK)
    assert main(["train", *words(config)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "--compile needs a compiler" in line and "No working C++ compiler found" in line
