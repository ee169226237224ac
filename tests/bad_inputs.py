"""Bad and strange inputs: how a test does what a person did, by the rows of docs/robustness.md."""

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


class Case(NamedTuple):
    """What a person did.

    Attributes:
        make: does it, and gives the words after `gmix`.
        check: of what works: the data of a training, or the place.
        needs: "posix", or "no root" (permissions).
    """

    make: Make
    check: Callable[[Any], bool] | None = None
    needs: str = ""


# By the first cell of its row in docs/robustness.md, whose second one is what gmix says.
DONE: dict[str, Make | Case] = {}


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

DONE |= {
    "an empty image file": put("images/01.png", b""),
    "a web page saved as `01.png`": put("images/01.png", "<!doctype html>"),
    "a PNG file cut in half": cut("images/01.png"),
    "a JPEG file cut in half": cut("images/01.jpg", PHOTO),
    "a PNG file with a wrong byte": broken_checksum,
    "a TIFF file of 4 channels cut in half": cut_tiff,
    "a PNG file 0 pixels wide": put("images/01.png", png_header(0, 64)),
    "a PNG file of 70 bytes that says it is 100,000 x 100,000": put(
        "images/01.png", png_header(100_000, 100_000)
    ),
    "a TIFF file of 4 channels that says so": huge_tiff,
    "a TIFF file with a JPEG tile that says it is 30,000 x 30,000": huge_tile,
    "a `.npy` file that promises 3 TB": huge_array,
    "a `.npy` file with a pickle that runs code": pickled_array("images/01.npy"),
    "a `.npy` image without pixels": save("images/01.npy", np.zeros((0, 64, 3), np.uint8)),
    "a `.npy` image of 5 channels": save("images/01.npy", np.zeros((64, 64, 5), np.uint8)),
    "a `.npy` image of 32-bit whole numbers": save("images/01.npy", np.zeros((64, 64), np.int32)),
    "a `.npy` image of complex numbers": save(
        "images/01.npy", np.zeros((64, 64), np.complex64), ["--value-range", "0-1"]
    ),
    "a TIFF image with holes (nan)": save("images/01.tif", Image.fromarray(HOLED)),
    "a TIFF image with infinite pixels": save(
        "images/01.tif", Image.fromarray(np.where(np.eye(64), np.inf, FRACTIONS).astype("f4"))
    ),
    "a `.npy` image of fractions that go up to 255": save("images/01.npy", FRACTIONS * 510),
    "a TIFF file of 3 pages": save(
        "images/01.tif", PHOTO, save_all=True, append_images=[PHOTO.convert("L"), PHOTO]
    ),
    "an image that moves (APNG)": save(
        "images/01.png", PHOTO, save_all=True, append_images=[PHOTO.rotate(90)]
    ),
    "PostScript called `01.png`, for which Pillow would start Ghostscript": put(
        "images/01.png", EPS
    ),
    "a broken unlabeled image, with `--cache`": unlabeled_broken,
    "a broken image, with `--skip-damaged 1`": Case(
        broken_images("images/01.png"),
        lambda data: (
            torch.equal(first(data, 1).image, first(data, 2).image)
            and [Path(name).name for name in data.left_out] == ["01.png"]
        ),
    ),
    "a broken image and a broken validation mask, with `--skip-damaged 1`": broken_images(
        "images/01.png", "val_masks/v1.png"
    ),
    "a CMYK photo": Case(save("images/01.jpg", PHOTO.convert("CMYK")), is_rgb),
    "an image with an alpha channel": Case(save("images/01.png", PHOTO.convert("RGBA")), is_rgb),
    "a palette image with transparent colours": Case(
        save("images/01.png", PALETTE, transparency=b"\0\x80"), is_rgb
    ),
    "a grey image among colour images": Case(save("images/01.png", PHOTO.convert("L")), is_rgb),
    "an image of 1 bit": Case(save("images/01.png", PHOTO.convert("1")), is_rgb),
    "an image of 16 bits": Case(save("images/01.png", DEEP), is_deep),
    "a colour image of 16 bits": Case(
        deep_colours, lambda data: len(first(data, 1).image[2].unique()) == 64 * 64
    ),
    "a JPEG file called `01.png`": Case(save("images/01.png", PHOTO, format="JPEG"), is_rgb),
    "a photo and its mask that a camera turned (EXIF)": Case(turned_both, is_turned),
    "a photo that a camera turned, with an upright mask of the stored size": turned_image_only,
    "the same with `--mask-orientation stored`": Case(
        lambda place: [*turned_image_only(place), "--mask-orientation", "stored"],
        lambda data: first(data, 1).mask.shape == (64, 40),
    ),
    "a photo that EXIF turns by 180 degrees": Case(
        save("images/01.png", PHOTO, exif=UPSIDE_DOWN),
        lambda data: "--mask-orientation stored" in data.notes[0],
    ),
    "a photo with broken EXIF data": Case(broken_exif, is_rgb),
    "an image of one pixel": Case(one_pixel, lambda data: first(data).image.shape == (3, 1, 1)),
}

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

