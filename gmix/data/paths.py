"""Compact lists of a million paths, and fast operations on them."""

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
    """Paths in one block of text, which takes their bytes and 8 more for each.

    A list of a million `Path` takes 330 MB, and each loader process soon has its own copy, because reading a Python
    object writes its reference count. Here a path becomes an object only on access. The block is a tensor, which
    processes share whether they were forked or spawned.

    Args:
        paths: Any paths; iterated over once.

    Examples:
        >>> paths = Paths(["b/2.jpg", Path("a") / "1.jpg"])
        >>> len(paths), paths[-1].name, [path.stem for path in paths]
        (2, '1.jpg', ['2', '1'])
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        text, lengths, all_texts = bytearray(), array("q", [0]), _texts(paths)
        while some := [path.encode("utf-8", "surrogatepass") for path in islice(all_texts, 4096)]:
            text += b"".join(some)  # file names need not be valid Unicode
            lengths.extend(map(len, some))
        self._text = torch.frombuffer(text or bytearray(1), dtype=torch.uint8)
        # numpy, because torch would start threads, which deadlock processes forked later.
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
        """Return a path as text; unlike a `Path`, it leaves no interned names in memory."""
        place = range(len(self))[index]
        (path,) = self._slice(place, place + 1)
        return path

    def texts(self) -> Iterator[str]:
        """Yield every path as text."""
        for first in range(0, len(self), 4096):
            yield from self._slice(first, first + 4096)

    def _slice(self, first: int, last: int) -> Iterator[str]:
        ends = self._ends[first : last + 1].tolist()
        text = self._text[ends[0] : ends[-1]].numpy().tobytes()
        for start, end in pairwise(ends):
            yield text[start - ends[0] : end - ends[0]].decode("utf-8", "surrogatepass")

    def without(self, others: Iterable[str | Path]) -> Paths:
        """Return the paths that are not among `others`, even if folders are spelled differently.

        Examples:
            >>> [path.name for path in Paths(["a", "b", "c"]).without([Path("x/../b")])]
            ['a', 'c']
        """
        alike = Spelling()
        out = {os.path.normcase(alike(text)) for text in _texts(others)}
        if os.path is posixpath:  # file names are case-sensitive: skip the slow normcase
            return Paths(text for text in self.texts() if alike(text) not in out)
        return Paths(text for text in self.texts() if os.path.normcase(alike(text)) not in out)

    @classmethod
    def union(cls, *groups: Iterable[str | Path]) -> Paths:
        """Merge groups of paths: sorted, without duplicates, in the spelling met first.

        Examples:
            >>> [path.as_posix() for path in Paths.union(["a-b/x", "a/z"], [Path("a/y"), "a/b/../z"])]
            ['a/y', 'a/z', 'a-b/x']
        """
        alike = Spelling()
        # With the smallest character between folders, this is the order of `sorted` over `Path`.
        keys = [alike(text).replace(os.sep, "\0") for group in groups for text in _texts(group)]
        keys.sort()
        return cls(key.replace("\0", os.sep) for key, _ in groupby(keys))


class Spelling:
    """Map each folder to the spelling met first, whether absolute, relative, through `..` or a link.

    Examples:
        >>> alike = Spelling()
        >>> alike(os.path.join("a", "1.jpg")) == alike(os.path.abspath(os.path.join("a", "1.jpg")))
        True
    """

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._known: dict[str, str] = {}

    def __call__(self, path: str) -> str:
        """Return the path with its folder in that spelling; each folder is resolved only once."""
        name = path.rpartition(os.sep)[2]
        folder = path[: len(path) - len(name)]
        if folder not in self._known:
            self._known[folder] = self._first.setdefault(os.path.realpath(folder), folder)
        return self._known[folder] + name


def folder_images(folder: str | Path) -> Paths:
    """List images like `find_images`, for folders of any size: files are not queried one by one.

    Raises:
        ValueError: As in `find_images`.
    """
    prefix = prefix_of(Path(folder))
    return Paths(prefix + name for name in names_in(Path(folder), IMAGE_SUFFIXES, "image"))


def prefix_of(folder: Path) -> str:
    """Return what precedes the file names in paths of a folder: nothing for the current one."""
    return str(folder / "x")[:-1]


def _texts(paths: Iterable[str | Path]) -> Iterator[str]:
    return paths.texts() if isinstance(paths, Paths) else map(str, paths)
