"""Class names and label maps, reading images and masks, the data sets."""

import json
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import tv_tensors

from gmix.data import (
    LAYOUTS,
    Cached,
    Classes,
    ImageDataset,
    ImageFormat,
    SegmentationDataset,
    find_images,
    fit_binary,
    holds_only_0_and_255,
    images_of,
    pair_masks,
    read_image,
    read_mask,
    to_rgb,
)

VOC = LAYOUTS["voc"]
ANIMALS = ("background", "cat", "cow", "dog", "horse", "person", "sheep")
ANIMAL_MAP = {0: 0, 8: 1, 10: 2, 12: 3, 13: 4, 15: 5, 17: 6}


def save(path: Path, pixels: object) -> Path:
    Image.fromarray(np.array(pixels, dtype=np.uint8)).save(path)
    return path


# Classes


def test_classes_from_a_number_a_file_and_names(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_bytes(b"background\r\n\r\n light sky \r\nroad")
    assert Classes.of(names).names == ("background", "light sky", "road")
    assert Classes.of(str(names)).channels == 3
    assert Classes.of("21").num_classes == Classes.of(21).channels == 21
    assert Classes.of(["a", "b"]).names == ("a", "b")


@pytest.mark.parametrize("classes", [1, "1", ["road"]])
def test_one_class_is_binary_with_two_ids_and_one_channel(classes: int | str | list[str]) -> None:
    binary = Classes.of(classes, "0:0,255:1")
    assert binary.binary and (binary.num_classes, binary.channels) == (2, 1)
    assert binary.names[0] == "background"


@pytest.mark.parametrize(
    "text",
    [
        "0:0\n8:1\n",
        "0: 0\r\n8: 1",
        '{"0": 0, "8": 1}',
        "# raw: class\n---\n0: background\n'8': cat  # tabby\n",
        json.dumps({"0": "background", "8": "cat"}, indent=2),
    ],
)
def test_label_map_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "map"
    path.write_text(text)
    assert Classes.of(["background", "cat"], path).label_map == {0: 0, 8: 1}


def test_label_map_inline() -> None:
    inline = ",".join(f"{raw}:{target}" for raw, target in ANIMAL_MAP.items())
    assert Classes.of(ANIMALS, inline).label_map == ANIMAL_MAP
    assert Classes.of(7, "7: 255, 8:1").label_map == {7: 255, 8: 1}


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        ("0:0,70000:1", r"70000:1 is out of range"),
        ("0:0,8", "'8' is not `raw:class`"),
        ("0:0,8:cta", "'8:cta' is not `raw:class`"),
        ("8:1,8:2", "raw id 8 twice"),
        ("nowhere.yaml", "cannot read the label map file nowhere.yaml"),
    ],
)
def test_label_map_errors(label_map: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classes.of(7, label_map)


@pytest.mark.parametrize(
    ("classes", "message"),
    [(0, "at least 1, got 0"), (256, "2 to 255"), ([], "found none"), ("no.txt", "no.txt")],
)
def test_classes_errors(classes: int | str | list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classes.of(classes)


@pytest.mark.parametrize("count", [2, 21, 150])
def test_palette_colors_differ(count: int) -> None:
    palette = Classes.of(count).palette
    assert len(palette) == len(set(palette)) == count
    assert all(0 <= value <= 255 for color in palette for value in color)
    assert Classes.of(ANIMALS).palette[0] == (0, 0, 0)


# Files


def test_every_kind_of_image_becomes_rgb(tmp_path: Path) -> None:
    rgb = np.arange(2 * 3 * 3).reshape(2, 3, 3) * 10
    alpha = np.dstack([rgb, np.full((2, 3), 9)])
    grey = rgb[..., 0]
    deep = tmp_path / "deep.png"
    Image.fromarray((grey * 257).astype(np.uint16)).save(deep)
    expected = torch.from_numpy(rgb).permute(2, 0, 1)
    for path in (save(tmp_path / "rgb.png", rgb), save(tmp_path / "rgba.png", alpha)):
        image = read_image(path)
        assert isinstance(image, tv_tensors.Image) and image.dtype == torch.uint8
        assert torch.equal(image, expected.to(torch.uint8))
    for path in (save(tmp_path / "grey.png", grey), deep):
        assert torch.equal(read_image(path).byte(), torch.from_numpy(grey).expand(3, 2, 3).byte())


def test_more_than_8_bits_keep_their_precision(tmp_path: Path) -> None:
    values = np.array([[0, 1, 4095], [32768, 65534, 65535]], dtype=np.uint16)
    for suffix in ("png", "tif"):
        Image.fromarray(values).save(tmp_path / f"x.{suffix}")
        image = read_image(tmp_path / f"x.{suffix}", ImageFormat(channels=1))
        assert image.dtype == torch.float32
        np.testing.assert_allclose(image[0], values / 257, rtol=1e-6)
        scan = read_image(tmp_path / f"x.{suffix}", ImageFormat(1, span=(0, 4095)))
        np.testing.assert_allclose(scan[0], np.clip(values / 4095, 0, 1) * 255, rtol=1e-5)
    np.save(tmp_path / "x.npy", np.linspace(-1, 1, 6).reshape(2, 3))
    hounsfield = read_image(tmp_path / "x.npy", ImageFormat(1, span=(-1, 1)))
    np.testing.assert_allclose(hounsfield[0].flatten(), np.linspace(0, 255, 6), atol=1e-4)
    np.save(tmp_path / "x.npy", values.astype(np.int32))
    with pytest.raises(ValueError, match=r"x\.npy: its pixels are int32 .*--value-range LOW-HIGH"):
        read_image(tmp_path / "x.npy", ImageFormat(1))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_any_number_of_channels_from_arrays_and_tiff(tmp_path: Path, channels: int) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (5, 7, channels), dtype=np.uint8)
    np.save(tmp_path / "last.npy", pixels)
    np.save(tmp_path / "first.npy", pixels.transpose(2, 0, 1))
    files = ["last.npy", "first.npy"]
    if channels > 1:
        tifffile.imwrite(
            tmp_path / "last.tif", pixels, planarconfig="contig", photometric="minisblack"
        )
        tifffile.imwrite(
            tmp_path / "first.tif",
            pixels.transpose(2, 0, 1),
            planarconfig="separate",
            photometric="minisblack",
        )
        files += ["last.tif"] if channels == 3 else ["last.tif", "first.tif"]
    for name in files:
        image = read_image(tmp_path / name, ImageFormat(channels))
        assert image.dtype == torch.uint8
        assert torch.equal(image, torch.from_numpy(pixels.transpose(2, 0, 1).copy())), name
        assert to_rgb(image).shape == (5, 7, 3)


def test_channels_of_ordinary_images(tmp_path: Path) -> None:
    rgb = np.arange(2 * 3 * 3).reshape(2, 3, 3) * 10
    alpha = save(tmp_path / "a.png", np.dstack([rgb, np.full((2, 3), 9)]))
    assert read_image(alpha, ImageFormat(4))[3].eq(9).all()
    grey = read_image(alpha, ImageFormat(1))
    with Image.open(alpha) as file:
        assert torch.equal(grey[0], torch.from_numpy(np.array(file.convert("L"))))
    with pytest.raises(ValueError, match=r"a\.png: it is an array of 2x3x4, expected 6 channels"):
        read_image(alpha, ImageFormat(6))
    np.save(tmp_path / "p.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"cannot read image .*p\.npy"):  # a pickle is not run
        read_image(tmp_path / "p.npy")


@given(st.lists(st.sets(st.sampled_from([0, 1, 255]), min_size=1), min_size=1, max_size=6))
def test_0_and_255(values: list[set[int]]) -> None:
    """All masks store the foreground alike, or one of each kind is named."""
    with TemporaryDirectory() as folder:
        paths = [save(Path(folder) / f"{i}.png", [list(seen)]) for i, seen in enumerate(values)]
        ones = [path for path, seen in zip(paths, values, strict=True) if 1 in seen]
        whites = [path for path, seen in zip(paths, values, strict=True) if 255 in seen - {1}]
        whites = [path for path in whites if path not in ones]
        if ones and whites:
            with pytest.raises(ValueError, match="label-map") as caught:
                holds_only_0_and_255(paths)
            assert all(f"mask {path} " in str(caught.value) for path in (ones[0], whites[0]))
        else:
            assert holds_only_0_and_255(paths) == bool(whites)


def test_each_kind_of_binary_mask_is_read_right(tmp_path: Path) -> None:
    white, one = save(tmp_path / "w.png", [[0, 255]]), save(tmp_path / "o.png", [[0, 1, 255]])
    grey = save(tmp_path / "g.png", [[0, 128, 255]])
    assert read_mask(white, fit_binary(Classes.of(1), [white])).tolist() == [[0, 1]]
    assert read_mask(one, fit_binary(Classes.of(1), [one])).tolist() == [[0, 1, 255]]
    with pytest.raises(ValueError, match="holds the id 128"):  # an edge that was smoothed
        read_mask(grey, fit_binary(Classes.of(1), [grey, white]))
    said = Classes.of(1, "0:0,1:1")
    assert (
        fit_binary(said, [white, one]) is said
        and fit_binary(Classes.of(2), [white]).label_map is None
    )


def test_array_masks(tmp_path: Path) -> None:
    ids = np.array([[0, 1], [2, 255]])
    for dtype in (np.uint8, np.int64):
        np.save(tmp_path / "m.npy", ids.astype(dtype))
        assert read_mask(tmp_path / "m.npy", Classes.of(3)).tolist() == ids.tolist()
    np.save(tmp_path / "m.npy", ids.astype(float))
    with pytest.raises(ValueError, match=r"m\.npy is an array of 2x2 float64 numbers: expected"):
        read_mask(tmp_path / "m.npy", Classes.of(3))


def test_exif_orientation_turns_image_and_mask_alike(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    ids = np.array([[0, 1, 2], [3, 4, 5]], dtype=np.uint8)
    Image.fromarray(np.dstack([ids * 40] * 3)).save(tmp_path / "x.webp", lossless=True, exif=exif)
    Image.fromarray(ids).save(tmp_path / "x.png", exif=exif)
    upright = torch.from_numpy(np.rot90(ids, -1).copy())
    sample = SegmentationDataset([tmp_path / "x.webp"], [tmp_path / "x.png"], Classes.of(6))[0]
    assert torch.equal(sample.mask, upright.long())
    assert torch.equal(sample.image[0], upright * 40)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_of_any_number_of_channels_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 4), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.tif", tiffinfo={274: orientation})
    by_pillow = read_image(tmp_path / "x.tif")
    by_tifffile = read_image(tmp_path / "x.tif", ImageFormat(4))
    assert torch.equal(by_tifffile[:3], by_pillow)
    assert (by_pillow.shape[1] == 6) == (orientation > 4)


def test_palette_masks_give_indices_not_colors(tmp_path: Path) -> None:
    ids = np.array([[0, 1], [2, 255]], dtype=np.uint8)
    picture = Image.fromarray(ids)
    picture.putpalette([200, 100, 50] * 256)
    picture.save(tmp_path / "m.png")
    mask = read_mask(tmp_path / "m.png", Classes.of(3))
    assert isinstance(mask, tv_tensors.Mask) and mask.dtype == torch.int64
    assert mask.tolist() == ids.tolist()


def test_label_map_sends_the_rest_to_ignore(tmp_path: Path) -> None:
    wide = tmp_path / "wide.tif"
    Image.fromarray(np.array([[0, 8, 300, 65535, 100000]], dtype=np.int32)).save(wide)
    assert read_mask(wide, Classes.of(2, "0:0,300:1")).tolist() == [[0, 255, 1, 255, 255]]
    binary = save(tmp_path / "binary.png", [[0, 255, 7]])
    assert read_mask(binary, Classes.of(1, "0:0,255:1")).tolist() == [[0, 1, 255]]
    bits = tmp_path / "bits.png"
    Image.fromarray(np.array([[False, True]])).save(bits)
    assert read_mask(bits, Classes.of(1)).tolist() == [[0, 1]]


def test_broken_files_are_named(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 255, (40, 40, 3)))
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:1000])
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    for path in (cut, text, tmp_path / "missing.png"):
        with pytest.raises(ValueError, match=f"cannot read image .*{path.name}"):
            read_image(path)
        with pytest.raises(ValueError, match=f"cannot read mask .*{path.name}"):
            read_mask(path, Classes.of(2))
    with pytest.raises(ValueError, match=r"whole\.png is a colour image \(mode RGB\)"):
        read_mask(whole, Classes.of(2))