DONE |= {
    "an empty mask file": put("masks/01.png", b""),
    "a mask cut in half": cut("masks/01.png"),
    "a mask of another size than its image": save("masks/01.png", Image.new("L", (64, 60))),
    "a mask in colours (RGB)": save("masks/01.png", PHOTO),
    "a mask with an alpha channel": save("masks/01.png", PHOTO.convert("LA")),
    "a mask with an id that is no class": save("masks/01.png", Image.fromarray(ids(0, 77))),
    "a validation mask with such an id": save("val_masks/v1.png", Image.fromarray(ids(0, 9))),
    "a mask with an id below 0": save("masks/01.npy", ids(-1, 0, dtype="int16")),
    "a mask with ids above 2^63": save("masks/01.npy", ids(0, 2**63 + 5, dtype="uint64")),
    "a mask of fractions (`.npy`)": save("masks/01.npy", FRACTIONS),
    "a mask of fractions (TIFF)": save("masks/01.tif", Image.fromarray(FRACTIONS)),
    "a mask with a pickle that runs code (`.npy`)": pickled_array("masks/01.npy"),
    "a `.mat` file that is none": no_mat,
    "a `.mat` file with other contents": other_mat,
    "a mask of 70 bytes that says it is 100,000 x 100,000": put(
        "masks/01.png", png_header(100_000, 100_000)
    ),
    "masks as JPEG, which changes ids": jpeg_masks,
    "`--images` and `--masks` the wrong way round": lambda place: place.train(
        "--images", place.data / "masks", "--masks", place.data / "images"
    ),
    "masks in which everything is ignored": every_mask(IGNORED),
    "a label map of ids that do not occur": every_mask(
        Image.new("L", (64, 64), 7), "--label-map", "0:0,1:1"
    ),
    "one mask of which everything is ignored": Case(
        save("masks/01.png", IGNORED), lambda data: bool((first(data, 1).mask == 255).all())
    ),
    "validation masks in which everything is ignored": every_mask(IGNORED, folder="val_masks"),
    "a mask of 16 bits": Case(
        save("masks/01.png", Image.fromarray(ids(0, 2, dtype="uint16"))),
        lambda data: first(data, 1).mask.unique().tolist() == [0, 2],
    ),
    "a grey map (PGM) called `01.png` whose numbers end at 2, in text": put(
        "masks/01.png", b"P2 64 64 2\n" + b"0 2 " * 2048
    ),
    "a mask of 2 bits": Case(
        put("masks/01.png", png_header(64, 64, 2, TWO_BITS)),
        lambda data: first(data, 1).mask[5, :4].tolist() == [0, 1, 2, 0],
    ),
    "a JPEG file called `01.png` as mask": save(
        "masks/01.png", Image.fromarray(ids(0, 1)), format="JPEG"
    ),
    "binary masks of which one holds 255, the others 1": white_and_one("masks"),
    "binary masks of 1, and a validation mask of 255": white_and_one("val_masks"),
    "palette masks whose palettes have one colour at several indices": own_palettes,
    "a mask of 1 bit": Case(
        save("masks/01.png", Image.fromarray(ids(0, 1).astype(bool))),
        lambda data: first(data, 1).mask.unique().tolist() == [0, 1],
    ),
}

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


