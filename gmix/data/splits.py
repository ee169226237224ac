"""Split files: which images are labeled, which are unlabeled, and which are for validation."""

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
    """Line of a split file.

    Attributes:
        image: An id, or a path relative to the data set's root, with `/` on every system.
        mask: Path of its mask, if the line has one.
    """

    image: str
    mask: str | None = None


def read_split(path: str | Path) -> list[Entry]:
    """Read all entries of a split file, as `split_entries` yields them."""
    return list(split_entries(path))


def split_entries(path: str | Path) -> Iterator[Entry]:
    """Yield the entries of a split file, in any of the formats in circulation.

    A line is an id (`2007_000032`), an image, or an image and its mask, separated by blanks, or by one tab, which
    allows blanks in the names. Windows line ends, blank lines, a missing last newline, a byte order mark and
    backslashes are accepted. A leading slash means the data set's root (`/JPEGImages/a.jpg`), so no entry points
    outside it.

    Raises:
        ValueError: If the file cannot be read, is not UTF-8 or names no image; or if a line has more than two parts, or
            names a drive, a network path or a parent folder (the message gives the line).
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the list file {path}: {error}") from None
    empty = True
    # Split as bytes: text has further line separators.
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
    """Write a split file for `read_split`: `image mask`, or the image alone, on each line.

    A tab separates the two only if a name holds a blank. A file with the same content is left as it is.

    Raises:
        ValueError: If the file exists with other content, or cannot be written.
    """
    path, text = Path(path), format_split(entries)
    check_same_text(path, text)
    atomic_write_text(path, text)


def format_split(entries: Iterable[Entry]) -> str:
    r"""Format the entries as the text of a split file.

    Raises:
        ValueError: If a name is not valid UTF-8, which Linux allows.

    Examples:
        >>> format_split([Entry("a.jpg", "a.png"), Entry("b c.jpg", "b c.png"), Entry("d")])
        'a.jpg a.png\nb c.jpg\tb c.png\nd\n'
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
    """Check that writing `text` would overwrite nothing else.

    Raises:
        ValueError: If the file exists with other content.
    """
    if path.exists() and path.read_bytes() != text.encode():
        raise ValueError(
            f"{path} exists and holds another list: choose another folder, or delete it"
        )


def fingerprint(
    labeled: Iterable[str], unlabeled: Iterable[str] = (), validation: Iterable[str] = ()
) -> str:
    """Return a short hash of which images are used for what, ignoring their order and repetitions.

    It is the first 12 hex digits of the SHA-256 of `[labeled, unlabeled, validation]` as JSON, each sorted.

    Args:
        labeled: Names of the labeled images, as `data_names` returns them.
        unlabeled: Names of the unlabeled images.
        validation: Names of the validation images.

    Examples:
        >>> fingerprint(["b", "a"], ["c"]), fingerprint(["a", "b"], ["c"]), fingerprint(["a"])
        ('d5e2dbcac1fb', 'd5e2dbcac1fb', '1854c52b11fd')
    """
    # Sorted before removing duplicates: a million names are mostly in order, which a set would lose.
    names = [list(dict.fromkeys(sorted(group))) for group in (labeled, unlabeled, validation)]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()[:12]


def data_names(paths: Iterable[Path], root: str | Path | None = None) -> list[str]:
    """Return portable names of files: the path below `root`, with `/`.

    Files outside it, and all files if there is no `root`, are named by their file name.

    Examples:
        >>> data_names([Path("voc/JPEGImages/a.jpg"), Path("more/b.jpg")], "voc")
        ['JPEGImages/a.jpg', 'b.jpg']
    """
    names = []
    base = None if root is None else whole_path(root)
    start = "\0" if root is None else f"{root}{os.sep}"
    for text in paths.texts() if isinstance(paths, Paths) else map(str, paths):
        if text.startswith(start) and ".." not in text and os.sep == "/":
            names.append(text[len(start) :])  # the usual case, and fast: there may be a million
            continue
        whole = whole_path(text)
        inside = base is not None and whole.is_relative_to(base)
        names.append(whole.relative_to(base).as_posix() if base and inside else Path(text).name)
    return names


def whole_path(path: str | Path) -> Path:
    """Return the path from the file system's root, without `..`; links are not resolved."""
    return Path(os.path.normpath(Path(path).absolute()))


# The characters of most names.
_COMMON = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-./"


def _plain(line: bytes) -> Entry | None:
    """Parse the most common lines fast, with the result of `_parse`; None for all others."""
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
    # No part begins with a dot, so nothing can point outside.
    if name.translate(None, _COMMON) or b"/." in name or b"//" in name:
        return None
    if name[:1] in b"." or name[-1:] == b"/":  # an empty name is in any string
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
    # Checked by name, without resolving links: a data set may be a folder of links.
    name = name.replace("\\", "/")
    parts = PurePosixPath(name.removeprefix("/")).parts
    # Windows treats "a/.. /b" and "a/.../b" as more than names.
    strange = any(not part.strip(". ") for part in parts)
    drive = re.match(".:", "/".join(parts))  # after normalising: "/C:/x" and "./C:/x" hide one
    if strange or name.startswith("//") or drive:
        raise ValueError(f"{name!r} leads out of the data set: write a path inside of it")
    if not parts or re.search(r"[\x00-\x1f\x7f]", name):
        raise ValueError(f"{name!r} is no file name")
    return "/".join(parts)
