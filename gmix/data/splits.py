"""Split files: which images a run learns from with masks, without them, and is judged on."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from gmix.data.paths import Paths
from gmix.runtime.atomic import atomic_write_text


class Entry(NamedTuple):
    """A line of a split file.

    Attributes:
        image: An id, or a path relative to the data set's root, with `/` on every system.
        mask: The path of its mask, if the line names one.
    """

    image: str
    mask: str | None = None


def read_split(path: str | Path) -> list[Entry]:
    """All of `split_entries`."""
    return list(split_entries(path))


def split_entries(path: str | Path) -> Iterator[Entry]:
    """Reads the split files that are in circulation, one entry after the other.

    A line is an id (`2007_000032`), an image, or an image and its mask with blanks between them,
    or one tab, which lets the names hold blanks. Windows line ends, blank lines, a missing last
    newline, a byte order mark and backslashes are fine. A leading slash means the data set's root
    (`/JPEGImages/a.jpg`), so that no entry leads out of it.

    Raises:
        ValueError: If the file cannot be read, is no UTF-8 text or names no image; with the line,
            if it has more than two parts, or names a drive, a network path or a parent folder.
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the list file {path}: {error}") from None
    empty = True
    # Split as bytes: as text, more than line ends would end a line.
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        try:
            entry = _plain(line) or _parse(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise ValueError(f"{path}, line {number}: this is no UTF-8 text") from None
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if entry is not None:
            empty = False
            yield entry
    if empty:
        raise ValueError(f"the list file {path} names no image")


def write_split(path: str | Path, entries: Iterable[Entry]) -> None:
    """Writes a split file as `read_split` reads it: `image mask`, or the image alone, a line.

    A tab stands between the two only where a name holds a blank. A file that says the same is
    left as it is.

    Raises:
        ValueError: If the file exists and says something else, or cannot be written.
    """
    path, text = Path(path), format_split(entries)
    check_same_text(path, text)
    atomic_write_text(path, text)


def format_split(entries: Iterable[Entry]) -> str:
    """The text of a split file.

    Raises:
        ValueError: If a name is no UTF-8, as Linux allows.

    Examples:
        >>> format_split([Entry("a.jpg", "a.png"), Entry("b c.jpg", "b c.png"), Entry("d")])
        'a.jpg a.png\\nb c.jpg\\tb c.png\\nd\\n'
    """
    lines = []
    for image, mask in entries:
        between = "\t" if any(map(str.isspace, f"{image}{mask}")) else " "
        line = f"{image}{between}{mask or ''}".rstrip(" ") + "\n"
        if not line.isascii() and line.encode("utf-8", "ignore").decode() != line:
            raise ValueError(f"{image!r} is no UTF-8 text, so no list can name it: rename the file")
        lines.append(line)
    return "".join(lines)


def check_same_text(path: Path, text: str) -> None:
    """Makes sure that writing `text` loses nothing.

    Raises:
        ValueError: If the file exists and says something else.
    """
    if path.exists() and path.read_bytes() != text.encode():
        raise ValueError(
            f"{path} exists and holds another list: choose another folder, or delete it"
        )


def fingerprint(
    labeled: Iterable[str], unlabeled: Iterable[str] = (), validation: Iterable[str] = ()
) -> str:
    """A short hash of which images are used for what; their order and repetitions do not count.

    The first 12 hex digits of the SHA-256 of `[labeled, unlabeled, validation]` as JSON, each
    sorted.

    Args:
        labeled: Names of the images that are learned from with their masks, as `data_names` gives
            them.
        unlabeled: Those learned from without.
        validation: Those the run is judged on.

    Examples:
        >>> fingerprint(["b", "a"], ["c"]), fingerprint(["a", "b"], ["c"]), fingerprint(["a"])
        ('d5e2dbcac1fb', 'd5e2dbcac1fb', '1854c52b11fd')
    """
    # Sorted first: a million names mostly come in order, which a set would lose.
    names = [list(dict.fromkeys(sorted(group))) for group in (labeled, unlabeled, validation)]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:12]


def data_names(paths: Iterable[Path], root: str | Path | None = None) -> list[str]:
    """What files are called wherever their data set lies: by the path below `root`, with `/`.

    Files outside of it, or without a `root`, go by their file name.

    Examples:
        >>> data_names([Path("voc/JPEGImages/a.jpg"), Path("more/b.jpg")], "voc")
        ['JPEGImages/a.jpg', 'b.jpg']
    """
    names = []
    base = None if root is None else whole_path(root)
    start = "\0" if root is None else f"{root}{os.sep}"
    for text in paths.texts() if isinstance(paths, Paths) else map(str, paths):
        if text.startswith(start) and ".." not in text and os.sep == "/":
            names.append(text[len(start) :])  # the usual case, in a moment: there may be a million
            continue
        whole = whole_path(text)
        inside = base is not None and whole.is_relative_to(base)
        names.append(whole.relative_to(base).as_posix() if base and inside else Path(text).name)
    return names


def whole_path(path: str | Path) -> Path:
    """The path from the file system's root, without `..`; links are not followed."""
    return Path(os.path.normpath(Path(path).absolute()))


# What most names are made of.
_COMMON = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-./"


def _plain(line: bytes) -> Entry | None:
    """What `_parse` says, in a moment, of nearly every line of nearly every list; None of the others."""
    name = _common(line)
    if name is not None:
        return Entry(name)
    if b"\t" in line:
        return None
    names = [_common(part) for part in line.split()]
    if None in names or not 1 <= len(names) <= 2:
        return None
    return Entry(*names)  # type: ignore[arg-type]


def _common(name: bytes) -> str | None:
    # No folder or name that begins with a dot: nothing that could lead out of anything.
    if name.translate(None, _COMMON) or b"/." in name or b"//" in name:
        return None
    if name[:1] in b"." or name[-1:] == b"/":  # nothing at all is in anything
        return None
    return name.decode().removeprefix("/")


def _parse(line: str) -> Entry | None:
    parts = [part.strip() for part in line.split("\t")] if "\t" in line else line.split()
    names = [_inside(part) for part in parts if part]
    if len(names) > 2:
        raise ValueError(
            f"expected an id or `image mask`, got {line.strip()!r}; names with blanks need a tab "
            "between image and mask"
        )
    return Entry(*names) if names else None


def _inside(name: str) -> str:
    # Checked by name, not by resolving: a data set may well be a folder of links.
    name = name.replace("\\", "/")
    parts = PurePosixPath(name.removeprefix("/")).parts
    # Windows takes "a/.. /b" and "a/.../b" for more than names.
    strange = any(not part.strip(". ") for part in parts)
    drive = re.match(".:", "/".join(parts))  # of what is left: "/C:/x" and "./C:/x" hide one
    if strange or name.startswith("//") or drive:
        raise ValueError(f"{name!r} leads out of the data set: write a path inside of it")
    if not parts or re.search(r"[\x00-\x1f\x7f]", name):
        raise ValueError(f"{name!r} is no file name")
    return "/".join(parts)
