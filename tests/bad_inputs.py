"""Bad and strange inputs: what a person did, how a test does it, and what gmix says to it.

`python tests/bad_inputs.py` prints the tables of docs/robustness.md, which are made of this list.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.io import savemat
from segmentation_models_pytorch.encoders import get_encoder
from tiny_data import tiny_config, words, write_data, write_scene
from true_layouts import voc

from gmix.builders.data import Data

Words = list[str]


class Sample(NamedTuple):
    """What the first labeled image and its mask became."""

    image: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class Place:
    """An empty folder to make bad input in, and a finished run to copy."""

    root: Path
    finished: Path

    @property
    def data(self) -> Path:
        """A small data set, written when first asked for."""
        folder = self.root / "data"
        return folder if folder.exists() else write_data(folder)

    @property
    def marker(self) -> Path:
        """What code in a pickle or YAML file would make."""
        return self.root / "marker"

    def run(self) -> Path:
        """A copy of the finished run."""
        folder = self.root / "run"
        if not folder.exists():
            shutil.copytree(self.finished, folder)
        return folder

    def train(self, *flags: object, **changes: Any) -> Words:
        """`gmix train` on the data."""
        config = tiny_config(self.data, self.root / "out", **{"method": "supervised", **changes})
        return ["train", *words(config), *map(str, flags)]

    def train_voc(self, lines: str | bytes) -> Words:
        """`gmix train` on a list of images in PASCAL VOC's layout."""
        voc(self.root / "voc")
        content = lines if isinstance(lines, bytes) else lines.encode()
        (self.root / "list.txt").write_bytes(content)
        changes = dict.fromkeys(("images", "masks", "val_images", "val_masks", "classes"))
        known = {"voc": str(self.root / "voc"), "train_list": str(self.root / "list.txt")}
        return self.train(**changes, **known)

    def resume(self, *flags: object) -> Words:
        """`gmix train --resume` in the copy of the run."""
        words = ["--config", self.run() / "config.yaml", "--out", self.run(), "--resume", *flags]
        return ["train", *map(str, words)]

    def evaluate(self, *flags: object) -> Words:
        """`gmix evaluate` of the copy of the run."""
        return ["evaluate", "--model", str(self.run()), "--device", "cpu", *map(str, flags)]


Make = Callable[[Place], Words]


@dataclass(frozen=True)
class Case:
    """One row of the docs.

    Attributes:
        did: what a person did.
        make: does it, and gives the words after `gmix`.
        says: the line on stderr, `…` standing for anything; or, after "works: ", what comes of it.
        check: of what works: the data of a training, or the place.
        needs: "posix", or "no root" (permissions).
    """

    did: str
    make: Make
    says: str
    check: Callable[[Any], bool] | None = None
    needs: str = ""


GROUPS: dict[str, list[Case]] = {}


def group(title: str, *cases: Case) -> None:
    """Add a table."""
    GROUPS[title] = list(cases)


# --- ways to spoil a data set ----------------------------------------------------------------


def put(name: str, content: bytes | str, **changes: Any) -> Make:
    """A file of that name below the data set."""

    def make(place: Place) -> Words:
        data = content.encode() if isinstance(content, str) else content
        (place.data / name).write_bytes(data)
        return place.train(**changes)

    return make


def cut(name: str, picture: Image.Image | None = None, **changes: Any) -> Make:
    """The first half of an image file."""

    def make(place: Place) -> Words:
        path = place.data / name
        if picture is not None:
            for old in path.parent.glob(f"{path.stem}.*"):
                old.unlink()
            picture.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return place.train(**changes)

    return make


def save(name: str, picture: Any, flags: Words | None = None, **options: Any) -> Make:
    """An image (Pillow) or array (.npy) of that name, in place of those with its stem."""

    def make(place: Place) -> Words:
        path = place.data / name
        for old in path.parent.glob(f"{path.stem}.*"):
            old.unlink()
        if path.suffix == ".npy":
            np.save(path, picture, allow_pickle=False)
        else:
            picture.save(path, **options)
        return place.train(*(flags or []))

    return make


def flags(*more: object, **changes: Any) -> Make:
    """More flags, which win over those before."""
    return lambda place: place.train(*more, **changes)


def setting(text: str | bytes) -> Make:
    """A configuration file."""

    def make(place: Place) -> Words:
        path = place.root / "mine.yaml"
        filled = text.replace("MARKER", str(place.marker)) if isinstance(text, str) else text
        path.write_bytes(filled.encode() if isinstance(filled, str) else filled)
        names = ("images", "masks", "val-images", "val-masks")
        folders = [
            word for name in names for word in (f"--{name}", place.data / name.replace("-", "_"))
        ]
        own = [
            "--config",
            path,
            "--classes",
            3,
            "--method",
            "supervised",
            "--out",
            place.root / "out",
        ]
        return ["train", *map(str, [*folders, *own])]

    return make


def listed(lines: str | bytes) -> Make:
    """A list of labeled images."""
    return lambda place: place.train_voc(lines)


def link(name: str, target: str) -> Make:
    """A link in place of a file of the data set."""

    def make(place: Place) -> Words:
        path = place.data / name
        path.unlink(missing_ok=True)
        path.symlink_to(target)
        return place.train()

    return make


def every_mask(picture: Image.Image, *more: object, folder: str = "masks") -> Make:
    """The same mask everywhere."""

    def make(place: Place) -> Words:
        for path in (place.data / folder).iterdir():
            picture.save(path)
        return place.train(*more)

    return make


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (open, (str(self.marker), "w"))


def weights(write: Callable[[Path, Place], object], name: str = "weights.pth") -> Make:
    """A file of encoder weights."""

    def make(place: Place) -> Words:
        path = place.root / name
        write(path, place)
        return place.train(encoder="mobilenet_v2", encoder_weights=str(path))

    return make


def model(change: Callable[[Path, Place], object], *more: object) -> Make:
    """A model folder that is not as it was saved."""

    def make(place: Place) -> Words:
        change(place.run() / "model", place)
        return place.evaluate(*more)

    return make


def sum_anew(folder: Path) -> None:
    """Make a changed checkpoint look as it was written: whoever changed it on purpose would."""
    files = sorted(path for path in folder.iterdir() if path.name != "SHA256SUMS")
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def checkpoint(change: Callable[[Path, Place], object]) -> Make:
    """A last checkpoint that is not as it was saved."""

    def make(place: Place) -> Words:
        change(max(place.run().glob("checkpoint-*")), place)
        return place.resume()

    return make


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def edit(path: Path, out: str | None = None, **changes: Any) -> None:
    """Other values in a JSON file, and one key `out`."""
    facts = {**json.loads(path.read_text()), **changes}
    facts.pop(out, None)
    path.write_text(json.dumps(facts))


# --- images ----------------------------------------------------------------------------------

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
PHOTO = Image.fromarray(PIXELS)
TURNED = Image.Exif()
TURNED[0x0112] = 6  # shown turned by 90 degrees clockwise


UPSIDE_DOWN = Image.Exif()
UPSIDE_DOWN[0x0112] = 3


def png_header(width: int, height: int, bits: int = 8, rows: bytes = b"\0" * 9) -> bytes:
    """A grey PNG file of that size, or the start of one."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ):
        crc = struct.pack(">I", zlib.crc32(kind + content))
        parts += [struct.pack(">I", len(content)), kind, content, crc]
    return b"".join(parts)


def npy_header(shape: tuple[int, ...]) -> bytes:
    """A .npy file that promises an array and has no numbers."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def huge_array(place: Place) -> Words:
    (place.data / "images/01.png").unlink()
    return put("images/01.npy", npy_header((10**6, 10**6, 3)))(place)


def broken_checksum(place: Place) -> Words:
    path = place.data / "images" / "01.png"
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 40] ^= 255
    path.write_bytes(content)
    return place.train()


def pickled_array(name: str) -> Make:
    """Code in a .npy file."""

    def make(place: Place) -> Words:
        path = place.data / name
        for old in path.parent.glob(f"{path.stem}.*"):
            old.unlink()
        np.save(path, np.array([Payload(place.marker)], dtype=object), allow_pickle=True)
        return place.train()

    return make


def turned_both(place: Place) -> Words:
    """A photo and its mask, both stored lying and shown upright."""
    ids = np.zeros((40, 64), dtype=np.uint8)
    ids[:10] = 1
    for name in ("images/00", "masks/00"):
        (place.data / f"{name}.png").unlink()
    Image.fromarray(np.dstack([ids * 200] * 3)).save(
        place.data / "images/00.webp", lossless=True, exif=TURNED
    )
    Image.fromarray(ids).save(place.data / "masks/00.png", exif=TURNED)
    return place.train()


