"""Exported files give the network's logits, for any batch and size, without gmix."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from full_disk import largest_file
from test_network import smp_model
from timm.layers import Conv2dSame
from tiny_data import tiny_config, write_data
from tiny_nets import tiny_net
from torch import Tensor, nn
from torch.nn import functional as F

import gmix
from gmix.cli.main import main
from gmix.config.commands import ExportConfig
from gmix.data import Classes, ImageFormat, find_images, read_image
from gmix.deploy.export import (
    Deployable,
    Format,
    _AveragePool,
    _EvenConv,
    export_model,
    load_onnx,
    load_program,
    trace,
)
from gmix.deploy.predict import predict_image, predict_logits
from gmix.nn.network import GuidedMixNet
from gmix.nn.unet import GuidedMixUnet
from gmix.runs.card import model_card
from gmix.runs.saved import SavedModel
from gmix.runtime.console import explain
from gmix.runtime.own import RECORD, write_own
from gmix.training.train import train

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
SIZES = [(1, 45, 61), (3, 100, 75)]  # batch, height, width: no stride divides them
ENDINGS: dict[Format, str] = {"onnx": "model.onnx", "torch": "model.pt2"}
SMALL: dict[str, Any] = {"encoder_depth": 3, "decoder_channels": (16, 8, 8)}


def saved_model(kind: str, size: tuple[int, int] | None = None, classes: int = 3) -> SavedModel:
    """A network as after some steps: attention is no longer zero, statistics fit the weights."""
    torch.manual_seed(0)
    if kind == "GuidedMixUnet":
        model: Any = GuidedMixUnet(
            "tu-test_resnet", encoder_weights=None, classes=classes, pyramid_channels=8, **SMALL
        )
    elif kind == "DeepLabV3Plus":
        model = smp_model(kind, classes=classes)
    else:
        return of_net(tiny_net(classes, mitrans=kind.endswith("+MITrans")).eval(), size, classes)
    net = GuidedMixNet(model).eval()
    for name, parameter in net.named_parameters():
        if "attention.out.weight" in name:
            nn.init.normal_(parameter, std=0.2)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of what was seen
    net.train()(torch.randn(4, 3, 96, 96))
    return of_net(net.eval(), size, classes)


def of_net(net: GuidedMixNet, size: tuple[int, int] | None = None, classes: int = 3) -> SavedModel:
    return SavedModel(net, Classes.of(1 if classes == 1 else 3), size, MEAN, STD)


class Exported(NamedTuple):
    saved: SavedModel
    path: Path
    run: Callable[[Tensor], Tensor]
    difference: float


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Exported]:
    """Files by what they hold; each is made once."""

    def make(
        kind: str,
        format: Format,
        resized: tuple[int, int] | None = None,
        fixed: tuple[int, int] | None = None,
        classes: int = 3,
    ) -> Exported:
        return made(kind, format, resized, fixed, classes)

    @cache  # which takes an argument that is left out for another than its default
    def made(kind: str, format: Format, resized: Any, fixed: Any, classes: int) -> Exported:
        if format == "onnx":
            pytest.importorskip("onnxruntime")
            pytest.importorskip("onnxscript")
        saved = saved_model(kind, resized, classes)
        path = tmp_path_factory.mktemp("export") / "new" / ENDINGS[format]
        what = kind, resized, fixed, classes
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gmix.deploy.export.trace", partial(traced, what))
            difference = export_model(saved, path, format, fixed)
        return Exported(
            saved, path, load_onnx(path) if format == "onnx" else load_program(path), difference
        )

    graphs: dict[Any, torch.export.ExportedProgram] = {}

    def traced(what: Any, *args: Any) -> torch.export.ExportedProgram:
        """One graph for both formats."""
        if what not in graphs:
            graphs[what] = trace(*args)
        return graphs[what]

    return make


def random_images(batch: int, height: int, width: int) -> Tensor:
    return 255 * torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def expected_logits(saved: SavedModel, images: Tensor) -> Tensor:
    """What `gmix predict` takes the largest of."""
    logits = torch.cat([predict_logits(saved, image) for image in images])
    return F.interpolate(logits, images.shape[-2:], mode="bilinear")


@pytest.mark.parametrize(
    ("kind", "resized", "format"),
    [
        ("Unet+MITrans", None, "onnx"),
        ("Unet+MITrans", None, "torch"),
        ("GuidedMixUnet", None, "onnx"),  # the same graph is in the other format
        ("DeepLabV3Plus", None, "onnx"),
        ("Unet", (48, 64), "onnx"),
        ("Unet", (48, 64), "torch"),
    ],
)
def test_a_file_gives_the_networks_logits(
    kind: str, resized: tuple[int, int] | None, format: Format, exported: Callable[..., Exported]
) -> None:
    made = exported(kind, format, resized)
    assert made.difference < 1e-5
    for shape in [*SIZES, (1, 20, 200), (1, 200, 20), (2, 64, 96)]:
        images = random_images(*shape)
        found, expected = made.run(images), expected_logits(made.saved, images)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() < 1e-4


def test_onnxruntime_agrees_on_real_images(
    shared_data: Path, exported: Callable[..., Exported]
) -> None:
    made, seen = exported("Unet+MITrans", "onnx"), set()
    for path in find_images(next((shared_data / "voc_animals").rglob("*.jpg")).parent)[:3]:
        images = read_image(path)[None].float().as_subclass(Tensor)[..., :230, :]
        seen.add(images.shape)
        assert (made.run(images) - expected_logits(made.saved, images)).abs().max() < 1e-4
    assert len(seen) > 1


@pytest.mark.parametrize("format", ENDINGS)
def test_a_fixed_size_leaves_the_batch_free(
    format: Format, exported: Callable[..., Exported]
) -> None:
    made = exported("Unet", format, fixed=(40, 70))
    for batch in (1, 3):
        images = random_images(batch, 40, 70)
        assert (made.run(images) - expected_logits(made.saved, images)).abs().max() < 1e-4
    with pytest.raises(Exception, match=r"(?i)dimension|guard|expected"):
        made.run(random_images(1, 41, 70))


def test_an_onnx_file_says_what_it_is(exported: Callable[..., Exported]) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(exported("Unet", "onnx", classes=1).path)
    onnx.checker.check_model(model)
    said = {item.key: item.value for item in model.metadata_props}
    assert json.loads(said["classes"]) == ["background", "foreground"]
    assert json.loads(said["mean"]) == list(MEAN) and json.loads(said["std"]) == list(STD)
    assert "0..255" in said["input"] and "above 0" in said["output"] and "gmix_version" in said
    shapes = [
        [axis.dim_param or axis.dim_value for axis in tensor.type.tensor_type.shape.dim]
        for tensor in (model.graph.input[0], model.graph.output[0])
    ]
    assert shapes == [["batch", 3, "height", "width"], ["batch", 1, "height", "width"]]


def test_a_program_says_what_it_is(exported: Callable[..., Exported]) -> None:
    extra = {"gmix.json": ""}
    torch.export.load(exported("Unet+MITrans", "torch").path, extra_files=extra)
    assert json.loads(extra["gmix.json"])["classes"] == ["class 0", "class 1", "class 2"]


def test_a_file_that_computes_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Deployable.forward
    monkeypatch.setattr(Deployable, "forward", lambda self, image: 1.01 * right(self, image))
    with pytest.raises(ValueError, match=r"not give the logits of .* of 32 x 32 \(they are"):
        export_model(saved_model("Unet"), tmp_path / "model.pt2", "torch", size=(32, 32))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ENDINGS)
def test_a_full_disk_leaves_the_file_that_was_there(format: Format, tmp_path: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    path = tmp_path / ENDINGS[format]
    write_own(path, "before")
    with largest_file(10_000), pytest.raises(ValueError, match=r"cannot write \S+: File too large"):
        export_model(saved_model("Unet"), path, format, size=(32, 32))
    assert path.read_text() == "before"
    assert {left.name for left in tmp_path.iterdir()} <= {path.name, RECORD}


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "newest.pt2").symlink_to(Path("models") / "first.pt2")
    export_model(saved_model("Unet"), tmp_path / "newest.pt2", "torch", size=(32, 32))
    assert (tmp_path / "newest.pt2").is_symlink()
    torch.export.load(tmp_path / "models" / "first.pt2")


def test_a_network_that_looks_at_the_size_needs_it_fixed(tmp_path: Path) -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.shape[-1] > 2 * x.shape[-2] else -x

    saved, path = saved_model("Unet"), tmp_path / "model.pt2"
    saved.net.model.segmentation_head.append(Wide())
    with pytest.raises(ValueError, match=r"images of 68 x 202 \(.*\); fix the size with --size"):
        export_model(saved, path, "torch")
    assert not path.exists()
    assert export_model(saved, path, "torch", size=(40, 96)) < 1e-5


def test_a_network_that_looks_at_the_pixels_is_refused(tmp_path: Path) -> None:
    class Bright(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.mean() > 0 else -x

    saved = saved_model("Unet")
    saved.net.model.segmentation_head.append(Bright())
    with pytest.raises(ValueError, match="cannot be exported for images of any size") as caught:
        export_model(saved, tmp_path / "model.pt2", "torch")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (4, 1)])
def test_even_convolution_against_timm(kernel: int, stride: int, dilation: int) -> None:
    torch.manual_seed(0)
    conv = Conv2dSame(2, 3, (kernel, 3), stride=stride, dilation=dilation)
    x = torch.randn(1, 2, 8, 12)
    torch.testing.assert_close(_EvenConv(conv)(x), conv(x))


@pytest.mark.parametrize("bins", [(2, 2), (3, 3), (6, 6), (2, 5)])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (6, 6), (13, 20)])
def test_average_pooling_against_torch(bins: tuple[int, int], size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(_AveragePool(*bins)(x), F.adaptive_avg_pool2d(x, bins))


# --- without gmix ----------------------------------------------------------------------------

SINGLE_PROCESS = """
import sys
sys.modules["gmix"] = None  # importing it fails
import numpy as np, torch
images = torch.from_numpy(np.load("images.npy"))
mean, std = (torch.tensor(values)[:, None, None] for values in np.load("stats.npy").tolist())

