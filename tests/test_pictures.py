"""The pictures of the documentation: drawn by code, small, all of them used and described."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from gmix.demo import run_demo
from gmix.demo.run import demo_config

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
COMMITTED = sorted((DOCS / "pictures").glob("*"))


def test_a_finished_demo_gives_the_same_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a demo of two steps: other contents, but all of them, and of the same sizes."""
    from pictures import draw_all

    for name, number in (("LABELED", 4), ("UNLABELED", 4), ("VALIDATION", 6)):
        monkeypatch.setattr(f"gmix.demo.run.{name}", number)
    monkeypatch.setattr(
        "gmix.demo.run.demo_config", lambda *given: replace(demo_config(*given), norm_batches=0)
    )
    run_demo(tmp_path / "demo", steps=2)
    draw_all(tmp_path / "demo", tmp_path / "pictures")
    drawn = sorted((tmp_path / "pictures").iterdir())
    committed = [path for path in COMMITTED if path.name != "house.png"]
    assert [path.name for path in drawn] == [path.name for path in committed]
    assert [Image.open(path).size for path in drawn] == [
        Image.open(path).size for path in committed
    ]


def test_the_house_is_drawn_from_the_code(tmp_path: Path) -> None:
    import house

    assert house.table() in (DOCS / "house.md").read_text(encoding="utf-8")
    house.draw(tmp_path / "house.png")
    drawn, committed = (
        Image.open(path / "house.png").convert("RGB") for path in (tmp_path, DOCS / "pictures")
    )
    assert drawn.size == committed.size
    # Another matplotlib sets letters a little otherwise; another house is another picture.
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