DONE |= {
    "an empty image folder": empty("images"),
    "a folder that does not exist": flags("--masks", "nowhere"),
    "a file where a folder is asked for": lambda place: place.train(
        "--images", place.data / "names.txt"
    ),
    "a link to itself as image folder": Case(link_to_itself, needs="posix"),
    "an image that is a link to itself": Case(link("images/01.png", "01.png"), needs="posix"),
    "an unlabeled image that is a link to itself": Case(dead_unlabeled_link, needs="posix"),
    "a mask that is a link to a file that is gone": Case(
        link("masks/01.png", "gone.png"), needs="posix"
    ),
    "an image nobody may read": Case(unreadable, needs="no root"),
    "two images of one name, `01.png` and `01.jpg`": second("images/01.png", "images/01.jpg"),
    "two masks of one name, `01.png` and `01.bmp`": second("masks/01.png", "masks/01.bmp"),
    "masks that are called otherwise than the images": lambda place: place.train(
        "--masks", place.data / "val_masks"
    ),
    "a validation image without a mask": gone,
    "a broken image whose name holds a line end and a colour code": Case(
        line_end_in_name, needs="posix"
    ),
    "a folder called `zz.png` among the images": Case(folder_like_an_image, counted(4)),
    "a pipe (FIFO) called `zz.png` among the images": Case(pipe, counted(4), "posix"),
    "the hidden files of macOS, `._01.png`": Case(put("images/._01.png", b"Mac OS X"), counted(4)),
    "a name with blanks and other letters, `my phöto (1).png`": Case(
        renamed("01.png", "my phöto (1).png"), counted(4)
    ),
    "a name that is no UTF-8": Case(renamed("01.png", b"\xff\xfe.png"), counted(4), "posix"),
    "a single image": Case(only(1), counted(1)),
    "fewer labeled images than a batch has": Case(flags("--batch-labeled", 16), counted(4)),
    "more labels asked for than there are": flags("--labels", 5),
    "`--download` with plain folders": flags("--download"),
}

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


DONE |= {
    "an entry `../../secret.jpg`": listed("a\n../../secret.jpg\n"),
    "an entry `a.jpg masks/../../x.png`": listed("a\na.jpg masks/../../x.png\n"),
    "an entry `C:\\x.jpg`": listed("a\nC:\\x.jpg\n"),
    "an entry `\\\\host\\share\\x.jpg`": listed("a\n\\\\host\\share\\x.jpg\n"),
    "an entry `/etc/passwd`": listed("a\n/etc/passwd\n"),
    "an entry with a null byte": listed(b"a\nb\x00.jpg\n"),
    "three columns": listed("a\na.jpg a.png b.png\n"),
    "a list in UTF-16": listed("a\nb\n".encode("utf-16")),
    "an empty list": listed("\r\n \n"),
    "an image that is not there": listed("a\nzz\n"),
    "a name of 5,000 letters": listed("a\n" + "x" * 5000),
    "a folder in place of a list": list_is_folder,
    "a list of one's own folders, and none of validation images": own_list,
    "an entry that is a folder": entry(Path.mkdir),
    "an entry that is a pipe (FIFO)": Case(entry(lambda path: os.mkfifo(path)), needs="posix"),
    "an entry that is a link to itself": Case(entry(names_itself), needs="posix"),
    "an entry that is a link out of the data set": Case(entry(link_out), counted(2), "posix"),
    "an image listed twice": Case(listed("a\na\n"), counted(2)),
    "a byte order mark, Windows line ends, no last line end": Case(
        listed(b"\xef\xbb\xbfa\r\n\r\n2007_000032"), counted(2)
    ),
}

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


DONE |= {
    "an empty file of class names": class_file(b"\n\n"),
    "an image as file of class names": class_file(png_header(9, 9)),
    "a class name that occurs twice": class_file(b"sky\ncat\nsky\n"),
    "`--classes 0`": flags("--classes", 0),
    "`--classes 1000000000000`": flags("--classes", 10**12),
    "a raw id that is mapped twice": flags("--label-map", "0:0,8:1,8:2"),
    "a raw id that is mapped twice in YAML": setting("label_map: {0: 0, 8: 1, 8: 2}"),
    "a raw id that is mapped twice in braces": flags("--label-map", "{0: 0, 8: 1, 8: 2}"),
    "a raw id of 0.5": flags("--label-map={0.5: 1}"),
    "a class that does not exist": flags("--label-map", "0:0,8:3"),
    "a raw id of 24 digits": flags("--label-map", f"{10**23}:1"),
    "a raw id of 5,000 digits": flags("--label-map", f"{'1' * 5000}:1"),
    "a label map without colons": map_file("0 0\n8 1\n"),
    "an empty label map": map_file("# nothing\n"),
    "a label map that is no file": flags("--label-map", "nowhere.txt"),
}

# --- numbers ---------------------------------------------------------------------------------

