"""Trainings on known data sets, and on images of other channels and depths, from the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from gmix.builders.data import build_data, find_data
from gmix.cli.main import main
from gmix.config.commands import EvaluateConfig
from gmix.config.yamlfile import write_yaml
from gmix.data import LAYOUTS, Classes, Finder, Layout, fit_binary, read_mask
from gmix.deploy.evaluate import fit_masks, judged_on
from gmix.runs.saved import SavedModel
from tests.tiny_data import NAMES, tiny_config, words, write_data
from tests.true_layouts import WRITERS

NO_FOLDERS = {"images": None, "masks": None, "val_images": None, "val_masks": None}
NOTHING = {**NO_FOLDERS, "classes": None}


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_training_on_each_known_data_set(name: str, tmp_path: Path) -> None:
    """By name alone: no class names, no label map. The model knows its classes and their colours."""
    WRITERS[name](tmp_path / "data")
    config = tiny_config(
        tmp_path,
        tmp_path / "run",
        **NOTHING,
        dataset=name.replace("_", "-"),
        data=str(tmp_path / "data"),
        unlabeled_list="train",
        labels=1,
        steps=1,
        method="fixmatch",
    )
    assert main(["train", *words(config)]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["images"] == {"labeled": 1, "unlabeled": 1, "validation": 2}
    classes = LAYOUTS[name].classes()
    assert set(results["last"]["iou"]) == set(classes.names)
    assert SavedModel.from_pretrained(tmp_path / "run").classes.palette == classes.palette
    assert main(["evaluate", "--model", str(tmp_path / "run"), "--threads", "1"]) == 0
    data = ["--dataset", name, "--data", str(tmp_path / "data"), "--val-list", "train"]
    assert main(["evaluate", "--model", str(tmp_path / "run"), *data, "--threads", "1"]) == 0


def test_a_label_map_keeps_the_data_set_s_colours_and_lists_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, made = tmp_path / "data", list[Path]()
    WRITERS["voc"](root)

    class Counted(Finder):
        def __init__(self, layout: Layout, root: Path) -> None:
            made.append(root)
            super().__init__(layout, root)

    monkeypatch.setattr("gmix.config.files.Finder", Counted)
    changes = {**NOTHING, "voc": str(root), "label_map": "0:0,1:15", "labels": 1, "held_out": 1}
    data = find_data(tiny_config(tmp_path, tmp_path / "run", **changes))
    assert data.classes.label_map == {0: 0, 1: 15} and data.held_out is not None
    assert data.classes.palette == LAYOUTS["voc"].classes().palette
    assert data.classes.palette != Classes.of(data.classes.names).palette
    assert made == [root]


def test_evaluate_takes_another_list_or_part_of_the_run_s_data(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "run"
    WRITERS["voc"](data)
    changes = {**NOTHING, "voc": str(data), "method": "supervised", "val_part": "odd"}
    assert main(["train", *words(tiny_config(tmp_path, out, **changes))]) == 0

    def split(*flags: str) -> str:
        argv = ["evaluate", "--model", str(out), "--threads", "1", "--out", str(out / "s.json")]
        assert main([*argv, *flags]) == 0
        return str(json.loads((out / "s.json").read_text())["split"])

    whole = ("--voc", str(data))
    assert split() == split("--val-part", "odd") == split(*whole, "--val-part", "odd")
    assert split("--val-part", "all") == split(*whole) == split(*whole, "--val-list", "val")
    assert split("--val-list", "train") == split(*whole, "--val-list=train", "--val-part=odd")
    assert len({split(), split(*whole), split("--val-list", "train")}) == 3


def test_a_model_of_one_kind_of_masks_is_tested_on_the_other(tmp_path: Path) -> None:
    """Cityscapes: trained on raw ids, tested on class ids, with the same result."""
    data = tmp_path / "data"
    WRITERS["cityscapes"](data)
    changes = {**NOTHING, "dataset": "cityscapes", "data": str(data), "method": "supervised"}
    assert main(["train", *words(tiny_config(tmp_path, tmp_path / "run", **changes))]) == 0
    flags = ["--model", str(tmp_path / "run"), "--threads", "1", "--out"]
    assert main(["evaluate", *flags, str(tmp_path / "raw.json")]) == 0
    classes = LAYOUTS["cityscapes"].classes()
    for path in (data / "gtFine").rglob("*_labelIds.png"):
        ids = read_mask(path, classes).numpy().astype(np.uint8)
        Image.fromarray(ids).save(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
    assert main(["evaluate", *flags, str(tmp_path / "trained.json")]) == 0
    raw, trained = (json.loads((tmp_path / f"{k}.json").read_text()) for k in ("raw", "trained"))
    assert raw == trained and len(raw["split"]) == 12 and raw["miou"] > 0


def test_voc_is_short_for_the_data_set_and_its_folder(tmp_path: Path) -> None:
    WRITERS["voc"](tmp_path)
    short = tiny_config(tmp_path, tmp_path, **NOTHING, method="supervised", voc=str(tmp_path))
    long = tiny_config(
        tmp_path, tmp_path, **NOTHING, method="supervised", dataset="voc", data=str(tmp_path)
    )
    assert build_data(short).classes == build_data(long).classes
    assert build_data(short).counts == build_data(long).counts


def test_classes_of_ones_own_on_a_known_data_set(tmp_path: Path) -> None:
    WRITERS["voc"](tmp_path)
    config = tiny_config(tmp_path, tmp_path, **NO_FOLDERS, method="supervised", voc=str(tmp_path))
    config.classes, config.label_map = "2", "0:0,15:1"
    data = build_data(config)
    assert data.classes.names == ("class 0", "class 1")
    assert data.labeled[0].mask.unique().tolist() == [0, 1, 255]


def grey_scans(root: Path, kind: str) -> dict[str, Any]:
    """The tiny scenes as scans of one channel of 12 bits in files of 16, masks 0 and 255."""
    write_data(root)
    for folder in ("images", "val_images"):
        for path in (root / folder).iterdir():
            with Image.open(path) as file:
                grey = np.array(file.convert("L")).astype(np.uint16) * 16
            path.unlink()
            if kind == "npy":
                np.save(path.with_suffix(".npy"), grey)
            else:
                Image.fromarray(grey).save(path)
    for folder in ("masks", "val_masks"):
        for path in (root / folder).iterdir():
            with Image.open(path) as file:
                ids = np.array(file)
            Image.fromarray(np.where(ids > 0, 255, 0).astype(np.uint8)).save(path)
    return {"channels": 1, "value_range": "0-4095", "classes": 1}


def five_bands(root: Path) -> dict[str, Any]:
    """The tiny scenes as TIFF files of five bands of 16 bits."""
    write_data(root)
    for folder in ("images", "val_images"):
        for path in (root / folder).iterdir():
            with Image.open(path) as file:
                rgb = np.array(file).astype(np.uint16) * 257
            path.unlink()
            tifffile.imwrite(path.with_suffix(".tif"), np.dstack([rgb, rgb[..., :2]]))
    return {"channels": 5}


@pytest.mark.parametrize(
    ("method", "kind"), [("guidedmix", "bands"), ("unimatch", "png"), ("cct", "npy")]
)
def test_grey_binary_and_many_channels_from_training_to_prediction(
    method: str, kind: str, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    settings = five_bands(data) if kind == "bands" else grey_scans(data, kind)
    config = tiny_config(data, tmp_path / "run", method=method, steps=2, **settings)
    assert main(["train", *words(config)]) == 0
    model = str(tmp_path / "run")
    saved = SavedModel.from_pretrained(model)
    assert saved.format.channels == settings["channels"]
    assert main(["evaluate", "--model", model, "--threads", "1"]) == 0
    out = tmp_path / "predicted"
    images = str(data / "val_images")
    assert main(["predict", "--model", model, "--images", images, "--out", str(out)]) == 0
    assert len(list((out / "masks").iterdir())) == len(list((out / "overlays").iterdir())) == 3
    if kind != "bands":  # 255 was the foreground, not ignored
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        assert results["last"]["absent"] == []
        assert saved.classes.label_map == {0: 0, 1: 1, 255: 1}


def test_masks_of_0_1_and_255_keep_255_as_ignored(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    for path in (data / "masks").iterdir():
        with Image.open(path) as file:
            ids = np.array(file)
        Image.fromarray(np.array([0, 1, 255], dtype=np.uint8)[ids]).save(path)
    changes: dict[str, Any] = {"val_images": None, "val_masks": None}
    config = tiny_config(data, tmp_path, classes=1, method="supervised", **changes)
    assert build_data(config).classes.label_map is None


def test_a_model_that_reads_255_as_foreground_is_tested_on_masks_that_may_mean_that(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    settings = grey_scans(data, "png")
    config = tiny_config(data, tmp_path / "run", method="supervised", steps=1, **settings)
    assert main(["train", *words(config)]) == 0

    def scores(values: list[int]) -> Any:
        folder = tmp_path / "-".join(map(str, values))
        folder.mkdir()
        for path in (data / "val_masks").iterdir():
            with Image.open(path) as file:
                foreground = np.array(file) > 0
            mask = np.array(values[:2], dtype=np.uint8)[foreground.astype(int)]
            mask[0, :5] = values[2]
            Image.fromarray(mask).save(folder / path.name)
        out = tmp_path / f"{folder.name}.json"
        given = ["--val-images", str(data / "val_images"), "--val-masks", str(folder)]
        capsys.readouterr()
        code = main(
            [
                "evaluate",
                "--model",
                str(tmp_path / "run"),
                *given,
                "--threads",
                "1",
                "--out",
                str(out),
            ]
        )
        return json.loads(out.read_text()) if code == 0 else capsys.readouterr().err

    refused = scores([0, 1, 255])
    assert refused.count("\n") == 1 and "holds 1 and 255, but this model has" in refused
    # The remedy: the first five pixels are scored in neither, and 1 is what 255 is.
    left_out, same = scores([0, 1, 2]), scores([0, 255, 2])
    for name in ("miou", "pixel_accuracy"):
        assert left_out[name] == same[name]


def test_validation_images_are_never_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However their folder is spelled; and nobody is judged on what was taught with its mask."""
    monkeypatch.chdir(tmp_path)
    WRITERS["voc"](Path("voc"))
    Path("link").symlink_to("voc", target_is_directory=True)
    images = "voc/JPEGImages"
    counts = []
    for spelled in (images, f"{tmp_path}/{images}", f"link/../{images}", "link/JPEGImages"):
        changes: dict[str, Any] = {**NOTHING, "voc": "voc", "unlabeled": spelled, "labels": 1}
        data = build_data(tiny_config(tmp_path, tmp_path, **changes, held_out=1))
        counts.append(data.counts)
        assert data.held_out is not None
    assert counts == [{"labeled": 1, "unlabeled": 1, "validation": 2, "held_out": 1}] * 4
    judged = {**NOTHING, "voc": "voc", "train_list": "val"}
    with pytest.raises(
        ValueError, match="labeled images that are validation images too: 2, such as"
    ):
        build_data(tiny_config(tmp_path, tmp_path, **judged))


