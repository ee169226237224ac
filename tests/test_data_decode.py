"""Every bit, channel and page of a file is read as stored, or the file is refused."""

import io
import struct
import tarfile
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import scipy.sparse
import tifffile
import torch
from PIL import Image, ImageOps
from scipy.io import savemat

from gmix.data import (
    Classes,
    ImageFormat,
    SegmentationDataset,
    ShardedImages,
    compare_palettes,
    read_image,
    read_mask,
)
from gmix.data.decode import orientation

RNG = np.random.default_rng(0)
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def png(pixels: Any, depth: int, colour: int | None = None) -> bytes:
    """A PNG file by the letter of the specification: `(H, W)` or `(H, W, C)` samples, `depth` bits each."""
    rows = pixels.reshape(len(pixels), -1)
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    lines = []
    for row in rows:
        bits = "".join(f"{value:0{depth}b}" for value in row.tolist())
        bits += "0" * (-len(bits) % 8)
        lines.append(b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big"))
    colour = COLOUR_TYPES[channels] if colour is None else colour
    header = struct.pack(">IIBBBBB", pixels.shape[1], len(pixels), depth, colour, 0, 0, 0)
    palette = bytes(range(256)) * 3 if colour == 3 else b""
    chunks = [(b"IHDR", header), (b"PLTE", palette[: 3 * 2**depth])]
    chunks += [(b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
        if content or kind == b"IEND"
    )


def expected(pixels: Any, channels: int) -> Any:
    """The image `(C, H, W)` in its own numbers: alpha dropped, grey by the usual weights."""
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if channels not in (1, 3):
        return pixels.transpose(2, 0, 1)
    if pixels.shape[2] in (2, 4):
        pixels = pixels[..., :-1]
    if channels == 1 and pixels.shape[2] == 3:
        pixels = (pixels * [0.299, 0.587, 0.114]).sum(axis=2, keepdims=True).round()
    return pixels.repeat(channels // pixels.shape[2], axis=2).transpose(2, 0, 1)


# imagecodecs 2025.3.30, the newest for Python 3.10, has neither.
READS_CCITT = hasattr(imagecodecs, "CCITTFAX4")


def needs_packing(depth: int) -> None:
    """Skip a TIFF of 2 or 4 bits a sample that this version of imagecodecs cannot write."""
    if depth in (2, 4):
        try:
            imagecodecs.packints_encode(np.zeros(4, np.uint8), depth)
        except NotImplementedError:
            pytest.skip(f"imagecodecs {imagecodecs.__version__} cannot write {depth} bits a sample")


@pytest.mark.parametrize("stored", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["png", "tif", "lzw.tif", "planar.tif"])
def test_12_bits_in_files_of_16_stay_12_bits(tmp_path: Path, stored: int, kind: str) -> None:
    pixels = RNG.integers(0, 4096, (9, 11, stored), dtype=np.uint16)
    path = tmp_path / f"x.{kind}"
    if kind == "png":
        path.write_bytes(png(pixels, 16))
    else:
        more: Any = {"planarconfig": "separate" if "planar" in kind else "contig"}
        more |= {"compression": "lzw"} if "lzw" in kind else {}
        alpha = ["unassalpha"] if stored in (2, 4) else None
        photometric = "rgb" if stored > 2 else "minisblack"
        samples = pixels.transpose(2, 0, 1) if "planar" in kind else pixels
        if stored == 1:
            samples, more = pixels[..., 0], {k: v for k, v in more.items() if k == "compression"}
        tifffile.imwrite(path, samples, photometric=photometric, extrasamples=alpha, **more)
    for channels in {1, 3, stored}:
        image = read_image(path, ImageFormat(channels, span=(0, 4095)))
        np.testing.assert_allclose(image, expected(pixels, channels) / 4095 * 255, rtol=1e-5)
        assert len(np.unique(image)) > 50


def test_deep_images_in_shards_and_turned(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 65536, (4, 6, 3), dtype=np.uint16)
    (tmp_path / "x.png").write_bytes(png(pixels, 16))
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        archive.add(tmp_path / "x.png", "x.png")
    (image,) = [ShardedImages([tmp_path / "0.tar"])[0]]
    np.testing.assert_allclose(image, pixels.transpose(2, 0, 1) / 257, rtol=1e-5)
    with Image.open(tmp_path / "x.png") as file:
        exif = Image.Exif()
        exif[0x0112] = 8
        file.save(tmp_path / "turned.png", exif=exif)  # in 8 bits
    content = (tmp_path / "x.png").read_bytes()
    turned = (tmp_path / "turned.png").read_bytes()
    start = turned.index(b"eXIf") - 4
    (length,) = struct.unpack(">I", turned[start : start + 4])
    (tmp_path / "x.png").write_bytes(
        content[:33] + turned[start : start + 12 + length] + content[33:]
    )
    np.testing.assert_allclose(
        read_image(tmp_path / "x.png"), np.rot90(pixels).transpose(2, 0, 1) / 257, rtol=1e-5
    )


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("kind", ["png", "palette", "tif", "white.tif"])
def test_masks_are_samples_as_stored(tmp_path: Path, depth: int, kind: str) -> None:
    ids = RNG.integers(0, min(2**depth, 200), (5, 7))
    path = tmp_path / f"m.{kind.split('.')[-1]}"
    if kind in ("png", "palette"):
        if kind == "palette" and depth == 16:
            return
        path = tmp_path / "m.png"
        path.write_bytes(png(ids, depth, 3 if kind == "palette" else None))
    else:
        needs_packing(depth)
        stored: Any = ids.astype(bool if depth == 1 else np.uint16 if depth == 16 else np.uint8)
        photometric = "miniswhite" if "white" in kind else "minisblack"
        tifffile.imwrite(path, stored, photometric=photometric, bitspersample=depth)
    assert read_mask(path, Classes.of(200)).tolist() == ids.tolist()
    halves = dict.fromkeys(range(100), 0) | dict.fromkeys(range(100, 200), 1)
    assert read_mask(path, Classes.of(2, halves)).tolist() == (ids >= 100).astype(int).tolist()


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("kind", ["png", "tif", "white.tif"])
def test_few_bits_of_an_image_reach_from_black_to_white(
    tmp_path: Path, depth: int, kind: str
) -> None:
    samples = RNG.integers(0, 2**depth, (5, 7))
    path = tmp_path / f"x.{kind}"
    if kind == "png":
        path.write_bytes(png(samples, depth))
    else:
        needs_packing(depth)
        photometric = "miniswhite" if "white" in kind else "minisblack"
        stored = samples.astype(bool if depth == 1 else np.uint8)
        tifffile.imwrite(path, stored, photometric=photometric, bitspersample=depth)
    shown = 2**depth - 1 - samples if "white" in kind else samples
    image = read_image(path, ImageFormat(1))
    assert image[0].tolist() == (shown * 255 // (2**depth - 1)).tolist()


def test_deep_images_that_store_white_as_0_are_turned_over(tmp_path: Path) -> None:
    samples = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", samples, photometric="miniswhite")
    image = read_image(tmp_path / "x.tif")
    np.testing.assert_allclose(image[1], (65535.0 - samples) / 257, rtol=1e-5)
    tifffile.imwrite(tmp_path / "x.tif", samples / np.float32(65536), photometric="miniswhite")
    with pytest.raises(ValueError, match="white as 0 in float32 numbers, whose black is unknown"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("compression", ["lzw", "jpeg", "zlib", "packbits"])
def test_compressed_tiff_of_any_channels(tmp_path: Path, channels: int, compression: str) -> None:
    rows, columns = np.mgrid[:32, :48]
    planes = [rows * 4 + columns, 200 - rows * 3, columns * 5, 255 - columns]
    pixels = np.stack(planes[:channels], axis=-1).astype(np.uint8)
    path = tmp_path / "x.tif"
    separate = compression == "jpeg" and channels == 2  # which knows no two in one
    tifffile.imwrite(
        path,
        pixels.transpose(2, 0, 1) if separate else pixels,
        photometric="minisblack",
        planarconfig="separate" if separate else "contig",
        compression=compression,
    )
    image = read_image(path, ImageFormat(channels)).numpy().transpose(1, 2, 0)
    np.testing.assert_allclose(image.astype(int), pixels, atol=6 if compression == "jpeg" else 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_tiff_of_8_bits_is_what_pillow_makes_of_it(tmp_path: Path, channels: int) -> None:
    photo = Image.fromarray(RNG.integers(0, 256, (16, 24, 3), dtype=np.uint8))
    mode = "L" if channels == 1 else "RGB"
    for number, (made, more) in enumerate(
        [
            (photo, {}),
            (photo, {"compression": "jpeg"}),
            (photo.convert("RGBA"), {"compression": "tiff_lzw"}),
            (photo.convert("CMYK"), {}),
            (photo.convert("LA"), {}),
            *([(photo.convert("1"), {"compression": "group4"})] if READS_CCITT else []),
            (photo.quantize(7), {}),
            (photo.quantize(200), {"compression": "tiff_lzw", "tiffinfo": {274: 3}}),
        ]
    ):
        path = tmp_path / f"{number}.tif"
        made.save(path, **more)
        with Image.open(path) as file:
            shown = np.array(ImageOps.exif_transpose(file).convert(mode))
        image = read_image(path, ImageFormat(channels))
        assert torch.equal(
            image, torch.from_numpy(np.atleast_3d(shown).transpose(2, 0, 1).copy())
        ), number


def test_pages_are_channels_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    pages = RNG.integers(0, 256, (5, 6, 7), dtype=np.uint8)
    tifffile.imwrite(path, pages, photometric="minisblack")
    assert torch.equal(read_image(path, ImageFormat(5)), torch.from_numpy(pages))
    for channels in (1, 3, 4):
        with pytest.raises(ValueError, match=r"x\.tif: it holds 5 pages, expected one"):
            read_image(path, ImageFormat(channels))
    with pytest.raises(ValueError, match=r"cannot read mask .*x\.tif: it holds 5 pages"):
        read_mask(path, Classes.of(2))
    tifffile.imwrite(path, pages, imagej=True)  # of which the first alone has a place of its own
    with pytest.raises(ValueError, match="it holds 5 pages"):
        read_image(path)
    rows = RNG.integers(0, 256, (6, 7, 5), dtype=np.uint8)
    tifffile.imwrite(path, rows, photometric="minisblack")  # 6 pages of 7 x 5
    by_row = read_image(path, ImageFormat(5))
    assert torch.equal(by_row, torch.from_numpy(rows.transpose(2, 0, 1).copy()))
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pages[0], photometric="minisblack")
        tiff.write(pages[1, ::2], photometric="minisblack")
    with pytest.raises(ValueError, match="it holds 2 pages"):
        read_image(path, ImageFormat(2))
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pages[0], photometric="minisblack")
        tiff.write(pages[0, ::2, ::2], photometric="minisblack", subfiletype=1)  # a thumbnail
    assert torch.equal(read_image(path, ImageFormat(1))[0], torch.from_numpy(pages[0]))


def test_bmp_files_that_pillow_takes_for_other_pixels_are_refused(tmp_path: Path) -> None:
    """Of a palette of black and white Pillow makes 1 bit a pixel, whatever the pixels have."""
    ids, path = np.eye(4, dtype=np.uint8), tmp_path / "a.bmp"
    for colors, expected in (([0, 0, 0, 255, 255, 255], None), ([0, 0, 0, 255, 0, 0], ids)):
        picture = Image.fromarray(ids).convert("P")
        picture.putpalette(colors)
        picture.save(path)
        if expected is None:
            for read in (read_image, lambda p: read_mask(p, Classes.of(2))):
                with pytest.raises(
                    ValueError, match=r"cannot read .* pixels have 8 bits.* as PNG$"
                ):
                    read(path)
        else:
            assert np.array_equal(read_mask(path, Classes.of(2)).numpy(), expected)
    for bits in (ids.astype(bool), ids * 255):
        Image.fromarray(bits).save(path)
        assert np.array_equal(read_image(path).numpy()[0], ids * 255)


def test_either_order_of_bytes_reads_alike(tmp_path: Path) -> None:
    values = np.array([[0, 1, 257], [32768, 65534, 65535]], dtype=np.uint16)
    read = []
    for order in "<>":
        np.save(tmp_path / "a.npy", values.astype(f"{order}u2"))
        tifffile.imwrite(tmp_path / "a.tif", values, byteorder=order)
        read += [read_image(tmp_path / f"a.{kind}", ImageFormat(1)) for kind in ("npy", "tif")]
    assert all(torch.equal(read[0], other) for other in read[1:])
    assert read[0].flatten()[[0, 2, 5]].tolist() == [0, 1, 255]


def huge_jpeg(data: bytearray) -> None:
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", 30_000, 30_000)


def huge_jpeg_2000(data: bytearray) -> None:
    place = data.index(b"\xff\x4f\xff\x51") + 8
    for start in (place, place + 16):  # of the picture and of its tiles
        data[start : start + 8] = struct.pack(">II", 30_000, 30_000)


def huge_png(data: bytearray) -> None:
    place = data.index(b"IHDR")
    data[place + 4 : place + 12] = struct.pack(">II", 30_000, 30_000)
    data[place + 17 : place + 21] = struct.pack(">I", zlib.crc32(data[place : place + 17]))


@pytest.mark.parametrize("pages", [1, 4])
@pytest.mark.parametrize(
    ("compression", "enlarge"),
    [("jpeg", huge_jpeg), ("jpeg2000", huge_jpeg_2000), ("png", huge_png)],
)
def test_a_piece_of_a_tiff_is_no_larger_than_its_place(
    tmp_path: Path, compression: str, enlarge: Any, pages: int
) -> None:
    path = tmp_path / "a.tif"
    pixels = np.random.default_rng(0).integers(0, 256, (pages, 50, 70), dtype=np.uint8)
    tifffile.imwrite(path, pixels, photometric="minisblack", compression=compression, tile=(48, 64))
    format = ImageFormat(channels=pages)
    read = read_image(path, format).numpy()
    assert compression == "jpeg" or np.array_equal(read, pixels)  # JPEG is not lossless
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        last = tiff.pages[pages - 1].dataoffsets[-1]
    piece = data[last:]
    enlarge(piece)
    path.write_bytes(data[:last] + piece)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"says that it is 30000 x 30000, where 64 x 48 belong$"):
        read_image(path, format)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_pieces_that_do_not_say_how_large_they_are_are_refused(tmp_path: Path) -> None:
    path, pixels = tmp_path / "a.tif", np.zeros((50, 70), np.uint8)
    tifffile.imwrite(path, pixels, compression="jpegxl")
    with pytest.raises(ValueError, match=r"cannot read image .*\(number 50002\) .*: save it with"):
        read_image(path, ImageFormat(channels=1))
    tifffile.imwrite(path, pixels, compression="jpeg")
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\xff\xc0", b"\xff\xc4"))  # its frame header is another table
    with pytest.raises(ValueError, match=r"cannot read image .*: a piece of it does not say how l"):
        read_image(path, ImageFormat(channels=1))


def test_two_thousand_pages_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as tiff:
        for _ in range(2000):
            tiff.write(np.zeros((1, 1), np.uint8), photometric="minisblack", metadata=None)
    content = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", content, 4)
    while start:
        (count,) = struct.unpack_from("<H", content, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            (tag,) = struct.unpack_from("<H", content, entry)
            if tag in (256, 257, 278):  # 13,000 x 13,000, which one page may be
                struct.pack_into("<HHII", content, entry, tag, 4, 1, 13_000)
        (start,) = struct.unpack_from("<I", content, start + 2 + 12 * count)
    path.write_bytes(content)
    for channels in (1, 3, 4):
        with pytest.raises(ValueError, match=r"it holds 2000 pages, expected one"):
            read_image(path, ImageFormat(channels))


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_moving_pictures_are_refused(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("L", (8, 8), value) for value in (0, 100, 200)]
    frames[0].save(tmp_path / f"x.{kind}", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=r"it holds 3 pictures, expected one"):
        read_image(tmp_path / f"x.{kind}")


def test_channels_that_are_no_alpha_are_not_dropped(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (6, 7, 4), dtype=np.uint8)
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=["unspecified"])  # infrared, say
    assert torch.equal(
        read_image(path, ImageFormat(4)), torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    )
    with pytest.raises(ValueError, match=r"x\.tif: it is an array of 6x7x4, expected 3 channels"):
        read_image(path)


def test_numbers_pillow_would_round_are_refused(tmp_path: Path) -> None:
    deep = b"P6 2 1 65535\n" + np.arange(6, dtype=">u2").tobytes()
    with pytest.raises(ValueError, match="save it as PNG"):
        read_image(io.BytesIO(deep))
    assert read_image(io.BytesIO(b"P6 2 1 255\n" + bytes(range(6))))[0].tolist() == [[0, 3]]


# EXIF


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_masks_drawn_on_stored_pixels_are_turned_with_their_image(
    tmp_path: Path, turn: int, kind: str
) -> None:
    ids = RNG.integers(0, 3, (8, 16))
    picture = Image.fromarray((ids * 100).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = turn
    image, mask = tmp_path / f"x.{kind}", tmp_path / "m.png"
    more: Any = {"webp": {"lossless": True}, "jpg": {"quality": 100}}.get(kind, {})
    picture.save(image, exif=exif, **more)
    Image.fromarray(ids.astype(np.uint8)).save(mask)
    picture.save(
        tmp_path / "shown.png", exif=exif
    )  # Pillow 13 garbles TIFF files that lie on their side
    with Image.open(tmp_path / "shown.png") as file:
        shown = np.array(ImageOps.exif_transpose(file)) // 100
    sample = SegmentationDataset([image], [mask], Classes.of(3), turn_masks=True)[0]
    assert orientation(image) == turn
    assert sample.mask.tolist() == shown.tolist()
    assert (sample.image[0] / 100).round().tolist() == shown.tolist()
    plain = SegmentationDataset([image], [mask], Classes.of(3))
    if turn <= 4:
        assert plain[0].mask.tolist() == ids.tolist()
    else:
        with pytest.raises(ValueError, match=r"its stored pixels: --mask-orientation stored$"):
            plain[0]
    Image.fromarray(ids.astype(np.uint8)).save(
        mask, exif=exif
    )  # which says itself how it is turned
    for turn_masks in (False, True):
        again = SegmentationDataset([image], [mask], Classes.of(3), turn_masks=turn_masks)
        assert again[0].mask.tolist() == shown.tolist()


def test_orientation_of_what_is_no_turned_picture_is_1(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    (tmp_path / "b.jpg").write_bytes(b"no image")
    Image.new("L", (2, 3)).save(tmp_path / "c.bmp")
    names = ("a.npy", "b.jpg", "c.bmp", "missing.png")
    assert [orientation(tmp_path / name) for name in names] == [1] * 4


# Values


def test_values_outside_the_assumed_range_are_refused(tmp_path: Path) -> None:
    values = np.linspace(0, 255, 12, dtype=np.float32).reshape(3, 4)
    for suffix in ("npy", "tif"):
        path = tmp_path / f"x.{suffix}"
        np.save(path, values) if suffix == "npy" else tifffile.imwrite(path, values)
        with pytest.raises(ValueError, match=r"values go from 0 to 255.*--value-range LOW-HIGH"):
            read_image(path)
        image = read_image(path, ImageFormat(1, span=(0, 255)))
        np.testing.assert_allclose(image[0], values, rtol=1e-5)
    np.save(tmp_path / "x.npy", values / 255 * 1.001 - 0.0005)  # what resampling leaves
    np.testing.assert_allclose(read_image(tmp_path / "x.npy")[0], values, atol=0.2)
    np.save(tmp_path / "x.npy", values / 255 - 0.5)
    with pytest.raises(ValueError, match=r"values go from -0\.5 to 0\.5"):
        read_image(tmp_path / "x.npy")


@pytest.mark.parametrize("span", [None, (0.0, 1.0)])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_infinite_pixels_are_refused(tmp_path: Path, value: float, span: Any) -> None:
    np.save(tmp_path / "x.npy", np.array([[0.5, value]]))
    with pytest.raises(ValueError, match=r"x\.npy: some of its pixels are nan or infinite"):
        read_image(tmp_path / "x.npy", ImageFormat(1, span))


def test_large_numbers_keep_their_last_bits(tmp_path: Path) -> None:
    values = np.arange(256).reshape(16, 16)
    for dtype in (np.int64, np.uint32, np.float64):
        np.save(tmp_path / "x.npy", (10**9 + values).astype(dtype))
        image = read_image(tmp_path / "x.npy", ImageFormat(1, span=(1e9, 1e9 + 255)))
        assert image[0].tolist() == values.tolist()


# Palettes


def painted(path: Path, ids: Any, palette: list[tuple[int, int, int]]) -> Path:
    picture = Image.fromarray(np.array(ids, dtype=np.uint8))
    picture.putpalette([channel for color in palette for channel in color])
    picture.save(path)
    return path


BLACK, RED, GREEN, BLUE = (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_a_colour_with_two_indices_is_refused(tmp_path: Path, suffix: str) -> None:
    a = painted(tmp_path / f"a.{suffix}", [[0, 1, 2]], [BLACK, RED, GREEN])
    b = painted(tmp_path / f"b.{suffix}", [[0, 1, 2]], [BLACK, GREEN, RED])
    grey = tmp_path / "grey.png"
    Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).save(grey)
    with pytest.raises(ValueError, match=r"is 2 in mask .*a\.\w+ but 1 in .*b\.\w+: indices") as e:
        compare_palettes([grey, a, b])
    assert str(GREEN) in str(e.value)
    assert compare_palettes([a, a, grey]) == []


def test_palettes_may_differ_where_no_colour_moves(tmp_path: Path) -> None:
    full = [BLACK, RED, GREEN, BLUE]
    a = painted(tmp_path / "a.png", [[0, 1, 3]], full)
    short = painted(tmp_path / "b.png", [[0, 1]], full[:2])
    unused = painted(tmp_path / "c.png", [[0, 1]], [BLACK, RED, BLUE, GREEN])
    assert compare_palettes([a, short, unused]) == []
    alike = painted(tmp_path / "d.png", [[1, 3]], [BLACK, RED, RED, RED])  # tells nothing of 3
    (note,) = compare_palettes([a, alike])
    assert f"3 is {BLUE} in {a} but {RED} in {alike}" in note
    other = painted(tmp_path / "e.png", [[0, 1]], [BLACK, GREEN])
    (note,) = compare_palettes([short, other])
    assert f"1 is {RED} in {short} but {GREEN} in {other}" in note


def test_a_mask_that_is_a_jpeg_inside_is_refused(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 1).save(tmp_path / "m.png", "JPEG")
    with pytest.raises(ValueError, match=r"m\.png: it is no image of a known kind \(PNG, TIFF"):
        read_mask(tmp_path / "m.png", Classes.of(2))
    for lossy in ("jpeg", "jpeg2000"):
        tifffile.imwrite(tmp_path / "m.tif", np.ones((16, 16), np.uint8), compression=lossy)
        with pytest.raises(ValueError, match=r"m\.tif: it is compressed as JPEG.* may change ids"):
            read_mask(tmp_path / "m.tif", Classes.of(2))


# MATLAB


def nested(depth: int, pack: bool, lie: bool = False) -> bytes:
    """A .mat file with cells in cells: each has flags, dimensions, a name and one cell."""
    name = struct.pack("<IIQ", 1, 5, int.from_bytes(b"GTcls", "little"))
    flags = struct.pack("<IIII", 6, 1000 if lie else 8, 1, 0)
    inner = b""
    parts = []
    for level in range(depth):
        head = flags + struct.pack("<IIII", 5, 8, 1, 1)
        parts.append(head + (name if level == depth - 1 else struct.pack("<II", 1, 0)))
    size, tags = 0, []
    for part in parts:  # from the innermost outwards
        size += len(part)
        tags.append(struct.pack("<II", 14, size) + part)
        size += 8
    inner = b"".join(reversed(tags))
    if pack:
        packed = zlib.compress(inner)
        inner = struct.pack("<II", 15, len(packed)) + packed
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + inner


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("lie", [False, True])
def test_cells_in_cells_in_cells_do_not_end_the_process(
    tmp_path: Path, pack: bool, lie: bool
) -> None:
    few = nested(2, False)  # another array before it
    (tmp_path / "m.mat").write_bytes(few + nested(100_000, pack, lie)[128:])
    what = "does not begin" if lie else "more than 200 arrays"
    with pytest.raises(ValueError, match=rf"cannot read mask .*m\.mat: .*{what}"):
        read_mask(tmp_path / "m.mat", Classes.of(2))


def array(kind: int, dimensions: bytes) -> bytes:
    """A .mat file of one array named GTcls that ends after its name."""
    flags = struct.pack("<IIII", 6, 8, kind, 0)
    body = flags + dimensions + struct.pack("<IIQ", 1, 5, int.from_bytes(b"GTcls", "little"))
    return struct.pack("<II", 14, len(body)) + body


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (array(1, struct.pack("<IIII", 5, 8, 2**30, 1)), "more than 200 arrays"),
        (array(2, struct.pack("<IIII", 5, 8, 15, 15)), "more than 200 arrays"),
        (array(1, struct.pack("<II", 4 << 16 | 5, 2**30)), "more than 200 arrays"),
        (struct.pack("<II", 14, 0) + bytes(2**22), "more than 2000 elements"),
    ],
    ids=["cells", "structs", "cells, small header", "empty elements"],
)
@pytest.mark.parametrize("pack", [False, True])
def test_what_a_mat_file_announces_is_checked_first(
    tmp_path: Path, content: bytes, what: str, pack: bool
) -> None:
    if pack:
        packed = zlib.compress(content)
        content = struct.pack("<II", 15, len(packed)) + packed
    (tmp_path / "m.mat").write_bytes(nested(2, False) + content)
    with pytest.raises(ValueError, match=rf"cannot read mask .*m\.mat: .*{what}"):
        read_mask(tmp_path / "m.mat", Classes.of(2))


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"GTcls": 3.0}, "GTcls in it is no struct with a field Segmentation"),
        ({"GTcls": {"Boundaries": 1}}, "GTcls in it is no struct with a field Segmentation"),
        ({"LabelMap": 3.5}, "is a single value .float64.: expected a palette"),
    ],
)
def test_mat_files_without_a_mask_are_named(
    tmp_path: Path, variables: dict[str, Any], what: str
) -> None:
    savemat(tmp_path / "m.mat", variables)
    with pytest.raises(ValueError, match=rf"m\.mat.*{what}"):
        read_mask(tmp_path / "m.mat", Classes.of(2))


