"""Split files: every format in circulation is read, nothing leads out of the data set."""

import hashlib
import json
from pathlib import Path

import pytest
from full_disk import largest_file
from hypothesis import given
from hypothesis import strategies as st

from gmix.data import Entry, data_names, fingerprint, read_split, write_split

CITY = "hamburg/hamburg_000000_080169"


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        pytest.param(  # UniMatch, ST++, CorrMatch
            "JPEGImages/2007_000733.jpg SegmentationClass/2007_000733.png\n",
            [("JPEGImages/2007_000733.jpg", "SegmentationClass/2007_000733.png")],
            id="pairs",
        ),
        pytest.param(  # CCT, GuidedMix-Net
            "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n",
            [("JPEGImages/2007_000032.jpg", "SegmentationClassAug/2007_000032.png")],
            id="leading slashes",
        ),
        pytest.param(  # U2PL has no last newline, copies of CPS have Windows ends
            "2007_000733\r\n2010_004493",
            [("2007_000733", None), ("2010_004493", None)],
            id="ids",
        ),
        pytest.param(  # CPS
            "/images/train/jena_000078.png\t/segmentation/train/jena_000078_gtFine.png\n",
            [("images/train/jena_000078.png", "segmentation/train/jena_000078_gtFine.png")],
            id="tabs",
        ),
        pytest.param(  # U2PL
            f"leftImg8bit/train/{CITY}_leftImg8bit.png\n{CITY}_leftImg8bit.png\n",
            [
                (f"leftImg8bit/train/{CITY}_leftImg8bit.png", None),
                (f"{CITY}_leftImg8bit.png", None),
            ],
            id="city",
        ),
        pytest.param(
            "\n  a.jpg\t \r\n\r\n my photo.jpg\tmy mask.png\n./b//c.jpg   d\\e.png\n\n",
            [("a.jpg", None), ("my photo.jpg", "my mask.png"), ("b/c.jpg", "d/e.png")],
            id="untidy",
        ),
        # Unicode's other line ends end no line.
        pytest.param("a\u2028b\x85.jpg\tm\n", [("a\u2028b\x85.jpg", "m")], id="line ends"),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["", "mark"])
def test_formats_in_circulation(
    tmp_path: Path, text: str, entries: list[tuple[str, str | None]], mark: bytes
) -> None:
    listing = tmp_path / "list.txt"
    listing.write_bytes(mark + text.encode())
    assert read_split(listing) == [Entry(*entry) for entry in entries]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\r\n \n", r"list\.txt names no image"),
        (b"a\nb c d\n", r"list\.txt, line 2: expected an id or `image mask`, got 'b c d'"),
        (b"a\n\nb\xff\n", r"list\.txt, line 3: this is no UTF-8 text"),
        ("a\n".encode("utf-16"), "line 1: this is no UTF-8 text"),
        (b"a\n../b\n", "line 2: '../b' leads out of the data set"),
        (b"a b/../../c", "line 1: 'b/../../c' leads out of the data set"),
        (b"..\\b", "leads out"),
        (b"a\tb/.. /c", "leads out"),  # Windows takes it for `..`
        (b"C:/a.jpg", "leads out"),
        (b"c:a.jpg", "leads out"),
        (b"/C:/a.jpg", "leads out"),
        (b"./c:a.jpg", "leads out"),
        (b"\\\\host\\share\\a.jpg", "leads out"),
        (b"//host/share/a.jpg", "leads out"),
        (b"a\x00b", "is no file name"),
        (b"/", "is no file name"),
    ],
)
def test_what_is_refused_is_named_with_its_line(tmp_path: Path, data: bytes, message: str) -> None:
    listing = tmp_path / "list.txt"
    listing.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_split(listing)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.txt", tmp_path):
        with pytest.raises(ValueError, match="cannot read the list file"):
            read_split(path)


NAMES = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters="\\:"), min_size=1
) | st.sampled_from(["a b.jpg", "x/y z.png", "a\u00a0b.jpg"])
SAFE = NAMES.filter(lambda name: all(p.strip(". ") and p == p.strip() for p in name.split("/")))


@given(st.lists(st.builds(Entry, SAFE, SAFE | st.none()), min_size=1))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Entry]
) -> None:
    listing = tmp_path_factory.getbasetemp() / "round.txt"
    listing.unlink(missing_ok=True)
    write_split(listing, entries)
    assert read_split(listing) == entries
    assert b"\r" not in listing.read_bytes()


def test_writing_replaces_no_other_list(tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    write_split(listing, [Entry("a.jpg", "a.png")])
    write_split(listing, [Entry("a.jpg", "a.png")])
    with pytest.raises(ValueError, match=r"list\.txt exists and holds another list"):
        write_split(listing, [Entry("a.jpg")])
    assert listing.read_text() == "a.jpg a.png\n"


def test_a_list_is_whole_or_not_there(tmp_path: Path) -> None:
    entries = [Entry(f"{i}.jpg") for i in range(1000)]
    with largest_file(100), pytest.raises(ValueError, match=r"cannot write \S+list\.txt: File too"):
        write_split(tmp_path / "list.txt", entries)
    assert list(tmp_path.iterdir()) == []


GROUPS = st.lists(st.text(max_size=3))


@given(GROUPS, GROUPS, GROUPS, st.randoms())
def test_a_fingerprint_is_of_sets(a: list[str], b: list[str], c: list[str], rng: object) -> None:
    text = json.dumps([sorted(set(a)), sorted(set(b)), sorted(set(c))])
    expected = hashlib.sha256(text.encode("ascii")).hexdigest()[:12]
    shuffled = list(a)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    assert fingerprint(a, b, c) == fingerprint(shuffled + a[:1], b, c) == expected
    if set(a) != set(b):
        assert fingerprint(a, b, c) != fingerprint(b, a, c)


def test_names_do_not_depend_on_where_the_data_lies(tmp_path: Path) -> None:
    for root in (tmp_path / "here", tmp_path / "and" / "there"):
        paths = [root / "images" / "a.jpg", root / "more" / ".." / "b.jpg", tmp_path / "c.jpg"]
        assert data_names(paths, root) == ["images/a.jpg", "b.jpg", "c.jpg"]
        assert data_names(paths) == ["a.jpg", "b.jpg", "c.jpg"]
