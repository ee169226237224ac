"""The page of scenarios: the code of every row runs, and every row says by which test it is checked."""

import copy
import re
from pathlib import Path
from typing import Any

import forked
import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from test_docs import blocks
from test_network import SMALL_VIT
from tiny_nets import Labeled, seeded, tiny_net
from torch import Tensor, nn
from torch.utils.data import DataLoader

import gmix
from gmix.methods import FixMatch

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scenarios.md"
STEPS = 4
# The only changes to the code of a row: small encoders, and no weights from the network.
TINY = {
    '"resnet50", ': '"tu-test_resnet", encoder_weights=None, ',
    '"mit_b2", ': '"mit_b0", encoder_weights=None, ',
    '"tu-vit_base_patch16_224", ': '"tu-test_vit", encoder_weights=None, **SMALL_VIT, ',
    ", dynamic_img_size=True": "",  # SMALL_VIT has it
    "_v3_large(": "_v3_large(weights_backbone=None, ",
    'UPerNet("tu-test_resnet", ': 'UPerNet("tu-test_resnet", decoder_channels=32, ',
    "convnext, ": "convnext, hidden_size=16, ",
    "DPTConfig(": "DPTConfig(**SMALL_DPT, ",
    "image_size=384, ": "image_size=64, ",
}
SMALL_DPT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8, 8, 16, 16],
    "fusion_hidden_size": 16,
    "is_hybrid": False,
}


def rows(title: str) -> list[list[str]]:
    """The cells of the table under a heading: scenario, code, test."""
    text = PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    found = [line.strip("| ").split(" | ") for line in lines]
    assert all(len(row) == 3 for row in found)
    return found[1:]


def of_test(title: str, test: str) -> list[Any]:
    """The rows that a test of this file is to run: name and code."""
    mine = [row for row in rows(title) if row[2] == f"`tests/test_scenarios.py::{test}`"]
    return [
        pytest.param(code.strip("`"), id=re.sub(r"\W+", "-", name.split(":")[0]).strip("-"))
        for name, code, _ in mine
    ]


def stream(
    steps: int = STEPS,
    channels: int = 3,
    classes: int = 3,
    planes: bool = False,
    seed: int = 0,
    size: int = 32,
) -> list[Labeled]:
    g = seeded(seed)
    shape = (2, classes, size, size) if planes else (2, size, size)
    top = 2 if planes else max(classes, 2)
    return [
        Labeled(
            torch.randn(2, channels, size, size, generator=g),
            torch.randint(top, shape, generator=g),
            torch.randn(2, channels, size, size, generator=g),
        )
        for _ in range(steps)
    ]


def made(net: gmix.GuidedMixNet, **options: Any) -> tuple[FixMatch, torch.optim.Optimizer]:
    torch.manual_seed(0)
    method = FixMatch(net, teacher={}, threshold=0.0, **options)
    return method, torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 1e-3)


def train(method: FixMatch, optimizer: torch.optim.Optimizer, batches: list[Labeled]) -> None:
    for batch in batches:
        losses = method(*batch, generator=seeded(1))
        assert all(loss.isfinite() for loss in losses.values())
        optimizer.zero_grad()
        losses["total"].backward()
        optimizer.step()


