"""Masks and overlays for folders of images, and the saved model they are made with."""

import math
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from torch.nn import functional as F

from gmix.data import Classes
from gmix.network import GuidedMixNet
from gmix.predict import overlay, predict_folder
from gmix.training.saved import SavedModel, load_model
from gmix.unet import GuidedMixUnet

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def saved_model(channels: int = 3, size: tuple[int, int] | None = None) -> SavedModel:
    torch.manual_seed(0)
    model = smp.Unet(
        "mobilenet_v2", encoder_weights=None, decoder_channels=[8] * 5, classes=channels
    )
    classes = Classes.of(1 if channels == 1 else ["background", "red", "blue"], None)
    return SavedModel(GuidedMixNet(model).eval(), classes, size, MEAN, STD)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    root.mkdir()
    rng = np.random.default_rng(0)
    for name, (height, width) in {"a.png": (40, 64), "b.jpg": (70, 33)}.items():
        pixels = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(root / name)
    return root


@pytest.mark.parametrize("size", [None, (64, 48)])
@pytest.mark.parametrize("channels", [1, 3])
def test_masks_are_the_argmax_at_the_images_own_size(
    folder: Path, tmp_path: Path, channels: int, size: tuple[int, int] | None
) -> None:
    saved = saved_model(channels, size)
    path = folder / "a.png"
    assert predict_folder(saved, [path], tmp_path / "out") == []

    x = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 255
    if size is not None:
        x = F.interpolate(x, size, mode="bilinear", antialias=True)
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        logits = F.interpolate(saved.net(x), (40, 64), mode="bilinear")[0]
    expected = logits.argmax(0) if channels == 3 else (logits[0] > 0).long()

    mask = Image.open(tmp_path / "out" / "masks" / "a.png")
    assert (mask.mode, mask.size) == ("P", (64, 40))
    palette = mask.getpalette()
    assert palette is not None
    assert palette[3:6] == list(saved.classes.palette[1])
    agree = (np.array(mask) == expected.numpy()).mean()
    assert agree > 0.99 if size else agree == 1  # uint8 and float resizing round differently


def test_overlays_are_optional_and_of_the_same_size(folder: Path, tmp_path: Path) -> None:
    saved, images = saved_model(), sorted(folder.iterdir())
    predict_folder(saved, images, tmp_path / "with")
    predict_folder(saved, images, tmp_path / "without", overlays=False)
    sizes = [Image.open(p).size for p in sorted((tmp_path / "with" / "overlays").iterdir())]
    assert sizes == [(64, 40), (33, 70)]
    assert [p.name for p in (tmp_path / "without").iterdir()] == ["masks"]


def test_a_bad_file_is_reported_and_the_others_are_written(folder: Path, tmp_path: Path) -> None:
    (folder / "bad.png").write_bytes(b"no picture")
    (failure,) = predict_folder(saved_model(), sorted(folder.iterdir()), tmp_path / "out")
    assert failure.path.name == "bad.png"
    assert "bad.png" in failure.reason
    assert [p.name for p in sorted((tmp_path / "out" / "masks").iterdir())] == ["a.png", "b.png"]


def test_equal_stems_do_not_overwrite_each_other(folder: Path, tmp_path: Path) -> None:
    Image.open(folder / "a.png").save(folder / "a.bmp")
    predict_folder(saved_model(), sorted(folder.iterdir()), tmp_path / "out")
    names = sorted(p.name for p in (tmp_path / "out" / "masks").iterdir())
    assert names == ["a.bmp.png", "a.png.png", "b.png"]


def test_a_turned_photo_is_predicted_upright(folder: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    Image.open(folder / "a.png").save(folder / "turned.jpg", exif=exif)
    predict_folder(saved_model(), [folder / "turned.jpg"], tmp_path / "out")
    assert Image.open(tmp_path / "out" / "masks" / "turned.png").size == (40, 64)


def test_overlay_against_a_naive_loop() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (5, 4, 3), dtype=np.uint8)
    classes = rng.integers(0, 3, (5, 4), dtype=np.uint8)
    palette = [(0, 0, 0), (10, 200, 30), (0, 0, 255)]
    found = overlay(image, classes, palette, opacity=0.25)
    for y in range(5):
        for x in range(4):
            color = palette[classes[y, x]]
            for c in range(3):
                share = 0.25 if any(color) else 0.0
                value = (1 - share) * image[y, x, c] + share * color[c]
                assert math.isclose(found[y, x, c], value, abs_tol=0.51)


# --- the saved model -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "mitrans", "guidedmixunet"])
def test_saved_model_comes_back(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    if kind == "guidedmixunet":
        model = GuidedMixUnet("resnet18", encoder_weights=None, classes=3, pyramid_channels=16)
    else:
        model = smp.Unet("resnet18", encoder_weights=None, classes=3)
    net = GuidedMixNet(model, mitrans=kind == "mitrans")
    for p in net.parameters():  # MITrans starts at zero, where forgetting it would go unseen
        p.data += 0.01 * torch.randn_like(p)
    classes = Classes.of(["background", "red", "blue"], {0: 0, 7: 2})
    SavedModel(net.eval(), classes, (32, 64), MEAN, STD).save_pretrained(tmp_path / "model")
    found = load_model(tmp_path)  # the OUT folder; its model/ works as well
    assert (found.classes, found.size, found.mean, found.std) == (classes, (32, 64), MEAN, STD)
    assert not found.net.training
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found.net(x), net(x))
        assert torch.equal(found.net.classify(found.net.embed(x)), net.classify(net.embed(x)))
        if kind == "plain":
            alone = smp.from_pretrained(tmp_path / "model").eval()
            assert torch.equal(alone(x), net(x))


def test_saving_never_asks_for_a_download_on_loading(tmp_path: Path) -> None:
    saved = saved_model()
    saved.net.model.config["encoder_weights"] = "imagenet"
    saved.save_pretrained(tmp_path)
    assert '"encoder_weights": null' in (tmp_path / "config.json").read_text()


def test_a_missing_or_broken_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no trained model in .*expected the --out folder"):
        load_model(tmp_path)
    saved_model().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "gmix.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="cannot load the model in") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)
