"""Masks and overlays for folders of images, and the saved model they are made with."""

import itertools
import math
import threading
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from full_disk import largest_file
from PIL import Image
from tiny_nets import tiny_net
from torch.nn import functional as F
from torchvision import tv_tensors

from gmix.cli.main import main
from gmix.data import Classes, ImageFormat, Sample, eval_transform, read_image, to_rgb
from gmix.deploy.predict import BAND, overlay, predict_folder, predict_image
from gmix.deploy.pseudo_label import predict_sure
from gmix.evaluation import Inference, count_pixels, predict_multiscale, sliding_bands
from gmix.nn.network import GuidedMixNet
from gmix.nn.unet import GuidedMixUnet
from gmix.runs.saved import SavedModel
from gmix.runtime.own import RECORD

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def saved_model(channels: int = 3, size: tuple[int, int] | None = None) -> SavedModel:
    classes = Classes.of(1 if channels == 1 else ["background", "red", "blue"], None)
    return SavedModel(tiny_net(channels).eval(), classes, size, MEAN, STD)


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
    assert {p.name for p in (tmp_path / "without").iterdir()} == {"masks", RECORD}


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


def test_an_overlay_of_many_rows_is_mixed_as_one() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (2 * BAND + 5, 7, 3), dtype=np.uint8)
    classes = rng.integers(0, 3, image.shape[:2], dtype=np.uint8)
    palette = [(0, 0, 0), (10, 200, 30), (0, 0, 255)]
    rows = [overlay(image[y : y + 1], classes[y : y + 1], palette) for y in range(len(image))]
    assert (overlay(image, classes, palette) == np.concatenate(rows)).all()


# --- reading ahead, writing behind -----------------------------------------------------------