def weights(module: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def assert_moved(net: nn.Module, before: list[Tensor]) -> None:
    """All weights are finite, and all with a gradient have changed."""
    for (name, p), old in zip(net.named_parameters(), before, strict=True):
        assert p.isfinite().all(), name
        assert p.grad is None or not torch.equal(p, old), name


def moves(method: FixMatch) -> int:
    """How often the teacher moved: a step moves it before the next one learns."""
    assert method.teacher is not None
    return int(method.teacher.step)


def assert_complete(
    net: gmix.GuidedMixNet, bare: nn.Module, batches: list[Labeled], **options: Any
) -> None:
    """Train, save, restore and go on bit for bit, and take the model out of gmix."""
    unused = {n for n, p in net.named_parameters() if not p.requires_grad}
    method, optimizer = made(net, **options)
    other, its = made(copy.deepcopy(net), **options)
    before = weights(net)
    train(method, optimizer, batches[:2])
    assert_moved(net, before)
    still = {n for n, p in net.named_parameters() if p.grad is None} - unused
    assert len(still) < len(before) / 4, still
    assert moves(method) == 2
    saved = copy.deepcopy((method.state_dict(), optimizer.state_dict()))
    other.load_state_dict(saved[0])
    its.load_state_dict(saved[1])
    for one, opt in ((method, optimizer), (other, its)):
        torch.manual_seed(3)  # of dropout
        train(one, opt, batches[2:3])
    ends = method.state_dict(), other.state_dict()
    assert not [key for key, value in ends[0].items() if not torch.equal(value, ends[1][key])]
    assert moves(other) == 3
    bare.load_state_dict(net.model.state_dict())
    x = batches[0].x_unlabeled
    with torch.no_grad():
        output: Any = bare.eval()(x)
        if not isinstance(output, Tensor):
            output = output["out"] if "out" in output else output["logits"]
        output = nn.functional.interpolate(output, size=x.shape[2:], mode="bilinear")
        torch.testing.assert_close(net.eval()(x).reshape(output.shape), output)


@pytest.fixture(scope="module")
def loops() -> dict[str, Any]:
    """What the blocks of the page define."""
    pytest.importorskip("pytorch_lightning", reason="the page shows Lightning: it is not installed")
    namespace: dict[str, Any] = {}
    for line, text in blocks(PAGE, "python"):
        exec(compile("\n" * line + text, str(PAGE), "exec"), namespace)
    return namespace


def test_every_row_has_code_and_a_test(loops: dict[str, Any]) -> None:
    for title in ("Your loop", "Your model", "Your classes and channels"):
        assert rows(title)
        for name, code, test in rows(title):
            file, _, function = test.strip("`").partition("::")
            assert f"def {function}" in (ROOT / file).read_text(encoding="utf-8"), name
            assert file != "tests/test_scenarios.py" or "`" in code, name
    named = {name for _, code, _ in rows("Your loop") for name in re.findall(r"\[`(\w+)`\]", code)}
    assert named == {"train_float16", "Automatic", "Manual", "train_accelerate", "train_ddp"}
    assert named <= set(loops)


def test_float16_with_gradscaler(loops: dict[str, Any]) -> None:
    method, optimizer = made(tiny_net())
    before = weights(method.net)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, backoff_factor=2.0**-8)
    scales = []
    for batch in stream(9):
        loops["train_float16"](method, optimizer, scaler, [batch], 9)
        scales.append(scaler.get_scale())
        if len(scales) > 1 and scales[-1] == scales[-2]:
            break  # a step that did not overflow
    skipped = len(scales) - 1  # float16 ends at 2 ** 16: the first steps overflow
    assert skipped > 1 and scales[-1] == 2.0 ** (40 - 8 * skipped)
    assert moves(method) == 1, "a step that was skipped moved the teacher"
    assert_moved(method.net, before)
    loops["train_float16"](method, optimizer, scaler, stream(1), 1)
    assert moves(method) == 2


@pytest.mark.parametrize(
    ("kind", "accumulate"), [("Automatic", 1), ("Automatic", 2), ("Manual", 1)]
)
def test_lightning(loops: dict[str, Any], kind: str, accumulate: int, tmp_path: Path) -> None:
    import pytorch_lightning as pl
    from pytorch_lightning.utilities import CombinedLoader

    method, _ = made(tiny_net())
    before = weights(method.net)
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    settings |= {"enable_model_summary": False, "enable_checkpointing": False}
    if kind == "Automatic":
        settings["accumulate_grad_batches"] = accumulate
    trainer = pl.Trainer(max_epochs=1, default_root_dir=tmp_path, **settings)
    batches = stream()
    labeled = DataLoader([batch[:2] for batch in batches], batch_size=None)
    unlabeled = DataLoader([batch[2:] for batch in batches], batch_size=None)
    both = CombinedLoader([labeled, unlabeled], mode="max_size_cycle")
    trainer.fit(loops[kind](method, STEPS), both)
    assert trainer.global_step == moves(method) == STEPS // accumulate
    assert_moved(method.net, before)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    other = loops[kind](made(tiny_net(seed=1))[0], STEPS)
    other.load_state_dict(state)
    assert all(map(torch.equal, other.method.state_dict().values(), method.state_dict().values()))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_accelerate(loops: dict[str, Any], accumulate: int) -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    from accelerate.state import AcceleratorState

    method, optimizer = made(tiny_net())
    before = weights(method.net)
    try:
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
        loops["train_accelerate"](accelerator, method, optimizer, stream(), STEPS)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert moves(method) == STEPS // accumulate
    for (name, p), old in zip(method.net.named_parameters(), before, strict=True):
        assert p.isfinite().all() and not torch.equal(p, old), name


