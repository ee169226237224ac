"""Known data sets: where they keep images, masks and lists, and what their mask values mean."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from gmix.data.classes import IGNORE, Classes, Color
from gmix.data.files import IMAGE_SUFFIXES, MASK_SUFFIXES
from gmix.data.paths import Paths, prefix_of
from gmix.data.splits import Entry, split_entries

TRAIN_VAL_TEST = {"train": "train", "val": "val", "test": "test"}


@dataclass(frozen=True)
class Layout:
    """File layout of a known data set.

    `images` and `masks` are paths below the root, without suffix. In them `{name}` is the name of an image, `{split}`
    the folder of a split, and `{city}` the part of the name before the first underscore. Several paths stand for
    alternative forms of the data set; the first that exists is used.

    Attributes:
        title: Name of the data set, for messages.
        table: Table of its classes: `tables/TABLE.tsv` has a line for each, with the raw id in masks.
        images: Possible paths of images.
        masks: Possible paths of masks.
        lists: Path of the list of a split, with its name as `{list}`; empty if splits are folders.
        splits: Folder of each split.
        homes: Folders below the root that may hold the data set, for archives unpacked there.
        ignored: Raw ids that occur in masks but belong to no class. If raw ids are class ids, any other id but 255 is
            an error.
        class_ids: Suffixes of the masks that hold class ids instead of raw ids.

    Examples:
        >>> LAYOUTS["cityscapes"].title, len(LAYOUTS["cityscapes"].classes().names)
        ('Cityscapes', 19)
    """

    title: str
    table: str
    images: tuple[str, ...]
    masks: tuple[str, ...]
    lists: str = ""
    splits: dict[str, str] | None = None
    homes: tuple[str, ...] = ("",)
    ignored: tuple[int, ...] = ()
    class_ids: tuple[str, ...] = ()

    def classes(self, masks: Iterable[Path] = ()) -> Classes:
        """Return class names, colours and label map.

        Args:
            masks: Masks that will be read. If a data set has masks with raw ids and masks with class ids, their names
                tell which these are. Without masks: raw ids.

        Raises:
            ValueError: If there are both kinds.

        Examples:
            >>> LAYOUTS["cityscapes"].classes([Path("a_gtFine_labelIds.png")]).label_map[7]
            0
            >>> LAYOUTS["cityscapes"].classes([Path("a_gtFine_labelTrainIds.png")]).label_map
        """
        raw, names, colors = read_table(self.table)
        mapped = {id: index for index, id in enumerate(raw)} | dict.fromkeys(self.ignored, IGNORE)
        as_is = list(mapped) == list(range(len(names)))
        if self.class_ids:
            kinds = {path.stem.endswith(self.class_ids): path for path in masks}
            if len(kinds) > 1:
                raise ValueError(
                    f"some masks of {self.title} hold raw ids ({kinds[False]}), others class ids "
                    f"({kinds[True]}): use masks of one kind"
                )
            as_is = True in kinds
        return Classes(names, None if as_is else mapped, colors=colors)


_CITY = "{split}/{city}/{name}"
_COCO = {"train": "train2017", "val": "val2017"}

LAYOUTS = {
    "voc": Layout(
        "PASCAL VOC 2012",
        "voc",
        ("JPEGImages/{name}",),
        ("SegmentationClassAug/{name}", "SegmentationClass/{name}"),
        "ImageSets/Segmentation/{list}.txt",
        homes=("", "VOCdevkit/VOC2012", "VOC2012"),
    ),
    "sbd": Layout(
        "SBD",
        "voc",
        ("img/{name}",),
        ("cls/{name}",),
        "{list}.txt",
        homes=("", "benchmark_RELEASE/dataset", "dataset"),
    ),
    "context": Layout(
        "PASCAL Context",
        "context",
        ("JPEGImages/{name}",),
        ("SegmentationClassContext/{name}",),
        "ImageSets/SegmentationContext/{list}.txt",
        homes=("", "VOCdevkit/VOC2010", "VOC2010"),
    ),
    "cityscapes": Layout(
        "Cityscapes",
        "cityscapes",
        (f"leftImg8bit/{_CITY}_leftImg8bit",),
        (f"gtFine/{_CITY}_gtFine_labelTrainIds", f"gtFine/{_CITY}_gtFine_labelIds"),
        splits={**TRAIN_VAL_TEST, "train_extra": "train_extra"},
        class_ids=("_labelTrainIds",),
    ),
    "ade20k": Layout(
        "ADE20K",
        "ade20k",
        ("images/{split}/{name}",),
        ("annotations/{split}/{name}",),
        splits={"train": "training", "val": "validation"},
        homes=("", "ADEChallengeData2016"),
    ),
    "coco": Layout(
        "COCO (80 things and background)",
        "coco",
        ("images/{split}/{name}", "{split}/{name}"),
        ("masks/{split}/{name}", "masks/{name}", "annotations/{split}/{name}"),
        splits=_COCO,
    ),
    "coco_stuff": Layout(
        "COCO-Stuff",
        "coco_stuff",
        ("images/{split}/{name}", "{split}/{name}"),
        ("stuffthingmaps/{split}/{name}", "annotations/{split}/{name}"),
        splits=_COCO,
    ),
    "camvid": Layout(
        "CamVid",
        "camvid",
        ("images/{split}/{name}", "{split}/{name}"),
        ("masks/{split}/{name}", "{split}annot/{name}"),
        splits=TRAIN_VAL_TEST,
        homes=("", "CamVid", "camvid"),
        ignored=(11,),
    ),
}
"""Known data sets, by name."""


def read_table(table: str) -> tuple[list[int], tuple[str, ...], tuple[Color, ...] | None]:
    """Read the raw ids, names and (if the data set defines them) colours of a data set's classes."""
    text = (files("gmix.data") / "tables" / f"{table}.tsv").read_text(encoding="utf-8")
    raw, names, colors = zip(*(line.split("\t") for line in text.splitlines()[1:]), strict=True)
    rgb = [bytes.fromhex(color) for color in colors if color]
    own = tuple((color[0], color[1], color[2]) for color in rgb) if rgb else None
    return [int(id) for id in raw], names, own


