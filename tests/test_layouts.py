"""Known data sets: small files in the true layout of each, by split, by list and with their ids."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from gmix.data import (
    LAYOUTS,
    Classes,
    Layout,
    SegmentationDataset,
    fetch,
    images_of,
    masks_of,
    read_mask,
)
from tests.true_layouts import WRITERS, save_image, save_mask


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_every_data_set_is_read_in_its_true_layout(name: str, tmp_path: Path) -> None:
    """The raw ids that the writer put into a mask come out as the classes of its table."""
    written = WRITERS[name](tmp_path)
    layout = LAYOUTS[name]
    for split, raw_to_class in written.items():
        images = images_of(layout, tmp_path, split)
        masks = masks_of(layout, tmp_path, split)
        assert len(images) == len(masks) == 2
        dataset = SegmentationDataset(images, masks, layout.classes(masks))
        for image, mask in (dataset[i] for i in range(2)):
            assert image.shape[-2:] == mask.shape
            assert sorted(mask.unique().tolist()) == sorted(set(raw_to_class.values()))
            # Each id fills a column, in the writer's order.
            assert mask[0].tolist() == list(raw_to_class.values())


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("voc", 21, "background", "tvmonitor"),
        ("sbd", 21, "background", "tvmonitor"),
        ("context", 60, "background", "wood"),
        ("cityscapes", 19, "road", "bicycle"),
        ("ade20k", 150, "wall", "flag"),
        ("coco", 81, "background", "toothbrush"),
        ("coco_stuff", 171, "person", "wood"),
        ("camvid", 11, "sky", "bicyclist"),
    ],
)
def test_tables(name: str, count: int, first: str, last: str) -> None:
    classes = LAYOUTS[name].classes()
    assert classes.num_classes == len(set(classes.names)) == count
    assert (classes.names[0], classes.names[-1]) == (first, last)
    assert len(set(classes.palette)) == count
    if classes.label_map is not None:
        targets = [target for target in classes.label_map.values() if target != 255]
        assert targets == list(range(count))


def test_voc_colors_are_those_of_the_real_masks(shared_data: Path) -> None:
    path = masks_of(LAYOUTS["voc"], shared_data / "voc_animals", "train")[0]
    with Image.open(path) as file:
        palette = np.array(file.getpalette()).reshape(-1, 3)
    assert LAYOUTS["voc"].classes().palette == [tuple(color) for color in palette[:21].tolist()]


def test_real_camvid_by_split(shared_data: Path) -> None:
    root, camvid = shared_data / "camvid", LAYOUTS["camvid"]
    assert camvid.classes().names == Classes.of(root / "classes.txt").names
    assert len(images_of(camvid, root, "val")) == len(masks_of(camvid, root, "val")) == 101


def test_cityscapes_in_every_way_people_write_it(tmp_path: Path) -> None:
    WRITERS["cityscapes"](tmp_path)
    cityscapes = LAYOUTS["cityscapes"]
    save_image(tmp_path / "leftImg8bit/train/aachen/._a_leftImg8bit.png")  # as Macs leave them
    expected = names(images_of(cityscapes, tmp_path, "train"))
    assert len(expected) == 2
    stem = "aachen_000000_000019"
    image = f"leftImg8bit/train/aachen/{stem}_leftImg8bit.png"
    mask = f"gtFine/train/aachen/{stem}_gtFine_labelIds.png"
    ways = {
        "pairs": f"{image} {mask}",
        "slashes": f"/{image} /{mask}",
        "tabs": f"{image}\t{mask}\r",
        "city and name": f"aachen/{stem}_leftImg8bit.png",
        "bare": stem,
        "the other masks": f"{image} {mask.replace('labelIds', 'labelTrainIds')}",
    }
    for way, line in ways.items():
        listing = tmp_path / f"{way}.txt"
        listing.write_text(line)
        assert names(images_of(cityscapes, tmp_path, listing)) == expected[:1], way
        assert names(masks_of(cityscapes, tmp_path, listing)) == [f"{stem}_gtFine_labelIds.png"], (
            way
        )


def test_cityscapes_masks_of_both_kinds(tmp_path: Path) -> None:
    """labelIds hold raw ids, labelTrainIds class ids: both give the same classes, mixed they are refused."""
    WRITERS["cityscapes"](tmp_path)
    layout = LAYOUTS["cityscapes"]
    raw = masks_of(layout, tmp_path, "train")
    before = [read_mask(path, layout.classes(raw)) for path in raw]
    trained = []
    for path, mask in zip(raw, before, strict=True):
        trained.append(path.with_name(path.name.replace("labelIds", "labelTrainIds")))
        Image.fromarray(mask.numpy().astype(np.uint8)).save(trained[-1])
    assert masks_of(layout, tmp_path, "train") == trained
    for path, mask in zip(trained, before, strict=True):
        assert torch.equal(read_mask(path, layout.classes(trained)), mask)
    with pytest.raises(ValueError, match="some masks of Cityscapes hold raw ids"):
        layout.classes([*raw, *trained])


def test_a_mask_named_by_the_list_wins(tmp_path: Path) -> None:
    WRITERS["voc"](tmp_path)
    save_mask(tmp_path / "mine" / "x.png", [1])
    listing = tmp_path / "list.txt"
    listing.write_text("JPEGImages/a.jpg mine/x.png")
    assert masks_of(LAYOUTS["voc"], tmp_path, listing) == [tmp_path / "mine" / "x.png"]


def test_masks_of_the_first_kind_there_is_are_taken_for_all(tmp_path: Path) -> None:
    WRITERS["voc"](tmp_path)
    folder = tmp_path / "SegmentationClassAug"
    for name in ("2007_000032", "a"):
        save_mask(tmp_path / "SegmentationClass" / f"{name}.png", [1])
    (folder / "a").mkdir()  # no mask, though of that name
    expected = [folder / "2007_000032.png", folder / "a.png"]
    assert masks_of(LAYOUTS["voc"], tmp_path, "train") == expected
    (folder / "a.png").unlink()
    with pytest.raises(ValueError, match=r"no mask for the list entry 'a': expected .*Aug.a\.png"):
        masks_of(LAYOUTS["voc"], tmp_path, "train")


def test_what_looks_like_a_path_is_first_taken_for_one(tmp_path: Path) -> None:
    for folder in ("mine", "JPEGImages/mine"):
        save_image(tmp_path / folder / "x.jpg")
    (tmp_path / "list.txt").write_text("mine/x.jpg")
    found = images_of(LAYOUTS["voc"], tmp_path, tmp_path / "list.txt")
    assert list(found) == [tmp_path / "mine" / "x.jpg"]


def test_a_list_is_first_looked_for_in_the_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, voc = tmp_path / "voc", LAYOUTS["voc"]
    WRITERS["voc"](root)
    (root / "list.txt").write_text("JPEGImages/a.jpg")
    (tmp_path / "list.txt").write_text("c")
    monkeypatch.chdir(tmp_path)
    assert names(images_of(voc, root, "list.txt")) == ["a.jpg"]
    assert names(masks_of(voc, root, "list.txt")) == ["a.png"]
    assert list(images_of(voc, root, "train.txt")) == list(images_of(voc, root, "train"))


@pytest.mark.parametrize("entry", ["B", "B.JPG", "JPEGImages/B.JPG"])
def test_suffixes_may_be_in_capitals(tmp_path: Path, entry: str) -> None:
    save_image(tmp_path / "JPEGImages" / "B.JPG")
    save_mask(tmp_path / "SegmentationClass" / "B.PNG", [1])
    (tmp_path / "list.txt").write_text(entry)
    voc, listing = LAYOUTS["voc"], tmp_path / "list.txt"
    assert list(images_of(voc, tmp_path, listing)) == [tmp_path / "JPEGImages" / "B.JPG"]
    assert masks_of(voc, tmp_path, listing) == [tmp_path / "SegmentationClass" / "B.PNG"]


def test_archives_unpacked_below_the_root_are_found(tmp_path: Path) -> None:
    for name, below in (("voc", "VOCdevkit/VOC2012"), ("ade20k", "ADEChallengeData2016")):
        root = tmp_path / name
        WRITERS[name](root / below)
        assert len(masks_of(LAYOUTS[name], root, "train")) == 2


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_wrong_root_says_what_was_expected(name: str, tmp_path: Path) -> None:
    title = LAYOUTS[name].title
    with pytest.raises(ValueError, match=r"nowhere is no folder: expected that of"):
        images_of(LAYOUTS[name], tmp_path / "nowhere", "train")
    with pytest.raises(ValueError) as error:
        images_of(LAYOUTS[name], tmp_path, "train")
    assert str(error.value).endswith(f"nor a file: is {tmp_path} the folder of {title}?")


def test_missing_splits_and_files_are_named(tmp_path: Path) -> None:
    WRITERS["cityscapes"](tmp_path)
    layout = LAYOUTS["cityscapes"]
    with pytest.raises(ValueError, match=r"list tset is neither a split with images \(train, val"):
        images_of(layout, tmp_path, "tset")
    listing = tmp_path / "list.txt"
    listing.write_text("aachen_9_9\n")
    expected = r"no image for the list entry 'aachen_9_9': expected .*train.aachen.aachen_9_9_left"
    with pytest.raises(ValueError, match=expected):
        images_of(layout, tmp_path, listing)
    save_image(tmp_path / "leftImg8bit/train/aachen/aachen_9_9_leftImg8bit.png")
    with pytest.raises(
        ValueError, match=r"no mask for the list entry 'aachen_9_9': expected .*gtFine"
    ):
        masks_of(layout, tmp_path, listing)


def test_mat_masks(tmp_path: Path) -> None:
    ids = np.array([[0, 8], [15, 255]], dtype=np.uint8)
    sbd, context, other = (tmp_path / f"{name}.mat" for name in ("sbd", "context", "other"))
    savemat(sbd, {"GTcls": {"Segmentation": ids, "Boundaries": np.zeros(3)}})
    savemat(context, {"LabelMap": ids.astype(np.uint16)})
    savemat(other, {"stuff": ids})
    for path in (sbd, context):
        assert read_mask(path, Classes.of(21)).tolist() == ids.tolist()
    with pytest.raises(
        ValueError, match=r"other\.mat: expected GTcls or LabelMap in it, found stuff"
    ):
        read_mask(other, Classes.of(21))


def test_fetch_asks_torchvision_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the download: it unpacks where torchvision does."""
    calls = []

    def download(root: str, **settings: object) -> None:
        calls.append(settings)
        WRITERS["voc"](Path(root) / "VOCdevkit" / "VOC2012")

    monkeypatch.setattr("torchvision.datasets.VOCSegmentation", download)
    for _ in range(2):
        fetch(LAYOUTS["voc"], tmp_path / "new")
        assert len(images_of(LAYOUTS["voc"], tmp_path / "new", "val")) == 2
    assert calls == [{"year": "2012", "image_set": "trainval", "download": True}]


def test_fetch_says_what_it_cannot_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"cannot download Cityscapes .* by hand"):
        fetch(LAYOUTS["cityscapes"], tmp_path)

    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.SBDataset", fail)
    with pytest.raises(ValueError, match=r"cannot download SBD to .*no route to host"):
        fetch(LAYOUTS["sbd"], tmp_path / "sbd")


def test_layouts_can_be_made_by_users(tmp_path: Path) -> None:
    """The tables are data: a folder of one's own is one more Layout."""
    mine = Layout("mine", "camvid", ("photos/{name}",), ("labels/{name}_L",), "{list}.txt")
    save_image(tmp_path / "photos" / "a.png")
    save_mask(tmp_path / "labels" / "a_L.png", [0, 1])
    (tmp_path / "train.txt").write_text("a")
    assert names(masks_of(mine, tmp_path, "train")) == ["a_L.png"]
