"""GuidedMixUnet is a full SMP model, built as in the paper's Fig. 4."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.encoders import get_encoder
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gmix.nn.mitrans import MITransBlock, NonLocalBlock, PixelShuffleBlock
from gmix.nn.network import GuidedMixNet
from gmix.nn.unet import GuidedMixUnet


def small(encoder: str = "resnet18", **settings: object) -> GuidedMixUnet:
    return GuidedMixUnet(
        encoder,
        encoder_weights=None,
        **{"decoder_channels": (16, 16, 8, 8, 8), "pyramid_channels": 16, "classes": 3, **settings},
    )


def awake(model: nn.Module) -> nn.Module:
    """Attention that is no longer zero."""
    for module in model.modules():
        if isinstance(module, NonLocalBlock):
            nn.init.normal_(module.out.weight, std=0.1)
    return model


@pytest.mark.parametrize("encoder", ["mit_b0", "mobilenet_v2", "tu-tf_efficientnet_lite0"])
@pytest.mark.parametrize("channels", [1, 4])
def test_any_encoder_and_channels(encoder: str, channels: int) -> None:
    model = small(encoder, in_channels=channels).eval()
    assert model(torch.randn(1, channels, 64, 32)).shape == (1, 3, 64, 32)


def test_attention_only_where_maps_are_small() -> None:
    model = small().eval()
    assert [type(b) for b in model.decoder.blocks] == [MITransBlock] * 3 + [PixelShuffleBlock] * 2
    sizes: list[int] = []
    for module in model.modules():
        if isinstance(module, NonLocalBlock):
            module.register_forward_hook(lambda _m, _i, out: sizes.append(out.shape[-1]))
    model(torch.randn(1, 3, 64, 64))
    assert sizes == [2, 4, 8]  # strides 32, 16, 8


def test_initialisation_survives_smp() -> None:
    model = small()
    attention = [m for m in model.modules() if isinstance(m, NonLocalBlock)]
    assert len(attention) == 3
    assert all(not m.out.weight.any() and not m.out.bias.any() for m in attention)
    for block in model.decoder.blocks:
        x = torch.randn(1, block.expand.in_channels, 3, 3)
        one = F.conv2d(x, block.expand.weight[::4], padding=1)
        torch.testing.assert_close(
            block.shuffle(block.expand(x)), F.interpolate(one, scale_factor=2.0)
        )
    assert not model.segmentation_head[0].bias.any()  # SMP's start of a head, not torch's


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = awake(small(in_channels=4, activation="sigmoid")).eval()
    model.save_pretrained(tmp_path)
    loaded = GuidedMixUnet.from_pretrained(tmp_path, strict=True).eval()
    x = torch.randn(1, 4, 64, 64)
    assert torch.equal(loaded(x), model(x))
    assert loaded.config == {**model.config, "decoder_channels": [16, 16, 8, 8, 8]}  # JSON


def test_loading_never_asks_for_imagenet_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def without_hub(name: str, *, weights: str, **settings: int) -> nn.Module:
        asked.append(weights)
        encoder: nn.Module = get_encoder(name, weights=None, **settings)
        return encoder

    monkeypatch.setattr("gmix.nn.unet.get_encoder", without_hub)
    model = GuidedMixUnet("resnet18", decoder_channels=(16, 16, 8, 8, 8), pyramid_channels=16)
    assert asked == ["imagenet"]
    assert model.config["encoder_weights"] is None
    assert model.config["encoder_name"] == "resnet18"


def test_guidedmix_training_fits_around_it() -> None:
    torch.manual_seed(0)
    model = awake(small()).eval()
    net = GuidedMixNet(model, mitrans=True).eval()
    x = torch.randn(2, 3, 50, 64)
    padded = F.pad(x, (0, 0, 0, 14))
    assert (net.classes, net.embedding_dim) == (3, 512)
    assert torch.equal(net(x), model(padded)[..., :50, :])


def test_every_parameter_learns_and_a_batch_of_1_trains() -> None:
    torch.manual_seed(0)
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):  # attention wakes up after its zero output projection's first step
        optimizer.zero_grad()
        model(torch.randn(1, 3, 64, 64)).square().mean().backward()
        optimizer.step()
    silent = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert {n for n in silent if not n.endswith("attention.key.bias")} == set()


def test_decoder_channels_must_match_the_depth() -> None:
    with pytest.raises(
        ValueError, match=r"each of the encoder's 4 halvings, got \(16, 16, 8, 8, 8\)"
    ):
        small(encoder_depth=4)
    model = small(encoder_depth=4, decoder_channels=(16, 8, 8, 8)).eval()
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3, 32, 32)


def test_forward_neither_syncs_nor_mixes_devices() -> None:
    with FakeTensorMode(), torch.device("cuda"):
        assert small()(torch.randn(2, 3, 64, 64)).device.type == "cuda"


def test_compiles_into_one_graph() -> None:
    torch.manual_seed(0)
    model, x = awake(small()).eval(), torch.randn(1, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))


def test_exports() -> None:
    torch.manual_seed(0)
    model, x = awake(small()).eval(), torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


def test_bfloat16_autocast() -> None:
    torch.manual_seed(0)
    model, x = awake(small()), torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x).float().square().mean()
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
