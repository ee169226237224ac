"""Images in tar files (WebDataset shards), with random access."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from gmix.data.files import IMAGE_SUFFIXES
from gmix.data.images import RGB, ImageFormat, read_image
from gmix.data.paths import Paths
from gmix.runtime.atomic import atomic_write_text

Size = tuple[int, int]


class Member(NamedTuple):
    """Location of an image in a shard."""

    suffix: str  # without the dot
    offset: int  # of the first byte
    size: int  # in bytes


def find_shards(pattern: str | Path) -> list[Path]:
    """List the shards of a folder, or of a pattern in WebDataset's notation.

    Args:
        pattern: A folder (all its `.tar` files, by name), a file, or `pool/{000000..000099}.tar`, which the package
            `webdataset` expands.

    Raises:
        ValueError: If there is none, or one in the pattern is missing.
    """
    folder = Path(pattern)
    if folder.is_dir():
        shards = sorted(path for path in folder.glob("*.tar") if path.is_file())
        if not shards:
            raise ValueError(f"the folder {folder} holds no shard (NAME.tar)")
        return shards
    shards = [folder]
    if "{" in str(pattern):
        from webdataset.shardlists import expand_urls

        shards = [Path(name) for name in expand_urls(str(pattern))]
    for shard in shards:
        if not shard.is_file():
            raise ValueError(f"the shard {shard} does not exist, one of {len(shards)} of {pattern}")
    return shards


def list_members(shard: str | Path) -> list[Member]:
    """List the images of a shard in order: the first image of each sample.

    The files of a sample share their name up to the first dot, e.g. `0001.jpg` and `0001.json`.

    Raises:
        ValueError: If the file is not a complete tar file.
    """
    found: dict[str, Member] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for item in archive:
                path = Path(item.name)
                name, _, extension = path.name.partition(".")
                if name and item.isreg() and path.suffix.lower() in IMAGE_SUFFIXES:
                    member = Member(extension, item.offset_data, item.size)
                    found.setdefault(str(path.parent / name), member)
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"cannot read the shard {shard}: {error}; is it cut short?") from None
    members = list(found.values())
    _check(members, shard)
    return members


def write_index(shard: str | Path) -> Path:
    """Write an index of the images in a shard, so that later starts need not scan it.

    The file NAME.idx beside NAME.tar has the format of NVIDIA's `wds2idx` (v1.1), limited to images: the number of
    samples, then suffix, offset and size of each.

    Returns:
        Path of the index.

    Raises:
        ValueError: As in `list_members`, or if the index cannot be written.
    """
    members = list_members(shard)
    lines = [f"v1.1 {len(members)}", *(f"{m.suffix} {m.offset} {m.size}" for m in members)]
    index = Path(shard).with_suffix(".idx")
    atomic_write_text(index, "\n".join(lines) + "\n")
    return index


def read_index(shard: str | Path) -> list[Member]:
    """Read an index written by `write_index`, or by `wds2idx` in version 1.1 or 1.2.

    Raises:
        ValueError: If it is not an index, or belongs to another file.
    """
    index = Path(shard).with_suffix(".idx")
    members = []
    try:
        header, *lines = index.read_text(encoding="utf-8").splitlines()
        version, count = header.split()
        width = {"v1.1": 3, "v1.2": 4}[version]
        for line in lines:
            words = line.split()
            parts = [words[i : i + 3] for i in range(0, len(words), width)]
            images = (p for p in parts if f".{p[0]}".lower().endswith(IMAGE_SUFFIXES))
            members += [Member(p[0], int(p[1]), int(p[2])) for p in list(images)[:1]]
        if len(lines) != int(count):
            raise ValueError(f"{len(lines)} of {count} lines")
        if any(member.offset < 0 or member.size < 0 for member in members):
            raise ValueError("a place in it is below 0")
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"cannot read the index {index}: {error}; delete it") from None
    _check(members, shard)
    return members


class ShardedImages(Dataset[tv_tensors.Image]):
    """Images in tar files, the counterpart of `ImageDataset` for folders.

    Item i is always the same image, so batches, workers and restarts behave as with a folder of the same images in the
    same order. Memory use is 24 bytes per image. Shards indexed by `write_index` need not be scanned first.

    Args:
        shards: Local, uncompressed tar files; their order is that of the images.
        size: Height and width to resize to; `None` keeps the original size.
        format: Channels of the images, and what their values mean.

    Raises:
        ValueError: If there is no image, or a shard is truncated. On access: if the image is broken.

    Examples:
        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     Image.new("RGB", (8, 6)).save(folder / "a.png")
        ...     with tarfile.open(folder / "0.tar", "w") as archive:
        ...         archive.add(folder / "a.png", "a.png")
        ...     images = ShardedImages(find_shards(folder))
        ...     print(len(images), images[0].shape)
        1 torch.Size([3, 6, 8])
    """

    def __init__(
        self,
        shards: Sequence[str | Path],
        size: Size | None = None,
        format: ImageFormat = RGB,
    ) -> None:
        self.shards = Paths(shards)
        self.size = size
        self.format = format
        pieces = []
        for number, shard in enumerate(self.shards):
            there = shard.with_suffix(".idx").is_file()
            members = read_index(shard) if there else list_members(shard)
            places = [(number, member.offset, member.size) for member in members]
            pieces.append(torch.tensor(places, dtype=torch.int64).view(-1, 3))
        # A tensor, which processes share: see `Paths`.
        self._places = torch.cat(pieces) if pieces else torch.empty(0, 3, dtype=torch.int64)
        if not len(self._places):
            raise ValueError(f"expected at least one image in {len(self.shards)} shards, got none")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> tv_tensors.Image:
        number, offset, size = self._places[index].tolist()
        shard = self.shards[number]
        # Reopened each time: processes that share an open file share its position.
        with shard.open("rb") as file:
            file.seek(offset)
            data = _Image(file.read(size), self.name(index))
        image = read_image(data, self.format)
        if self.size is not None:
            image = v2.functional.resize(image, list(self.size), antialias=True)
        return image

    def name(self, index: int) -> str:
        """Return the location of an image; the index holds no file names."""
        number, offset, _ = self._places[index].tolist()
        return f"{index} at byte {offset} of {self.shards[number]}"


class _Image(io.BytesIO):
    """An image file in memory with a name for error messages."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self._name = name

    def __str__(self) -> str:
        return self._name


def _check(members: Iterable[Member], shard: str | Path) -> None:
    end = max((member.offset + member.size for member in members), default=0)
    size = Path(shard).stat().st_size
    if end > size:
        raise ValueError(
            f"the shard {shard} is cut short: it has {size} bytes, and its last image ends at {end}; "
            "copy it again (and delete its .idx if that is of another file)"
        )