DONE |= {
    "`--lr nan`": flags("--lr", "nan"),
    "`lr: .nan` in YAML": setting("lr: .nan"),
    "`rotate: .inf` in YAML": setting("rotate: .inf"),
    "`--lr -1`": flags("--lr", "-1"),
    "`--encoder-lr -0.3`": flags("--encoder-lr", "-0.3"),
    "`--weight-decay inf`": flags("--weight-decay", "inf"),
    "`--rotate nan`": flags("--rotate", "nan"),
    "`--jitter -1`": flags("--jitter", "-1"),
    "`--ema nan`": flags("--ema", "nan"),
    "`--scale 0.5-1e999`": flags("--scale", "0.5-1e999"),
    "`--value-range 5-5`": flags("--value-range", "5-5"),
    "`--steps 0`": flags("--steps", 0),
    "`--steps 1000000000000`": flags("--steps", 10**12),
    "`--steps 1.5`": flags("--steps", 1.5),
    "`--seed` of 30 digits": flags("--seed", 10**29),
    "`--batch-labeled -1`": flags("--batch-labeled", -1),
    "`--batch-unlabeled 0` with a method that learns from such images": flags(
        method="guidedmix", batch_unlabeled=0
    ),
    "one labeled image in each micro-batch, where pairs are taken apart": flags(
        "--accumulate", 2, method="guidedmix", variant="paper"
    ),
    "`--threads 1000000`": flags("--threads", 10**6),
    "`--workers 1000000`": flags("--workers", 10**6),
    "`--crop 0x32`": flags("--crop", "0x32"),
    "`--crop 32x999999999999`": flags("--crop", "32x999999999999"),
    "`gmix evaluate --threads 0`": lambda place: ["evaluate", "--model", "x", "--threads", "0"],
    "`gmix evaluate --batch 0`": lambda place: ["evaluate", "--model", "x", "--batch", "0"],
    "`gmix evaluate --scales nan`": lambda place: ["evaluate", "--model", "x", "--scales", "nan"],
    "`gmix demo --steps -5`": lambda place: [
        "demo",
        "--steps",
        "-5",
        "--out",
        str(place.root / "demo"),
    ],
}

# --- configurations --------------------------------------------------------------------------

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
RUNS_CODE = "!!python/object/apply:builtins.open [MARKER, w]"

DONE |= {
    "an unknown key": setting("step: 3"),
    "an unknown flag": flags("--stps", 3),
    "text where a number belongs": setting("steps: many"),
    "a list where a number belongs": setting("lr: [1, 2]"),
    "no value": setting("steps:"),
    "a mapping where text belongs": setting("images: {a: b}"),
    "a key that is given twice": setting("steps: 3\nlr: 1\nsteps: 4\n"),
    "a key in both spellings": setting("batch_labeled: 3\nbatch-labeled: 4\n"),
    "a key with a line end": setting('"steps\\nlr": 3'),
    "a list in place of `key: value`": setting("- 1\n- 2\n"),
    "a switch that is a word, `cache: n`": setting("cache: n"),
    'a switch that is in quotes, `cache: "false"`': setting('cache: "false"'),
    "an octal number": setting("steps: 010"),
    "a number in base 60": setting("steps: 1:30"),
    "`yes` for true": setting("cache: yes"),
    "`--labels 1_8`": flags("--labels", "1_8"),
    "no YAML": setting("a: b: c"),
    "an image in place of YAML": setting(png_header(9, 9)),
    "a tag that runs code": setting(f"steps: {RUNS_CODE}"),
    "a tag that runs code, in `--model-args`": lambda place: place.train(
        "--model-args", "{a: " + RUNS_CODE.replace("MARKER", str(place.marker)) + "}"
    ),
    "a date that is none": setting("steps: !!timestamp many"),
    "aliases of aliases of aliases, 9^9 values in 400 bytes": setting(BOMB),
    "an alias within itself": setting("model_args: &a {a: *a}"),
    "10,000 brackets": setting("model_args: " + "[" * 10_000),
    "a configuration that is not there": flags("--config", "nowhere.yaml"),
    "a path with a null byte": setting('unlabeled: "a\\0b"'),
    "a recipe that does not exist": flags("--recipe", "voc_1-8_r11"),
    "a recipe as path": flags("--recipe", "../../secret"),
    "an empty configuration": Case(setting(""), counted(4)),
}

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


