"""GuidedMixNet over SMP's architectures and encoders: the model's own logits, bit for bit."""

import re
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from gmix.nn.network import GuidedMixNet
from gmix.nn.sizes import windows

SMALL_VIT = {
    "decoder_intermediate_channels": (8, 8, 8, 8),
    "decoder_fusion_channels": 8,
    "dynamic_img_size": True,
}
ARCHITECTURES = [a.__name__ for a in smp.MODEL_ARCHITECTURES_MAPPING.values()]
ENCODERS = ["resnet18", "mit_b0", "mobilenet_v2", "tu-tf_efficientnet_lite0", "tu-convnext_atto"]
POOLED_BATCH_NORM = ["DeepLabV3", "DeepLabV3Plus", "PAN", "UPerNet"]
# on an image whose deepest map is 2 x 2 or more; PSPNet has no BatchNorm on its 1 x 1 level
BATCH_OF_1_TRAINS = [
    "Unet",
    "UnetPlusPlus",
    "MAnet",
    "Linknet",
    "FPN",
    "PSPNet",
    "Segformer",
    "DPT",
]


def smp_model(
    architecture: str = "Unet", encoder: str = "tu-test_efficientnet", **settings: Any
) -> nn.Module:
    if architecture == "UPerNet":
        settings = {"decoder_channels": 32, **settings}
    if architecture == "DPT":
        encoder, settings = "tu-test_vit", {**SMALL_VIT, **settings}
    torch.manual_seed(0)
    return getattr(smp, architecture)(
        encoder, encoder_weights=None, **{"classes": 3, "in_channels": 3, **settings}
    )


def awake(net: GuidedMixNet) -> GuidedMixNet:
    """MITrans that is no longer zero."""
    nn.init.normal_(net.mitrans.out.weight, std=0.2)
    return net


def silent(module: nn.Module) -> set[str]:
    """Parameters no gradient reaches. A bias before BatchNorm or softmax may truly get zero."""
    return {
        n
        for n, p in module.named_parameters()
        if p.grad is None or (p.dim() > 1 and not p.grad.any())
    }