def is_turned(data: Data) -> bool:
    image, mask = first(data)
    band = torch.zeros(64, 40, dtype=torch.int64)
    band[:, 30:] = 1  # the first rows, clockwise, are the last columns
    return torch.equal(mask, band) and torch.equal(image[0], band * 200)


def turned_image_only(place: Place) -> Words:
    (place.data / "images/01.png").unlink()
    Image.fromarray(PIXELS[:40]).save(place.data / "images/01.jpg", exif=TURNED)
    Image.new("L", (64, 40)).save(place.data / "masks/01.png")
    return place.train()


def broken_exif(place: Place) -> Words:
    (place.data / "images/01.png").unlink()
    PHOTO.save(place.data / "images/01.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\xff\xff")
    return place.train()


def cut_tiff(place: Place) -> Words:
    import tifffile

    pixels = np.dstack([PIXELS, PIXELS[..., :1]])
    for path in (place.data / "images").iterdir():
        path.unlink()
        tifffile.imwrite(path.with_suffix(".tif"), pixels, photometric="minisblack")
    halve(place.data / "images" / "01.tif")
    return place.train("--channels", 4)


def huge_tile(place: Place) -> Words:
    import tifffile

    path = place.data / "images" / "01.tif"
    path.with_suffix(".png").unlink()
    tifffile.imwrite(path, PIXELS, photometric="rgb", tile=(64, 64), compression="jpeg")
    content = bytearray(path.read_bytes())
    frame = content.index(b"\xff\xc0")  # its length, its bits, then height and width
    content[frame + 5 : frame + 9] = struct.pack(">HH", 30_000, 30_000)
    path.write_bytes(content)
    return place.train()


def huge_tiff(place: Place) -> Words:
    import tifffile

    path = place.data / "images" / "01.tif"
    path.with_suffix(".png").unlink()
    tifffile.imwrite(path, np.zeros((8, 8, 4), np.uint8), photometric="minisblack")
    content = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", content, entry)
        if tag in (256, 257):  # width and height
            struct.pack_into("<HHII", content, entry, tag, 4, 1, 100_000)
    path.write_bytes(content)
    for other in (place.data / "images").glob("*.png"):
        Image.open(other).convert("RGBA").save(other)
    return place.train("--channels", 4)


def deep_colours(place: Place) -> Words:
    import imagecodecs

    grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    return put("images/01.png", imagecodecs.png_encode(np.dstack([grey, grey, 65535 - grey])))(
        place
    )


def one_pixel(place: Place) -> Words:
    for folder in ("images", "masks"):
        Image.new("L", (1, 1), 1).save(place.data / folder / "00.png")
    return place.train()


def unlabeled_broken(place: Place) -> Words:
    (place.data / "images" / "07.png").write_bytes(b"no picture")
    return place.train(method="guidedmix", cache=True)


def broken_images(*names: str) -> Make:
    def make(place: Place) -> Words:
        for name in names:
            (place.data / name).write_bytes(b"no picture")
        return place.train(skip_damaged=1)

    return make


def first(data: Data, index: int = 0) -> Sample:
    labeled: Any = data.labeled
    return Sample(*(part.as_subclass(torch.Tensor) for part in labeled[index]))


def is_rgb(data: Data) -> bool:
    image = first(data, 1).image
    return image.shape == (3, 64, 64) and image.dtype == torch.uint8


def is_deep(data: Data) -> bool:
    image = first(data, 1).image
    fine = image - image.round()
    return image.dtype == torch.float32 and 0 < image.max() <= 255 and bool(fine.any())


DEEP = Image.fromarray((np.arange(64 * 64).reshape(64, 64) * 15).astype(np.uint16))
PALETTE = PHOTO.quantize(8)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
FRACTIONS = np.full((64, 64), 0.5, dtype=np.float32)
HOLED = np.where(np.eye(64, dtype=bool), np.float32("nan"), FRACTIONS)
NO_KIND = "cannot read image …01.png: it is no image of a known kind (PNG, JPEG, …), or one that is cut short"

group(
    "Images",
    Case("an empty image file", put("images/01.png", b""), NO_KIND),
    Case("a web page saved as `01.png`", put("images/01.png", "<!doctype html>"), NO_KIND),
    Case("a PNG file cut in half", cut("images/01.png"), "cannot read image …01.png: …"),
    Case(
        "a JPEG file cut in half",
        cut("images/01.jpg", PHOTO),
        "cannot read image …01.jpg: image file is truncated…",
    ),
    Case("a PNG file with a wrong byte", broken_checksum, "cannot read image …01.png: …"),
    Case("a TIFF file of 4 channels cut in half", cut_tiff, "cannot read image …01.tif: …"),
    Case(
        "a PNG file 0 pixels wide",
        put("images/01.png", png_header(0, 64)),
        "cannot read image …01.png: …",
    ),
    Case(
        "a PNG file of 70 bytes that says it is 100,000 x 100,000",
        put("images/01.png", png_header(100_000, 100_000)),
        "cannot read image …01.png: Image size (10000000000 pixels) exceeds limit of …",
    ),
    Case(
        "a TIFF file of 4 channels that says so",
        huge_tiff,
        "cannot read image …01.tif: Image size (10000000000 pixels) exceeds limit of …",
    ),
    Case(
        "a TIFF file with a JPEG tile that says it is 30,000 x 30,000",
        huge_tile,
        "cannot read image …01.tif: a piece of it says that it is 30000 x 30000, where 64 x 64 belong",
    ),
    Case(
        "a `.npy` file that promises 3 TB",
        huge_array,
        "cannot read image …01.npy: …",
    ),
    Case(
        "a `.npy` file with a pickle that runs code",
        pickled_array("images/01.npy"),
        "cannot read image …01.npy: Object arrays cannot be loaded when allow_pickle=False",
    ),
    Case(
        "a `.npy` image without pixels",
        save("images/01.npy", np.zeros((0, 64, 3), np.uint8)),
        "cannot read image …01.npy: it has no pixels",
    ),
    Case(
        "a `.npy` image of 5 channels",
        save("images/01.npy", np.zeros((64, 64, 5), np.uint8)),
        "cannot read image …01.npy: it is an array of 64x64x5, expected 3 channels (--channels N says how many)",
    ),
    Case(
        "a `.npy` image of 32-bit whole numbers",
        save("images/01.npy", np.zeros((64, 64), np.int32)),
        "cannot read image …01.npy: its pixels are int32 numbers of unknown range: say …--value-range LOW-HIGH)",
    ),
    Case(
        "a `.npy` image of complex numbers",
        save("images/01.npy", np.zeros((64, 64), np.complex64), ["--value-range", "0-1"]),
        "cannot read image …01.npy: its pixels are complex64: expected numbers",
    ),
    Case(
        "a TIFF image with holes (nan)",
        save("images/01.tif", Image.fromarray(HOLED)),
        "cannot read image …01.tif: some of its pixels are nan or infinite: give them a value",
    ),
    Case(
        "a TIFF image with infinite pixels",
        save(
            "images/01.tif", Image.fromarray(np.where(np.eye(64), np.inf, FRACTIONS).astype("f4"))
        ),
        "cannot read image …01.tif: some of its pixels are nan or infinite: give them a value",
    ),
    Case(
        "a `.npy` image of fractions that go up to 255",
        save("images/01.npy", FRACTIONS * 510),
        "cannot read image …01.npy: its values go from 255 to 255, where 0 is taken for black and 1 for white: say …",
    ),
    Case(
        "a TIFF file of 3 pages",
        save("images/01.tif", PHOTO, save_all=True, append_images=[PHOTO.convert("L"), PHOTO]),
        "cannot read image …01.tif: it holds 3 pages, expected one picture: save each as a file of its own …",
    ),
    Case(
        "an image that moves (APNG)",
        save("images/01.png", PHOTO, save_all=True, append_images=[PHOTO.rotate(90)]),
        "cannot read image …01.png: it holds 2 pictures, expected one: save each as a file of its own",
    ),
    Case(
        "PostScript called `01.png`, for which Pillow would start Ghostscript",
        put("images/01.png", EPS),
        NO_KIND,
    ),
    Case("a broken unlabeled image, with `--cache`", unlabeled_broken, NO_KIND.replace("01", "07")),
    Case(
        "a broken image, with `--skip-damaged 1`",
        broken_images("images/01.png"),
        "works: the next image takes its place, a line says so",
        lambda data: (
            torch.equal(first(data, 1).image, first(data, 2).image)
            and [Path(name).name for name in data.left_out] == ["01.png"]
        ),
    ),
    Case(
        "a broken image and a broken validation mask, with `--skip-damaged 1`",
        broken_images("images/01.png", "val_masks/v1.png"),
        "cannot read …: it is no image of a known kind …; 2 images cannot be read, --skip-damaged is 1",
    ),
    Case(
        "a CMYK photo", save("images/01.jpg", PHOTO.convert("CMYK")), "works: read as RGB", is_rgb
    ),
    Case(
        "an image with an alpha channel",
        save("images/01.png", PHOTO.convert("RGBA")),
        "works: alpha is dropped",
        is_rgb,
    ),
    Case(
        "a palette image with transparent colours",
        save("images/01.png", PALETTE, transparency=b"\0\x80"),
        "works: read as RGB",
        is_rgb,
    ),
    Case(
        "a grey image among colour images",
        save("images/01.png", PHOTO.convert("L")),
        "works: read as RGB",
        is_rgb,
    ),
    Case(
        "an image of 1 bit", save("images/01.png", PHOTO.convert("1")), "works: read as RGB", is_rgb
    ),
    Case(
        "an image of 16 bits",
        save("images/01.png", DEEP),
        "works: as float32 in 0..255, nothing is cut",
        is_deep,
    ),
    Case(
        "a colour image of 16 bits",
        deep_colours,
        "works: as float32 in 0..255, nothing is cut",
        lambda data: len(first(data, 1).image[2].unique()) == 64 * 64,
    ),
    Case(
        "a JPEG file called `01.png`",
        save("images/01.png", PHOTO, format="JPEG"),
        "works: a file says itself what it is",
        is_rgb,
    ),
    Case(
        "a photo and its mask that a camera turned (EXIF)",
        turned_both,
        "works: both are turned upright",
        is_turned,
    ),
    Case(
        "a photo that a camera turned, with an upright mask of the stored size",
        turned_image_only,
        "image …01.jpg is 64x40 (HxW) but its mask …01.png is 40x64: … stored pixels: --mask-orientation stored",
    ),
    Case(
        "the same with `--mask-orientation stored`",
        lambda place: [*turned_image_only(place), "--mask-orientation", "stored"],
        "works: the mask is turned with its image",
        lambda data: first(data, 1).mask.shape == (64, 40),
    ),
    Case(
        "a photo that EXIF turns by 180 degrees",
        save("images/01.png", PHOTO, exif=UPSIDE_DOWN),
        "works: a note says that its mask is taken as drawn on what is shown",
        lambda data: "--mask-orientation stored" in data.notes[0],
    ),
    Case(
        "a photo with broken EXIF data",
        broken_exif,
        "works: it is taken as it is stored, under Pillow's warning",
        is_rgb,
    ),
    Case(
        "an image of one pixel",
        one_pixel,
        "works",
        lambda data: first(data).image.shape == (3, 1, 1),
    ),
)