DONE |= {
    "encoder weights that run code (pickle)": weights(payload),
    "encoder weights that run code (`torch.save`)": weights(torch_payload),
    "the same, called `.safetensors`": weights(payload, "weights.safetensors"),
    "an empty file of weights": weights(lambda path, place: path.touch()),
    "weights cut in half": weights(
        lambda path, place: [torch.save({"a": torch.zeros(999)}, path), halve(path)]
    ),
    "weights of another encoder": weights(
        lambda path, place: torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    ),
    "weights of whole numbers": weights(lambda path, place: torch.save(whole_numbers(), path)),
    "a file with two encoders": weights(
        lambda path, place: torch.save({"a": encoder(0), "b": encoder(1)}, path)
    ),
    "weights that are a pipe (FIFO)": Case(
        weights(lambda path, place: os.mkfifo(path)), needs="posix"
    ),
    "a list in place of weights": weights(lambda path, place: torch.save([1, 2], path)),
    "a folder without a model": lambda place: [
        "evaluate",
        "--model",
        str(place.data),
        "--device",
        "cpu",
    ],
    "a model cut in half": model(lambda folder, place: halve(folder / "model.safetensors")),
    "the rest of a model cut in half": model(
        lambda folder, place: [
            edit(folder / "gmix.json", mitrans=True),
            (folder / "gmix.safetensors").write_bytes(b"cut"),
        ]
    ),
    "a model whose weights are a pickle that runs code": model(
        lambda folder, place: payload(folder / "model.safetensors", place)
    ),
    "a model with a `pytorch_model.bin` that runs code and no `model.safetensors`": model(
        lambda folder, place: [
            payload(folder / "pytorch_model.bin", place),
            (folder / "model.safetensors").unlink(),
        ]
    ),
    "a model of another architecture than its weights": model(other_architecture),
    "a model of another encoder than its weights": model(other_encoder),
    "a model whose `config.json` names a file of weights (`checkpoint_path`)": model(
        lambda folder, place: edit(folder / "config.json", checkpoint_path="evil.pth")
    ),
    "a model whose encoder is on a hub": model(
        lambda folder, place: edit(folder / "config.json", encoder_name="tu-hf-hub:some/model")
    ),
    "a model of a few words that asks for 40 GB": model(
        lambda folder, place: edit(folder / "config.json", decoder_channels=[16384] * 3)
    ),
    "`--model-args` with a file of weights (`checkpoint_path`)": flags(
        "--encoder", "mobilenet_v2", "--model-args", "{checkpoint_path: evil.pth}"
    ),
    "`--encoder tu-hf-hub:some/model`": flags("--encoder", "tu-hf-hub:some/model"),
    "a model file that is a pipe (FIFO)": Case(model(pipe("model.safetensors")), needs="posix"),
    "a `gmix.json` that is no JSON": model(
        lambda folder, place: (folder / "gmix.json").write_text("{")
    ),
    "a `gmix.json` without classes": model(
        lambda folder, place: edit(folder / "gmix.json", "classes")
    ),
    "a `gmix.json` with a label map of words": model(
        lambda folder, place: edit(folder / "gmix.json", label_map={"cat": 1})
    ),
    "a run whose `config.yaml` is broken": broken_config,
    "a checkpoint cut in half": checkpoint(
        lambda folder, place: halve(folder / "method.safetensors")
    ),
    "a checkpoint without its weights": checkpoint(
        lambda folder, place: (folder / "method.safetensors").unlink()
    ),
    "a checkpoint without its sums": checkpoint(
        lambda folder, place: (folder / "SHA256SUMS").unlink()
    ),
    "a checkpoint whose state is cut in half": checkpoint(
        lambda folder, place: halve(folder / "state.pt")
    ),
    "a checkpoint whose state runs code": checkpoint(
        lambda folder, place: (torch_payload(folder / "state.pt", place), sum_anew(folder))
    ),
    "a checkpoint whose optimizer is of another size": checkpoint(other_moments),
    "a checkpoint without its optimizer": checkpoint(
        lambda folder, place: (torch.save({}, folder / "state.pt"), sum_anew(folder))
    ),
    "a checkpoint whose sums name a device file": checkpoint(
        lambda folder, place: (folder / "SHA256SUMS").write_text(f"{'0' * 64}  /dev/zero\n")
    ),
    "a checkpoint beyond `--steps`": checkpoint(
        lambda folder, place: folder.rename(folder.with_name("checkpoint-00000099"))
    ),
    "a run whose `config.yaml` is a pipe (FIFO)": Case(piped_config, needs="posix"),
    "a checkpoint of another architecture": checkpoint(other_weights),
    "`--resume` under other flags": other_flags,
    "`--resume` of a run without its `config.yaml`": no_config,
    "`--out` with another run in it": other_run,
    "`--out` with a run in it whose checkpoints were deleted": without_checkpoints(),
    "the same with `--resume`": without_checkpoints("--resume"),
}

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