def test_all_twelve_architectures_are_here() -> None:
    assert len(ARCHITECTURES) == 12


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_divisible_images_give_the_models_own_logits(architecture: str) -> None:
    model = smp_model(architecture)
    x = torch.randn(2, 3, 128, 160)
    for mitrans in (False, True):
        net = GuidedMixNet(model, mitrans)
        assert torch.equal(net.eval()(x), model.eval()(x))
    torch.manual_seed(1)
    expected = model.train()(x)
    torch.manual_seed(1)  # the same dropout; attention draws no random number
    assert torch.equal(net.train()(x), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_other_images_give_what_padding_by_hand_gives(architecture: str) -> None:
    net = GuidedMixNet(smp_model(architecture), mitrans=True).eval()
    with torch.no_grad():
        x = torch.randn(2, 3, 129, 70)
        size = {"PSPNet": (136, 72), "DeepLabV3": (136, 72), "DeepLabV3Plus": (144, 80)}.get(
            architecture, (144, 128) if architecture == "PAN" else (160, 96)
        )
        padded = torch.zeros(2, 3, *size)
        padded[..., :129, :70] = x
        assert torch.equal(net(x), net.model(padded)[..., :129, :70])


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("channels", [1, 4])
def test_encoders_and_channels(encoder: str, channels: int) -> None:
    model = smp_model("Unet", encoder, in_channels=channels).eval()
    net = GuidedMixNet(model, mitrans=True).eval()
    x = torch.randn(1, channels, 60, 64)
    assert torch.equal(net(x), model(F.pad(x, (0, 0, 0, 4)))[..., :60, :])
    assert net.embed(x).shape == (1, net.embedding_dim)


@pytest.mark.parametrize("architecture", ["Segformer", "PAN"])
def test_transformer_encoder_in_other_decoders(architecture: str) -> None:
    model = smp_model(architecture, "mit_b0").eval()
    x = torch.randn(1, 3, 128, 128)
    assert torch.equal(GuidedMixNet(model, mitrans=True).eval()(x), model(x))


@pytest.mark.parametrize("architecture", ["Unet", "DPT"])
def test_embedding(architecture: str) -> None:
    net = GuidedMixNet(smp_model(architecture, classes=5)).eval()
    x = torch.randn(2, 3, 64, 64)
    features = net.encode(x)
    embedding = net.embed(x)
    deepest = features[-1]
    mean = torch.stack([torch.stack([c.sum() / c.numel() for c in image]) for image in deepest])
    torch.testing.assert_close(embedding, mean)
    assert torch.equal(net.pool(features), embedding)
    assert embedding.shape == (2, net.embedding_dim)


@pytest.mark.parametrize("readout", ["cat", "add", "ignore"])
def test_vision_transformer_readouts(readout: str) -> None:
    model = smp_model("DPT", decoder_readout=readout).eval()
    x = torch.randn(1, 3, 64, 32)
    assert torch.equal(GuidedMixNet(model, mitrans=True).eval()(x), model(x))


def test_vision_transformer_without_prefix_tokens() -> None:
    torch.manual_seed(0)
    model = smp.DPT(
        "tu-test_vit",
        encoder_weights=None,
        decoder_readout="ignore",
        class_token=False,
        global_pool="avg",
        **SMALL_VIT,
    ).eval()
    assert not model.encoder.has_prefix_tokens
    x = torch.randn(1, 3, 64, 32)
    assert torch.equal(GuidedMixNet(model, mitrans=True).eval()(x), model(x))


def test_decode_leaves_features_and_images_alone() -> None:
    net = awake(GuidedMixNet(smp_model("UPerNet"), mitrans=True)).eval()
    x = torch.randn(2, 3, 64, 64)
    image = x.clone()
    features = net.encode(x)
    before, count = [f.clone() for f in features], len(features)
    first, second = net.decode(features, (64, 64)), net.decode(features, (64, 64))
    assert torch.equal(first, second)
    assert len(features) == count
    assert all(torch.equal(a, b) for a, b in zip(features, before, strict=True))
    assert torch.equal(x, image)


def test_mitrans_works_on_the_deepest_map_in_decode_only() -> None:
    plain = GuidedMixNet(smp_model()).eval()
    net = awake(GuidedMixNet(plain.model, mitrans=True)).eval()
    x = torch.randn(1, 3, 64, 64)
    features = net.encode(x)
    assert torch.equal(features[-1], plain.encode(x)[-1])
    expected = plain.decode([*features[:-1], net.mitrans(features[-1])], (64, 64))
    assert torch.equal(net(x), expected)
    assert not torch.allclose(net(x), plain(x))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_the_model_uses_learns(architecture: str) -> None:
    x = torch.randn(2, 3, 128, 128)
    model = smp_model(architecture)
    target = torch.randn(2, 3, 128, 128)
    (model(x) * target).mean().backward()
    unused = silent(model)  # SMP's own, e.g. a ViT's head, or a ReLU that is dead
    if architecture in ("Unet", "FPN", "DeepLabV3Plus", "Segformer"):
        assert not unused

    net = GuidedMixNet(smp_model(architecture), mitrans=True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(2):
        optimizer.zero_grad()
        (net(x) * target).mean().backward()
        own = silent(net) - {f"model.{name}" for name in unused}
        if step == 0:  # the zero output projection blocks what is before it
            assert own == {f"mitrans.{name}.weight" for name in ("query", "key", "value")}
        optimizer.step()
    assert own == set()


@pytest.mark.parametrize("mitrans", [False, True])
@pytest.mark.parametrize("architecture", ["Unet", "PAN", "DPT"])
def test_export_gives_equal_logits_without_gmix(architecture: str, mitrans: bool) -> None:
    net = GuidedMixNet(smp_model(architecture), mitrans)
    if mitrans:
        awake(net)
    x = torch.randn(1, 3, 128, 128)
    exported = net.export()
    assert net.training
    assert not exported.training
    assert torch.equal(exported(x), net.eval()(x))
    own = dict(exported.named_parameters())
    assert not {p.data_ptr() for p in own.values()} & {p.data_ptr() for p in net.parameters()}
    if mitrans:
        assert not hasattr(exported, "save_pretrained")  # SMP could not load what it would write
    else:
        assert type(exported) is type(net.model)
        assert own.keys() == dict(net.model.named_parameters()).keys()


@pytest.mark.parametrize("architecture", ["Unet", "DPT"])
def test_compiles_into_one_graph(architecture: str) -> None:
    net = awake(GuidedMixNet(smp_model(architecture), mitrans=True)).eval()
    x = torch.randn(1, 3, 50, 64)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), net(x))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forward_neither_syncs_nor_mixes_devices(architecture: str) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = GuidedMixNet(smp_model(architecture), mitrans=True)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.net.encode(x)
            return self.net.decode(features, (129, 160)), self.net.pool(features)

    whole = Whole()  # built for real, as timm's vision transformers call .item() in __init__
    real = whole.state_dict()
    with FakeTensorMode(), torch.device("cuda"):
        fake = {name: torch.empty(t.shape, dtype=t.dtype) for name, t in real.items()}
        x = torch.randn(2, 3, 129, 160)
        logits, embedding = functional_call(whole, fake, (x,))
        assert logits.shape == (2, 3, 129, 160)
        assert {logits.device.type, embedding.device.type} == {"cuda"}


def test_bfloat16_autocast_and_channels_last() -> None:
    net = awake(GuidedMixNet(smp_model(), mitrans=True)).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 64, 50).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = net(x).float().square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.skipif(not hasattr(smp.Unet, "freeze_encoder"), reason="SMP 0.5.0 freezes nothing")
def test_a_frozen_encoder_stays_frozen() -> None:
    net = GuidedMixNet(smp_model())
    net.model.freeze_encoder()
    net.train()
    before = net.model.encoder.model.bn1.running_mean.clone()
    net(torch.randn(2, 3, 64, 64))
    assert torch.equal(net.model.encoder.model.bn1.running_mean, before)