def many(root: Path, count: int) -> list[Path]:
    root.mkdir()
    rng = np.random.default_rng(0)
    paths = [root / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        pixels = rng.integers(0, 255, (33 + number % 3, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


def test_a_folder_is_what_one_image_after_the_other_is(tmp_path: Path) -> None:
    saved, paths = saved_model(), many(tmp_path / "images", 9)
    paths[3].write_bytes(b"no picture")
    seen: list[Path] = []
    network: set[threading.Thread] = set()
    saved.net.register_forward_hook(lambda *_: network.add(threading.current_thread()))
    before = set(threading.enumerate())
    failures = predict_folder(saved, paths, tmp_path / "out", on_image=seen.append)
    assert set(threading.enumerate()) == before
    assert network == {threading.current_thread()}  # where autocast and the like are set
    assert seen == paths and [failure.path for failure in failures] == [paths[3]]

    alone = tmp_path / "alone"
    (alone / "masks").mkdir(parents=True)
    (alone / "overlays").mkdir()
    for path in paths[:3] + paths[4:]:
        image = read_image(path)
        classes = predict_image(saved, image)
        mask = Image.fromarray(classes)
        mask.putpalette([channel for color in saved.classes.palette for channel in color])
        mask.save(alone / "masks" / path.name)
        picture = overlay(to_rgb(image), classes, saved.classes.palette)
        Image.fromarray(picture).save(alone / "overlays" / f"{path.stem}.jpg", quality=92)
    written = {path.relative_to(alone): path.read_bytes() for path in alone.rglob("*.*")}
    out = tmp_path / "out"
    assert written == {path.relative_to(out): path.read_bytes() for path in out.rglob("*.[jp]*")}


def test_only_a_handful_of_images_are_there_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    counts: list[int] = []

    def read(*args: object) -> torch.Tensor:
        image: torch.Tensor = read_image(*args)
        alive.add(image)
        counts.append(len(alive))
        return image

    monkeypatch.setattr("gmix.deploy.predict.read_image", read)
    paths = many(tmp_path / "images", 20)
    assert predict_folder(saved_model(), paths, tmp_path / "out", overlays=False) == []
    assert len(counts) == 20 and max(counts) <= 8 and not alive


def test_what_cannot_be_written_ends_the_loop(tmp_path: Path) -> None:
    paths = many(tmp_path / "images", 9)
    (tmp_path / "out" / "masks" / "1.png").mkdir(parents=True)
    before = set(threading.enumerate())
    with pytest.raises(ValueError, match=r"cannot write .*1\.png: "):
        predict_folder(saved_model(), paths, tmp_path / "out", overlays=False)
    assert not (tmp_path / "out" / "masks" / "8.png").exists()
    assert {thread for thread in threading.enumerate() if thread.is_alive()} == before


def test_a_full_disk_leaves_no_half_of_a_mask(tmp_path: Path) -> None:
    paths = many(tmp_path / "images", 2)
    out = tmp_path / "out"
    with largest_file(50), pytest.raises(ValueError, match=r"cannot write \S+: File too large"):
        predict_folder(saved_model(), paths, out)
    assert not [path for path in out.rglob("*") if path.is_file()]
    predict_folder(saved_model(), paths, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with largest_file(50), pytest.raises(ValueError, match=r"cannot write \S+: File too large"):
        predict_folder(saved_model(), paths, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_stopped_at_an_image_the_ones_before_are_whole(tmp_path: Path) -> None:
    paths = many(tmp_path / "images", 9)

    def stop(path: Path) -> None:
        if path == paths[5]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_folder(saved_model(), paths, tmp_path / "out", on_image=stop)
    for path in paths[:5]:
        Image.open(tmp_path / "out" / "masks" / path.name).load()
        Image.open(tmp_path / "out" / "overlays" / f"{path.stem}.jpg").load()
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 5


# --- windows ---------------------------------------------------------------------------------

WINDOWS = partial(sliding_bands, crop=(32, 32), stride=(16, 24), edge="truncate")


@pytest.mark.parametrize(("channels", "size"), [(1, None), (3, (64, 48))])
@pytest.mark.parametrize(
    "predict", [WINDOWS, partial(predict_multiscale, scales=[1.0, 1.5])], ids=["windows", "scales"]
)
def test_windows_are_those_of_evaluate(
    folder: Path, channels: int, size: tuple[int, int] | None, predict: partial[torch.Tensor]
) -> None:
    saved = saved_model(channels, size)
    image = read_image(folder / "b.jpg")
    mask = torch.from_numpy(predict_image(saved, image, predict)).long()
    counts = count_pixels(
        saved.net,
        [Sample(image, tv_tensors.Mask(mask))],
        saved.classes,
        transform=eval_transform(saved.mean, saved.std),
        size=saved.size,
        predict=predict,
    ).counts
    assert counts.diagonal().sum() == counts.sum() == 70 * 33
    assert (mask.numpy() != predict_image(saved, image)).any()


class Spy(torch.nn.Module):
    """Looks at what the network is shown."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        logits: torch.Tensor = self.net(x)
        return logits


@pytest.mark.parametrize(
    ("channels", "size", "edge"),
    [(1, None, "shift"), (3, None, "truncate"), (1, (64, 48), "truncate"), (3, (32, 96), "shift")],
)
def test_a_window_as_large_as_the_image_is_the_whole_image_to_the_bit(
    folder: Path, channels: int, size: tuple[int, int] | None, edge: Any
) -> None:
    saved = saved_model(channels, size)
    for name, own in (("a.png", (40, 64)), ("b.jpg", (70, 33))):
        image = read_image(folder / name)
        for crop in (own, (own[0], own[1] + 9), (200, 300)):
            windows = Inference(crop, (max(1, crop[0] // 2), 5), edge)
            mask = predict_image(saved, image)
            assert np.array_equal(predict_image(saved, image, windows), mask)
            for ours, whole in zip(
                predict_sure(saved, image, windows), predict_sure(saved, image), strict=True
            ):
                assert np.array_equal(ours, whole)
            sample = Sample(image, tv_tensors.Mask(torch.from_numpy(mask)))
            counts = count_pixels(
                saved.net,
                [sample],
                saved.classes,
                transform=eval_transform(saved.mean, saved.std),
                size=size,
                predict=windows,
            ).counts
            assert counts.diagonal().sum() == mask.size


def test_a_network_of_one_size_sees_each_window_at_that_size() -> None:
    """Not a piece of the whole image made small: each window of the photo, as if it were a photo."""
    saved = saved_model(3, (64, 96))
    spy = Spy(saved.net)
    saved = replace(saved, net=spy)
    image = torch.randint(256, (3, 256, 192), dtype=torch.uint8)
    mean, std = (torch.tensor(stats).view(3, 1, 1) for stats in (MEAN, STD))

    predict_image(
        saved, image, Inference((64, 96), (64, 96))
    )  # as many pixels as it was trained on
    expected = [
        image[:, top : top + 64, left : left + 96] for top in range(0, 256, 64) for left in (0, 96)
    ]
    assert len(spy.seen) == len(expected) == 8
    for x, window in zip(spy.seen, expected, strict=True):
        torch.testing.assert_close(x[0], (window / 255 - mean) / std, atol=1e-5, rtol=1e-5)

    spy.seen.clear()
    mask = predict_image(saved, image, Inference((128, 96), (64, 48)))  # half as high
    assert mask.shape == (256, 192)
    assert [tuple(x.shape[-2:]) for x in spy.seen] == [(64, 96)] * 9
    small = F.interpolate(image[None].float(), (128, 192), mode="bilinear", antialias=True)[0]
    small = (small / 255 - mean) / std
    corners = itertools.product((0, 32, 64), (0, 48, 96))
    for x, (top, left) in zip(spy.seen, corners, strict=True):
        window = small[:, top : top + 64, left : left + 96]
        assert (x[0] - window).abs().max() < 0.02  # a uint8 image is resized to whole numbers

    spy.seen.clear()
    predict_image(saved, image, Inference((200, 100), (200, 100), "truncate"))
    assert {tuple(x.shape[-2:]) for x in spy.seen} == {(64, 96), (64, 88), (18, 96), (18, 88)}


def test_windows_of_a_network_of_one_size_find_what_is_small() -> None:
    """Against predicting every window as an image of its own."""
    saved = saved_model(3, (64, 64))
    image = torch.randint(256, (3, 192, 128), dtype=torch.uint8)
    found = predict_image(saved, image, Inference((64, 64), (64, 64)))
    for top in range(0, 192, 64):
        for left in range(0, 128, 64):
            rows, columns = slice(top, top + 64), slice(left, left + 64)
            alone = predict_image(saved, image[:, rows, columns])
            assert (found[rows, columns] == alone).mean() > 0.999
    thumbnail = predict_image(saved, image)
    assert (found != thumbnail).mean() > 0.01


def test_the_command_predicts_in_windows(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, images = saved_model(), sorted(folder.iterdir())
    saved.save_pretrained(tmp_path / "run" / "model")
    predict_folder(saved, images, tmp_path / "here", overlays=False, predict=WINDOWS)
    words = ["predict", "--model", str(tmp_path / "run"), "--images", str(folder), "--masks-only"]
    words += ["--device", "cpu", "--out", str(tmp_path / "there")]
    flags = ["--window", "32x32", "--stride", "16x24", "--edge", "truncate"]
    assert main([*words, *flags]) == 0
    for name in ("a.png", "b.png"):
        here, there = (tmp_path / place / "masks" / name for place in ("here", "there"))
        assert here.read_bytes() == there.read_bytes()
    capsys.readouterr()
    assert main([*words, "--stride", "8x8"]) == 1
    assert "add --window HxW" in capsys.readouterr().err


def test_values_outside_of_the_models_range_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model of 12-bit images that gets some of 16 bits would see white ones."""
    saved = replace(saved_model(), format=ImageFormat(3, (0, 4095)))
    saved.save_pretrained(tmp_path / "model")
    images, masks = tmp_path / "images", tmp_path / "masks"
    for folder in (images, masks):
        folder.mkdir()
    np.save(images / "a.npy", np.full((32, 32, 3), 60000, dtype=np.uint16))
    (images / "b.npy").write_bytes(b"cut")
    turned = Image.Exif()
    turned[0x112] = 3
    Image.new("RGB", (32, 32)).save(images / "c.jpg", exif=turned)
    words = ["--model", str(tmp_path), "--images", str(images), "--device", "cpu", "--out"]
    for command in ("predict", "pseudo-label"):
        assert main([command, *words, str(tmp_path / command)]) == 1  # one of them is cut short
        told = capsys.readouterr().err.splitlines()[0]
        assert "warning: 1 of 3 images hold values outside of --value-range 0-4095" in told
        assert f"{images / 'a.npy'}: 60000 to 60000" in told
    (images / "b.npy").unlink()
    for name in ("a", "c"):
        Image.new("L", (32, 32)).save(masks / f"{name}.png")
    words = ["--model", str(tmp_path), "--val-images", str(images), "--val-masks", str(masks)]
    assert main(["evaluate", *words, "--device", "cpu"]) == 0
    told = capsys.readouterr().err
    assert "1 of 2 images hold values outside of" in told
    assert "are turned or mirrored by their EXIF data" in told and "--mask-orientation" in told
    assert main(["evaluate", *words, "--device", "cpu", "--mask-orientation", "shown"]) == 0
    assert "EXIF" not in capsys.readouterr().err


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
    assert (tmp_path / "model" / "gmix.safetensors").exists() == (kind == "mitrans")
    found = SavedModel.from_pretrained(tmp_path)  # the OUT folder; its model/ works as well
    assert (found.classes, found.size, found.mean, found.std) == (classes, (32, 64), MEAN, STD)
    assert not found.net.training
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found.net(x), net(x))
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
        SavedModel.from_pretrained(tmp_path)
    saved_model().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="cannot load the model in") as caught:
        SavedModel.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
