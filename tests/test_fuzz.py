"""Any split file, configuration, label map, image or shard is read, or refused in one sentence."""

import io
import tarfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import fuzz
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from gmix.config.parser import parse
from gmix.config.train_config import TrainConfig
from gmix.data import Classes, read_image, read_mask
from gmix.data.shards import list_members
from gmix.errors import UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def pieces(*likely: str) -> st.SearchStrategy[bytes]:
    """Text in which what makes trouble is likely, or any text, or any bytes."""
    some = st.lists(st.sampled_from(likely) | st.text(max_size=3)).map("".join)
    return (some | st.text()).map(lambda text: text.encode("utf-8", "replace")) | st.binary()


@given(data=pieces(*"ab./\\ \t\r\n:~\x00\x85", "..", "//", "C:", "\ufeff", "é", ".jpg"))
@example(data=b"/C:")  # found by 5000 examples of this test
def test_split_files(folder: Path, data: bytes) -> None:
    fuzz.split(data, folder)


KEYS = st.sampled_from([item.name for item in fields(TrainConfig)])
ODD = [
    "!!int ''",
    "!!bool x",
    "!!timestamp x",
    "0x_",
    "1:2_",
    "*a",
    "&a [*a]",
    "<<: 3",
    "? - 1",
    "!",
]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates()
VALUES = (
    st.recursive(SCALARS, lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside)).map(
        lambda value: io.StringIO(repr(value)).getvalue()
    )  # much of Python's spelling is YAML's
) | st.sampled_from(["null", ".nan", "-.inf", "1e999", "64x64", "0x0", "0.5-2", *ODD])
LINES = st.builds("{}: {}\n".format, KEYS, VALUES | st.text())
FILES = st.lists(LINES, max_size=3).map("".join) | pieces("a: ", "- ", "\n", "&a ", *ODD).map(
    lambda data: data.decode("utf-8", "replace")
)


@settings(max_examples=5 * settings.default.max_examples)
@given(text=FILES)
@example(text="model_args: " + "[" * 300 + "]" * 300)
@example(text="model_args: {a: " + "{a: " * 150 + "1" + "}" * 151)
@example(text="label_map: {" + "1" * 5000 + ": 1}")
@example(text="steps: " + "1" * 5000)
@example(text="recipe: [cpu]")
@example(text="recipe:\n")
@example(text="recipe: 'cpu\x00'")
def test_configurations(folder: Path, text: str) -> None:
    fuzz.settings(text.encode("utf-8", "replace"), folder)


@settings(max_examples=2 * settings.default.max_examples)
@given(name=KEYS, text=VALUES | st.text())
@example(name="model_args", text="!!int ''")
@example(name="model_args", text="[" * 3000)
@example(name="label_map", text="{" + "1" * 5000 + ": 1}")
@example(name="steps", text="null")
@example(name="recipe", text="")
def test_flags(name: str, text: str) -> None:
    try:
        config = parse(TrainConfig, "gmix train", "", [f"--{name.replace('_', '-')}={text}"])
    except UsageError as error:
        assert "\n" not in str(error)
    except ValueError:
        pass
    else:
        assert config.steps >= 1


@given(
    data=pieces(*"0128:,\n{}'\" #", "255", "cat", "background", "---", "\u0660", "\ufeff", "\x00")
)
@example(data="²:1".encode())
@example(data=b"9" * 5000 + b":1")
def test_label_maps(folder: Path, data: bytes) -> None:
    fuzz.label_map(data, folder)


@given(data=pieces("a", "b", "\n", " ", "\r", "\u2028", "\ufeff", "\x00"))
def test_class_names(folder: Path, data: bytes) -> None:
    fuzz.class_names(data, folder)


def picture(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    pixels = np.arange(3 * 16 * 16, dtype=np.uint8).reshape(16, 16, 3)
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros((4, 4, 3), np.uint8))
    return file.getvalue()


def shard() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("a.png", "ü" * 80 + ".png"):
            content = picture("PNG")
            item = tarfile.TarInfo(name)
            item.size = len(content)
            archive.addfile(item, io.BytesIO(content))
    return file.getvalue()


def damaged(whole: bytes) -> st.SearchStrategy[bytes]:
    """A file with some bytes changed, early ones more often, perhaps cut short."""
    places = st.integers(0, min(200, len(whole) - 1)) | st.integers(0, len(whole) - 1)
    changes = st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=4)

    def damage(changes: list[tuple[int, int]], end: int) -> bytes:
        content = bytearray(whole)
        for place, value in changes:
            content[place] = value
        return bytes(content[:end])

    return st.builds(damage, changes, st.just(len(whole)) | st.integers(1, len(whole)))


FILES_OF = {
    "PNG": picture("PNG"),
    "JPEG": picture("JPEG"),
    "TIFF": picture("TIFF"),
    "BMP": picture("BMP"),
    "WEBP": picture("WEBP"),
    "GIF": picture("GIF"),
    "npy": array(),
}


@pytest.mark.filterwarnings("ignore")  # Pillow's, of broken EXIF and of sizes
@pytest.mark.parametrize("kind", FILES_OF)
@given(data=st.data())
def test_damaged_images(folder: Path, kind: str, data: st.DataObject) -> None:
    content = data.draw(damaged(FILES_OF[kind]))
    file = folder / ("x.npy" if kind == "npy" else "x.png")
    file.write_bytes(content)
    readers: list[Callable[[], object]] = [
        lambda: read_image(file),
        lambda: read_image(io.BytesIO(content)),
        lambda: read_mask(file, Classes.of(3)),
    ]
    for reader in readers:
        try:
            reader()
        except ValueError as error:
            assert str(error)


@given(content=damaged(shard()))
def test_damaged_shards(folder: Path, content: bytes) -> None:
    file = folder / "0.tar"
    file.write_bytes(content)
    try:
        members = list_members(file)
    except ValueError as error:
        assert "0.tar" in str(error)
    else:
        assert all(0 <= m.offset <= m.offset + m.size <= len(content) for m in members)
