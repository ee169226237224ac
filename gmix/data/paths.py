"""A million paths in little memory, and finding them in a second or two."""

from __future__ import annotations

import os
import posixpath
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice, pairwise
from pathlib import Path
from typing import overload

import numpy as np
import torch

from gmix.data.files import IMAGE_SUFFIXES, names_in


class Paths(Sequence[Path]):
    """Paths as one block of text: about as many bytes as they have letters, and 8 each.

    A list of a million `Path` takes 330 MB, and each loader process soon has a copy of its own: looking at
    an object of Python writes to it. Here there is no object until a path is asked for. The block is a
    tensor, which processes share however they were started.

    Args:
        paths: Any paths; they are looked at once.

    Examples:
        >>> paths = Paths(["b/2.jpg", Path("a") / "1.jpg"])
        >>> len(paths), paths[-1].name, [path.stem for path in paths]
        (2, '1.jpg', ['2', '1'])
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        text, lengths, all_texts = bytearray(), array("q", [0]), _texts(paths)
        while some := [path.encode("utf-8", "surrogatepass") for path in islice(all_texts, 4096)]:
            text += b"".join(some)  # file names need not be Unicode
            lengths.extend(map(len, some))
        self._text = torch.frombuffer(text or bytearray(1), dtype=torch.uint8)
        # By numpy: torch would start threads, which a process forked later on waits for in vain.
        self._ends = torch.from_numpy(np.cumsum(np.frombuffer(lengths, dtype=np.int64)))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> Paths: ...
    def __getitem__(self, index: int | slice) -> Path | Paths:
        if isinstance(index, slice):
            return Paths(self.text(i) for i in range(*index.indices(len(self))))
        return Path(self.text(index))

    def __iter__(self) -> Iterator[Path]:
        return map(Path, self.texts())

    def text(self, index: int) -> str:
        """One path as text. Python keeps room for the names of every `Path` there was, not for those of texts."""
        place = range(len(self))[index]
        (path,) = self._slice(place, place + 1)
        return path

    def texts(self) -> Iterator[str]:
        """Every path as text."""
        for first in range(0, len(self), 4096):
            yield from self._slice(first, first + 4096)

    def _slice(self, first: int, last: int) -> Iterator[str]:
        ends = self._ends[first : last + 1].tolist()
        text = self._text[ends[0] : ends[-1]].numpy().tobytes()
        for start, end in pairwise(ends):
            yield text[start - ends[0] : end - ends[0]].decode("utf-8", "surrogatepass")

    def without(self, others: Iterable[str | Path]) -> Paths:
        """Those that are not among `others`, however either spells the folders.

        Examples:
            >>> [path.name for path in Paths(["a", "b", "c"]).without([Path("x/../b")])]
            ['a', 'c']
        """
        alike = Spelling()
        out = {os.path.normcase(alike(text)) for text in _texts(others)}
        if os.path is posixpath:  # where names have one case, and no time need be spent on it
            return Paths(text for text in self.texts() if alike(text) not in out)
        return Paths(text for text in self.texts() if os.path.normcase(alike(text)) not in out)

    @classmethod
    def union(cls, *groups: Iterable[str | Path]) -> Paths:
        """Each path of any group once, in the order of paths: folder by folder, each as it was spelled first.

        Examples:
            >>> [path.as_posix() for path in Paths.union(["a-b/x", "a/z"], [Path("a/y"), "a/b/../z"])]
            ['a/y', 'a/z', 'a-b/x']
        """
        alike = Spelling()
        # With nothing smaller between folders this is the order of `sorted` over `Path`.
        keys = [alike(text).replace(os.sep, "\0") for group in groups for text in _texts(group)]
        keys.sort()
        return cls(key.replace("\0", os.sep) for key, _ in groupby(keys))


class Spelling:
    """One spelling of each folder, the first it is met in: absolute or not, through `..` or a link, it is the same.

    Examples:
        >>> alike = Spelling()
        >>> alike(os.path.join("a", "1.jpg")) == alike(os.path.abspath(os.path.join("a", "1.jpg")))
        True
    """

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._known: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        """The path with its folder in that spelling; a folder is looked up once, for there may be a million paths."""
        name = path.rpartition(os.sep)[2]
        folder = path[: len(path) - len(name)]
        if folder not in self._known:
            self._known[folder] = self._first.setdefault(os.path.realpath(folder), folder)
        return self._known[folder] + name


def folder_images(folder: str | Path) -> Paths:
    """What `find_images` finds, for folders of any size: no file is looked at alone.

    Raises:
        ValueError: As `find_images`.
    """
    prefix = prefix_of(Path(folder))
    return Paths(prefix + name for name in names_in(Path(folder), IMAGE_SUFFIXES, "image"))


def prefix_of(folder: Path) -> str:
    """What stands before the names in a folder: nothing for the current one."""
    return str(folder / "x")[:-1]


def _texts(paths: Iterable[str | Path]) -> Iterator[str]:
    return paths.texts() if isinstance(paths, Paths) else map(str, paths)