with torch.no_grad():
    np.save("torch.npy", torch.export.load("model.pt2").module()(images))

    import onnxruntime
    run = onnxruntime.InferenceSession("model.onnx").run
    np.save("onnx.npy", run(None, {"image": images.numpy()})[0])

    import segmentation_models_pytorch as smp
    np.save("smp.npy", smp.from_pretrained("model").eval()((images / 255 - mean) / std))
"""


def test_no_gmix_is_needed(tmp_path: Path, exported: Callable[..., Exported]) -> None:
    images, saved = random_images(2, 64, 96), saved_model("Unet")
    saved.save_pretrained(tmp_path / "model")
    expected = {"smp": expected_logits(saved, images)}
    for format in ENDINGS:
        made = exported("Unet+MITrans", format)
        shutil.copytree(made.path.parent, tmp_path, dirs_exist_ok=True)
        expected[format] = expected_logits(made.saved, images)
    np.save(tmp_path / "images.npy", images.numpy())
    np.save(tmp_path / "stats.npy", [MEAN, STD])
    subprocess.run(
        [sys.executable, "-c", SINGLE_PROCESS], cwd=tmp_path, check=True, capture_output=True
    )
    for way, logits in expected.items():
        assert np.abs(np.load(tmp_path / f"{way}.npy") - logits.numpy()).max() < 1e-4, way


# --- the card --------------------------------------------------------------------------------


def test_a_training_writes_its_card(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    changes = {"method": "mean_teacher", "lr": 0.002, "steps": 2}
    train(tiny_config(data, tmp_path / "run", **changes))
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["split"] and f"`{results['split']}`" in card
    assert "| images | 4 labeled, 4 unlabeled, 3 validation |" in card
    assert "| method | mean_teacher |" in card and "| steps | 2 |" in card
    assert "`--lr 0.002`" in card and f"gmix {results['versions']['gmix']}" in card
    for name, iou in results["last"]["iou"].items():
        dice = results["last"]["dice"][name]
        assert f"| {name} | {100 * iou:.1f} | {100 * dice:.1f} |" in card
    assert str(tmp_path) not in card  # nothing of the machine
    # What is known of the training goes along to another folder.
    SavedModel.from_pretrained(tmp_path / "run").save_pretrained(tmp_path / "other")
    assert (tmp_path / "other" / "README.md").read_text(encoding="utf-8") == card


def test_the_hub_reads_the_card(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    last = {
        "step": 9,
        "miou": 0.5,
        "mean_dice": 0.6,
        "pixel_accuracy": 0.7,
        "iou": {"background": 0.5, "one": None},
        "dice": {"background": 0.6, "one": None},
    }
    facts = {
        "dataset": "voc",
        "images": {"labeled": 92},
        "split": "1f2e",
        "recipe": "voc_1-8_r101",
        "method": "guidedmix",
        "steps": 9,
        "seed": 0,
        "settings": {},
        "versions": {},
        "scores": last,
    }
    plain = saved_model("Unet")
    saved = SavedModel(plain.net, plain.classes, None, MEAN, STD, training=facts)
    card = ModelCard(model_card(saved))
    assert card.data.library_name == "segmentation-models-pytorch"
    assert {"guidedmix", "semantic-segmentation"} <= set(card.data.tags)
    assert [found.metric_value for found in card.data.eval_results] == [0.5, 0.6]
    assert card.data.license is None
    assert "| one | does not occur | does not occur |" in card.text and "voc_1-8_r101" in card.text


def test_the_card_says_how_to_load_the_model_by_public_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = saved_model("Unet+MITrans")
    saved.save_pretrained(tmp_path / "FOLDER")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", model_card(saved), re.DOTALL)
    names: dict[str, Any] = {"image": random_images(1, 64, 96)[0]}
    exec(code, names)
    assert np.array_equal(names["classes"], predict_image(saved, names["image"]))
    assert re.findall(r".*import.*", code) == ["import gmix"]  # modules may move
    assert set(re.findall(r"gmix\.(\w+)", code)) <= set(gmix.__all__)


def test_the_card_says_what_smp_alone_cannot_load() -> None:
    attentive, own = saved_model("Unet+MITrans"), saved_model("GuidedMixUnet")
    for saved, part in ((attentive, "attention (MITrans)"), (own, "network (GuidedMixUnet)")):
        card = model_card(saved)
        assert f"does not know this model's {part}" in card
        assert "smp.from_pretrained" not in card and "library_name: gmix" in card
    deep = SavedModel(
        own.net, own.classes, (30, 40), MEAN, STD, ImageFormat(channels=3, span=(0, 4095))
    )
    assert "resized to 30 x 40" in model_card(deep) and "4095 becomes 1" in model_card(deep)


# --- the command -----------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved_model("Unet").save_pretrained(tmp_path / "run" / "model")
    words, path = ["export", "--model", str(tmp_path / "run")], tmp_path / "model.pt2"
    assert main([*words, "--out", str(path), "--size", "40x70"]) == 0
    assert capsys.readouterr().out.startswith(f"{path} gives the model's logits")
    assert load_program(path)(random_images(2, 40, 70)).shape == (2, 3, 40, 70)
    assert main([*words, "--out", "model.bin"]) == 1
    assert "--out must end with .onnx or .pt2" in capsys.readouterr().err
    assert main(words) == 2
    assert "--out FILE is missing" in capsys.readouterr().err


def test_a_missing_package_names_its_extra() -> None:
    error = ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript")
    assert 'pip install "gmix[export]"' in explain(error)


def test_the_format_is_that_of_the_ending() -> None:
    assert ExportConfig(out="a.ONNX").chosen_format() == "onnx"
    assert ExportConfig(out="a", format="onnx").chosen_format() == "onnx"
    with pytest.raises(ValueError, match=r"ends with \.pt2"):
        ExportConfig(out="a.onnx", format="torch").chosen_format()
