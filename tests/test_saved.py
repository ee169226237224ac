"""What a model folder of others may hold: nothing in it runs, asks a network, or builds what it likes."""

import json
import os
import socket
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch

from gmix.builders.network import build_net
from gmix.config.architecture import ARCHITECTURES, build_architecture, check_encoder
from gmix.config.train_config import TrainConfig
from gmix.data import RGB, Classes
from gmix.nn.network import GuidedMixNet
from gmix.runs.saved import SavedModel

TIMM = "tu-test_efficientnet"  # timm's own for tests


@cache
def small() -> SavedModel:
    torch.manual_seed(0)
    model = smp.Unet(TIMM, encoder_weights=None, decoder_channels=[8] * 5, classes=3)
    classes = Classes.of(["background", "red", "blue"])
    return SavedModel(GuidedMixNet(model).eval(), classes, None, (0.5,) * 3, (0.5,) * 3)


def write_model(folder: Path, **changes: Any) -> Path:
    """A small model, with other words in its files."""
    small().save_pretrained(folder)
    for name, entries in changes.items():
        path = folder / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Everything that timm was asked to build with, and every host that was looked for."""
    calls: list[Any] = []
    create = timm.create_model

    def created(name: str, **arguments: Any) -> Any:
        calls.append((name, arguments))
        return create(name, **arguments)

    def looked_for(*address: Any, **rest: Any) -> Any:
        calls.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(timm, "create_model", created)
    monkeypatch.setattr(socket, "getaddrinfo", looked_for)
    return calls


HOSTILE = [
    {"checkpoint_path": "evil.pth"},
    {"pretrained_cfg": {"file": "evil.pth"}},
    {"pretrained_cfg_overlay": {"file": "evil.pth"}},
    {"pretrained": True},
    {"cache_dir": "/"},
    {"features_only": False},
    {"scriptable": True},
]
ELSEWHERE = [
    "tu-hf-hub:someone/model",
    "tu-hf_hub:someone/model",
    "tu-local-dir:model",
    "tu-someone/resnet18",
    "timm-regnet-hf-hub:someone/model",
    "../resnet18",
]


@pytest.mark.parametrize("argument", HOSTILE, ids=lambda argument: next(iter(argument)))
def test_arguments_that_name_files_never_reach_timm(
    tmp_path: Path, asked: list[Any], argument: dict[str, Any]
) -> None:
    write_model(tmp_path, config=argument)
    asked.clear()
    (name,) = argument
    with pytest.raises(ValueError, match=f"{name} is no argument that gmix hands on: choose among"):
        SavedModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"{name} is no argument that gmix hands on"):
        build_net(TrainConfig(encoder=TIMM, encoder_weights="none", model_args=argument), 3)
    assert asked == []


@pytest.mark.parametrize("encoder", ELSEWHERE)
def test_encoders_of_a_hub_or_a_folder_are_unknown(
    tmp_path: Path, asked: list[Any], encoder: str
) -> None:
    write_model(tmp_path, config={"encoder_name": encoder})
    asked.clear()
    with pytest.raises(ValueError, match=f"the encoder {encoder} is unknown"):
        SavedModel.from_pretrained(tmp_path)
    for weights in ("none", "imagenet"):
        with pytest.raises(ValueError, match=r"is unknown: .* --encoder-weights FILE"):
            build_net(TrainConfig(encoder=encoder, encoder_weights=weights), 3)
    assert asked == []


def test_all_encoders_of_smp_and_timm_are_known() -> None:
    for name in [*smp.encoders.encoders, *(f"tu-{name}" for name in timm.list_models())]:
        check_encoder(name)
    for name in ("tu-convnext_tiny.fb_in22k", "timm-mobilenetv3_large_100", "timm-regnetx_002"):
        check_encoder(name)


def test_what_a_config_says_of_weights_is_not_asked_for(tmp_path: Path, asked: list[Any]) -> None:
    hub = {"encoder_weights": "imagenet", "_revision": "main"}
    found = SavedModel.from_pretrained(write_model(tmp_path, config=hub)).net
    assert asked and all(not arguments.get("pretrained") for _, arguments in asked)
    torch.manual_seed(0)
    model = smp.Unet(TIMM, encoder_weights=None, decoder_channels=[8] * 5, classes=3)
    for name, value in model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value), name


def test_shapes_still_reach_timm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"img_size": 64, "dynamic_img_size": True, "patch_size": 16}
    narrow = {"decoder_intermediate_channels": [8] * 4, "decoder_fusion_channels": 8}
    model = build_architecture(
        ARCHITECTURES["dpt"],
        {"encoder_name": "tu-vit_tiny_patch16_224", "encoder_weights": None, **shape, **narrow},
    )
    net = GuidedMixNet(model).eval()
    SavedModel(net, Classes.of(1), None, (0.5,) * 3, (0.5,) * 3).save_pretrained(tmp_path)
    found = SavedModel.from_pretrained(tmp_path)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(found.net(x), net(x))
    assert found.net.model.encoder.model.patch_embed.num_patches == 16


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"config": {"decoder_channels": [16384] * 5}}, "model.safetensors is of another network"),
        ({"config": {"decoder_channels": [10**12] * 5}}, "numbers of at most 16384"),
        ({"config": {"decoder_channels": ["x" * 999]}}, "decoder_channels must be words"),
        ({"config": {"_model_class": "Module"}}, "the architecture Module is unknown"),
        ({"config": {"_model_class": None}}, "the architecture None is unknown"),
        ({"config": {"classes": 4}}, "model.safetensors is of another network"),
        ({"config": {"map_location": "cuda"}}, "map_location is no argument"),
        ({"gmix": {"classes": 3}}, r"classes must be list\[str\], got 3"),
        ({"gmix": {"classes": ["a", "b"]}}, "speaks of 2 logits and 3 channels, the network has 3"),
        ({"gmix": {"mean": [0.5], "std": [0.5]}}, "gmix.json: mean cannot be right"),
        ({"gmix": {"std": [0.5, 0, 0.5]}}, "gmix.json: std cannot be right"),
        ({"gmix": {"mean": [0.5, float("nan"), 0]}}, "gmix.json: mean cannot be right"),
        ({"gmix": {"size": [32]}}, "gmix.json: size and span cannot be right"),
        ({"gmix": {"size": [0, 32]}}, "gmix.json: size cannot be right"),
        ({"gmix": {"size": "32x32"}}, "size must be"),
        ({"gmix": {"colors": [[0, 0, 256]] * 3}}, "gmix.json: colors cannot be right"),
        ({"gmix": {"channels": 4, "mean": [0.5] * 4, "std": [1] * 4}}, "and 4 channels"),
        ({"gmix": {"span": [1, 1]}}, "must be two rising numbers"),
        ({"gmix": {"span": [0, float("inf")]}}, "must be two rising numbers, none infinite"),
        ({"gmix": {"mitrans": "yes"}}, "mitrans must be bool, got 'yes'"),
        ({"gmix": {"mitrans": True}}, "gmix.safetensors"),
        ({"gmix": {"label_map": {"0": 7}}}, "label map entry 0:7 is out of range"),
    ],
    ids=str,
)
def test_words_that_do_not_fit_are_named(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    write_model(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"cannot load the model in .*: .*{why}") as caught:
        SavedModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.skipif(os.name != "posix", reason="pipes have no place among the files of Windows")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "gmix.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_has_no_end_is_not_waited_for(tmp_path: Path, name: str, kind: str) -> None:
    write_model(tmp_path, gmix={"mitrans": True})
    (tmp_path / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=f"cannot load the model in .*: {name} is no file"):
        SavedModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[1]", '{"a": 1', "\0", '{"a": ' + "9" * 5000 + "}"]
)
def test_json_of_any_kind_is_refused(tmp_path: Path, text: str) -> None:
    write_model(tmp_path)
    for name in ("gmix.json", "config.json"):
        kept = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=f"cannot load the model in .*: {name} ") as caught:
            SavedModel.from_pretrained(tmp_path)
        assert "\n" not in str(caught.value)
        (tmp_path / name).write_text(kept)


def test_models_of_before_there_were_channels_still_load(tmp_path: Path) -> None:
    write_model(tmp_path)
    path = tmp_path / "gmix.json"
    facts = json.loads(path.read_text())
    for name in ("channels", "span", "colors", "training"):
        del facts[name]
    path.write_text(json.dumps(facts))
    found = SavedModel.from_pretrained(tmp_path)
    assert (found.format, found.classes.colors, found.training) == (RGB, None, None)