def test_what_is_odd_about_the_masks_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Masks that no image is called like, and classes that nothing teaches, are not errors, but notes."""
    data = write_data(tmp_path / "data")
    first, *others = sorted((data / "masks").iterdir())
    for path in others[1:]:
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    for path in (first, others[0]):
        with Image.open(path) as file:
            ids = np.array(file)
        Image.fromarray(np.where(ids == 2, 255, ids).astype(np.uint8)).save(path)
    config = tiny_config(data, tmp_path / "run", method="supervised")
    for cache in (False, True):
        config.cache = cache
        stray, absent = build_data(config).notes
        count = len(others) - 1
        assert stray.startswith(f"{count} of {count + 2} masks belong to no image, such as ")
        assert absent == f"no labeled pixel, so nothing is learned, of {NAMES[2]}"
    assert main(["train", *words(config)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert absent in said and "masks belong to no image" in said


def test_masks_of_other_images_of_the_run_are_not_odd(tmp_path: Path) -> None:
    """All masks in one folder, whether their images are learned with them, without them, or judged on."""
    data = write_data(tmp_path / "data")
    for path in (data / "val_masks").iterdir():
        path.rename(data / "masks" / path.name)
    first, more = min((data / "images").iterdir()), data / "more"
    more.mkdir()
    first.rename(more / first.name)
    config = tiny_config(data, tmp_path, unlabeled=str(more), val_masks=str(data / "masks"))
    assert not [note for note in build_data(config).notes if "belong to no image" in note]


def test_notes_never_advise_what_was_given_and_speak_of_validation_masks_too(
    tmp_path: Path,
) -> None:
    data = write_data(tmp_path / "data")
    for path in [*(data / "masks").iterdir(), *(data / "val_masks").iterdir()]:
        Image.fromarray(np.repeat([[0, 255]], 32, axis=1).repeat(64, axis=0).astype("u1")).save(
            path
        )
    settings: dict[str, Any] = {"method": "supervised", "classes": 2}
    notes = build_data(tiny_config(data, tmp_path, **settings)).notes
    lost = {"labeled": "learned", "validation": "scored"}
    assert list(notes) == [
        f"no {split} pixel, so nothing is {what}, of class 1; where 255 is the foreground, say --classes 1"
        for split, what in lost.items()
    ]
    settings |= {"classes": 1, "label_map": "0:0,1:1"}
    notes = build_data(tiny_config(data, tmp_path, **settings)).notes
    assert [note.rpartition(" ")[2] for note in notes] == ["foreground", "foreground"]
    settings |= {"label_map": None}
    built = build_data(tiny_config(data, tmp_path, **settings))
    assert built.notes == () and built.labeled[0].mask.unique().tolist() == [0, 1]


def test_evaluate_looks_at_its_masks_as_training_does(tmp_path: Path) -> None:
    """A model trained on masks of 0 and 1 is tested on masks of 0 and 255; a mix of both is refused."""
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path, value in zip(paths, (1, 255), strict=True):
        Image.fromarray(np.array([[0, value]], dtype=np.uint8)).save(path)
    one, white = paths
    for path in paths:
        classes = fit_masks(Classes.of(1), EvaluateConfig(), [path])
        assert read_mask(path, classes).tolist() == [[0, 1]]
    with pytest.raises(ValueError, match=rf"mask {white} .* mask {one} holds 1"):
        fit_masks(Classes.of(1), EvaluateConfig(), paths)
    as_trained = fit_binary(Classes.of(1), [white])
    for path in paths:  # what was found in training is read alike
        assert read_mask(path, fit_masks(as_trained, EvaluateConfig(), paths)).tolist() == [[0, 1]]
    for path, colors in zip(paths, ([0, 0, 0, 9, 9, 9], [9, 9, 9, 0, 0, 0]), strict=True):
        picture = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
        picture.putpalette(colors)
        picture.save(path)
    with pytest.raises(ValueError, match="the colour"):
        fit_masks(Classes.of(2), EvaluateConfig(), paths)


def test_notes_on_values_name_file_and_range(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    for path in (data / "images").iterdir():
        with Image.open(path) as file:
            np.save(path.with_suffix(".npy"), np.array(file).astype(np.uint16) * 16)
        path.unlink()
    settings: dict[str, Any] = {"method": "supervised", "val_images": None, "val_masks": None}
    (note,) = build_data(tiny_config(data, tmp_path, **settings)).notes
    assert "than 14 of 255" in note and "--value-range 0-4095" in note
    assert not build_data(tiny_config(data, tmp_path, **settings, value_range="0-4095")).notes
    (note,) = build_data(tiny_config(data, tmp_path, **settings, value_range="0-255")).notes
    assert note.startswith("4 of 4 images") and "--value-range 0-255" in note
    assert note.endswith(f"{data / 'images' / '00.npy'}: 640 to 3520")
    eight = write_data(tmp_path / "eight")
    (note,) = build_data(tiny_config(eight, tmp_path, **settings, value_range="0-255")).notes
    assert note.startswith("--value-range 0-255 is for images of more than 8 bits")


def test_a_photo_turned_by_180_degrees_is_a_note_until_its_masks_are_said_to_be_drawn_on_something(
    tmp_path: Path,
) -> None:
    data = write_data(tmp_path / "data")
    exif = Image.Exif()
    exif[0x0112] = 3
    path = data / "images" / "00.png"
    with Image.open(path) as file:
        file.save(path, exif=exif)
    with Image.open(data / "masks" / "00.png") as file:
        ids = torch.from_numpy(np.array(file)).long()
    settings: dict[str, Any] = {"method": "supervised"}
    (note,) = build_data(tiny_config(data, tmp_path, **settings)).notes
    assert note.startswith("1 of 7 images") and str(path) in note and "--mask-orientation" in note
    for how, mask in (("shown", ids), ("stored", ids.flip(0, 1))):
        built = build_data(tiny_config(data, tmp_path, **settings, mask_orientation=how))
        assert built.notes == () and torch.equal(
            built.labeled[0].mask.as_subclass(torch.Tensor), mask
        )
        run = tmp_path / how
        run.mkdir()
        write_yaml(tiny_config(data, run, **settings, mask_orientation=how), run / "config.yaml")
        assert judged_on(EvaluateConfig(model=str(run)), run).mask_orientation == how
        said = EvaluateConfig(model=str(run), mask_orientation="stored")
        assert judged_on(said, run).mask_orientation == "stored"


def test_palettes_that_differ_without_contradiction_are_a_note(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    for path, colour in zip(
        sorted((data / "masks").iterdir()), ([9, 0, 0], [0, 9, 0]), strict=False
    ):
        picture = Image.fromarray(np.eye(64, dtype=np.uint8) * 2)
        picture.putpalette([0, 0, 0, 0, 0, 7, *colour])
        picture.save(path)
    (note,) = build_data(tiny_config(data, tmp_path, method="supervised")).notes
    assert "2 is (9, 0, 0) in " in note and "but (0, 9, 0) in " in note


def test_masks_of_0_and_128_are_not_those_of_an_editor(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    for path in [*(data / "masks").iterdir(), *(data / "val_masks").iterdir()]:
        with Image.open(path) as file:
            ids = np.array(file)
        Image.fromarray(np.where(ids > 0, 128, 0).astype(np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"holds the id 128: expected 0\.\.1 or 255"):
        build_data(tiny_config(data, tmp_path, classes=1, method="supervised"))
