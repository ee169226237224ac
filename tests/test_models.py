"""Models that are not from SMP: the same logits, one pass, features that reach the decoder, sentences for the rest."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_methods import BUILDERS
from tiny_nets import tiny_batch, tiny_net
from torch import Tensor, nn

from gmix import GuidedMixNet, SavedModel, predict_image
from gmix.data import Classes
from gmix.methods import CCT, CPS, FixMatch, GuidedMix
from gmix.nn.logits import find_logits
from gmix.nn.passes import count_first_step
from gmix.training.decide import decide_for_miou


def block(inside: int, outside: int) -> nn.Sequential:
    conv = nn.Conv2d(inside, outside, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU(inplace=True))


class OwnUNet(nn.Module):
    """As people write it: shared pooling, skips, sizes that must be multiples of 4."""

    def __init__(self, classes: int = 3, channels: int = 3) -> None:
        super().__init__()
        self.first, self.second, self.third = block(channels, 6), block(6, 10), block(10, 16)
        self.shrink = nn.MaxPool2d(2)
        self.up, self.last_up = nn.ConvTranspose2d(16, 10, 2, 2), nn.ConvTranspose2d(10, 6, 2, 2)
        self.fourth, self.fifth = block(20, 10), block(12, 6)
        self.head = nn.Conv2d(6, classes, 1)

    def down(self, x: Tensor) -> list[Tensor]:
        one = self.first(x)
        two = self.second(self.shrink(one))
        return [one, two, self.third(self.shrink(two))]

    def upwards(self, maps: list[Tensor]) -> Tensor:
        one, two, three = maps
        y = self.fourth(torch.cat([self.up(three), two], 1))
        logits: Tensor = self.head(self.fifth(torch.cat([self.last_up(y), one], 1)))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.upwards(self.down(x))


class Coarse(nn.Module):
    """Logits of a quarter of the size, in a mapping; the decoder begins with a ReLU in place."""

    def __init__(self, key: str = "logits") -> None:
        super().__init__()
        self.key, self.encoder = key, nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(), nn.Conv2d(8, 3, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {self.key: self.head(self.encoder(x))}


def lraspp() -> nn.Module:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    made: nn.Module = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3)
    return made


def hugging_face(name: str) -> nn.Module:
    hf = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4}
    if name == "segformer":
        heads = {"num_attention_heads": [1, 1, 2, 2], "decoder_hidden_size": 8}
        config = hf.SegformerConfig(num_labels=3, **sizes, **heads)
        return hf.SegformerForSemanticSegmentation(config)
    stages = {"out_features": [f"stage{i}" for i in range(1, 5)]}
    if name == "upernet":
        backbone = hf.ConvNextConfig(**sizes, **stages)
        widths = {"hidden_size": 8, "auxiliary_in_channels": 16, "auxiliary_channels": 8}
        config = hf.UperNetConfig(backbone_config=backbone, num_labels=3, **widths)
        return hf.UperNetForSemanticSegmentation(config)
    if name == "dpt":
        vit = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
        ends = {"neck_hidden_sizes": [8, 8, 16, 16], "fusion_hidden_size": 8, "image_size": 64}
        chosen = {"backbone_out_indices": [0, 1, 2, 3], "is_hybrid": False}
        config = hf.DPTConfig(num_labels=3, intermediate_size=16, **vit, **ends, **chosen)
        return hf.DPTForSemanticSegmentation(config)
    heads = {"num_heads": [1, 1, 2, 2], "window_size": 4}
    backbone = hf.SwinConfig(embed_dim=8, depths=[1] * 4, **heads, **stages)
    widths = dict.fromkeys(("hidden_dim", "mask_feature_size", "feature_size"), 32)
    layers = {"encoder_layers": 1, "decoder_layers": 1, "num_attention_heads": 2}
    config = hf.Mask2FormerConfig(
        backbone_config=backbone, num_labels=3, num_queries=5, **widths, **layers
    )
    return hf.Mask2FormerForUniversalSegmentation(config)


def monai_unet() -> nn.Module:
    nets = pytest.importorskip("monai.networks.nets", reason="monai is not installed")
    return nets.UNet(2, 3, 3, channels=(8, 12, 16), strides=(2, 2), num_res_units=1)


KINDS: dict[str, tuple[Callable[[], Any], int]] = {  # and what sizes are padded to
    "own": (OwnUNet, 4),
    "coarse": (Coarse, 4),
    "torchvision": (lraspp, 1),
    "segformer": (lambda: hugging_face("segformer"), 1),
    "upernet": (lambda: hugging_face("upernet"), 1),
    "mask2former": (lambda: hugging_face("mask2former"), 1),
    "dpt": (lambda: hugging_face("dpt"), 32),
    "monai": (monai_unet, 4),
}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def naive_logits(model: nn.Module, x: Tensor) -> Tensor:
    """The logits of a model, with the masks of its queries summed in loops."""
    output: Any = model(x)
    if hasattr(output, "masks_queries_logits"):
        classes = output.class_queries_logits.softmax(-1)
        scores = torch.zeros(len(x), classes.shape[2] - 1, *output.masks_queries_logits.shape[2:])
        for n in range(len(x)):
            for q in range(classes.shape[1]):
                mask = 1 / (1 + (-output.masks_queries_logits[n, q]).exp())
                for k in range(scores.shape[1]):
                    scores[n, k] += classes[n, q, k] * mask
        output = scores.log()
    elif not isinstance(output, Tensor):
        output = output["out"] if "out" in output else output["logits"]
    return F.interpolate(output, size=x.shape[2:], mode="bilinear")


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_model(kind: str) -> None:
    make, stride = KINDS[kind]
    model = make().train()
    before = copy.deepcopy(model)
    net = GuidedMixNet(model)
    assert net.model is model and (net.classes, net.in_channels, net.stride) == (3, 3, stride)
    assert all("forward" not in vars(m) and m.training for m in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before.state_dict()[name]), name
    net.eval()
    size = (64, 64) if kind == "dpt" else (46, 61)
    x = torch.randn(2, 3, *size)
    below, right = -size[0] % stride, -size[1] % stride
    with torch.no_grad():
        expected = naive_logits(before.eval(), F.pad(x, (0, right, 0, below)))
        logits = net(x)
        features = net.encode(x)
        assert torch.equal(net.decode(features, size), logits)
        same = {"rtol": 1e-5, "atol": 1e-5} if kind == "mask2former" else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(logits, expected[..., : size[0], : size[1]], **same)
        other = net.decode([*features[:-1], features[-1] + 1], size)
        assert not torch.equal(other, logits)
        torch.testing.assert_close(
            net.decode([f[1:] for f in features], size), logits[1:], rtol=1e-3, atol=1e-4
        )
        whole = net.export()(F.pad(x, (0, right, 0, below)))
    assert net.pool(features).shape == (2, net.embedding_dim)
    torch.testing.assert_close(whole[..., : size[0], : size[1]], logits)


def test_disturbed_features_and_gradients_are_those_written_by_hand() -> None:
    net = GuidedMixNet(OwnUNet()).train()
    by_hand = copy.deepcopy(net.model)
    x, factor = torch.randn(3, 3, 8, 12), torch.tensor([0.0, 2.0]).repeat(8)[:, None, None]
    features, maps = net.encode(x), by_hand.down(x)
    assert [f.shape for f in features] == [f.shape for f in maps]
    kept = features[-1].detach().clone()
    decoded = net.decode([*(f[1:] for f in features[:-1]), features[-1][1:] * factor], (8, 12))
    expected = by_hand.upwards([*(f[1:] for f in maps[:-1]), maps[-1][1:] * factor])
    assert torch.equal(decoded, expected) and torch.equal(features[-1], kept)
    decoded.square().sum().backward()
    expected.square().sum().backward()
    for (name, p), other in zip(net.model.named_parameters(), by_hand.parameters(), strict=True):
        assert p.grad is not None and torch.equal(p.grad, other.grad), name
    for (name, b), other in zip(net.model.named_buffers(), by_hand.buffers(), strict=True):
        assert torch.equal(b, other), name  # BatchNorm saw each batch once


def test_features_keep_their_values_where_the_decoder_works_in_place() -> None:
    net = GuidedMixNet(Coarse()).train()
    features = net.encode(torch.randn(2, 3, 8, 8))
    before = features[-1].detach().clone()
    net.decode(features, (8, 8)).sum().backward()
    assert (before < 0).any() and torch.equal(features[-1], before)
    assert net.model.encoder.weight.grad.any()


def test_the_layer_can_be_named() -> None:
    model = nn.Sequential(block(3, 8), nn.MaxPool2d(2), block(8, 8), nn.Conv2d(8, 3, 1))
    assert GuidedMixNet(model).adapter.split.calls == ["0", "1", "2"]
    net = GuidedMixNet(model, deepest="1")
    assert net.adapter.split.calls == ["0", "1"] and net.encoder.out_channels == (8,)
    with pytest.raises(ValueError, match=r"got '0\.5' \(did you mean '0\.2'"):
        GuidedMixNet(model, deepest="0.5")


class Returns(nn.Module):
    """A convolution, and something that its outputs become."""

    def __init__(self, become: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.one, self.two, self.become = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1), become

    def forward(self, x: Tensor) -> Any:
        return self.become(self.two(self.one(x).relu()))


class Fixed(Returns):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x.view(-1, 3, 20, 20))


class Hides(nn.Module):
    """An encoder that keeps a map for the decoder, beside the one it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.one(x)
        two: Tensor = self.two(self.kept)
        return two