# Data sets


def test_sizes_that_differ_name_both_files(tmp_path: Path) -> None:
    image = save(tmp_path / "i.png", np.zeros((4, 6, 3)))
    mask = save(tmp_path / "m.png", np.zeros((4, 5)))
    with pytest.raises(ValueError, match=r"i\.png is 4x6 .*m\.png is 4x5"):
        SegmentationDataset([image], [mask], Classes.of(2))[0]
    with pytest.raises(ValueError, match="got 1 images and 0 masks"):
        SegmentationDataset([image], [], Classes.of(2))
    with pytest.raises(ValueError, match="at least one image"):
        ImageDataset([])


def test_real_folders_resize_and_cache(shared_data: Path) -> None:
    root = shared_data / "camvid"
    images = find_images(root / "images" / "train")[:3]
    masks = pair_masks(find_images(root / "images" / "train"), root / "masks" / "train")[:3]
    classes = Classes.of(root / "classes.txt")
    assert classes.num_classes == 11
    own = SegmentationDataset(images, masks, classes)
    assert own[0].image.shape == (3, 360, 480) and own[0].mask.shape == (360, 480)
    small = SegmentationDataset(images, masks, classes, size=(120, 160))
    for plain, cached in (
        (small, Cached(small)),
        (ImageDataset(images, (120, 160)), Cached(ImageDataset(images, (120, 160)))),
    ):
        assert len(plain) == len(cached) == 3
    for index in range(3):
        plain_sample, cached_sample = small[index], Cached(small)[index]
        assert torch.equal(plain_sample.image, cached_sample.image)
        assert torch.equal(plain_sample.mask, cached_sample.mask)
        assert cached_sample.mask.dtype == torch.int64
        assert set(plain_sample.mask.unique().tolist()) <= {*range(11), 255}
        assert torch.equal(plain_sample.image, Cached(ImageDataset(images, (120, 160)))[index])
    # A third of the size: nearest is the middle pixel of each 3x3 block.
    assert torch.equal(small[0].mask, own[0].mask[1::3, 1::3])


