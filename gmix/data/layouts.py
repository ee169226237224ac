"""Known data sets: where they keep images, masks and lists, and what their mask values mean."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from gmix.data.classes import IGNORE, Classes, Color
from gmix.data.files import IMAGE_SUFFIXES, MASK_SUFFIXES, read_list

TRAIN_VAL_TEST = {"train": "train", "val": "val", "test": "test"}


@dataclass(frozen=True)
class Layout:
    """How a data set lies in its folder.

    `images` and `masks` are paths below the root, without suffix. In them `{name}` is the name of an image,
    `{split}` the folder of a split, `{city}` what precedes the first underscore of the name. Where several are
    given, people have the data set in several forms, and the first that is there is meant.

    Attributes:
        title: The data set, as people call it.
        table: Its classes: `tables/TABLE.tsv` has a line for each, with the raw id in the mask.
        images: Where an image may lie.
        masks: Where its mask may lie.
        lists: Where the list of a split lies, `{list}` being its name; empty: splits are folders.
        splits: The folder of each split.
        homes: Where the data set may lie below the root, for those who unpacked an archive there.
        ignored: Raw ids without a class that do occur. Where a table's raw ids are its class ids, any other
            id but 255 is an error.
        class_ids: Endings of the masks that hold class ids already, in place of raw ids.

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
        """Class names, colours and label map.

        Args:
            masks: The masks that will be read: where a data set has masks with raw and others with class ids,
                their names tell which these are. Without masks: raw ids.

        Raises:
            ValueError: If there are some of both.

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
"""The data sets known by name."""


def read_table(table: str) -> tuple[list[int], tuple[str, ...], tuple[Color, ...] | None]:
    """Raw ids, names and (where the data set has its own) colours of a data set's classes."""
    text = (files("gmix.data") / "tables" / f"{table}.tsv").read_text(encoding="utf-8")
    raw, names, colors = zip(*(line.split("\t") for line in text.splitlines()[1:]), strict=True)
    rgb = [bytes.fromhex(color) for color in colors if color]
    own = tuple((color[0], color[1], color[2]) for color in rgb) if rgb else None
    return [int(id) for id in raw], names, own


def images_of(layout: Layout, root: str | Path, listing: str | Path) -> list[Path]:
    """The images of a split; masks are neither needed nor looked for.

    Args:
        layout: Of the data set.
        root: Its folder.
        listing: The name of a split, or a list file. A line is the name of an image, with or without folders
            and suffix, or an `image mask` pair of paths below the root.

    Raises:
        ValueError: If the split or a file of it is missing, or an entry leads out of the root.
    """
    home, present = find_home(layout, root), _Present()
    return [
        Path(_find_image(layout, home, entry[0], present))
        for entry in entries_of(layout, home, listing)
    ]


def masks_of(layout: Layout, root: str | Path, listing: str | Path) -> list[Path]:
    """The masks of a split, in the order of `images_of`.

    A mask that the list names itself is taken if it is there; the others are found by the image's name.

    Raises:
        ValueError: As `images_of`.
    """
    home, present = find_home(layout, root), _Present()
    template: str | None = None
    found = []
    for entry in entries_of(layout, home, listing):
        mask = None
        if len(entry) == 2:
            mask = next(_existing(home, [safe(entry[1], home)], MASK_SUFFIXES, present), None)
        if mask is None:
            fields = _fields(layout, home, entry[0], present)
            templates = layout.masks if template is None else (template,)
            for template in templates:
                names = [template.format(**each) for each in fields]
                mask = next(_existing(home, names, MASK_SUFFIXES, present), None)
                if mask is not None:
                    break
            if mask is None:
                expected = home / templates[-1].format(**(fields or [_NO_FIELDS])[0])
                raise ValueError(
                    f"no mask for the list entry {entry[-1]!r}: expected {expected}.png"
                )
        found.append(Path(mask))
    return found


def entries_of(layout: Layout, home: Path, listing: str | Path) -> Iterator[tuple[str, ...]]:
    """What a list names, or what lies in the folder of a split."""
    paths = [home / listing, Path(listing)]
    if layout.lists:
        paths.insert(0, home / layout.lists.format(list=str(listing).removesuffix(".txt")))
    for path in paths:
        if path.is_file():
            yield from read_list(path)
            return
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
                yield from ((path,) for path in found)
                return
    lists = (home / layout.lists).parent
    where = f"in {lists}" if layout.lists else f"a split of {layout.title} ({', '.join(splits)})"
    raise ValueError(f"the list {listing} is neither {where} nor a file")


