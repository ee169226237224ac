"""Images in tar shards are those of the folder they came from: the same batches, bit for bit."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset
from full_disk import largest_file
from PIL import Image
from test_data_stream import load, same
from tiny_data import tiny_config, words, write_data

from gmix.builders.data import build_classes, build_data
from gmix.cli.main import main
from gmix.config.train_config import TrainConfig
from gmix.data import (
    ImageDataset,
    SegmentationDataset,
    ShardedImages,
    TwoStream,
    find_images,
    find_shards,
    pair_masks,
    train_transform,
    write_index,
)
from gmix.data.shards import list_members, read_index


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images with masks, and seven more in a folder and in three shards."""
    root = write_data(tmp_path_factory.mktemp("tiny"), unlabeled=0)
    extra = write_data(tmp_path_factory.mktemp("extra"), labeled=1, unlabeled=6) / "images"
    extra.rename(root / "extra")
    for i, path in enumerate(find_images(root / "extra")):
        if i % 2:  # of another kind and size, with a grey value per pixel
            Image.open(path).convert("L").resize((50, 70)).save(path.with_suffix(".jpg"))
            path.unlink()
    (root / "pool").mkdir()
    pack(find_images(root / "extra"), root / "pool")
    return root


def pack(images: list[Path], folder: Path) -> None:
    """As the documentation says: three images a shard, each with what else a sample may have."""
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=3, verbose=0) as writer:
        for path in images:
            kind = path.suffix[1:]
            writer.write({"__key__": path.stem, kind: path.read_bytes(), "json": {"a": 1}})


def test_shards_are_found_by_folder_file_and_pattern(data: Path) -> None:
    pool = data / "pool"
    expected = [pool / f"00000{i}.tar" for i in range(3)]
    assert find_shards(pool) == find_shards(f"{pool}/{{000000..000002}}.tar") == expected
    assert find_shards(expected[1]) == [expected[1]]
    with pytest.raises(ValueError, match=r"000003\.tar does not exist, one of 4 of"):
        find_shards(f"{pool}/{{000000..000003}}.tar")
    with pytest.raises(ValueError, match="holds no shard"):
        find_shards(data / "images")


def test_items_are_those_of_the_folder(data: Path) -> None:
    for size in (None, (20, 24)):
        shards = ShardedImages(find_shards(data / "pool"), size)
        folder = ImageDataset(find_images(data / "extra"), size)
        assert len(shards) == len(folder) == 7
        for i in range(-7, 7):
            assert type(shards[i]) is type(folder[i])
            assert torch.equal(shards[i], folder[i])
        with pytest.raises(IndexError):
            shards[7]


def stream(data: Path, unlabeled: Any) -> TwoStream:
    classes = build_classes(TrainConfig(classes=str(data / "names.txt")), [])
    images = find_images(data / "images")
    labeled = SegmentationDataset(images, pair_masks(images, data / "masks"), classes)
    transform = train_transform(crop=(32, 32))
    return TwoStream(labeled, unlabeled, 2, 3, transform, transform, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder_from_any_start(data: Path, workers: int) -> None:
    folder = load(stream(data, ImageDataset(find_images(data / "extra"))), range(6))
    for start in (0, 4):
        shards = stream(data, ShardedImages(find_shards(data / "pool")))
        batches = load(shards, range(start, 6), workers)
        assert len(batches) == 6 - start
        assert all(same(a, b) for a, b in zip(folder[start:], batches, strict=True))


def test_an_index_says_what_the_shard_says(data: Path, tmp_path: Path) -> None:
    pack(find_images(data / "extra"), tmp_path)
    before = ShardedImages(find_shards(tmp_path))
    for shard in find_shards(tmp_path):
        index = write_index(shard)
        assert index == shard.with_suffix(".idx")
        assert read_index(shard) == list_members(shard)
        lines = index.read_text().splitlines()
        assert lines[0] == f"v1.1 {len(lines) - 1}"
        for line, member in zip(lines[1:], list_members(shard), strict=True):
            assert line == f"{member.suffix} {member.offset} {member.size}"
            bytes_there = shard.read_bytes()[member.offset : member.offset + member.size]
            assert bytes_there in {path.read_bytes() for path in find_images(data / "extra")}
    after = ShardedImages(find_shards(tmp_path))
    assert all(torch.equal(before[i], after[i]) for i in range(7))


def test_an_index_stays_where_there_is_no_room_for_another(data: Path, tmp_path: Path) -> None:
    pack(find_images(data / "extra"), tmp_path)
    shard = find_shards(tmp_path)[0]
    before = write_index(shard).read_bytes()
    with largest_file(5), pytest.raises(ValueError, match=r"cannot write \S+\.idx: File too large"):
        write_index(shard)
    assert shard.with_suffix(".idx").read_bytes() == before


def test_an_index_of_nvidia_is_understood(data: Path, tmp_path: Path) -> None:
    pack(find_images(data / "extra"), tmp_path)
    shard = find_shards(tmp_path)[0]
    members, rows = list_members(shard), []
    for i, m in enumerate(members):
        rows.append(f"json {m.offset + 4096} 8 {i}.json {m.suffix} {m.offset} {m.size} {i}.jpg")
        rows[-1] += f" seg.png {m.offset} 1 {i}.seg.png"  # of each sample the first image
    shard.with_suffix(".idx").write_text("\n".join(["v1.2 3", *rows]))
    assert read_index(shard) == members


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v9 3\n",
        "v1.1 3\njpg 1 2\n",
        "v1.1 1\njpg 1 2\njpg 3 2\n",
        "v1.1 1\njpg one 2\n",
        "v1.1 1\njpg 1\n",
        "v1.1 1\njpg -1 2\n",
        "v1.1 1\njpg 1 -2\n",
    ],
)
def test_a_broken_index_is_named(data: Path, tmp_path: Path, text: str) -> None:
    pack(find_images(data / "extra"), tmp_path)
    (tmp_path / "000001.idx").write_text(text)
    with pytest.raises(ValueError, match=r"cannot read the index .*000001\.idx.*delete it"):
        ShardedImages(find_shards(tmp_path))


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("cut", [0.3, 0.6, 0.9])
def test_a_truncated_shard_is_named(data: Path, tmp_path: Path, cut: float, indexed: bool) -> None:
    pack(find_images(data / "extra"), tmp_path)
    shard = tmp_path / "000001.tar"
    if indexed:
        write_index(shard)
    last = list_members(shard)[-1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: int(cut * (last.offset + last.size))])
    with pytest.raises(ValueError, match=r"the shard .*000001\.tar.* cut short"):
        ShardedImages(find_shards(tmp_path))


