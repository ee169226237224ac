"""Encoders that take images of one size, or of whole windows: the right size, or one sentence that names it."""

from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from tiny_data import tiny_config, words, write_data
from torch import nn

from gmix import GuidedMixNet, LabeledReference
from gmix.cli.main import main
from gmix.nn.sizes import dry_run, refusal, windows

# One of each family of timm's that fails at other sizes, and in how many ways: by assertions with and without
# words, by tables of positions, by reshaping into windows.
FIXED = {
    "botnet26t_256": 256,
    "coat_tiny": 224,
    "coatnet_pico_rw_224": 224,
    "efficientformer_l1": 224,
    "efficientformerv2_s0": 224,
    "gcvit_xxtiny": 224,
    "hiera_tiny_224": 224,
    "swin_tiny_patch4_window7_224": 224,
}


def net_of(encoder: str, **settings: Any) -> GuidedMixNet:
    torch.manual_seed(0)
    model = smp.FPN(f"tu-{encoder}", encoder_weights=None, classes=2, **settings)
    return GuidedMixNet(model).eval()


@pytest.mark.parametrize("encoder", FIXED)
def test_an_encoder_of_one_size_names_it(encoder: str) -> None:
    side = FIXED[encoder]
    with torch.device("meta"):
        try:
            net = net_of(encoder)
        except RuntimeError as error:
            assert "features_only not implemented" in str(error)
            pytest.skip(f"timm {timm.__version__} has no maps of {encoder}")
        assert net(torch.zeros(1, 3, side - 20, side)).shape == (1, 2, side - 20, side)
        for height, width in ((150, 96), (2 * side, side)):
            with pytest.raises(ValueError) as error:
                net(torch.zeros(1, 3, height, width))
            padded = f"{-(-height // 32) * 32} x {width}"
            assert str(error.value) == (
                f"the encoder cannot take images of {height} x {width} (padded to {padded}): it takes "
                f"{side} x {side}; resize the images, or build the model with `img_size=...` (some: "
                "`dynamic_img_size=True`)"
            )


def test_built_for_another_size_it_takes_that() -> None:
    net = net_of("coatnet_pico_rw_224", img_size=64)
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 50, 64)).shape == (1, 2, 50, 64)
    with pytest.raises(ValueError, match=r"of 96 x 96 .*: it takes the size it was built for; re"):
        net(torch.zeros(1, 3, 96, 96))
    reference = LabeledReference(net.model.encoder, 2)
    with pytest.raises(ValueError, match=r"^the reference's encoder .* 96 x 96: it .*`reference=N"):
        reference.likelihood(torch.zeros(1, 3, 96, 96))


def test_other_errors_are_not_taken_for_those_of_a_size() -> None:
    net, x = net_of("coatnet_pico_rw_224", img_size=64), torch.zeros(1, 3, 64, 64)
    with pytest.raises(RuntimeError, match=r"scalar type|same"):
        net(x.double())
    with pytest.raises(ValueError, match=r"takes images of shape \(N, 3, H, W\)"):
        net(torch.zeros(1, 4, 64, 64))
    encoder = smp.encoders.get_encoder("resnet18", weights=None)
    assert refusal(encoder, RuntimeError("a must match the size of tensor b"), x) is None
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert refusal(net.model.encoder, full, x) is None


@pytest.mark.parametrize("encoder", ["halonet26t", "bat_resnext26ts"])
def test_blocks_of_attention_are_padded_to_whole_ones(encoder: str) -> None:
    net = net_of(encoder)
    x = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        expected = net.model(F.pad(x, (0, 256 - 70, 0, 256 - 50)))[..., :50, :70]
        assert torch.equal(net(x), expected)
    assert (net.stride, windows(net.model.encoder)) == (256, 8)


def test_a_dry_run_computes_nothing_and_changes_nothing() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    dry_run(net, (1, 3, 10**6, 10**6))  # 12 TB of maps
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net[1].training
    with pytest.raises(RuntimeError, match=r"Kernel size|Output size is too small"):
        dry_run(net, (1, 3, 2, 2))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_args": {}}, "--crop 32x32: the encoder cannot take images of 32 x 32 "),
        (
            {"model_args": {"img_size": 32}},
            "validation image 64x64: the encoder cannot take images",
        ),
        (
            {"model_args": {"img_size": 64}, "size": "32x32"},
            "--crop 32x32: the encoder cannot take",
        ),
        ({"model_args": {"img_size": 32}, "size": "32x32"}, None),
    ],
)
def test_a_training_tries_the_sizes_before_its_first_step(
    changes: Any, sentence: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(
        write_data(tmp_path / "data"),
        tmp_path / "out",
        method="supervised",
        encoder="tu-coatnet_pico_rw_224",
        arch="FPN",
        **{"steps": 1, "decide_for": "pixels", "checkpoint_every": 0, **changes},
    )
    code = main(["train", *words(config)])
    lines = capsys.readouterr().err.splitlines()
    if sentence is None:
        assert code == 0
        return
    assert code == 1 and len(lines) == 1
    assert lines[0].startswith(f"gmix: {sentence}") and "--size HxW" in lines[0]
    assert not [*(tmp_path / "out").glob("checkpoint-*")]
