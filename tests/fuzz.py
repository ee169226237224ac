"""What any input must do, for hypothesis (test_fuzz.py) and, as a program, for atheris:

    python tests/fuzz.py split -max_total_time=300
    python tests/fuzz.py settings -max_total_time=300

What stands behind the target goes to libFuzzer. `pip install atheris` fails where there is no build of it.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path, PurePosixPath, PureWindowsPath

if __name__ == "__main__":  # branches are counted in what reads the input
    import atheris

    with atheris.instrument_imports(include=["gmix", "yaml"]):
        import yaml  # noqa: F401

        import gmix.config.parser  # noqa: F401

from gmix.config.parser import parse
from gmix.config.train_config import TrainConfig
from gmix.config.yamlfile import parse_yaml
from gmix.data import Classes, read_split
from gmix.errors import UsageError


def split(data: bytes, folder: Path) -> None:
    """A split file gives entries inside of the data set, or a ValueError that names it."""
    listing = folder / "list.txt"
    listing.write_bytes(data)
    try:
        entries = read_split(listing)
    except ValueError as error:
        assert "list.txt" in str(error)
        return
    assert entries
    for name in (name for entry in entries for name in entry if name is not None):
        for kind in (PurePosixPath, PureWindowsPath):
            path = kind(name)
            assert path.parts and ".." not in path.parts
            assert not (path.is_absolute() or path.drive or path.root)


def settings(data: bytes, folder: Path) -> None:
    """A configuration or recipe gives settings, or an error of one line."""
    file = folder / "mine.yaml"
    file.write_bytes(data)
    try:
        config = parse(TrainConfig, "gmix train", "", ["--config", str(file)])
    except UsageError as error:
        assert str(error).isprintable() or "\n" not in str(error)
    except ValueError as error:
        assert str(error)
    else:
        assert config.steps >= 1 and config.crop_size() > (0, 0) and config.lr >= 0


def value(data: bytes, folder: Path) -> None:
    """As `settings`; the first byte is a flag, what follows its value: no try is lost on keys."""
    keys = [item.name for item in fields(TrainConfig)]
    settings(f"{keys[data[0] % len(keys)]}: ".encode() + data[1:] if data else b"", folder)


def yaml_file(data: bytes, folder: Path) -> None:
    """Any text is a mapping, or a ValueError of one line that names the file."""
    try:
        found = parse_yaml(data.decode("utf-8", "replace"), "mine.yaml")
    except ValueError as error:
        assert str(error).startswith("mine.yaml ")
    else:
        assert all(isinstance(key, str) and "-" not in key for key in found)


def label_map(data: bytes, folder: Path) -> None:
    """A label map, as text or in a file, maps raw ids to classes, or gives a ValueError."""
    file = folder / "map.txt"
    file.write_bytes(data)
    for source in (data.decode("utf-8", "surrogateescape"), file):
        try:
            classes = Classes.of(["background", "cat", "cow"], source)
        except ValueError:
            continue
        assert classes.label_map
        assert all(0 <= raw <= 65535 for raw in classes.label_map)
        assert set(classes.label_map.values()) <= {0, 1, 2, 255}


def class_names(data: bytes, folder: Path) -> None:
    """A file of class names gives 2 to 255 different names, or a ValueError that names it."""
    file = folder / "names.txt"
    file.write_bytes(data)
    try:
        classes = Classes.of(file)
    except ValueError:
        return
    assert 2 <= len(set(classes.names)) == classes.num_classes == len(classes.palette) <= 255


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    "split": split,
    "yaml": yaml_file,
    "settings": settings,
    "value": value,
    "label_map": label_map,
    "class_names": class_names,
}

# Words to try: without them nearly every text is refused for its first key.
YAML = [
    *("!!python/object/apply:os.system ", "!!int ''", "!!timestamp ", "!!binary ", "%YAML 1.1"),
    *("&a ", "*a", "<<: ", "[", "{", "? ", "- ", "--- ", "... ", ": ", "|", ">", "\\x0a"),
    *(".nan", ".inf", "0x_", "null", "true", "1e999", "64x64", "0.5-2", "8:30", "\\xc2\\x85"),
]
WORDS = {
    "split": ["../", "..\\\\", "C:", "//", "\\xef\\xbb\\xbf", "\\x00", ".jpg", "\\x09", ". "],
    "settings": [
        *(f"{item.name}: " for item in fields(TrainConfig)),
        *("recipe: voc_1-8_r101", "recipe: cpu"),
        *YAML,
    ],
    "value": YAML,
    "yaml": YAML,
}


def main() -> None:
    """Run one target until it fails, or as long as libFuzzer is told."""
    name = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        words = folder / "words"
        words.write_text("".join(f'"{word}"\n' for word in WORDS.get(name, [])))
        target = TARGETS[name]
        atheris.Setup([*sys.argv, f"-dict={words}"], lambda data: target(data, folder))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