def test_cached_images_are_shared_by_processes_not_copied(tmp_path: Path) -> None:
    """8 bits and more in one data set, with masks; what is changed in an item is not changed in memory."""
    rng = np.random.default_rng(0)
    images, masks = [], []
    for i, kind in enumerate((np.uint8, np.uint16, np.uint8)):
        high, size = np.iinfo(kind).max, (151 + i, 141)
        np.save(tmp_path / f"{i}.npy", rng.integers(0, high, size).astype(kind))
        masks.append(save(tmp_path / f"m{i}.png", rng.integers(0, 2, size)))
        images.append(tmp_path / f"{i}.npy")
    plain = SegmentationDataset(images, masks, Classes.of(2), format=ImageFormat(1))
    cached = Cached(plain)
    cached[1].image.zero_()
    sent = bytes(ForkingPickler.dumps(cached))  # what a process that is not forked is started with
    assert len(sent) < 8000 < plain[0].image.nbytes
    for again in (cached, pickle.loads(sent)):
        assert again[1].image.dtype == torch.float32
        for index in (0, 1, 2, -1):
            assert torch.equal(again[index].image, plain[index].image)
            assert torch.equal(again[index].mask, plain[index].mask)
            assert again[index].mask.dtype == torch.int64
    with pytest.raises(IndexError):
        cached[3]