# --- masks -----------------------------------------------------------------------------------


def ids(*values: int, dtype: str = "uint8") -> Any:
    """A mask of columns."""
    return np.tile(np.array(values, dtype=dtype), (64, 64 // len(values)))


def no_mat(place: Place) -> Words:
    (place.data / "masks/01.png").unlink()
    (place.data / "masks/01.mat").write_bytes(b"no matrix" * 50)
    return place.train()


def other_mat(place: Place) -> Words:
    (place.data / "masks/01.png").unlink()
    savemat(place.data / "masks/01.mat", {"labels": ids(0, 1)})
    return place.train()


def jpeg_masks(place: Place) -> Words:
    for path in (place.data / "masks").iterdir():
        Image.open(path).convert("L").save(path.with_suffix(".jpg"))
        path.unlink()
    return place.train()


def white_and_one(folder: str) -> Make:
    """Binary masks, the foreground of one of which is stored as 255 and that of the others as 1."""

    def make(place: Place) -> Words:
        for path in [*(place.data / "masks").iterdir(), *(place.data / "val_masks").iterdir()]:
            Image.fromarray(ids(0, 1)).save(path)
        Image.fromarray(ids(0, 255)).save(max((place.data / folder).iterdir()))
        return place.train("--classes", 1)

    return make


def own_palettes(place: Place) -> Words:
    """The same mask, but each with the palette that suits it best."""
    for number, colors in enumerate(([0, 0, 0, 255, 0, 0], [255, 0, 0, 0, 0, 0])):
        picture = Image.fromarray(ids(number, 1 - number))
        picture.putpalette(colors)
        picture.save(place.data / "masks" / f"0{number}.png")
    return place.train()


TWO_BITS = (b"\0" + bytes([0b00011000]) * 16) * 64  # 0, 1, 2, 0 and so on


IGNORED = Image.new("L", (64, 64), 255)
ALL_IGNORED = (
    "no labeled mask has a pixel of any class, from …00.png on all is ignored: is the label map "
    "(--label-map) the one of these masks?"
)
NOT_IDS = ": expected a palette or grey image (or an array of whole numbers) whose pixel values are class ids"

group(
    "Masks",
    Case(
        "an empty mask file",
        put("masks/01.png", b""),
        "cannot read mask …01.png: it is no image of a known kind …",
    ),
    Case("a mask cut in half", cut("masks/01.png"), "cannot read mask …01.png: …"),
    Case(
        "a mask of another size than its image",
        save("masks/01.png", Image.new("L", (64, 60))),
        "image …01.png is 64x64 (HxW) but its mask …01.png is 60x64: they must have the same size",
    ),
    Case(
        "a mask in colours (RGB)",
        save("masks/01.png", PHOTO),
        "mask …01.png is a colour image (mode RGB)" + NOT_IDS,
    ),
    Case(
        "a mask with an alpha channel",
        save("masks/01.png", PHOTO.convert("LA")),
        "mask …01.png is a colour image (mode LA)" + NOT_IDS,
    ),
    Case(
        "a mask with an id that is no class",
        save("masks/01.png", Image.fromarray(ids(0, 77))),
        "mask …01.png holds the id 77: expected 0..2 or 255; give a label map if the file holds raw ids",
    ),
    Case(
        "a validation mask with such an id",
        save("val_masks/v1.png", Image.fromarray(ids(0, 9))),
        "mask …v1.png holds the id 9: expected 0..2 or 255; …",
    ),
    Case(
        "a mask with an id below 0",
        save("masks/01.npy", ids(-1, 0, dtype="int16")),
        "mask …01.npy holds the id -1: expected 0..2 or 255; …",
    ),
    Case(
        "a mask with ids above 2^63",
        save("masks/01.npy", ids(0, 2**63 + 5, dtype="uint64")),
        "mask …01.npy holds the id …: expected 0..2 or 255; …",
    ),
    Case(
        "a mask of fractions (`.npy`)",
        save("masks/01.npy", FRACTIONS),
        "mask …01.npy is an array of 64x64 float32 numbers" + NOT_IDS,
    ),
    Case(
        "a mask of fractions (TIFF)",
        save("masks/01.tif", Image.fromarray(FRACTIONS)),
        "mask …01.tif is an array of 64x64 float32 numbers" + NOT_IDS,
    ),
    Case(
        "a mask with a pickle that runs code (`.npy`)",
        pickled_array("masks/01.npy"),
        "cannot read mask …01.npy: Object arrays cannot be loaded when allow_pickle=False",
    ),
    Case("a `.mat` file that is none", no_mat, "cannot read mask …01.mat: …"),
    Case(
        "a `.mat` file with other contents",
        other_mat,
        "cannot read mask …01.mat: expected GTcls or LabelMap in it, found labels",
    ),
    Case(
        "a mask of 70 bytes that says it is 100,000 x 100,000",
        put("masks/01.png", png_header(100_000, 100_000)),
        "cannot read mask …01.png: Image size (10000000000 pixels) exceeds limit of …",
    ),
    Case(
        "masks as JPEG, which changes ids",
        jpeg_masks,
        "the mask folder …masks holds no mask (png, bmp, tif, tiff, npy, mat)",
    ),
    Case(
        "`--images` and `--masks` the wrong way round",
        lambda place: place.train(
            "--images", place.data / "masks", "--masks", place.data / "images"
        ),
        "mask …00.png is a colour image (mode RGB)…",
    ),
    Case("masks in which everything is ignored", every_mask(IGNORED), ALL_IGNORED),
    Case(
        "a label map of ids that do not occur",
        every_mask(Image.new("L", (64, 64), 7), "--label-map", "0:0,1:1"),
        ALL_IGNORED,
    ),
    Case(
        "one mask of which everything is ignored",
        save("masks/01.png", IGNORED),
        "works: it teaches nothing",
        lambda data: bool((first(data, 1).mask == 255).all()),
    ),
    Case(
        "validation masks in which everything is ignored",
        every_mask(IGNORED, folder="val_masks"),
        ALL_IGNORED.replace("labeled", "validation").replace("00.png", "v0.png"),
    ),
    Case(
        "a mask of 16 bits",
        save("masks/01.png", Image.fromarray(ids(0, 2, dtype="uint16"))),
        "works",
        lambda data: first(data, 1).mask.unique().tolist() == [0, 2],
    ),
    Case(
        "a grey map (PGM) called `01.png` whose numbers end at 2, in text",
        put("masks/01.png", b"P2 64 64 2\n" + b"0 2 " * 2048),
        "cannot read mask …01.png: its numbers do not end at 255 (or 65535 in grey): save it as PNG",
    ),
    Case(
        "a mask of 2 bits",
        put("masks/01.png", png_header(64, 64, 2, TWO_BITS)),
        "works: its values are 0 to 3",
        lambda data: first(data, 1).mask[5, :4].tolist() == [0, 1, 2, 0],
    ),
    Case(
        "a JPEG file called `01.png` as mask",
        save("masks/01.png", Image.fromarray(ids(0, 1)), format="JPEG"),
        "cannot read mask …01.png: it is no image of a known kind (PNG, TIFF, BMP, GIF, PPM), or …",
    ),
    Case(
        "binary masks of which one holds 255, the others 1",
        white_and_one("masks"),
        "mask …03.png holds 255 for a foreground or for what is ignored, mask …00.png holds 1: write all …",
    ),
    Case(
        "binary masks of 1, and a validation mask of 255",
        white_and_one("val_masks"),
        "mask …v2.png holds 255 for a foreground or for what is ignored, mask …00.png holds 1: write all …",
    ),
    Case(
        "palette masks whose palettes have one colour at several indices",
        own_palettes,
        "the colour (255, 0, 0) is 1 in mask …00.png but 0 in …01.png: indices of such files are no classes; save …",
    ),
    Case(
        "a mask of 1 bit",
        save("masks/01.png", Image.fromarray(ids(0, 1).astype(bool))),
        "works",
        lambda data: first(data, 1).mask.unique().tolist() == [0, 1],
    ),
)

# --- folders and names -----------------------------------------------------------------------


def counted(labeled: int, unlabeled: int = 0) -> Callable[[Data], bool]:
    return lambda data: data.counts["labeled"] == labeled


def renamed(old: str, new: str | bytes) -> Make:
    """An image and its mask under another name."""

    def make(place: Place) -> Words:
        for folder in ("images", "masks"):
            path = place.data / folder
            (path / old).rename(path / os.fsdecode(new))
        return place.train()

    return make


def line_end_in_name(place: Place) -> Words:
    words = renamed("01.png", "0\n\x1b[31m1.png")(place)
    (place.data / "images" / "0\n\x1b[31m1.png").write_bytes(b"no picture")
    return words


def gone(place: Place) -> Words:
    (place.data / "val_masks" / "v2.png").unlink()
    return place.train()


def folder_like_an_image(place: Place) -> Words:
    (place.data / "images" / "zz.png").mkdir()
    return place.train()


def pipe(place: Place) -> Words:
    os.mkfifo(place.data / "images" / "zz.png")
    return place.train()


def unreadable(place: Place) -> Words:
    (place.data / "images" / "01.png").chmod(0)
    return place.train()


def link_to_itself(place: Place) -> Words:
    (place.root / "loop").symlink_to(place.root / "loop")
    return place.train("--images", place.root / "loop")


def second(name: str, copy: str) -> Make:
    """A copy of a file under another name."""

    def make(place: Place) -> Words:
        shutil.copy(place.data / name, place.data / copy)
        return place.train()

    return make


def only(labeled: int) -> Make:
    """Fewer images than there were."""

    def make(place: Place) -> Words:
        for folder in ("images", "masks"):
            for path in sorted((place.data / folder).iterdir())[labeled:]:
                path.unlink()
        return place.train()

    return make


def empty(folder: str) -> Make:
    def make(place: Place) -> Words:
        for path in (place.data / folder).iterdir():
            path.unlink()
        return place.train()

    return make


def own_list(place: Place) -> Words:
    """A list of images and masks in plain folders, `--voc` being the folder they are in."""
    (place.root / "list.txt").write_text("images/00.png masks/00.png\n")
    folders = dict.fromkeys(("images", "masks", "val_images", "val_masks"))
    known = {"voc": str(place.data), "train_list": str(place.root / "list.txt")}
    return place.train(**folders, **known)


def dead_unlabeled_link(place: Place) -> Words:
    (place.root / "more").mkdir()
    (place.root / "more" / "a.png").symlink_to("a.png")
    return place.train("--unlabeled", place.root / "more")


group(
    "Folders and names",
    Case(
        "an empty image folder", empty("images"), "the image folder …images holds no image (jpg, …)"
    ),
    Case(
        "a folder that does not exist",
        flags("--masks", "nowhere"),
        "the mask folder nowhere does not exist",
    ),
    Case(
        "a file where a folder is asked for",
        lambda place: place.train("--images", place.data / "names.txt"),
        "the image folder …names.txt does not exist",
    ),
    Case(
        "a link to itself as image folder",
        link_to_itself,
        "the image folder …loop does not exist",
        needs="posix",
    ),
    Case(
        "an image that is a link to itself",
        link("images/01.png", "01.png"),
        "…01.png is a link that leads nowhere: mend or delete it",
        needs="posix",
    ),
    Case(
        "an unlabeled image that is a link to itself",
        dead_unlabeled_link,
        "…a.png is a link that leads nowhere: mend or delete it",
        needs="posix",
    ),
    Case(
        "a mask that is a link to a file that is gone",
        link("masks/01.png", "gone.png"),
        "…01.png is a link that leads nowhere: mend or delete it",
        needs="posix",
    ),
    Case(
        "an image nobody may read",
        unreadable,
        "cannot read image …01.png: [Errno 13] Permission denied: …",
        needs="no root",
    ),
    Case(
        "two images of one name, `01.png` and `01.jpg`",
        second("images/01.png", "images/01.jpg"),
        "…01.jpg and …01.png have the same stem, so masks cannot be matched by name: rename one",
    ),
    Case(
        "two masks of one name, `01.png` and `01.bmp`",
        second("masks/01.png", "masks/01.bmp"),
        "…01.bmp and …01.png have the same stem, so masks cannot be matched by name: rename one",
    ),
    Case(
        "masks that are called otherwise than the images",
        lambda place: place.train("--masks", place.data / "val_masks"),
        "no mask in …val_masks is named like an image: expected e.g. 00.png",
    ),
    Case(
        "a validation image without a mask",
        gone,
        "…v2.png has no mask: expected …v2.png (1 of 3 images have none)",
    ),
    Case(
        "a broken image whose name holds a line end and a colour code",
        line_end_in_name,
        "cannot read image …0 \\x1b[31m1.png: it is no image …",
        needs="posix",
    ),
    Case(
        "a folder called `zz.png` among the images",
        folder_like_an_image,
        "works: it is no image",
        counted(4),
    ),
    Case(
        "a pipe (FIFO) called `zz.png` among the images",
        pipe,
        "works: it is no image, and nothing waits for it",
        counted(4),
        needs="posix",
    ),
    Case(
        "the hidden files of macOS, `._01.png`",
        put("images/._01.png", b"Mac OS X"),
        "works: hidden files are not looked at",
        counted(4),
    ),
    Case(
        "a name with blanks and other letters, `my phöto (1).png`",
        renamed("01.png", "my phöto (1).png"),
        "works",
        counted(4),
    ),
    Case(
        "a name that is no UTF-8",
        renamed("01.png", b"\xff\xfe.png"),
        "works",
        counted(4),
        needs="posix",
    ),
    Case("a single image", only(1), "works: every batch is views of it", counted(1)),
    Case(
        "fewer labeled images than a batch has",
        flags("--batch-labeled", 16),
        "works: batches repeat them",
        counted(4),
    ),
    Case(
        "more labels asked for than there are",
        flags("--labels", 5),
        "cannot keep 5 of 4 labeled images: ask for 1 to 4",
    ),
    Case(
        "`--download` with plain folders",
        flags("--download"),
        "--download fetches known data sets: add --dataset NAME and --data ROOT, or leave it out",
    ),
)

# --- lists -----------------------------------------------------------------------------------


def entry(make_entry: Callable[[Path], object]) -> Make:
    """A list that names an image that is something else."""

    def make(place: Place) -> Words:
        argv = place.train_voc("2007_000032\nzz\n")
        make_entry(place.root / "voc" / "JPEGImages" / "zz.jpg")
        shutil.copy(
            place.root / "voc" / "SegmentationClassAug" / "a.png",
            place.root / "voc" / "SegmentationClassAug" / "zz.png",
        )
        return argv

    return make


def names_itself(path: Path) -> None:
    path.symlink_to(path.name)


def link_out(path: Path) -> None:
    outside = path.parents[2] / "elsewhere.jpg"
    shutil.copy(path.with_name("a.jpg"), outside)
    path.symlink_to(outside)


def list_is_folder(place: Place) -> Words:
    argv = place.train_voc("a\n")
    (place.root / "list.txt").unlink()
    (place.root / "list.txt").mkdir()
    return argv


LEADS_OUT = "…list.txt, line 2: '…' leads out of the data set: write a path inside of it"

group(
    "Lists of images",
    Case("an entry `../../secret.jpg`", listed("a\n../../secret.jpg\n"), LEADS_OUT),
    Case("an entry `a.jpg masks/../../x.png`", listed("a\na.jpg masks/../../x.png\n"), LEADS_OUT),
    Case("an entry `C:\\x.jpg`", listed("a\nC:\\x.jpg\n"), LEADS_OUT),
    Case("an entry `\\\\host\\share\\x.jpg`", listed("a\n\\\\host\\share\\x.jpg\n"), LEADS_OUT),
    Case(
        "an entry `/etc/passwd`",
        listed("a\n/etc/passwd\n"),
        "no image for the list entry 'etc/passwd': expected …voc…",
    ),
    Case(
        "an entry with a null byte",
        listed(b"a\nb\x00.jpg\n"),
        "…list.txt, line 2: 'b…' is no file name",
    ),
    Case(
        "three columns",
        listed("a\na.jpg a.png b.png\n"),
        "…list.txt, line 2: expected an id or `image mask`, got 'a.jpg a.png b.png'; names with blanks need a tab …",
    ),
    Case(
        "a list in UTF-16",
        listed("a\nb\n".encode("utf-16")),
        "…list.txt, line 1: this is no UTF-8 text",
    ),
    Case("an empty list", listed("\r\n \n"), "the list file …list.txt names no image"),
    Case(
        "an image that is not there",
        listed("a\nzz\n"),
        "no image for the list entry 'zz': expected …zz.jpg",
    ),
    Case(
        "a name of 5,000 letters", listed("a\n" + "x" * 5000), "no image for the list entry 'xxx…"
    ),
    Case(
        "a folder in place of a list",
        list_is_folder,
        "the list …list.txt is neither in … nor a file",
    ),
    Case(
        "a list of one's own folders, and none of validation images",
        own_list,
        "the list val is neither in … nor a file: is …data the folder of PASCAL VOC 2012? (without one, give "
        "--val-images DIR --val-masks DIR)",
    ),
    Case(
        "an entry that is a folder",
        entry(Path.mkdir),
        "cannot read image …zz.jpg: zz.jpg is no file",
    ),
    Case(
        "an entry that is a pipe (FIFO)",
        entry(lambda path: os.mkfifo(path)),
        "cannot read image …zz.jpg: zz.jpg is no file",
        needs="posix",
    ),
    Case(
        "an entry that is a link to itself",
        entry(names_itself),
        "cannot read image …zz.jpg: …",
        needs="posix",
    ),
    Case(
        "an entry that is a link out of the data set",
        entry(link_out),
        "works: a data set may be a folder of links",
        counted(2),
        needs="posix",
    ),
    Case(
        "an image listed twice",
        listed("a\na\n"),
        "works: it counts twice; `gmix splits audit` tells",
        counted(2),
    ),
    Case(
        "a byte order mark, Windows line ends, no last line end",
        listed(b"\xef\xbb\xbfa\r\n\r\n2007_000032"),
        "works",
        counted(2),
    ),
)

# --- classes and label maps ------------------------------------------------------------------


def class_file(content: bytes) -> Make:
    def make(place: Place) -> Words:
        (place.data / "names.txt").write_bytes(content)
        return place.train()

    return make


def map_file(content: str) -> Make:
    def make(place: Place) -> Words:
        (place.root / "map.txt").write_text(content)
        return place.train("--label-map", place.root / "map.txt")

    return make


group(
    "Classes and label maps",
    Case(
        "an empty file of class names",
        class_file(b"\n\n"),
        "expected at least one class name, found none in …names.txt",
    ),
    Case(
        "an image as file of class names",
        class_file(png_header(9, 9)),
        "cannot read the class names file …names.txt: …",
    ),
    Case(
        "a class name that occurs twice",
        class_file(b"sky\ncat\nsky\n"),
        "the class name 'sky' occurs twice: scores go by name, rename one",
    ),
    Case("`--classes 0`", flags("--classes", 0), "the number of classes must be at least 1, got 0"),
    Case(
        "`--classes 1000000000000`",
        flags("--classes", 10**12),
        "a data set has 2 to 255 classes, got 1000000000000: in its masks 255 is what is ignored; "
        "put classes together with a label map",
    ),
    Case(
        "a raw id that is mapped twice",
        flags("--label-map", "0:0,8:1,8:2"),
        "label map names raw id 8 twice: keep one of the entries",
    ),
    Case(
        "a raw id that is mapped twice in YAML",
        setting("label_map: {0: 0, 8: 1, 8: 2}"),
        "…mine.yaml is not valid YAML: 8 is given twice: keep one of the two",
    ),
    Case(
        "a raw id that is mapped twice in braces",
        flags("--label-map", "{0: 0, 8: 1, 8: 2}"),
        "--label-map is not valid YAML: 8 is given twice: keep one of the two",
    ),
    Case(
        "a raw id of 0.5",
        flags("--label-map={0.5: 1}"),
        "--label-map is not valid YAML: 0.5 is no key: expected a word or a whole number",
    ),
    Case(
        "a class that does not exist",
        flags("--label-map", "0:0,8:3"),
        "label map entry 8:3 is out of range: expected a raw id 0..65535 and a class 0..2 or 255",
    ),
    Case(
        "a raw id of 24 digits",
        flags("--label-map", f"{10**23}:1"),
        "label map entry '1000…:1' is not `raw:class` with …",
    ),
    Case(
        "a raw id of 5,000 digits",
        flags("--label-map", f"{'1' * 5000}:1"),
        "label map entry '1111…",
    ),
    Case(
        "a label map without colons",
        map_file("0 0\n8 1\n"),
        "label map entry '0 0' in …map.txt is not `raw:class` with a whole number and a class id or name, e.g. 8:1",
    ),
    Case(
        "an empty label map",
        map_file("# nothing\n"),
        "the label map …map.txt is empty: write pairs such as 0:0,8:1",
    ),
    Case(
        "a label map that is no file",
        flags("--label-map", "nowhere.txt"),
        "cannot read the label map file nowhere.txt: …",
    ),
)

# --- numbers ---------------------------------------------------------------------------------

group(
    "Numbers",
    Case("`--lr nan`", flags("--lr", "nan"), "--lr expects a number, got nan (see …)"),
    Case("`lr: .nan` in YAML", setting("lr: .nan"), "--lr must be 0 or more, got nan"),
    Case("`rotate: .inf` in YAML", setting("rotate: .inf"), "--rotate must be 0 or more, got inf"),
    Case("`--lr -1`", flags("--lr", "-1"), "--lr must be 0 or more, got -1.0"),
    Case(
        "`--encoder-lr -0.3`",
        flags("--encoder-lr", "-0.3"),
        "--encoder-lr must be 0 or more, got -0.3",
    ),
    Case(
        "`--weight-decay inf`",
        flags("--weight-decay", "inf"),
        "--weight-decay expects a number, got inf (see …)",
    ),
    Case("`--rotate nan`", flags("--rotate", "nan"), "--rotate expects a number, got nan (see …)"),
    Case("`--jitter -1`", flags("--jitter", "-1"), "--jitter must be 0 or more, got -1.0"),
    Case("`--ema nan`", flags("--ema", "nan"), "--ema expects a number, got nan (see …)"),
    Case(
        "`--scale 0.5-1e999`",
        flags("--scale", "0.5-1e999"),
        "--scale must be written LOW-HIGH, e.g. 0.5-2: '0.5-1e999'",
    ),
    Case(
        "`--value-range 5-5`",
        flags("--value-range", "5-5"),
        "--value-range must have two values, got 5-5",
    ),
    Case("`--steps 0`", flags("--steps", 0), "--steps must be at least 1, got 0"),
    Case(
        "`--steps 1000000000000`",
        flags("--steps", 10**12),
        "--steps must be at most 2147483647, got 1000000000000",
    ),
    Case(
        "`--steps 1.5`",
        flags("--steps", 1.5),
        "--steps expects a whole number, got 1.5 (see `gmix train --help`)",
    ),
    Case(
        "`--seed` of 30 digits",
        flags("--seed", 10**29),
        "--seed must be below 2^63 either way, got 1000…",
    ),
    Case(
        "`--batch-labeled -1`",
        flags("--batch-labeled", -1),
        "--batch-labeled must be at least 1, got -1",
    ),
    Case(
        "`--batch-unlabeled 0` with a method that learns from such images",
        flags(method="guidedmix", batch_unlabeled=0),
        "--method guidedmix learns from unlabeled images: --batch-unlabeled must be at least 1, got 0 …",
    ),
    Case(
        "one labeled image in each micro-batch, where pairs are taken apart",
        flags("--accumulate", 2, method="guidedmix", variant="paper"),
        "the decoupling loss of --method guidedmix needs two labeled images in each micro-batch …: "
        "--batch-labeled must be at least 4, got 2",
    ),
    Case(
        "`--threads 1000000`",
        flags("--threads", 10**6),
        "--threads must be at most 1024, got 1000000",
    ),
    Case(
        "`--workers 1000000`",
        flags("--workers", 10**6),
        "--workers must be at most 1024, got 1000000",
    ),
    Case(
        "`--crop 0x32`",
        flags("--crop", "0x32"),
        "--crop must be written HxW, e.g. 120x160, at most 99999 each, got '0x32'",
    ),
    Case(
        "`--crop 32x999999999999`",
        flags("--crop", "32x999999999999"),
        "--crop must be written HxW, e.g. 120x160, at most 99999 each, got …",
    ),
    Case(
        "`gmix evaluate --threads 0`",
        lambda place: ["evaluate", "--model", "x", "--threads", "0"],
        "--threads must be at least 1, got 0",
    ),
    Case(
        "`gmix evaluate --batch 0`",
        lambda place: ["evaluate", "--model", "x", "--batch", "0"],
        "--batch must be at least 1, got 0",
    ),
    Case(
        "`gmix evaluate --scales nan`",
        lambda place: ["evaluate", "--model", "x", "--scales", "nan"],
        "--scales must be written like 0.75,1,1.25, got 'nan'",
    ),
    Case(
        "`gmix demo --steps -5`",
        lambda place: ["demo", "--steps", "-5", "--out", str(place.root / "demo")],
        "--steps must be at least 1, got -5",
    ),
)

# --- configurations --------------------------------------------------------------------------

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
RUNS_CODE = "!!python/object/apply:builtins.open [MARKER, w]"
INVALID = "…mine.yaml is not valid YAML: …"

group(
    "Configurations (YAML) and flags",
    Case(
        "an unknown key",
        setting("step: 3"),
        "…mine.yaml: unknown key step, did you mean steps? (see …)",
    ),
    Case(
        "an unknown flag", flags("--stps", 3), "unknown flag --stps, did you mean --steps? (see …)"
    ),
    Case(
        "text where a number belongs",
        setting("steps: many"),
        "--steps expects a whole number, got many (see …)",
    ),
    Case(
        "a list where a number belongs",
        setting("lr: [1, 2]"),
        "--lr expects a number, got … (see …)",
    ),
    Case(
        "no value",
        setting("steps:"),
        "…mine.yaml: --steps expects a whole number, got nothing (see …)",
    ),
    Case(
        "a mapping where text belongs",
        setting("images: {a: b}"),
        "--images expects text, got … (see …)",
    ),
    Case(
        "a key that is given twice",
        setting("steps: 3\nlr: 1\nsteps: 4\n"),
        "…mine.yaml is not valid YAML: steps is given twice: keep one of the two",
    ),
    Case(
        "a key in both spellings",
        setting("batch_labeled: 3\nbatch-labeled: 4\n"),
        "…mine.yaml gives batch_labeled twice: keep one of the lines",
    ),
    Case(
        "a key with a line end",
        setting('"steps\\nlr": 3'),
        "…mine.yaml: unknown key steps lr… (see …)",
    ),
    Case(
        "a list in place of `key: value`",
        setting("- 1\n- 2\n"),
        "…mine.yaml must hold lines like `steps: 100`, got a list",
    ),
    Case(
        "a switch that is a word, `cache: n`",
        setting("cache: n"),
        "…mine.yaml: --cache expects true or false, got 'n' (see `gmix train --help`)",
    ),
    Case(
        'a switch that is in quotes, `cache: "false"`',
        setting('cache: "false"'),
        "…mine.yaml: --cache expects true or false, got 'false' (see `gmix train --help`)",
    ),
    Case(
        "an octal number",
        setting("steps: 010"),
        "…mine.yaml: 010 is 8 in YAML 1.1: write a decimal number, or put quotes around it if it is text",
    ),
    Case(
        "a number in base 60",
        setting("steps: 1:30"),
        "…mine.yaml: 1:30 is 90 in YAML 1.1: write a decimal number, or put quotes around it if it is text",
    ),
    Case(
        "`yes` for true",
        setting("cache: yes"),
        "…mine.yaml: yes is true in YAML 1.1: write true or false, or put quotes around it if it is text",
    ),
    Case(
        "`--labels 1_8`",
        flags("--labels", "1_8"),
        "--labels: 1_8 is 18 in YAML 1.1: write a decimal number…",
    ),
    Case("no YAML", setting("a: b: c"), INVALID),
    Case(
        "an image in place of YAML",
        setting(png_header(9, 9)),
        "cannot read the configuration …mine.yaml: …",
    ),
    Case("a tag that runs code", setting(f"steps: {RUNS_CODE}"), INVALID),
    Case(
        "a tag that runs code, in `--model-args`",
        lambda place: place.train(
            "--model-args", "{a: " + RUNS_CODE.replace("MARKER", str(place.marker)) + "}"
        ),
        "--model-args is not valid YAML: …",
    ),
    Case("a date that is none", setting("steps: !!timestamp many"), INVALID),
    Case(
        "aliases of aliases of aliases, 9^9 values in 400 bytes",
        setting(BOMB),
        "…mine.yaml is not valid YAML: it has more than 200000 values, or aliases without end",
    ),
    Case(
        "an alias within itself",
        setting("model_args: &a {a: *a}"),
        "…mine.yaml is not valid YAML: it has more than 200000 values, or aliases without end",
    ),
    Case("10,000 brackets", setting("model_args: " + "[" * 10_000), INVALID),
    Case(
        "a configuration that is not there",
        flags("--config", "nowhere.yaml"),
        "cannot read the configuration nowhere.yaml: …",
    ),
    Case(
        "a path with a null byte",
        setting('unlabeled: "a\\0b"'),
        "the image folder a\\x00b does not exist",
    ),
    Case(
        "a recipe that does not exist",
        flags("--recipe", "voc_1-8_r11"),
        "there is no recipe voc_1-8_r11, did you mean voc_1-8_r101? (docs/recipes.md lists them)",
    ),
    Case(
        "a recipe as path",
        flags("--recipe", "../../secret"),
        "there is no recipe ../../secret (docs/recipes.md lists them)",
    ),
    Case("an empty configuration", setting(""), "works: it says nothing", counted(4)),
)

# --- weights, models and checkpoints -----------------------------------------------------------


def other_architecture(folder: Path, place: Place) -> None:
    edit(folder / "config.json", _model_class="FPN")


def other_encoder(folder: Path, place: Place) -> None:
    edit(folder / "config.json", encoder_name="resnet18")


def other_weights(folder: Path, place: Place) -> None:
    state = load_file(folder / "method.safetensors")
    save_file(
        {f"other.{name}": value for name, value in state.items()}, folder / "method.safetensors"
    )
    sum_anew(folder)


def other_moments(folder: Path, place: Place) -> None:
    state = torch.load(folder / "state.pt", weights_only=True)
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(9999)
    torch.save(state, folder / "state.pt")
    sum_anew(folder)


def pipe(name: str) -> Callable[[Path, Place], None]:
    """A pipe in place of a file."""

    def change(folder: Path, place: Place) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def encoder(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    state: dict[str, torch.Tensor] = get_encoder("mobilenet_v2", weights=None).state_dict()
    return state


def whole_numbers() -> dict[str, torch.Tensor]:
    return {name: tensor.long() for name, tensor in encoder(0).items()}


def piped_config(place: Place) -> Words:
    argv = no_config(place)
    os.mkfifo(place.run() / "config.yaml")
    return argv


def payload(path: Path, place: Place) -> None:
    path.write_bytes(pickle.dumps({"weight": Payload(place.marker)}))


def torch_payload(path: Path, place: Place) -> None:
    torch.save({"weight": Payload(place.marker)}, path)


def other_flags(place: Place) -> Words:
    return place.resume("--lr", 0.5)


def without_checkpoints(*more: object) -> Make:
    """`gmix train` into a finished run whose checkpoints were deleted to save space."""

    def make(place: Place) -> Words:
        for folder in place.run().glob("checkpoint-*"):
            shutil.rmtree(folder)
        return place.train("--out", place.run(), *more)

    return make


def other_run(place: Place) -> Words:
    return place.train(out=str(place.run()))


def no_config(place: Place) -> Words:
    argv = place.resume()
    config = place.run() / "config.yaml"
    config.rename(place.root / "moved.yaml")
    return [word.replace(str(config), str(place.root / "moved.yaml")) for word in argv]


def broken_config(place: Place) -> Words:
    (place.run() / "config.yaml").write_text("steps: many\n")
    return place.evaluate()


MODEL = "cannot load the model in …model: …"

group(
    "Weights, models and checkpoints",
    Case(
        "encoder weights that run code (pickle)",
        weights(payload),
        "cannot read weights …weights.pth: it is no file of tensors and plain values alone, …",
    ),
    Case(
        "encoder weights that run code (`torch.save`)",
        weights(torch_payload),
        "cannot read weights …weights.pth: it is no file of tensors and plain values alone, …",
    ),
    Case(
        "the same, called `.safetensors`",
        weights(payload, "weights.safetensors"),
        "cannot read weights …weights.safetensors: …",
    ),
    Case(
        "an empty file of weights",
        weights(lambda path, place: path.touch()),
        "cannot read weights …weights.pth: …",
    ),
    Case(
        "weights cut in half",
        weights(lambda path, place: [torch.save({"a": torch.zeros(999)}, path), halve(path)]),
        "cannot read weights …weights.pth: …",
    ),
    Case(
        "weights of another encoder",
        weights(lambda path, place: torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)),
        "weights …weights.pth do not fit the encoder: … tensors are missing …; use the encoder they were made for",
    ),
    Case(
        "weights of whole numbers",
        weights(lambda path, place: torch.save(whole_numbers(), path)),
        "weights …weights.pth do not fit the encoder: features.0.0.weight must have the shape … torch.int64",
    ),
    Case(
        "a file with two encoders",
        weights(lambda path, place: torch.save({"a": encoder(0), "b": encoder(1)}, path)),
        "weights …weights.pth hold several encoders, at 'a/' and 'b/': save the one you mean to a file of its own",
    ),
    Case(
        "weights that are a pipe (FIFO)",
        weights(lambda path, place: os.mkfifo(path)),
        "cannot read weights …weights.pth: weights.pth is no file",
        needs="posix",
    ),
    Case(
        "a list in place of weights",
        weights(lambda path, place: torch.save([1, 2], path)),
        "weights …weights.pth must be a dict of tensors (a state dict)",
    ),
    Case(
        "a folder without a model",
        lambda place: ["evaluate", "--model", str(place.data), "--device", "cpu"],
        "no trained model in …: expected the --out folder of a `gmix train` run that came to its end",
    ),
    Case(
        "a model cut in half",
        model(lambda folder, place: halve(folder / "model.safetensors")),
        MODEL,
    ),
    Case(
        "the rest of a model cut in half",
        model(
            lambda folder, place: [
                edit(folder / "gmix.json", mitrans=True),
                (folder / "gmix.safetensors").write_bytes(b"cut"),
            ]
        ),
        MODEL,
    ),
    Case(
        "a model whose weights are a pickle that runs code",
        model(lambda folder, place: payload(folder / "model.safetensors", place)),
        MODEL,
    ),
    Case(
        "a model with a `pytorch_model.bin` that runs code and no `model.safetensors`",
        model(
            lambda folder, place: [
                payload(folder / "pytorch_model.bin", place),
                (folder / "model.safetensors").unlink(),
            ]
        ),
        MODEL,
    ),
    Case("a model of another architecture than its weights", model(other_architecture), MODEL),
    Case("a model of another encoder than its weights", model(other_encoder), MODEL),
    Case(
        "a model whose `config.json` names a file of weights (`checkpoint_path`)",
        model(lambda folder, place: edit(folder / "config.json", checkpoint_path="evil.pth")),
        "cannot load the model in …model: checkpoint_path is no argument that gmix hands on: choose among …",
    ),
    Case(
        "a model whose encoder is on a hub",
        model(
            lambda folder, place: edit(folder / "config.json", encoder_name="tu-hf-hub:some/model")
        ),
        "cannot load the model in …model: the encoder tu-hf-hub:some/model is unknown: …",
    ),
    Case(
        "a model of a few words that asks for 40 GB",
        model(lambda folder, place: edit(folder / "config.json", decoder_channels=[16384] * 3)),
        "cannot load the model in …model: model.safetensors is of another network: …",
    ),
    Case(
        "`--model-args` with a file of weights (`checkpoint_path`)",
        flags("--encoder", "mobilenet_v2", "--model-args", "{checkpoint_path: evil.pth}"),
        "cannot build Unet with the encoder mobilenet_v2: checkpoint_path is no argument that gmix hands on: …",
    ),
    Case(
        "`--encoder tu-hf-hub:some/model`",
        flags("--encoder", "tu-hf-hub:some/model"),
        "cannot build Unet with the encoder tu-hf-hub:some/model: the encoder tu-hf-hub:some/model is unknown: …",
    ),
    Case(
        "a model file that is a pipe (FIFO)",
        model(pipe("model.safetensors")),
        "cannot load the model in …model: model.safetensors is no file",
        needs="posix",
    ),
    Case(
        "a `gmix.json` that is no JSON",
        model(lambda folder, place: (folder / "gmix.json").write_text("{")),
        MODEL,
    ),
    Case(
        "a `gmix.json` without classes",
        model(lambda folder, place: edit(folder / "gmix.json", "classes")),
        MODEL,
    ),
    Case(
        "a `gmix.json` with a label map of words",
        model(lambda folder, place: edit(folder / "gmix.json", label_map={"cat": 1})),
        MODEL,
    ),
    Case(
        "a run whose `config.yaml` is broken",
        broken_config,
        "--steps expects a whole number, got many…",
    ),
    Case(
        "a checkpoint cut in half",
        checkpoint(lambda folder, place: halve(folder / "method.safetensors")),
        "no checkpoint in … can be read (checkpoint-00000002: method.safetensors is not as it was written): …",
    ),
    Case(
        "a checkpoint without its weights",
        checkpoint(lambda folder, place: (folder / "method.safetensors").unlink()),
        "no checkpoint in … can be read (checkpoint-00000002: method.safetensors: …): start anew in another --out",
    ),
    Case(
        "a checkpoint without its sums",
        checkpoint(lambda folder, place: (folder / "SHA256SUMS").unlink()),
        "no checkpoint in … can be read (checkpoint-00000002: SHA256SUMS: …): start anew in another --out",
    ),
    Case(
        "a checkpoint whose state is cut in half",
        checkpoint(lambda folder, place: halve(folder / "state.pt")),
        "no checkpoint in … can be read (checkpoint-00000002: state.pt is not as it was written): start anew …",
    ),
    Case(
        "a checkpoint whose state runs code",
        checkpoint(
            lambda folder, place: (torch_payload(folder / "state.pt", place), sum_anew(folder))
        ),
        "the checkpoint …checkpoint-00000002 does not fit this network: it is no file of tensors and …",
    ),
    Case(
        "a checkpoint whose optimizer is of another size",
        checkpoint(other_moments),
        "the checkpoint …checkpoint-00000002 does not fit this training: exp_avg of parameter 0 must have the shape …",
    ),
    Case(
        "a checkpoint without its optimizer",
        checkpoint(lambda folder, place: (torch.save({}, folder / "state.pt"), sum_anew(folder))),
        "the checkpoint …checkpoint-00000002 does not fit this training: it holds no state of an optimizer",
    ),
    Case(
        "a checkpoint whose sums name a device file",
        checkpoint(
            lambda folder, place: (folder / "SHA256SUMS").write_text(f"{'0' * 64}  /dev/zero\n")
        ),
        "no checkpoint in … can be read (checkpoint-00000002: SHA256SUMS is cut short): start anew …",
    ),
    Case(
        "a checkpoint beyond `--steps`",
        checkpoint(lambda folder, place: folder.rename(folder.with_name("checkpoint-00000099"))),
        "cannot resume …run: checkpoint-00000099 is beyond --steps 2; remove it to go on from the one before, …",
    ),
    Case(
        "a run whose `config.yaml` is a pipe (FIFO)",
        piped_config,
        "cannot read the configuration …config.yaml: config.yaml is no file",
        needs="posix",
    ),
    Case(
        "a checkpoint of another architecture",
        checkpoint(other_weights),
        "the checkpoint …checkpoint-00000002 does not fit this network: …",
    ),
    Case(
        "`--resume` under other flags",
        other_flags,
        "cannot resume …run: it was started with --lr 0.001, now --lr is 0.5; use the old value or another --out",
    ),
    Case(
        "`--resume` of a run without its `config.yaml`",
        no_config,
        "cannot read the configuration …config.yaml: …",
    ),
    Case(
        "`--out` with another run in it",
        other_run,
        "…run already holds a run: add --resume to go on with it, or choose another --out",
    ),
    Case(
        "`--out` with a run in it whose checkpoints were deleted",
        without_checkpoints(),
        "…run holds a finished run whose checkpoints are gone: choose another --out",
    ),
    Case(
        "the same with `--resume`",
        without_checkpoints("--resume"),
        "…run holds a finished run whose checkpoints are gone: choose another --out",
    ),
)

# --- output, and what else there is ------------------------------------------------------------


def out_is_a_file(place: Place) -> Words:
    (place.root / "out").write_text("mine")
    return place.train()


def predict(spoil: Callable[[Path], object]) -> Make:
    """`gmix predict` for a folder with one good image."""

    def make(place: Place) -> Words:
        folder = place.root / "photos"
        folder.mkdir()
        write_scene(folder / "good.png", None, seed=0)
        spoil(folder)
        out = str(place.root / "masks")
        argv = ["predict", "--model", str(place.run()), "--images", str(folder), "--out", out]
        return [*argv, "--device", "cpu", "--masks-only"]

    return make


def mine(name: str, *argv: str) -> Make:
    """A file of one's own where a command would write."""

    def make(place: Place) -> Words:
        path = place.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        names = {"RUN": str(place.run()), "DATA": str(place.data), "FILE": str(path)}
        return [names.get(word, word) for word in argv]

    return make


def drawn(name: str, command: str = "predict") -> Make:
    """A mask drawn by hand where one is to be predicted."""

    def make(place: Place) -> Words:
        argv = predict(lambda folder: None)(place)
        write_scene(place.root / "scene.png", place.root / "drawn.png", seed=1)
        (place.root / "masks" / "masks").mkdir(parents=True)
        (place.root / "drawn.png").rename(place.root / "masks" / "masks" / name)
        return [command, *argv[1:-1], *(["--masks-only"] if command == "predict" else [])]

    return make


def export_into_a_folder(place: Place) -> Words:
    (place.root / "m.onnx").mkdir()
    return ["export", "--model", str(place.run()), "--out", str(place.root / "m.onnx")]


def shards(spoil: Callable[[Path], object]) -> Make:
    """Unlabeled images in a tar file."""

    def make(place: Place) -> Words:
        shard = place.root / "pool.tar"
        with tarfile.open(shard, "w") as archive:
            archive.add(place.data / "images" / "07.png", "07.png")
        spoil(shard)
        return place.train("--unlabeled-shards", shard, method="guidedmix")

    return make


def cut_short(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[:1000])  # half of it is zeros


def split(*more: object) -> Callable[[Place], Words]:
    """`gmix splits make`."""

    def make(place: Place) -> Words:
        folders = ["--images", place.data / "images", "--masks", place.data / "masks"]
        argv = ["splits", "make", *folders, "--labels", 2, "--out", place.root / "split", *more]
        return list(map(str, argv))

    return make


def other_list(place: Place) -> Words:
    (place.root / "split").mkdir()
    (place.root / "split" / "unlabeled.txt").write_text("mine\n")
    return split()(place)


def split_of_strange_name(place: Place) -> Words:
    renamed("01.png", b"\xff.png")(place)
    return split()(place)


OURS = (
    "… was not written by gmix, or has been changed since: move it away, or choose another place to "
    "write to"
)


def has_good_mask(place: Place) -> bool:
    return [path.name for path in (place.root / "masks" / "masks").iterdir()] == ["good.png"]


group(
    "Output, prediction, splits and shards",
    Case("a file as `--out`", out_is_a_file, "…out…"),
    Case(
        "`gmix evaluate --out` in a folder that is not there",
        lambda place: ["evaluate", "--model", "x", "--out", str(place.root / "no" / "a.json")],
        "--out …a.json: its folder does not exist, make it first",
    ),
    Case(
        "a folder as `gmix evaluate --out`",
        lambda place: ["evaluate", "--model", "x", "--out", str(place.data)],
        "--out …data is a folder: name a file in it",
    ),
    Case(
        "`gmix evaluate --picture scores.exe`",
        lambda place: ["evaluate", "--model", "x", "--picture", str(place.root / "scores.exe")],
        "--picture …scores.exe must end with .png, .pdf or .svg",
    ),
    Case(
        "a file as `gmix predict --out`",
        predict(lambda folder: (folder.parent / "masks").touch()),
        "cannot write into …masks: …masks is a file; choose another folder",
    ),
    Case(
        "a folder as `gmix export --out`",
        export_into_a_folder,
        "cannot write …m.onnx: it is there and no file; choose another name",
    ),
    Case("a mask drawn by hand where `gmix predict` would write", drawn("good.png"), OURS),
    Case("masks of other images where `gmix predict` would write", drawn("other.png"), OURS),
    Case("the same with `gmix pseudo-label`", drawn("good.png", "pseudo-label"), OURS),
    Case(
        "`gmix evaluate --out` over a file of one's own",
        mine("a.json", "evaluate", "--model", "RUN", "--out", "FILE"),
        OURS,
    ),
    Case(
        "`gmix evaluate --out` over the `results.json` of a run",
        mine("b/results.json", "evaluate", "--model", "RUN", "--out", "FILE"),
        OURS,
    ),
    Case(
        "`gmix evaluate --picture` over a picture of one's own",
        mine("a.png", "evaluate", "--model", "RUN", "--picture", "FILE"),
        OURS,
    ),
    Case(
        "`gmix report --out` over a page of one's own",
        mine("index.html", "report", "RUN", "--out", "FILE"),
        OURS,
    ),
    Case(
        "`gmix report --figure` over a figure of one's own",
        mine("a.pdf", "report", "RUN", "--figure", "comparison", "--out", "FILE"),
        OURS,
    ),
    Case(
        "`gmix export` over a model of one's own",
        mine("a.pt2", "export", "--model", "RUN", "--out", "FILE"),
        OURS,
    ),
    Case(
        "`gmix splits audit --out` over a file of one's own",
        mine("a.json", "splits", "audit", "--root", "DATA", "--labeled", "x", "--out", "FILE"),
        OURS,
    ),
    Case(
        "`gmix train --out` in a folder with a `config.yaml` of one's own",
        lambda place: [*mine("out/config.yaml")(place), *place.train()],
        OURS,
    ),
    Case(
        "a folder called `zz.png` among images to predict",
        predict(lambda folder: (folder / "zz.png").mkdir()),
        "works: it is no image",
        has_good_mask,
    ),
    Case(
        "a broken image among images to predict",
        predict(lambda folder: (folder / "bad.png").write_bytes(b"")),
        "1 of 2 images were left out: cannot read image …bad.png: it is no image …",
    ),
    Case(
        "`gmix splits make` over another list",
        other_list,
        "…unlabeled.txt exists and holds another list: choose another folder, or delete it",
    ),
    Case(
        "`gmix splits make` of an image whose name is no UTF-8",
        split_of_strange_name,
        "'images/\\udcff.png' is no UTF-8 text, so no list can name it: rename the file",
        needs="posix",
    ),
    Case("`gmix splits make --labels 0/3`", split("--labels", "0/3"), "--labels…"),
    Case("a shard cut short", shards(cut_short), "cannot read the shard …pool.tar: …"),
    Case(
        "an image as shard",
        shards(lambda path: PHOTO.save(path, "PNG")),
        "cannot read the shard …pool.tar: …",
    ),
    Case(
        "an index that points before the shard",
        shards(lambda path: path.with_suffix(".idx").write_text("v1.1 1\npng -5 10\n")),
        "cannot read the index …pool.idx: a place in it is below 0; delete it",
    ),
    Case(
        "an index of another shard",
        shards(lambda path: path.with_suffix(".idx").write_text("v1.1 1\npng 512 99999999\n")),
        "the shard …pool.tar is cut short: it has …",
    ),
)


def all_cases() -> Iterator[tuple[str, Case]]:
    """Every case with its table."""
    for title, cases in GROUPS.items():
        for case in cases:
            yield title, case


def tables() -> str:
    """Markdown tables, one a group."""
    parts = []
    for title, cases in GROUPS.items():
        rows = [f"## {title}", "", "| what somebody did | what gmix says |", "|---|---|"]
        for case in cases:
            said = case.says if case.says.startswith("works") else f"`{case.says}`"
            if "`" in case.says and not case.says.startswith("works"):
                said = f"`` {case.says} ``"
            cells = (case.did, said)
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(tables(), end="")