def test_an_image_may_end_where_its_shard_does_and_no_later(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(bytes(9))
    (tmp_path / "a.idx").write_text("v1.1 1\njpg 5 4\n")
    assert read_index(tmp_path / "a.tar") == [("jpg", 5, 4)]
    (tmp_path / "a.idx").write_text("v1.1 1\njpg 6 4\n")
    with pytest.raises(ValueError, match="it has 9 bytes, and its last image ends at 10"):
        read_index(tmp_path / "a.tar")


def test_a_broken_image_is_named_with_its_shard(data: Path, tmp_path: Path) -> None:
    pack(find_images(data / "extra"), tmp_path)
    shard = tmp_path / "000001.tar"
    member = list_members(shard)[1]
    content = bytearray(shard.read_bytes())
    content[member.offset : member.offset + member.size] = bytes(member.size)
    shard.write_bytes(content)
    images = ShardedImages(find_shards(tmp_path))
    with pytest.raises(
        ValueError, match=rf"cannot read image 4 at byte {member.offset} of .*01\.tar"
    ):
        images[4]


def test_other_members_are_no_images(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (9, 9, 9)).save(buffer, "png")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        names = ["x/1.png", "x/1.seg.png", "x/.png", "x/2.cls", "y/1.PNG", "3.left.png", "d.png"]
        for name in [*names, "x/._1.png"]:  # the last is what a Mac packs beside an image
            item = tarfile.TarInfo(name)
            item.size = buffer.getbuffer().nbytes
            if name == "d.png":
                item.type, item.size = tarfile.DIRTYPE, 0
            archive.addfile(item, io.BytesIO(buffer.getvalue()))
    members = list_members(tmp_path / "a.tar")
    assert [member.suffix for member in members] == ["png", "PNG", "left.png"]
    (tmp_path / "folder.tar").mkdir()
    assert find_shards(tmp_path) == [tmp_path / "a.tar"]
    (tmp_path / "b").mkdir()
    with tarfile.open(tmp_path / "b" / "b.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("1.txt"))
    with pytest.raises(ValueError, match="at least one image in 1 shards, got none"):
        ShardedImages(find_shards(tmp_path / "b"))
    (tmp_path / "b" / "c.tar").write_bytes(b"no tar file" * 99)
    with pytest.raises(ValueError, match=r"cannot read the shard .*c\.tar"):
        ShardedImages(find_shards(tmp_path / "b"))


def test_the_command_line_takes_shards_beside_folders(data: Path, tmp_path: Path) -> None:
    pattern = f"{data}/pool/{{000000..000002}}.tar"
    config = tiny_config(data, tmp_path / "a", steps=2, unlabeled_shards=pattern, cache=True)
    both = tiny_config(
        data, tmp_path / "b", unlabeled_shards=pattern, unlabeled=str(data / "extra")
    )
    built = build_data(both)
    pool: Any = built.unlabeled
    assert built.counts["unlabeled"] == len(pool) == 14
    assert all(torch.equal(pool[i], pool[7 + i]) for i in range(7))
    assert main(["train", *words(config)]) == 0
    assert json.loads((tmp_path / "a" / "results.json").read_text())["images"]["unlabeled"] == 7


def test_a_missing_shard_ends_in_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(data, tmp_path / "out", unlabeled_shards=str(data / "nowhere.tar"))
    assert main(["train", *words(config)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the shard" in line and "does not exist" in line
    assert not (tmp_path / "out").exists()
