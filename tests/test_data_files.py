"""Which files make up a data set: folders, masks by stem, VOC layout, list files."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmix.data import (
    LAYOUTS,
    evenly_spaced,
    find_images,
    images_of,
    masks_of,
    match_masks,
    pair_masks,
)

VOC = LAYOUTS["voc"]


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_find_images_sorts_and_knows_suffixes_in_any_case(tmp_path: Path) -> None:
    names = ["b.JPG", "a.png", "c.jpeg", "d.bmp", "e.tif", "f.TIFF", "g.webp"]
    touch(tmp_path, *names, "notes.txt", ".hidden.png")
    touch(tmp_path / "deeper", "x.png")
    touch(tmp_path / "folder.png")
    assert [path.name for path in find_images(tmp_path)] == sorted(names)


def test_find_images_names_a_missing_or_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"image folder .*nowhere does not exist"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no image"):
        find_images(touch(tmp_path, "notes.txt"))


def test_match_masks_by_stem_leaves_the_rest_unlabeled(tmp_path: Path) -> None:
    images = find_images(touch(tmp_path / "images", "a.jpg", "b.b.jpg", "c.jpg"))
    # A JPEG is lossy and no mask.
    masks = touch(tmp_path / "masks", "c.PNG", "b.b.png", "a.jpg", "z.png")
    labeled, found, rest = match_masks(images, masks)
    assert [path.name for path in labeled] == ["b.b.jpg", "c.jpg"]
    assert [path.name for path in found] == ["b.b.png", "c.PNG"]
    assert [path.name for path in rest] == ["a.jpg"]


def test_pair_masks_names_the_first_image_without_one(tmp_path: Path) -> None:
    images = find_images(touch(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg"))
    masks = touch(tmp_path / "masks", "a.png")
    with pytest.raises(ValueError, match=r"b\.jpg has no mask.*b\.png \(2 of 3"):
        pair_masks(images, masks)
    touch(masks, "c.png", "b.tif")
    assert [path.name for path in pair_masks(images, masks)] == ["a.png", "b.tif", "c.png"]


def test_ambiguous_and_unmatched_stems_are_refused(tmp_path: Path) -> None:
    images = find_images(touch(tmp_path / "images", "a.jpg"))
    with pytest.raises(ValueError, match=r"a\.png and .*a\.tif have the same stem"):
        match_masks(images, touch(tmp_path / "twice", "a.png", "a.tif"))
    with pytest.raises(ValueError, match=r"no mask in .* expected e\.g\. a\.png"):
        match_masks(images, touch(tmp_path / "other", "b.png"))


@given(st.integers(1, 400), st.data())
def test_evenly_spaced(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    kept = evenly_spaced(range(total), count)
    gaps = [after - before for before, after in pairwise(kept)]
    assert len(kept) == len(set(kept)) == count
    assert kept[0] == 0 and kept == sorted(kept)
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_evenly_spaced_is_every_kth_where_that_gives_the_number() -> None:
    assert evenly_spaced(range(437), 55) == list(range(437))[::8]
    assert evenly_spaced(range(367), 23) == list(range(367))[::16]
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"cannot keep {count} of 3"):
            evenly_spaced("abc", count)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "voc"
    touch(root / "JPEGImages", "a.jpg", "b.jpg", "c.png")
    touch(root / "SegmentationClass", "a.png", "b.png")
    touch(root / "ImageSets" / "Segmentation")
    return root


def write_list(root: Path, text: str) -> str:
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text(text)
    return "train"


def test_voc_ids_pairs_and_leading_slashes(voc: Path) -> None:
    name = write_list(voc, "b\n/JPEGImages/a.jpg /SegmentationClass/a.png\n")
    assert [path.name for path in images_of(VOC, voc, name)] == ["b.jpg", "a.jpg"]
    assert [path.name for path in masks_of(VOC, voc, "train.txt")] == ["b.png", "a.png"]
    listing = voc.parent / "mine.lst"
    listing.write_text("a")
    assert list(images_of(VOC, voc, listing)) == [voc / "JPEGImages" / "a.jpg"]


def test_pairs_need_no_voc_folders(tmp_path: Path) -> None:
    root = tmp_path / "root"
    image = touch(root / "photos", "a b.jpg") / "a b.jpg"
    mask = touch(root / "masks" / "deep", "m.png") / "m.png"
    listing = tmp_path / "mine.txt"
    listing.write_text("/photos/a b.jpg\tmasks/deep/m.png\n")
    assert (list(images_of(VOC, root, listing)), masks_of(VOC, root, listing)) == ([image], [mask])


def test_voc_prefers_the_augmented_masks(voc: Path) -> None:
    touch(voc / "SegmentationClassAug", "a.png")
    assert masks_of(VOC, voc, write_list(voc, "a"))[0].parent.name == "SegmentationClassAug"


def test_voc_images_never_need_a_mask(voc: Path) -> None:
    name = write_list(voc, "c\n")
    assert [path.name for path in images_of(VOC, voc, name)] == ["c.png"]
    with pytest.raises(ValueError, match="no mask for the list entry 'c'"):
        masks_of(VOC, voc, name)


@pytest.mark.parametrize("entry", ["../x", "a/../../x", "..\\x", "x ../../SegmentationClass/a.png"])
def test_voc_refuses_entries_that_escape(voc: Path, entry: str) -> None:
    touch(voc.parent, "x.jpg", "x.png")
    with pytest.raises(ValueError, match=r"leads out of"):
        masks_of(VOC, voc, write_list(voc, entry))


def test_voc_absolute_entries_stay_inside(voc: Path) -> None:
    outside = touch(voc.parent / "out", "x.jpg") / "x.jpg"
    with pytest.raises(ValueError, match="no image for the list entry"):
        images_of(VOC, voc, write_list(voc, str(outside)))


def test_voc_names_a_missing_list_and_a_missing_image(voc: Path) -> None:
    with pytest.raises(ValueError, match="the list nothing is neither in"):
        images_of(VOC, voc, "nothing")
    with pytest.raises(ValueError, match="no image for the list entry 'zz'"):
        images_of(VOC, voc, write_list(voc, "a\nzz\n"))


def test_real_voc_lists(shared_data: Path) -> None:
    root = shared_data / "voc_animals"
    for name, count in (("train", 437), ("val.txt", 445), ("trainaug", 1784)):
        images, masks = images_of(VOC, root, name), masks_of(VOC, root, name)
        assert len(images) == count
        assert [path.stem for path in images] == [path.stem for path in masks]


def test_real_camvid_folders(shared_data: Path) -> None:
    root = shared_data / "camvid"
    for split, count in (("train", 367), ("val", 101), ("test", 233)):
        images = find_images(root / "images" / split)
        masks = pair_masks(images, root / "masks" / split)
        assert len(images) == count
        assert [path.stem for path in images] == [path.stem for path in masks]