def has_good_mask(place: Place) -> bool:
    return [path.name for path in (place.root / "masks" / "masks").iterdir()] == ["good.png"]


DONE |= {
    "a file as `--out`": out_is_a_file,
    "`gmix evaluate --out` in a folder that is not there": lambda place: [
        "evaluate",
        "--model",
        "x",
        "--out",
        str(place.root / "no" / "a.json"),
    ],
    "a folder as `gmix evaluate --out`": lambda place: [
        "evaluate",
        "--model",
        "x",
        "--out",
        str(place.data),
    ],
    "`gmix evaluate --picture scores.exe`": lambda place: [
        "evaluate",
        "--model",
        "x",
        "--picture",
        str(place.root / "scores.exe"),
    ],
    "a file as `gmix predict --out`": predict(lambda folder: (folder.parent / "masks").touch()),
    "a folder as `gmix export --out`": export_into_a_folder,
    "a mask drawn by hand where `gmix predict` would write": drawn("good.png"),
    "masks of other images where `gmix predict` would write": drawn("other.png"),
    "the same with `gmix pseudo-label`": drawn("good.png", "pseudo-label"),
    "`gmix evaluate --out` over a file of one's own": mine(
        "a.json", "evaluate", "--model", "RUN", "--out", "FILE"
    ),
    "`gmix evaluate --out` over the `results.json` of a run": mine(
        "b/results.json", "evaluate", "--model", "RUN", "--out", "FILE"
    ),
    "`gmix evaluate --picture` over a picture of one's own": mine(
        "a.png", "evaluate", "--model", "RUN", "--picture", "FILE"
    ),
    "`gmix report --out` over a page of one's own": mine(
        "index.html", "report", "RUN", "--out", "FILE"
    ),
    "`gmix report --figure` over a figure of one's own": mine(
        "a.pdf", "report", "RUN", "--figure", "comparison", "--out", "FILE"
    ),
    "`gmix export` over a model of one's own": mine(
        "a.pt2", "export", "--model", "RUN", "--out", "FILE"
    ),
    "`gmix splits audit --out` over a file of one's own": mine(
        "a.json", "splits", "audit", "--root", "DATA", "--labeled", "x", "--out", "FILE"
    ),
    "`gmix train --out` in a folder with a `config.yaml` of one's own": lambda place: [
        *mine("out/config.yaml")(place),
        *place.train(),
    ],
    "a folder called `zz.png` among images to predict": Case(
        predict(lambda folder: (folder / "zz.png").mkdir()), has_good_mask
    ),
    "a broken image among images to predict": predict(
        lambda folder: (folder / "bad.png").write_bytes(b"")
    ),
    "`gmix splits make` over another list": other_list,
    "`gmix splits make` of an image whose name is no UTF-8": Case(
        split_of_strange_name, needs="posix"
    ),
    "`gmix splits make --labels 0/3`": split("--labels", "0/3"),
    "a shard cut short": shards(cut_short),
    "an image as shard": shards(lambda path: PHOTO.save(path, "PNG")),
    "an index that points before the shard": shards(
        lambda path: path.with_suffix(".idx").write_text("v1.1 1\npng -5 10\n")
    ),
    "an index of another shard": shards(
        lambda path: path.with_suffix(".idx").write_text("v1.1 1\npng 512 99999999\n")
    ),
}


def told() -> Iterator[tuple[str, str]]:
    """What somebody did and what gmix says, of every row of docs/robustness.md."""
    page = Path(__file__).resolve().parents[1] / "docs" / "robustness.md"
    for table in page.read_text(encoding="utf-8").split("| what gmix says |\n|---|---|\n")[1:]:
        for row in table.split("\n\n")[0].strip().split("\n"):
            did, says = row.removeprefix("| ").removesuffix(" |").replace("\\|", "\0").split(" | ")
            says = says if says.startswith("works") else says.strip("`").strip()
            yield did.replace("\0", "|"), says.replace("\0", "|")
