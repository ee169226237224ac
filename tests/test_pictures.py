"""The pictures of the documentation: drawn by code, small, all of them used and described."""

import re
from pathlib import Path

import matplotlib
import pytest
from packaging.version import Version
from PIL import Image, ImageChops, ImageStat

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
COMMITTED = sorted((DOCS / "pictures").glob("*"))


def test_the_house_is_drawn_from_the_code(tmp_path: Path) -> None:
    import house

    assert house.table() in (DOCS / "house.md").read_text(encoding="utf-8")
    if Version(matplotlib.__version__) < Version("3.10"):
        pytest.skip(f"matplotlib {matplotlib.__version__} sets letters otherwise than the picture")
    house.draw(tmp_path / "house.png")
    drawn, committed = (
        Image.open(path / "house.png").convert("RGB") for path in (tmp_path, DOCS / "pictures")
    )
    assert drawn.size == committed.size
    # The same letters may lie a little otherwise; another house is another picture.
    assert ImageStat.Stat(ImageChops.difference(drawn, committed)).mean < [3, 3, 3]


def test_pictures_are_small() -> None:
    sizes = [path.stat().st_size for path in COMMITTED]
    assert max(sizes) <= 60_000
    assert sum(sizes) < 1_000_000


def test_every_picture_is_shown_and_described() -> None:
    shown: dict[Path, str] = {}
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        for alt, link in re.findall(r"!\[([^]]*)\]\(([^)]*)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).is_file(), f"{page.name}: {link}"
            shown[(page.parent / link).resolve()] = alt
    assert shown.keys() >= set(COMMITTED)
    assert not [name for name, alt in shown.items() if len(alt) < 20]