def images_of(layout: Layout, root: str | Path, listing: str | Path) -> Paths:
    """List the images of a split; no masks are needed or searched for.

    Args:
        layout: Layout of the data set.
        root: Folder of the data set.
        listing: Name of a split, or a list file as `read_split` reads it. Its entries are names of images, with or
            without folders and suffix, or pairs of paths below the root, which need no layout.

    Raises:
        ValueError: If the split or one of its files is missing.
    """
    return Finder(layout, root).images(listing)


def masks_of(layout: Layout, root: str | Path, listing: str | Path) -> list[Path]:
    """List the masks of a split, in the order of `images_of`.

    A mask that is named in the list is used if it exists; the others are found by the image's name.

    Raises:
        ValueError: As in `images_of`.
    """
    return Finder(layout, root).masks(listing)


def find_home(layout: Layout, root: str | Path) -> Path | None:
    """Return the folder that holds a data set: the root, or one that its archive creates; else None."""
    for home in layout.homes:
        for template in (*layout.images, *layout.masks):
            for place in _in_splits(layout, template.split("/")[0]):
                if (Path(root) / home / place).is_dir():
                    return Path(root) / home
    return None


class Finder:
    """Search for the files of a data set, entry by entry.

    Args:
        layout: Layout of the data set.
        root: Folder of the data set.

    Raises:
        ValueError: If the root is not a folder.
    """

    def __init__(self, layout: Layout, root: str | Path) -> None:
        home = find_home(layout, root)
        self.layout = layout
        self.home = Path(root) if home is None else home
        self._wrong = "" if home is not None else f": is {root} the folder of {layout.title}?"
        self._folders: dict[str, tuple[str, frozenset[str]]] = {}
        self._template: str | None = None  # of masks, once the first was found
        if not Path(root).is_dir():
            raise ValueError(f"{root} is no folder: expected that of {layout.title}")

    def entries(self, listing: str | Path) -> Iterable[Entry]:
        """Return the entries of a list, or the images in the folder of a split.

        Raises:
            ValueError: If there is neither.
        """
        layout, home = self.layout, self.home
        paths = [home / listing, Path(listing)]
        if layout.lists:
            paths.insert(0, home / layout.lists.format(list=str(listing).removesuffix(".txt")))
        for path in paths:
            if path.is_file():
                return split_entries(path)
        splits = layout.splits or {}
        folder = splits.get(str(listing), str(listing))
        if folder in splits.values():
            for template in layout.images:
                pattern = template.format(split=folder, city="*", name="*")
                found = sorted(
                    path.relative_to(home).as_posix()
                    for path in home.glob(f"{pattern}.*")
                    if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
                )
                if found:
                    return [Entry(name) for name in found]
        lists = (home / layout.lists).parent
        where = f"in {lists}" if layout.lists else f"a split with images ({', '.join(splits)})"
        # `val` is the only list that is searched for by default; users with lists of their own may have no such list.
        hint = " (without one, give --val-images DIR --val-masks DIR)" * (str(listing) == "val")
        raise ValueError(f"the list {listing} is neither {where} nor a file{self._wrong}{hint}")

    def images(self, listing: str | Path) -> Paths:
        """Return the images of a list like `images_of`, reusing the folders read for earlier lists."""
        return Paths(map(self._image, self.entries(listing)))

    def masks(self, listing: str | Path) -> list[Path]:
        """Return the masks of a list like `masks_of`, reusing the folders read for earlier lists."""
        return [self.mask(entry) for entry in self.entries(listing)]

    def pairs(self, listing: str | Path) -> tuple[list[Path], list[Path]]:
        """Return the images and masks of a list, which is read only once."""
        entries = list(self.entries(listing))
        return [self.image(entry) for entry in entries], [self.mask(entry) for entry in entries]

    def image(self, entry: Entry) -> Path:
        """Return the image of an entry.

        Raises:
            ValueError: If it does not exist.
        """
        return Path(self._image(entry))

    def _image(self, entry: Entry) -> str:
        name = entry.image
        if "/" not in name and "." not in name:  # the usual case: lists may have a million names
            for prefix, present in self._usual_folders:
                for suffix in IMAGE_SUFFIXES:
                    if name + suffix in present:
                        return prefix + name + suffix
        path = self._first(self._places(name), IMAGE_SUFFIXES)
        if path is None:
            expected = self.home / next(self._in_layout(name))
            raise ValueError(
                f"no image for the list entry {name!r}: expected {expected}.jpg{self._wrong}"
            )
        return path

    @cached_property
    def _usual_folders(self) -> list[tuple[str, frozenset[str]]]:
        """Return the folders of images that are listed by name alone."""
        templates = (t for t in self.layout.images if t.endswith("/{name}") and "{city}" not in t)
        places = (place for t in templates for place in _in_splits(self.layout, t))
        return [self._folder(place.rpartition("/")[0]) for place in places]

    def mask(self, entry: Entry) -> Path:
        """Return the mask of an entry.

        Raises:
            ValueError: If it does not exist.
        """
        path = None if entry.mask is None else self._first([entry.mask], MASK_SUFFIXES)
        if path is not None:
            return Path(path)
        fields = self._fields(entry)
        templates = self.layout.masks if self._template is None else (self._template,)
        for template in templates:
            path = self._first([template.format(**each) for each in fields], MASK_SUFFIXES)
            if path is not None:
                self._template = template  # the same kind of masks for all
                return Path(path)
        expected = self.home / templates[-1].format(**fields[0])
        raise ValueError(
            f"no mask for the list entry {entry.mask or entry.image!r}: expected {expected}.png{self._wrong}"
        )

    def _places(self, name: str) -> Iterator[str]:
        """Yield possible paths of an image; what looks like a path is tried as a path first."""
        if "/" in name or "." in name:
            yield name
        yield from self._in_layout(name)
        yield name

    def _in_layout(self, name: str) -> Iterator[str]:
        """Yield the paths of an image of that name in the layout."""
        stem = _without_suffix(name, IMAGE_SUFFIXES)
        for template in self.layout.images:
            bare = stem.removesuffix(template.rpartition("}")[2])
            if "{city}" in template:
                bare = bare.rpartition("/")[2]
            for place in _in_splits(self.layout, template):
                yield place.format(city=bare.partition("_")[0], name=bare)

    def _fields(self, entry: Entry) -> list[dict[str, str]]:
        """Return candidate values for the placeholders in the template of an entry's mask."""
        if not self.layout.splits:  # the image need not exist
            name = _without_suffix(entry.image, (*IMAGE_SUFFIXES, *MASK_SUFFIXES))
            return [{"name": name}, {"name": name.rpartition("/")[2]}]
        relative = self.image(entry).relative_to(self.home).with_suffix("").as_posix()
        fields = []
        for template in self.layout.images:
            pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(template))
            match = re.fullmatch(pattern, relative)
            if match is not None:
                fields.append(match.groupdict())
        return fields or [{"split": "SPLIT", "city": "CITY", "name": relative}]

    def _first(self, names: Iterable[str], suffixes: Sequence[str]) -> str | None:
        """Return the first file that exists, with its own suffix or one of `suffixes`."""
        for name in names:
            folder, _, last = name.rpartition("/")
            prefix, present = self._folder(folder)
            if last in present and _without_suffix(last, suffixes) != last:
                return prefix + last
            for suffix in (*suffixes, *map(str.upper, suffixes)):
                if last + suffix in present:
                    return prefix + last + suffix
        return None

    def _folder(self, folder: str) -> tuple[str, frozenset[str]]:
        """Return the path prefix and the file names of a folder, which is read only once.

        Querying every file of a list of a million takes long; trusting the list would let a training stop at a missing
        image after hours.
        """
        if folder not in self._folders:
            path = self.home / folder
            names = os.listdir(path) if path.is_dir() else []  # noqa: PTH208 - names, not Paths
            self._folders[folder] = prefix_of(path), frozenset(names)
        return self._folders[folder]


def _in_splits(layout: Layout, template: str) -> list[str]:
    if "{split}" not in template:
        return [template]
    return [template.replace("{split}", folder) for folder in (layout.splits or {}).values()]


def _without_suffix(name: str, suffixes: Sequence[str]) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if f"{dot}{suffix.lower()}" in suffixes else name