@pytest.mark.parametrize("architecture", POOLED_BATCH_NORM)
def test_batch_of_1_with_pooled_batch_norm_is_refused_clearly(architecture: str) -> None:
    net = GuidedMixNet(smp_model(architecture)).train()
    x = torch.randn(1, 3, 128, 128)
    with pytest.raises(
        ValueError, match=f"^{architecture} cannot train on a batch of 1.*at least 2"
    ):
        net(x)
    assert net.eval()(x).shape == (1, 3, 128, 128)


@pytest.mark.parametrize("architecture", BATCH_OF_1_TRAINS)
def test_batch_of_1_trains_where_it_can(architecture: str) -> None:
    assert GuidedMixNet(smp_model(architecture)).train()(torch.randn(1, 3, 64, 64)).requires_grad


def test_batch_of_1_with_a_1x1_deepest_map_is_refused_clearly() -> None:
    with pytest.raises(ValueError, match="Unet cannot train on a batch of 1"):
        GuidedMixNet(smp_model())(torch.randn(1, 3, 32, 32))


def test_other_errors_of_the_model_pass_through() -> None:
    net = GuidedMixNet(smp_model())
    net.model.decoder.register_forward_hook(lambda *_: (_ for _ in ()).throw(ValueError("mine")))
    with pytest.raises(ValueError, match=r"^mine$"):
        net(torch.randn(2, 3, 64, 64))


def test_a_fixed_size_transformer_names_what_to_do() -> None:
    net = GuidedMixNet(smp_model("DPT", dynamic_img_size=False)).eval()
    assert net(torch.randn(1, 3, 160, 160)).shape == (1, 3, 160, 160)
    with pytest.raises(
        ValueError, match=r"cannot take images of 50 x 64 .*`dynamic_img_size=True`"
    ):
        net(torch.randn(1, 3, 50, 64))


def test_models_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TypeError, match=r"must be an nn\.Module that returns logits, got type"):
        GuidedMixNet(nn.Linear)
    with pytest.raises(ValueError, match=r"Linear fails on images .* pass images that it takes"):
        GuidedMixNet(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="without `aux_params`"):
        GuidedMixNet(smp_model(aux_params={"classes": 2}))
    with pytest.raises(ValueError, match="with `activation=None`"):
        GuidedMixNet(smp_model(activation="sigmoid"))
    model = smp_model()
    model.encoder = nn.Conv2d(3, 4, 3)
    right = {"out_channels": (3, 8), "output_stride": 2}
    for wrong in ({}, {"out_channels": (3, 8)}, {**right, "out_channels": (3, 0)}):
        vars(model.encoder).update(wrong)
        with pytest.raises(ValueError, match="must declare `output_stride` and `out_channels`"):
            GuidedMixNet(model)
    vars(model.encoder).update(right)
    GuidedMixNet(model)


def test_an_encoder_that_breaks_its_word_is_refused() -> None:
    class Flat(nn.Module):
        out_channels, output_stride = (3, 8), 2

        def forward(self, x: Tensor) -> list[Tensor]:
            return [x, self.deepest]

    model = smp_model()
    model.encoder = Flat()
    for shape in ((2, 8), (2, 3, 32, 32)):  # without a dimension, of other channels
        model.encoder.deepest = torch.zeros(shape)
        got = re.escape(str(shape))
        with pytest.raises(ValueError, match=rf"deepest map must be \(N, 8, h, w\).*got {got}"):
            GuidedMixNet(model)(torch.randn(2, 3, 64, 64))


def test_logits_of_another_size_are_refused() -> None:
    net = GuidedMixNet(smp_model("FPN", upsampling=2)).eval()
    with pytest.raises(ValueError, match=r"size of its input, \(64, 64\), got \(32, 32\)"):
        net(torch.randn(1, 3, 64, 64))


@pytest.mark.cuda
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cuda_equals_cpu_without_a_sync(architecture: str) -> None:
    net = awake(GuidedMixNet(smp_model(architecture), mitrans=True)).eval()
    x = torch.randn(2, 3, 129, 128)
    with torch.no_grad():
        expected = net(x)
        net.cuda()
        x = x.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            out = net(x)
            for dtype in (torch.bfloat16, torch.float16):
                with torch.autocast("cuda", dtype=dtype):
                    net(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(out.cpu(), expected, atol=1e-2, rtol=1e-2)


def test_windows_of_an_encoder_are_padded_to_whole_ones() -> None:
    """MaxViT's must divide every map: images of any size are padded to multiples of 32 times the window."""
    torch.manual_seed(0)
    model = smp.Unet("tu-maxvit_pico_rw_256", encoder_weights=None, img_size=64, classes=2)
    net = GuidedMixNet(model).eval()
    x = torch.randn(1, 3, 50, 70)
    with torch.no_grad():
        logits = net(x)
        expected = model(F.pad(x, (0, 128 - 70, 0, 64 - 50)))[..., :50, :70]
    assert (net.stride, windows(model.encoder)) == (64, 2)
    assert torch.equal(logits, expected)
