"""Making splits and looking through them: `gmix splits make` and `gmix splits audit`."""

import hashlib
import json
import math
import shlex
import shutil
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_data import NAMES, tiny_config, words, write_data, write_scene

from gmix.builders.data import build_data
from gmix.cli.main import main
from gmix.config.commands import SplitsAuditConfig, SplitsMakeConfig
from gmix.data import Classes, Entry, find_images, read_split, write_split
from gmix.splits import (
    audit_split,
    class_pixels,
    label_counts,
    make_splits,
    seeded_order,
    stratified_order,
)

Capture = pytest.CaptureFixture[str]
ANIMALS = {"classes": 7, "label_map": "0:0,8:1,10:2,12:3,13:4,15:5,17:6"}


def write_voc(root: Path, train: int = 6, more: int = 4, val: int = 3) -> Path:
    """A small VOC tree with the lists train, trainaug (train and more) and val."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    groups = {"train": range(train), "more": range(10, 10 + more), "val": range(20, 20 + val)}
    names = {group: [f"i{i:02d}" for i in numbers] for group, numbers in groups.items()}
    for group, members in names.items():
        for name in members:
            mask = root / "SegmentationClass" / f"{name}.png" if group != "more" else None
            write_scene(root / "JPEGImages" / f"{name}.png", mask, seed=int(name[1:]))
    names["trainaug"] = names["train"] + names.pop("more")
    for group, members in names.items():
        (root / "ImageSets" / "Segmentation" / f"{group}.txt").write_text("\n".join(members))
    return root


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("data") / "voc")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "folders", labeled=6)


def images(path: Path) -> list[str]:
    return [entry.image for entry in read_split(path)]


def complaint(capsys: Capture, argv: list[str], code: int = 1) -> str:
    """Run a command that must fail, return the only line on stderr."""
    capsys.readouterr()
    assert main(argv) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line


# --- how many, and in which order ------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "counts"),
    [  # the published splits: VOC, VOC with SBD, Cityscapes
        (1464, [92, 183, 366, 732]),
        (10582, [662, 1323, 2646, 5291]),
        (2975, [186, 372, 744, 1488]),
    ],
)
def test_fractions_give_the_counts_of_published_splits(total: int, counts: list[int]) -> None:
    found = label_counts("1/16,1/8,1/4,1/2", total)
    assert found == dict(zip(["1_16", "1_8", "1_4", "1_2"], counts, strict=True))


@given(st.integers(1, 10**6), st.integers(1, 99), st.integers(1, 99))
def test_fractions_are_rounded_up(total: int, above: int, below: int) -> None:
    exact = math.ceil(Fraction(above, below) * total)
    if exact <= total:
        assert label_counts(f"{above}/{below}", total) == {f"{above}_{below}": exact}
    else:
        with pytest.raises(ValueError, match="images with a mask: ask for 1 to"):
            label_counts(f"{above}/{below}", total)


@pytest.mark.parametrize("text", ["", "1/8,", "half", "0.125", "1/0", "-3", "1/8/2", "٣"])
def test_what_is_no_number_of_labels_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--labels must be fractions or counts"):
        label_counts(text, 100)


@given(st.sets(st.text(max_size=4), max_size=12), st.integers(0, 99), st.randoms())
def test_the_order_is_of_seed_and_names_alone(names: set[str], seed: int, rng: Any) -> None:
    listed = sorted(names)
    keys = {n: hashlib.sha256(f"{seed} {n}".encode()).hexdigest() for n in listed}
    expected = sorted(listed, key=keys.__getitem__)
    assert [listed[i] for i in seeded_order(listed, seed)] == expected
    rng.shuffle(listed)
    assert [listed[i] for i in seeded_order(listed, seed)] == expected
    some = listed[::2]  # the others change nothing between these
    assert [some[i] for i in seeded_order(some, seed)] == [n for n in expected if n in some]


def slow_order(present: npt.NDArray[np.bool_], order: list[int]) -> list[int]:
    """The rule of `stratified_order`, from the words of its docstring."""
    chosen: list[int] = []
    while True:
        options = []
        for k in range(present.shape[1]):
            waiting = [i for i in order if present[i, k] and i not in chosen]
            if waiting:
                total = int(present[:, k].sum())
                share = Fraction(sum(bool(present[i, k]) for i in chosen), total)
                options.append((share, total, k, waiting[0]))
        if not options:
            return chosen + [i for i in order if i not in chosen]
        chosen.append(min(options)[-1])


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 999))
def test_stratified_order(count: int, classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    present = rng.random((count, classes)) < rng.random(classes)
    order = rng.permutation(count).tolist()
    found = stratified_order(present, order)
    assert found == slow_order(present, order)
    assert sorted(found) == list(range(count))
    occurring = present.any(axis=0)
    beginning = found[: occurring.sum()]  # as many images as classes show all of them
    assert (present[beginning].any(axis=0) == occurring).all()


def test_class_pixels_against_counting_by_hand(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    masks, expected = [], []
    for i, size in enumerate([(5, 7), (3, 2)]):
        ids = rng.choice([0, 1, 2, 9, 255], size).astype(np.uint8)
        masks.append(tmp_path / f"{i}.png")
        Image.fromarray(ids).save(masks[-1])
        flat = ids.ravel().tolist()
        expected.append([*map(flat.count, (0, 9, 2)), flat.count(1) + flat.count(255)])
    classes = Classes.of(3, {0: 0, 9: 1, 2: 2})
    assert class_pixels(masks, classes).tolist() == expected
    assert class_pixels([], classes).shape == (0, 4)


# --- make ------------------------------------------------------------------------------------


def make(out: Path, **flags: Any) -> list[Path]:
    return [made.folder for made in make_splits(SplitsMakeConfig(out=str(out), **flags))]


def test_a_split_of_folders(folders: Path, tmp_path: Path) -> None:
    flags = {"images": str(folders / "images"), "masks": str(folders / "masks")}
    (folder,) = make(tmp_path / "out", labels="1/4", **flags)
    assert folder == tmp_path / "out"
    labeled, unlabeled = (read_split(folder / f"{n}.txt") for n in ("labeled", "unlabeled"))
    assert len(labeled) == 2 and len(unlabeled) == 8  # of six masks and ten images
    assert labeled == sorted(labeled) and [e.image for e in unlabeled] == sorted(
        e.image for e in unlabeled
    )
    for entry in labeled:
        assert entry.mask == entry.image.replace("images/", "masks/")
        assert (folders / entry.image).is_file() and (folders / str(entry.mask)).is_file()
    assert [e.mask is not None for e in unlabeled].count(True) == 4
    everything = {path.relative_to(folders).as_posix() for path in find_images(folders / "images")}
    assert {e.image for e in labeled} | {e.image for e in unlabeled} == everything


def test_more_images_without_masks(folders: Path, tmp_path: Path) -> None:
    flags = {"images": str(folders / "images"), "masks": str(folders / "masks")}
    make(tmp_path / "all", labels=6, unlabeled=str(folders / "val_images"), **flags)
    assert len(images(tmp_path / "all" / "unlabeled.txt")) == 4 + 3
    # The same folder twice, spelled in another way, adds nothing.
    other = folders / "val_masks" / ".." / "images"
    make(tmp_path / "twice", labels=1, unlabeled=str(other), **flags)
    assert len(images(tmp_path / "twice" / "unlabeled.txt")) == 9
    with pytest.raises(ValueError, match="is not inside of"):
        make(
            tmp_path / "out",
            labels=1,
            voc=str(write_voc(tmp_path / "voc")),
            unlabeled=str(folders / "images"),
        )


@pytest.mark.parametrize("stratify", [False, True])
def test_several_splits_are_nested(voc: Path, tmp_path: Path, stratify: bool) -> None:
    flags = {"voc": str(voc), "unlabeled_list": "trainaug", "stratify": stratify, "classes": 3}
    made = make(tmp_path, labels="1/6,1/3,5", seed=3, **flags)
    assert [folder.name for folder in made] == ["1_6", "1_3", "5"]
    labeled = [set(images(folder / "labeled.txt")) for folder in made]
    unlabeled = [set(images(folder / "unlabeled.txt")) for folder in made]
    assert [len(group) for group in labeled] == [1, 2, 5]
    assert labeled[0] < labeled[1] < labeled[2]
    for with_masks, without in zip(labeled, unlabeled, strict=True):
        assert not with_masks & without and len(with_masks | without) == 10
    # Alone, each is what it is among others.
    make(tmp_path / "alone", labels=2, seed=3, **flags)
    assert set(images(tmp_path / "alone" / "labeled.txt")) == labeled[1]


def test_the_same_seed_writes_the_same_bytes(voc: Path, tmp_path: Path) -> None:
    texts = {}
    for name, seed in (("a", 0), ("b", 0), ("c", 1), ("d", 2)):
        (folder,) = make(tmp_path / name, voc=str(voc), labels="1/3", seed=seed)
        texts[name] = (folder / "labeled.txt").read_bytes()
    assert texts["a"] == texts["b"] and len(set(texts.values())) > 1
    moved = shutil.copytree(voc, tmp_path / "moved")
    (folder,) = make(tmp_path / "e", voc=str(moved), labels="1/3")
    assert (folder / "labeled.txt").read_bytes() == texts["a"]


def test_no_other_list_is_overwritten(voc: Path, tmp_path: Path) -> None:
    make(tmp_path, voc=str(voc), labels=2)
    make(tmp_path, voc=str(voc), labels=2)
    before = (tmp_path / "unlabeled.txt").read_bytes()
    (tmp_path / "labeled.txt").unlink()
    with pytest.raises(ValueError, match=r"unlabeled\.txt exists and holds another list"):
        make(tmp_path, voc=str(voc), labels=3)
    assert (tmp_path / "unlabeled.txt").read_bytes() == before
    assert not (tmp_path / "labeled.txt").exists()  # no half of a split


def test_stratify_opens_all_masks_and_plain_ones_none(voc: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(voc, tmp_path / "voc")
    for mask in (broken / "SegmentationClass").iterdir():
        mask.write_bytes(b"no picture")
    make(tmp_path / "plain", voc=str(broken), labels=2)
    with pytest.raises(ValueError, match="cannot read mask"):
        make(tmp_path / "out", voc=str(broken), labels=2, classes=3, stratify=True)
    assert not (tmp_path / "out").exists()


def test_ignored_pixels_are_no_class_to_spread(folders: Path, tmp_path: Path) -> None:
    data = shutil.copytree(folders, tmp_path / "data")
    flags = {"images": str(data / "images"), "masks": str(data / "masks")}
    flags |= {"labels": 1, "classes": 3, "stratify": True}
    make(tmp_path / "before", **flags)
    (first,) = images(tmp_path / "before" / "labeled.txt")
    other = next(path for path in find_images(data / "masks") if path.name != Path(first).name)
    mask = np.array(Image.open(other))
    mask[0, 0] = 255
    Image.fromarray(mask).save(other)
    make(tmp_path / "after", **flags)
    assert images(tmp_path / "after" / "labeled.txt") == [first]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--labels", "1/8", "--out", "o"], "--images DIR and --masks DIR are missing"),
        (["--labels", "2", "--out", "o", "--stratify"], "--stratify needs --classes"),
        (["--labels", "some", "--out", "o", "--voc", "VOC"], "must be fractions or counts"),
        (["--labels", "7", "--out", "o", "--voc", "VOC"], "7 of 6 images with a mask"),
        (["--labels", "6", "--out", "o", "--voc", "VOC"], "would label every image"),
    ],
)
def test_what_cannot_be_made_is_said_in_one_line(
    voc: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [str(voc) if word == "VOC" else word for word in flags]
    assert message in complaint(capsys, ["splits", "make", *argv])
    assert not (tmp_path / "o").exists()


def test_make_says_what_it_made(voc: Path, tmp_path: Path, capsys: Capture) -> None:
    argv = ["splits", "make", "--voc", str(voc), "--labels", "1/3", "--out", str(tmp_path)]
    assert main([*argv, "--classes", "4"]) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path}: 2 labeled, 4 unlabeled images" in said
    assert "no labeled pixel of class 3\n" in said
    assert f"  gmix train --voc {voc} --train-list {tmp_path / 'labeled.txt'} --unl" in said


def test_make_says_what_else_folders_need(folders: Path, tmp_path: Path, capsys: Capture) -> None:
    data = ["--images", str(folders / "images"), "--masks", str(folders / "masks")]
    assert main(["splits", "make", *data, "--labels", "2", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith(" --val-images DIR --val-masks DIR --classes N ...\n")


def test_make_names_the_data_set_again(voc: Path, tmp_path: Path, capsys: Capture) -> None:
    root = shutil.copytree(voc, tmp_path / "my voc")
    argv = ["splits", "make", "--dataset", "voc", "--data", str(root), "--labels", "2"]
    assert main([*argv, "--out", str(tmp_path / "made")]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[:6] == ["gmix", "train", "--dataset", "voc", "--data", str(root)]


# --- training on what was made ---------------------------------------------------------------


def voc_flags(root: Path, split: Path) -> dict[str, Any]:
    return {
        "images": None,
        "masks": None,
        "voc": str(root),
        "train_list": str(split / "labeled.txt"),
        "unlabeled_list": str(split / "unlabeled.txt"),
    }


@pytest.mark.parametrize("layout", ["voc", "folders"])
def test_training_takes_what_make_writes(
    voc: Path, folders: Path, tmp_path: Path, layout: str
) -> None:
    split, root = tmp_path / "split", {"voc": voc, "folders": folders}[layout]
    if layout == "voc":
        make(split, voc=str(voc), labels=2, unlabeled_list="trainaug")
    else:
        make(split, images=str(root / "images"), masks=str(root / "masks"), labels=2)
    config = tiny_config(folders, tmp_path / "run", **voc_flags(root, split), steps=2)
    assert main(["train", *words(config)]) == 0
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    assert found["images"] == {"labeled": 2, "unlabeled": 8, "validation": 3}
    # The audit of the same lists, elsewhere, knows it by the same name.
    val = [
        Entry(f"val/{path.name}", f"val/{path.name}")
        for path in find_images(folders / "val_images")
    ]
    write_split(tmp_path / "val.txt", val)
    moved = shutil.copytree(root, tmp_path / "moved")
    shutil.copytree(folders / "val_masks", moved / "val")
    lists = {name: str(split / f"{name}.txt") for name in ("labeled", "unlabeled")}
    audit = audit_split(SplitsAuditConfig(root=str(moved), val=str(tmp_path / "val.txt"), **lists))
    here = {"val_images": None, "val_masks": None, "val_list": str(tmp_path / "val.txt")}
    again = tiny_config(folders, tmp_path / "x", **{**voc_flags(moved, split), **here})
    assert build_data(again).split == audit.split
    assert build_data(config).split == found["split"]


def test_the_split_of_a_run(voc: Path, tmp_path: Path) -> None:
    """It tells which images are used, not how the lists are written or what is trained."""

    def split(listing: str, **changes: Any) -> str:
        (tmp_path / "mine.txt").write_text(listing)
        settings = {**voc_flags(voc, tmp_path), "train_list": str(tmp_path / "mine.txt")}
        settings |= {"unlabeled_list": "trainaug", "val_images": None, "val_masks": None}
        settings |= {"classes": 3, **changes}
        return build_data(tiny_config(tmp_path, tmp_path, **settings)).split

    first = split("i00\ni01\n")
    assert split("/JPEGImages/i01.png /SegmentationClass/i01.png\r\ni00") == first
    assert split("i00\ni01\n", method="supervised", seed=5) == first
    assert split("i00\ni01\n", held_out=1) == first
    others = [
        split("i00\ni02\n"),
        split("i00\ni01\n", unlabeled_list="train"),
        split("i00\ni01\n", val_part="odd"),
        split("i00\ni01\n", labels=1),
    ]
    assert len({first, *others}) == 5


# --- audit -----------------------------------------------------------------------------------


def lists(folder: Path, **groups: Iterable[str]) -> dict[str, str]:
    for name, lines in groups.items():
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    return {name: str(folder / f"{name}.txt") for name in groups}


def test_audit_finds_what_is_wrong(voc: Path, tmp_path: Path) -> None:
    files = lists(
        tmp_path,
        labeled=["i00", "i01", "/JPEGImages/i00.png /SegmentationClass/i00.png", "i20", "i10"],
        unlabeled=["i10", "i11", "i21", "i99", "i01", "i98"],
        val=["i20", "i21", "i22"],
    )
    found = audit_split(
        SplitsAuditConfig(root=str(voc), **files, classes=4, out=str(tmp_path / "found.json"))
    )
    path = "JPEGImages/i{}.png".format
    assert found.counts == {"labeled": 5, "unlabeled": 6, "val": 3}
    assert found.duplicates == {"labeled": [path("00")], "unlabeled": [], "val": []}
    assert found.overlaps == {
        "labeled, unlabeled": [path("01"), path("10")],
        "labeled, val": [path("20")],
        "unlabeled, val": [path("21")],
    }
    assert found.missing == {"labeled": ["the mask of i10"], "unlabeled": ["i99", "i98"], "val": []}
    assert found.leaks == {"labeled": [path("20")], "unlabeled": [path("21")]}
    assert found.fine == {
        "labeled": 3,
        "list": str(voc / "ImageSets" / "Segmentation" / "train.txt"),
    }
    masks = [
        np.array(Image.open(voc / "SegmentationClass" / f"i{i}.png"))
        for i in ("00", "01", "00", "20")
    ]
    everything = np.concatenate([mask.ravel() for mask in masks]).tolist()
    assert found.classes == {
        f"class {k}": {
            "pixels": pytest.approx(everything.count(k) / len(everything)),
            "images": sum(bool((mask == k).any()) for mask in masks),
        }
        for k in range(4)
    }
    assert found.absent == ["class 3"] and found.ignored == 0
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["overlaps"]["labeled, val"] == [path("20")]
    assert written["split"] == found.split


def test_audit_and_training_leave_out_the_same_images(voc: Path, tmp_path: Path) -> None:
    files = lists(tmp_path, labeled=["i00", "i01"], unlabeled=["i01", "i02", "i03", "i20"])
    settings = {**voc_flags(voc, tmp_path), "val_images": None, "val_masks": None, "classes": 3}
    config = tiny_config(tmp_path, tmp_path / "run", **settings)
    audit = audit_split(SplitsAuditConfig(root=str(voc), val="val", **files))
    assert audit.split == build_data(config).split


def test_audit_opens_labeled_masks_only_and_only_for_the_classes(voc: Path, tmp_path: Path) -> None:
    root = shutil.copytree(voc, tmp_path / "voc")
    keep = {"i00.png", "i01.png"}
    for mask in (root / "SegmentationClass").iterdir():
        if mask.name not in keep:
            mask.write_bytes(b"no picture")
    for image in (root / "JPEGImages").iterdir():
        image.write_bytes(b"no picture")
    files = lists(tmp_path, labeled=["i00", "i01"], unlabeled=["i02", "i10"], val=["i20"])
    found = audit_split(SplitsAuditConfig(root=str(root), **files, classes=3))
    assert not any(found.missing.values()) and found.classes is not None
    (root / "SegmentationClass" / "i00.png").write_bytes(b"no picture")
    assert audit_split(SplitsAuditConfig(root=str(root), **files)).classes is None
    with pytest.raises(ValueError, match=r"cannot read mask .*i00\.png"):
        audit_split(SplitsAuditConfig(root=str(root), **files, classes=3))


def test_audit_of_labeled_images_alone_and_another_fine_list(voc: Path, tmp_path: Path) -> None:
    files = lists(tmp_path, labeled=["i00", "i01", "i02"], fine=["i01", "i77"])
    found = audit_split(SplitsAuditConfig(root=str(voc), **files))
    assert found.overlaps == {} and found.counts == {"labeled": 3}
    assert found.fine == {"labeled": 1, "list": files["fine"]}
    assert f"1 of 3 labeled images are finely annotated (in {files['fine']})" in found.notes


def test_ignored_pixels_and_masks_without_any_class(tmp_path: Path) -> None:
    for name, values in (("a", [0, 1, 255, 255]), ("b", [255] * 4)):
        Image.fromarray(np.array([values], dtype=np.uint8)).save(tmp_path / f"{name}.png")
    files = lists(tmp_path, labeled=["a.png a.png", "b.png b.png"])
    found = audit_split(SplitsAuditConfig(root=str(tmp_path), **files, classes=3))
    assert found.classes is not None and found.ignored == 6 / 8
    assert [row["pixels"] for row in found.classes.values()] == [0.5, 0.5, 0]
    found = audit_split(
        SplitsAuditConfig(root=str(tmp_path), **lists(tmp_path, labeled=["b.png"]), classes=3)
    )
    assert found.absent == ["class 0", "class 1", "class 2"] and found.fine is None


def test_audit_on_the_command_line(voc: Path, tmp_path: Path, capsys: Capture) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join(NAMES))
    clean = lists(tmp_path, labeled=["i00", "i01"], unlabeled=["i00", "i02"], val=["i20"])
    argv = ["splits", "audit", "--root", str(voc), "--classes", str(names)]
    argv += ["--labeled", clean["labeled"], "--unlabeled", clean["unlabeled"]]
    assert main([*argv, "--val", clean["val"]]) == 0  # to be in both is wasteful, not wrong
    said = capsys.readouterr()
    assert not said.err
    assert "| labeled | 2 | 0 | 0 |" in said.out and "| labeled, unlabeled | 1 |" in said.out
    assert "in both labeled, unlabeled: JPEGImages/i00.png\n" in said.out
    assert all(f"| {name} | " in said.out for name in NAMES)
    assert "2 of 2 labeled images are finely annotated" in said.out
    line = complaint(capsys, [*argv, "--val", "trainaug"])
    assert line == "gmix: images to be judged on are trained on: 2 labeled, 2 unlabeled"


@pytest.mark.parametrize(
    ("argv", "message", "code"),
    [
        (["audit"], "--root DIR is missing: what the lists are relative to", 2),
        (["audit", "--root", "."], "--labeled LIST is missing: a file, or the name of", 2),
        (["make"], "--labels N|A/B,.. is missing: how many: 183, 1/8, or nested ones", 2),
        (["make", "--labels", "1/8"], "--out DIR is missing: gets labeled.txt", 2),
        (["audit", "--root", ".", "--labeled", "nowhere"], "the list nowhere is neither in", 1),
        (["adit"], "unknown command splits adit, did you mean audit?", 2),
        (["audit", "--lable", "x"], "unknown flag --lable", 2),
        (["make", "--lables", "1/8"], "unknown flag --lables, did you mean --labels?", 2),
    ],
)
def test_mistakes_are_told_in_one_line(
    capsys: Capture, argv: list[str], message: str, code: int
) -> None:
    assert message in complaint(capsys, ["splits", *argv], code)


# --- real data -------------------------------------------------------------------------------


def test_real_voc_splits(shared_data: Path, tmp_path: Path) -> None:
    root = str(shared_data / "voc_animals")
    flags = {"voc": root, "unlabeled_list": "trainaug", **ANIMALS}
    config = SplitsMakeConfig(**flags, labels="1/64,1/8", stratify=True, out=str(tmp_path / "s"))
    few, eighth = make_splits(config)
    assert (few.labeled, few.unlabeled, few.absent) == (7, 1777, [])  # seven classes
    assert (eighth.labeled, eighth.unlabeled) == (55, 1729)
    assert set(images(few.folder / "labeled.txt")) < set(images(eighth.folder / "labeled.txt"))
    (plain,) = make_splits(SplitsMakeConfig(**flags, labels=7, out=str(tmp_path / "p")))
    assert plain.absent

    files = {name: str(eighth.folder / f"{name}.txt") for name in ("labeled", "unlabeled")}
    found = audit_split(SplitsAuditConfig(root=root, **files, val="val", **ANIMALS))
    assert not found.leaks and not any(found.missing.values()) and found.absent == []
    assert found.fine is not None and found.fine["labeled"] == 55
    coarse = audit_split(SplitsAuditConfig(root=root, labeled="trainaug"))
    assert coarse.fine is not None and coarse.fine["labeled"] == 437