def find_home(layout: Layout, root: str | Path) -> Path:
    """The folder that holds a data set: the root, or one that its archive makes there.

    Raises:
        ValueError: If the root has nothing that looks like the data set.
    """
    tops = [template.split("/")[0] for template in (*layout.images, *layout.masks)]
    tops = [folder for top in tops for folder in _splits_in(layout, top)]
    for home in layout.homes:
        if any((Path(root) / home / top).is_dir() for top in tops):
            return Path(root) / home
    reason = "is no folder" if not Path(root).is_dir() else f"has no folder {tops[0]}"
    raise ValueError(
        f"{root} {reason}: expected the folder of {layout.title}, with {layout.images[0]}.jpg in it"
    )


def safe(entry: str, root: Path) -> str:
    """An entry of a list as a path that stays below the root.

    Raises:
        ValueError: If it would lead out of it.

    Examples:
        >>> safe("/JPEGImages/a.jpg", Path("VOC2012"))
        'JPEGImages/a.jpg'
    """
    # Checked by name, not by resolving: a data set may well be a folder of links.
    relative = entry.replace("\\", "/").lstrip("/")
    if ".." in relative.split("/") or Path(relative).drive:
        raise ValueError(f"the list entry {entry!r} leads out of {root}: remove it")
    return relative


class _Present:
    """Which files there are. A folder is read once: a list may name a million of its files."""

    def __init__(self) -> None:
        self._folders: dict[str, frozenset[str]] = {}

    def __contains__(self, path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in self._folders:
            try:
                self._folders[folder] = frozenset(os.listdir(folder))  # noqa: PTH208 - names, not Paths
            except OSError:
                self._folders[folder] = frozenset()
        return name in self._folders[folder]


_NO_FIELDS = {"split": "SPLIT", "city": "CITY", "name": "NAME"}


def _find_image(layout: Layout, home: Path, entry: str, present: _Present) -> str:
    relative = safe(entry, home)
    names = [relative, *_filled(layout, relative)]
    for path in _existing(home, names, IMAGE_SUFFIXES, present):
        return path
    raise ValueError(f"no image for the list entry {entry!r}: expected {home / names[1]}.jpg")


def _filled(layout: Layout, relative: str) -> Iterator[str]:
    """The places where an image of that name may lie."""
    stem = _without_suffix(relative, IMAGE_SUFFIXES)
    for template in layout.images:
        tail = template.rpartition("}")[2]
        name = stem.removesuffix(tail)
        if "{city}" in template:
            name = name.rpartition("/")[2]
        for place in _splits_in(layout, template):
            yield place.format(city=name.partition("_")[0], name=name)


def _fields(layout: Layout, home: Path, entry: str, present: _Present) -> list[dict[str, str]]:
    """What has to be put into the template of a mask."""
    if not layout.splits:  # the mask needs the name alone, be there an image or not
        name = _without_suffix(safe(entry, home), (*IMAGE_SUFFIXES, *MASK_SUFFIXES))
        return [{"name": name}, {"name": name.rpartition("/")[2]}]
    image = Path(_find_image(layout, home, entry, present))
    relative = image.relative_to(home).with_suffix("").as_posix()
    fields = []
    for template in layout.images:
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(template))
        match = re.fullmatch(pattern, relative)
        if match:
            fields.append(match.groupdict())
    return fields


def _existing(
    home: Path, names: Iterable[str], suffixes: Sequence[str], present: _Present
) -> Iterator[str]:
    for name in names:
        path = os.path.join(home, *name.split("/"))  # noqa: PTH118 - a Path takes ten times as long
        has_suffix = os.path.splitext(name)[1].lower() in suffixes  # noqa: PTH122
        if has_suffix and path in present:
            yield path
        for suffix in suffixes:
            if path + suffix in present:
                yield path + suffix


def _splits_in(layout: Layout, template: str) -> list[str]:
    if "{split}" not in template:
        return [template]
    return [template.replace("{split}", folder) for folder in (layout.splits or {}).values()]


def _without_suffix(name: str, suffixes: Sequence[str]) -> str:
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    return stem if suffix.lower() in suffixes else name