class Skips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.up, self.head = Hides(), nn.Upsample(scale_factor=2), nn.Conv2d(10, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(self.encoder(x))
        logits: Tensor = self.head(torch.cat([up, self.encoder.kept], 1))
        return logits


BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no module": (lambda: "unet", TypeError, "must be an nn.Module that returns logits, got str"),
    "no logits": (
        lambda: Returns(lambda y: {"seg": y}),
        TypeError,
        "returns a dict of seg, without logits: wrap it in an nn.Module whose forward returns only",
    ),
    "many": (lambda: Returns(lambda y: [y, y]), TypeError, "returns a list of 2, without logits"),
    "nothing": (lambda: Returns(lambda y: None), TypeError, "returns None, without logits: wrap"),
    "double": (lambda: Returns(Tensor.double), ValueError, r"float64 .* return logits.to\("),
    "NaN": (lambda: Returns(lambda y: y * math.nan), ValueError, r"returns NaN .* example=images"),
    "classes last": (
        lambda: Returns(lambda y: y.permute(0, 2, 3, 1)),
        ValueError,
        r"returns \(2, 64, 96, 3\) .* classes last: return logits.permute\(0, 3, 1, 2\)",
    ),
    "coarse, classes last": (
        lambda: Returns(lambda y: y[..., ::4, ::4].permute(0, 2, 3, 1)),
        ValueError,
        r"returns \(2, 16, 24, 3\) .* classes last",
    ),
    "labels": (lambda: Returns(lambda y: y.argmax(1)), ValueError, "must return logits .*int64"),
    "softmax": (lambda: Returns(lambda y: y.softmax(1)), ValueError, "returns probabilities: "),
    "sigmoid": (lambda: Returns(nn.Sigmoid()), ValueError, "ends in a sigmoid: return raw logits"),
    "one size": (lambda: Fixed(lambda y: y), ValueError, "Fixed fails on .* pass images that it"),
    "one layer": (lambda: nn.Conv2d(3, 3, 1), ValueError, "no layer was found .* name the layer"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_gets_a_sentence(name: str) -> None:
    make, kind, words = BAD[name]
    with pytest.raises(kind, match=words) as caught:
        GuidedMixNet(make())
    assert "\n" not in str(caught.value)


# Outputs that differ from the trial's, or of a network of one's own.
TURNED: dict[str, Callable[[Tensor], Any]] = {
    "a tuple of 2": lambda y: (y, y),
    "a dict of seg": lambda y: {"seg": y},
    "None": lambda y: None,
    r"\(\d, 2, 32, 32\)": lambda y: y[:, :2],
    r"\(\d, 32, 32, 3\)": lambda y: y.permute(0, 2, 3, 1),
}


@pytest.mark.parametrize("words", TURNED)
def test_what_a_model_returns_only_in_training_gets_a_sentence(words: str) -> None:
    model = Returns(lambda y: TURNED[words](y) if model.training else y)
    with pytest.raises(
        (TypeError, ValueError), match=f"(returns|got) {words}.*: wrap it"
    ) as caught:
        FixMatch(GuidedMixNet(model))(*tiny_batch(2, 2))
    assert "\n" not in str(caught.value)


def test_further_sentences() -> None:
    for options in ({"deepest": "encoder"}, {"example": torch.zeros(1, 3, 64, 64)}):
        with pytest.raises(ValueError, match="are for models that are not SMP's"):
            GuidedMixNet(tiny_net().model, **options)
    with pytest.raises(ValueError, match="`mitrans` is for models of SMP"):
        GuidedMixNet(OwnUNet(), mitrans=True)
    net = GuidedMixNet(Fixed(lambda y: y), example=torch.zeros(1, 3, 20, 20), deepest="one")
    with pytest.raises(ValueError, match=r"cannot take images of 23 x 23 .* it takes 20 x 20"):
        net(torch.zeros(1, 3, 23, 23))
    with pytest.raises(ValueError, match=r"takes images of shape \(N, 3, H, W\)"):
        net(torch.zeros(1, 4, 20, 20))
    saved = SavedModel(net, Classes.of(3), None, (0.5,) * 3, (0.2,) * 3)
    with pytest.raises(ValueError, match="saves models of SMP only, not Fixed: save it with torch"):
        saved.save_pretrained("nowhere")
    assert predict_image(saved, torch.zeros(3, 20, 20)).shape == (20, 20)


def tiny_fcn() -> nn.Module:
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.resnet import BasicBlock, ResNet
    from torchvision.models.segmentation.fcn import FCN, FCNHead

    layers = {"layer1": "aux", "layer2": "out"}
    backbone = IntermediateLayerGetter(ResNet(BasicBlock, [1, 1, 1, 1]), layers)
    made: nn.Module = FCN(backbone, FCNHead(128, 3))
    return made


@pytest.mark.parametrize("make", [OwnUNet, tiny_fcn])
@pytest.mark.parametrize("name", BUILDERS)
def test_every_method_takes_a_step(name: str, make: Callable[[], nn.Module]) -> None:
    net = GuidedMixNet(make())
    if name == "official":
        with pytest.raises(ValueError, match=r"models of SMP only, not .*: leave out `mixed_head`"):
            BUILDERS[name](net)
        return
    again = BUILDERS[name](copy.deepcopy(net))
    method, batch = BUILDERS[name](net), tiny_batch(2, 2, size=36)
    method.remember(list(zip(batch.x_labeled, batch.y_labeled, strict=True)))
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer, before = torch.optim.AdamW(trained), [p.clone() for p in net.parameters()]
    losses = method(*batch, progress=0.5)
    losses["total"].backward()
    optimizer.step()
    assert all(value.isfinite() for value in losses.values())
    assert all(not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
    again.load_state_dict(method.state_dict())


def test_passes_are_counted_once() -> None:
    told: list[int] = []
    method = FixMatch(GuidedMixNet(OwnUNet()))
    count_first_step(method, told.append)
    method(*tiny_batch(2, 3))
    assert told == [2 + 2 * 3]


class Bare(OwnUNet):
    """Weights that torch does not know how to initialise again."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def upwards(self, maps: list[Tensor]) -> Tensor:
        return super().upwards(maps) * self.scale


def test_a_second_student_is_made_or_asked_for() -> None:
    net = GuidedMixNet(OwnUNet())
    other = CPS(net).other.model
    for part in ("first", "second", "third", "fourth", "head"):
        mine, its = (getattr(m, part).state_dict() for m in (net.model, other))
        same = all(torch.equal(mine[key], its[key]) for key in mine)
        assert same == (part in ("first", "second", "third")), part
    bare = GuidedMixNet(Bare())
    with pytest.raises(ValueError, match=r"root \(Bare\) has weights .*: pass a second network"):
        CPS(bare)
    second = GuidedMixNet(Bare())
    head = second.model.first[0].weight.clone()
    method = CPS(bare, other=second)
    method(*tiny_batch(2, 2))
    assert method.other is second and torch.equal(second.model.first[0].weight, head)
    for wrong, words in ((bare, "shares weights"), (GuidedMixNet(OwnUNet(5)), "3 classes, got 5")):
        with pytest.raises(ValueError, match=words):
            CPS(bare, other=wrong)


class OwnNetwork(OwnUNet):
    """The four methods of `gmix.protocols.Network`, and nothing more."""

    classes = 3

    def encode(self, x: Tensor) -> list[Tensor]:
        return self.down(x)

    def decode(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        return self.upwards(features)

    def pool(self, features: list[Tensor]) -> Tensor:
        return features[-1].mean((2, 3))


@pytest.mark.parametrize("name", BUILDERS)
def test_a_network_of_ones_own_needs_four_methods(name: str) -> None:
    net: Any = OwnNetwork()
    needs = {
        **dict.fromkeys(("cct", "corrmatch", "u2pl"), "`embedding_dim`, `padded`"),
        **dict.fromkeys(("paper", "s4l"), "`embedding_dim`"),
        **dict.fromkeys(("cps", "cps, cutmix", "gct"), "`encoder`.* pass a second"),
        "s4gan": "`in_channels`",
        "s4gan, mlmt": "`in_channels`, `adapter`",
        "guidedmix": "`encoder` .* reference=None",
        "official": "`decoder_map`, `crop`",
    }
    if name in needs:
        with pytest.raises(TypeError, match=f"needs {needs[name]}"):
            BUILDERS[name](net)
        return
    BUILDERS[name](net)(*tiny_batch(2, 2), progress=0.5)["total"].backward()
    assert net.first[0].weight.grad.any()


class Turned(OwnNetwork):
    """A network of one's own that returns something else."""

    embedding_dim, in_channels = 16, 3

    def __init__(self, turn: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.turn = turn

    def padded(self, *size: int) -> tuple[int, ...]:
        return size

    def upwards(self, maps: list[Tensor]) -> Any:
        return self.turn(super().upwards(maps))


@pytest.mark.parametrize("name", BUILDERS)
def test_what_an_own_network_returns_is_looked_at_once(name: str) -> None:
    if name in ("paper", "official", "s4gan, mlmt"):
        return  # which take no network of one's own
    options = {"guidedmix": {"reference": None}}.get(name, {})
    coarse = {r"\(1, 3, 16, 16\)": lambda y: y[..., ::2, ::2]}
    for words, turn in {**TURNED, **coarse}.items():
        if name in ("cps", "cps, cutmix", "gct"):
            options = {"other": OwnNetwork()}
        net: Any = Turned(turn)
        with pytest.raises(
            (TypeError, ValueError), match=rf"^`net\(x\)` must return logits \(1, 3, .* got {words}"
        ) as caught:
            BUILDERS[name](net, **options)(*tiny_batch(2, 2), progress=0.5)
        assert "\n" not in str(caught.value)
    net = Turned(lambda y: y)
    BUILDERS[name](net, **options)(*tiny_batch(2, 2), progress=0.5)
    net.decode = lambda features, size: net.head(features[0])[..., ::2]
    with pytest.raises(ValueError, match=r"^`net.decode\(net.encode\(x\), \(H, W\)\)` must"):
        BUILDERS[name](net, **options)(*tiny_batch(2, 2), progress=0.5)


def test_an_own_network_takes_what_is_asked_for() -> None:
    net: Any = OwnNetwork()
    GuidedMix(net, reference=None)(*tiny_batch(2, 2), progress=0.5)
    net.embedding_dim, net.padded = 16, lambda *size: size
    CCT(net, decoders={"noise": 1})(*tiny_batch(2, 2), progress=0.5)
    CPS(net, other=OwnNetwork())(*tiny_batch(2, 2))  # type: ignore[arg-type]


def test_class_biases_go_into_the_last_convolution() -> None:
    probs = torch.tensor([[0.9, 0.05, 0.05]] * 6 + [[0.5, 0.45, 0.05]] * 4)
    net = GuidedMixNet(Coarse()).eval()
    decided, x = decide_for_miou(net, probs), torch.randn(1, 3, 8, 8)
    change = (decided(x) - net(x)).mean((0, 2, 3))
    assert change.abs().max() > 0.1
    torch.testing.assert_close(change, decided.last_layer.bias - net.last_layer.bias)
    with pytest.raises(ValueError, match="not the outputs of a last convolution"):
        _ = GuidedMixNet(lraspp()).last_layer


def test_a_model_that_hides_its_features_is_cut_elsewhere() -> None:
    net = GuidedMixNet(Skips())
    assert net.adapter.split.calls == ["encoder.one", "encoder.two"]
    with pytest.raises(ValueError, match="cannot be cut at 'encoder': the decoder gives other"):
        GuidedMixNet(Skips(), deepest="encoder")


def test_queries_of_one_class_are_refused() -> None:
    class Output:
        class_queries_logits = torch.zeros(1, 2, 2)
        masks_queries_logits = torch.zeros(1, 2, 4, 4)

    with pytest.raises(ValueError, match="num_labels=2"):
        find_logits(Output())


def test_an_error_leaves_the_model_as_it_was() -> None:
    net = GuidedMixNet(OwnUNet())
    net(torch.randn(2, 3, 8, 8))
    features = net.encode(torch.randn(1, 3, 8, 8))
    with pytest.raises(RuntimeError):
        net.decode([f[:, 1:] for f in features], (8, 8))
    assert all("forward" not in vars(module) for module in net.model.modules())