DDP = """
import torch.distributed as dist
from test_scenarios import STEPS, made, moves, stream, weights
from tiny_nets import tiny_net

dist.init_process_group("gloo")
method, _ = made(tiny_net())
before = weights(method.net)
train_ddp(method, stream(seed=dist.get_rank()), STEPS)
assert moves(method) == STEPS
assert not [n for (n, p), old in zip(method.net.named_parameters(), before) if torch.equal(p, old)]
for p in [*method.net.parameters(), *method.teacher.net.parameters()]:
    first = p.detach().clone()
    dist.broadcast(first, 0)
    assert torch.equal(p, first)
dist.destroy_process_group()
"""


def test_ddp_in_two_processes(tmp_path: Path) -> None:
    code = [text for _, text in blocks(PAGE, "python") if "train_ddp" in text]
    Path(tmp_path, "loop.py").write_text("\n".join(["import torch", *code, DDP]), encoding="utf-8")
    done = forked.run(forked.script, tmp_path / "loop.py", count=2, folder=tmp_path)
    assert done.codes == [0, 0], done.err


def tiny(code: str) -> str:
    for name, small in TINY.items():
        code = code.replace(name, small)
    return code


def namespace(code: str) -> dict[str, Any]:
    """What the code of a row uses."""
    found = {"smp": smp, "torchvision": torchvision, "gmix": gmix}
    found |= {"SMALL_VIT": SMALL_VIT, "SMALL_DPT": SMALL_DPT}
    if "Config(" in code:
        reason = f"transformers is not installed: `{code}` did not run"
        hf = pytest.importorskip("transformers", reason=reason)
        stages = [f"stage{i}" for i in range(1, 5)]
        widths = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4}
        found |= {name: getattr(hf, name) for name in re.findall(r"\w+(?=\()", code)}
        found["convnext"] = hf.ConvNextConfig(out_features=stages, **widths)
    if code.startswith("UNet("):
        (text,) = [
            text
            for _, text in blocks(ROOT / "docs" / "models.md", "python")
            if "class UNet" in text
        ]
        exec("import torch\n" + text.split("\n\n\nnet =")[0], found)
    return found


@pytest.mark.parametrize("code", of_test("Your model", "test_models"))
def test_models(code: str) -> None:
    torch.manual_seed(0)
    names = namespace(code)
    net = gmix.GuidedMixNet(eval(tiny(code), names))
    assert net.classes == 21
    assert_complete(net, eval(tiny(code), names), stream(3, classes=21, size=64))


@pytest.mark.parametrize("code", of_test("Your classes and channels", "test_classes_and_channels"))
def test_classes_and_channels(code: str) -> None:
    torch.manual_seed(0)
    net = eval(tiny(code), namespace(code))
    bare = copy.deepcopy(net.model)
    planes = code.startswith("gmix.MultiLabelNet")
    classes = 3 if planes else net.classes
    assert f"classes={classes}" in code
    options: dict[str, Any] = {"ignore_index": -1} if classes == 1000 else {}
    if net.in_channels != 3:
        options |= {"mean": 0.5, "std": 0.25}
    batches = stream(3, net.in_channels, classes, planes)
    assert_complete(net, bare, batches, **options)