def test_cached_images_are_copied_where_no_memory_can_be_shared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A container may have 64 MB for it."""

    def full(tensor: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    image = tv_tensors.Image(torch.rand(3, 20, 21))
    for cached in (Cached([image]), pickle.loads(ForkingPickler.dumps(Cached([image])))):
        assert torch.equal(cached[0], image)
        assert torch.equal(pickle.loads(pickle.dumps(cached))[0], image)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.int16, torch.uint16])
def test_cached_keeps_the_type_of_anybodys_images(kind: torch.dtype) -> None:
    image = tv_tensors.Image(torch.arange(12).reshape(3, 2, 2).to(kind))
    (found,) = Cached([image])
    assert found.dtype == kind and torch.equal(found, image)


def test_cached_shows_a_broken_file_at_once(tmp_path: Path) -> None:
    good = save(tmp_path / "good.png", np.zeros((2, 2, 3)))
    bad = tmp_path / "bad.png"
    bad.write_text("")
    with pytest.raises(ValueError, match=r"bad\.png"):
        Cached(ImageDataset([good, bad]))


def test_the_unlabeled_path_never_opens_a_mask(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("a mask was opened")

    monkeypatch.setattr("gmix.data.datasets.read_mask", fail)
    images = images_of(VOC, shared_data / "voc_animals", "trainaug")[:2]
    assert Cached(ImageDataset(images))[1].dtype == torch.uint8
