"""gmix writes over nothing that it did not write itself."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_predict import saved_model
from tiny_data import tiny_config, words, write_data, write_scene

from gmix.cli.main import main
from gmix.deploy.predict import predict_folder
from gmix.deploy.pseudo_label import pseudo_label_folder
from gmix.runtime.own import RECORD, check_own, own_file, remember, write_own
from gmix.training.state import find_checkpoint

FOREIGN = "was not written by gmix, or has been changed since: move it away"


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in range(2):
        write_scene(folder / f"{seed}.png", None, seed)
    return sorted(folder.iterdir())


def drawn(path: Path) -> bytes:
    """A mask made by hand."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.eye(64, dtype=np.uint8)).save(path)
    return path.read_bytes()


Write = Callable[[list[Path], Path], object]


def predicted(images: list[Path], out: Path) -> object:
    return predict_folder(saved_model(), images, out)


def labeled(images: list[Path], out: Path) -> object:
    return pseudo_label_folder(saved_model(), images, out, min_confidence=0.0)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (predicted, "masks/1.png"),
        (predicted, "masks/of-another-image.png"),  # among predicted ones nobody would know it
        (predicted, "masks/1.TIF"),
        (predicted, "overlays/1.jpg"),
        (labeled, "masks/1.png"),
        (labeled, "confidence/1.png"),
    ],
)
def test_drawn_masks_stay_and_nothing_is_written_beside_them(
    images: list[Path], tmp_path: Path, write: Write, name: str
) -> None:
    out = tmp_path / "out"
    before = drawn(out / name)
    with pytest.raises(ValueError, match=rf"{Path(name).name} {FOREIGN}"):
        write(images, out)
    assert (out / name).read_bytes() == before
    assert [path for path in out.rglob("*") if path.is_file()] == [out / name]


@pytest.mark.parametrize(("write", "beside"), [(predicted, "overlays"), (labeled, "confidence")])
def test_what_gmix_wrote_is_written_anew_until_somebody_corrects_it(
    images: list[Path], tmp_path: Path, write: Write, beside: str
) -> None:
    out = tmp_path / "out"
    write(images[:1], out)
    first = (out / "masks" / "0.png").read_bytes()
    (out / "masks" / "Thumbs.db").write_bytes(b"of the file manager")
    (out / "masks" / "._0.png").write_bytes(b"of the file manager")
    write(images, out)  # as a process that was killed goes on
    assert (out / "masks" / "0.png").read_bytes() == first and (out / "masks" / "1.png").exists()
    shutil.copytree(out, tmp_path / "moved")
    write(images, tmp_path / "moved")

    with Image.open(out / "masks" / "1.png") as file:
        mask = file.copy()  # with its palette and all that a program keeps
        mask.putpixel((5, 5), (mask.getpixel((5, 5)) + 1) % 3)
        mask.save(out / "masks" / "1.png")
    corrected = (out / "masks" / "1.png").read_bytes()
    with pytest.raises(ValueError, match=rf"1.png {FOREIGN}"):
        write(images, out)
    assert (out / "masks" / "1.png").read_bytes() == corrected
    assert {path.name for path in out.iterdir()} - {"coco.json"} == {"masks", beside, RECORD}


def test_a_coco_file_of_an_annotation_tool_stays(images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "coco.json").write_text('{"annotations": []}')
    with pytest.raises(ValueError, match=f"coco.json {FOREIGN}"):
        labeled(images, tmp_path / "out")
    assert (tmp_path / "out" / "coco.json").read_text() == '{"annotations": []}'
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.parametrize(
    "name", ["config.yaml", "metrics.jsonl", "results.json", "model/config.json", "best/README.md"]
)
def test_a_training_writes_over_nobodys_files(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("steps: 5\n")
    with pytest.raises(ValueError, match=rf"{Path(name).name} {FOREIGN}"):
        find_checkpoint(tiny_config(tmp_path, out), out)
    (out / name).unlink()
    (out / "model").mkdir(exist_ok=True)
    (out / "model" / "weights.pt").write_bytes(
        b"of another program"
    )  # a name that gmix does not write
    assert find_checkpoint(tiny_config(tmp_path, out), out) == (None, [])


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    data, out = write_data(tmp_path / "data"), tmp_path / "out"
    config = tiny_config(data, out, method="supervised", steps=1, checkpoint_every=0)
    assert main(["train", *words(config)]) == 0
    for path in out.iterdir():
        if path.name not in ("config.yaml", "metrics.jsonl", RECORD):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main(["train", *words(config)]) == 0
    assert (out / "results.json").is_file()


def test_a_process_killed_between_record_and_file_leaves_neither_behind(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    with pytest.raises(KeyboardInterrupt), own_file(path) as aside:
        aside.write_bytes(b"new")
        remember(aside, path)
        raise KeyboardInterrupt
    assert not path.exists()
    check_own([path])
    write_own(path, "new")
    check_own([path])


def test_files_written_by_many_threads_are_all_known(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.txt" for i in range(200)]
    threads = [
        threading.Thread(target=lambda some: [write_own(p, p.name) for p in some], args=(part,))
        for part in (paths[:100], paths[100:])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_own(paths)
    assert len((tmp_path / RECORD).read_text().splitlines()) == 200


def test_nothing_is_lost_with_empty_files_and_pipes(tmp_path: Path) -> None:
    (tmp_path / "made-by-mktemp").touch()
    check_own([tmp_path / "made-by-mktemp", tmp_path / "none", Path("/dev/null")])
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "link").symlink_to(mine)
    with pytest.raises(ValueError, match=f"link {FOREIGN}"):
        check_own([tmp_path / "link"])
    write_own(tmp_path / "link", "new")  # asked to all the same: still nobody's but its owner's
    with pytest.raises(ValueError, match=f"mine {FOREIGN}"):
        check_own([mine])


def test_a_folder_where_a_file_belongs_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder, expected a file to write to"):
        check_own([tmp_path])
