"""Class names, the map from raw mask ids to classes, and a colour for each class."""

import colorsys
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

IGNORE = 255
"""Mask value that every loss and every score ignores."""

Color = tuple[int, int, int]

# Okabe-Ito, then Tol's muted set: distinguishable with all common kinds of colour blindness.
_COLORS = (
    *("e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7", "999933"),
    *("882255", "88ccee", "117733", "ddcc77", "332288", "cc6677", "44aa99", "aa4499"),
)


@dataclass(frozen=True)
class Classes:
    """Classes of a data set.

    A mask holds class ids `0..num_classes-1` and 255 (ignored). A *binary* problem has the two
    ids 0 (background) and 1 (foreground) and a network with one sigmoid channel.

    Attributes:
        names: Name of each class id.
        label_map: Maps raw ids in mask files to class ids; other raw ids become 255. If `None`, files hold class ids,
            and any other value is an error.
        binary: Whether one logit channel separates two classes.
        colors: RGB (0..255) per class, if the data set defines them.

    Examples:
        >>> classes = Classes(("background", "cat", "cow"), label_map={0: 0, 8: 1, 10: 2})
        >>> classes.num_classes, classes.channels
        (3, 3)
        >>> Classes.of(1).names, Classes.of(1).channels
        (('background', 'foreground'), 1)
    """

    names: tuple[str, ...]
    label_map: Mapping[int, int] | None = None
    binary: bool = False
    colors: tuple[Color, ...] | None = None

    def __post_init__(self) -> None:
        count = len(self.names)
        if not 2 <= count <= IGNORE:
            raise ValueError(
                f"a data set needs 2 to {IGNORE} class names, got {count}; "
                "for one foreground class on a background use `Classes.of(1)`"
            )
        twice = next((name for name in self.names if self.names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"the class name {twice!r} occurs twice: scores go by name, rename one"
            )
        if self.binary and count != 2:
            raise ValueError(f"a binary data set has two class names, got {count}: {self.names}")
        if self.colors is not None and len(self.colors) != count:
            raise ValueError(f"expected a colour per class, got {len(self.colors)} for {count}")
        for raw, target in (self.label_map or {}).items():
            if not (0 <= raw <= 65535 and (0 <= target < count or target == IGNORE)):
                raise ValueError(
                    f"label map entry {raw}:{target} is out of range: expected a raw id "
                    f"0..65535 and a class 0..{count - 1} or {IGNORE}"
                )

    @classmethod
    def of(
        cls,
        classes: int | str | Path | Sequence[str],
        label_map: str | Path | Mapping[int, int] | None = None,
    ) -> "Classes":
        """Build the classes from values given on a command line.

        Args:
            classes: A number K, a file with one name per line, or the names. K = 1 (or a single name) is the binary
                case: a background and that foreground.
            label_map: A mapping, an inline string `"0:0,8:1"`, or a text, YAML or JSON file of
                `raw: class` pairs; the class may be an id or one of the names.

        Raises:
            ValueError: If a file is missing or empty, or an entry cannot be parsed.

        Examples:
            >>> Classes.of(["background", "cat"], "0:0, 8:cat").label_map
            {0: 0, 8: 1}
        """
        if isinstance(classes, str) and _is_number(classes.strip()):
            classes = int(classes)
        if isinstance(classes, int):
            if classes < 1:
                raise ValueError(f"the number of classes must be at least 1, got {classes}")
            if classes > IGNORE:
                raise ValueError(
                    f"a data set has 2 to {IGNORE} classes, got {classes}: in its masks {IGNORE} is what is ignored; "
                    "put classes together with a label map"
                )
            names = ["foreground"] if classes == 1 else [f"class {i}" for i in range(classes)]
        elif isinstance(classes, (str, Path)):
            names = [line.strip() for line in _read_text(classes, "class names").splitlines()]
            names = [name for name in names if name]
        else:
            names = list(classes)
        if not names:
            raise ValueError(f"expected at least one class name, found none in {classes}")
        binary = len(names) == 1
        if binary:
            names = ["background", *names]
        if isinstance(label_map, (str, Path)):
            label_map = _parse_label_map(label_map, names)
        return cls(tuple(names), label_map, binary)

    @property
    def num_classes(self) -> int:
        """Return the number of class ids in a mask; 2 in the binary case."""
        return len(self.names)

    @property
    def channels(self) -> int:
        """Return the number of logit channels: 1 in the binary case, else `num_classes`."""
        return 1 if self.binary else len(self.names)

    @property
    def palette(self) -> list[Color]:
        """Return an RGB colour (0..255) per class: `colors`, or a default palette with a black background.

        The first 16 default colours are distinguishable with all common kinds of colour blindness.

        Examples:
            >>> Classes.of(["background", "cat"]).palette
            [(0, 0, 0), (230, 159, 0)]
        """
        if self.colors is not None:
            return list(self.colors)
        black = [(0, 0, 0)] if self.names[0].lower() == "background" else []
        return (black + [_color(i) for i in range(len(self.names))])[: len(self.names)]


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 20  # Python refuses to parse 4300 digits


def _color(index: int) -> Color:
    if index < len(_COLORS):
        red, green, blue = bytes.fromhex(_COLORS[index])
        return red, green, blue
    # Golden-ratio steps never repeat a hue; two lightness levels separate neighbours.
    rgb = colorsys.hls_to_rgb(index * 0.618034 % 1, 0.35 + 0.3 * (index % 2), 0.65)
    red, green, blue = (round(255 * value) for value in rgb)
    return red, green, blue


def _read_text(path: str | Path, what: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read the {what} file {path}: {error}") from None


def _parse_label_map(source: str | Path, names: Sequence[str]) -> dict[int, int]:
    # Parsed by hand: YAML 1.1 reads "8:1" as a sexagesimal number.
    inline = isinstance(source, str) and re.match(r"\s*\{?\s*[\"']?\d+[\"']?\s*:", source)
    text = str(source) if inline else _read_text(source, "label map")
    text = re.sub(r"#.*|^---.*|[{}\"']", "", text, flags=re.MULTILINE)
    label_map: dict[int, int] = {}
    for entry in filter(None, map(str.strip, re.split(r"[,\n]", text))):
        raw, colon, target = (part.strip() for part in entry.partition(":"))
        if target in names:
            target = str(names.index(target))
        if not (colon and _is_number(raw) and _is_number(target)):
            where = "" if inline else f" in {source}"
            raise ValueError(
                f"label map entry {entry!r}{where} is not `raw:class` with a whole number and "
                f"a class id or name, e.g. 8:1"
            )
        if int(raw) in label_map:
            raise ValueError(f"label map names raw id {raw} twice: keep one of the entries")
        label_map[int(raw)] = int(target)
    if not label_map:
        raise ValueError(f"the label map {source} is empty: write pairs such as 0:0,8:1")
    return label_map