@pytest.mark.parametrize("pack", [False, True])
def test_mat_masks_are_read_whatever_lies_beside_them(tmp_path: Path, pack: bool) -> None:
    ids = RNG.integers(0, 21, (20, 30)).astype(np.uint8)
    cells = np.empty((20, 1), dtype=object)
    cells[:, 0] = [scipy.sparse.csc_matrix(ids == k) for k in range(20)]
    fields = {"Boundaries": cells, "Segmentation": ids, "CategoriesPresent": np.unique(ids)}
    savemat(tmp_path / "a.mat", {"notes": "x" * 99, "GTcls": fields}, do_compression=pack)
    savemat(tmp_path / "b.mat", {"LabelMap": ids.astype(np.uint16)}, do_compression=pack)
    savemat(tmp_path / "c.mat", {"LabelMap": ids}, format="4")
    for name in "abc":
        assert read_mask(tmp_path / f"{name}.mat", Classes.of(21)).tolist() == ids.tolist()


@pytest.mark.parametrize("header", ["P5 3 1 {}\n", "P2\n3 1 {}\n"])
def test_grey_maps_of_another_maximum_are_refused(tmp_path: Path, header: str) -> None:
    """Pillow would spread ids 0, 1, 2 over 0..255: with a maximum of 2, the class 2 becomes 255, ignored."""
    path = tmp_path / "mask.pgm"
    plain, wanted = header[1] == "2", [[0, 1, 2]]
    for most in (2, 255):
        path.write_bytes(header.format(most).encode() + (b"0 1 2\n" if plain else bytes([0, 1, 2])))
        if most == 255:
            assert read_mask(path, Classes.of(3)).tolist() == wanted
            continue
        for read in (lambda: read_mask(path, Classes.of(3)), lambda: read_image(path)):
            with pytest.raises(
                ValueError, match=r"its numbers do not end at 255 .*: save it as PNG"
            ):
                read()
