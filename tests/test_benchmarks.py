"""The recipes and probes behind the results page: they run, and compute what they print."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_data import tiny_config, write_data, write_scene

from gmix.training.config import TrainConfig
from gmix.training.run import train

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


def run(script: str, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(markdown: str) -> dict[str, list[str]]:
    """First cell to the others, of the table in a text."""
    cells = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line[:2] == "| "]
    return {first: rest for first, *rest in cells}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished supervised run; beside it, in `truth`, the masks of its unlabeled images."""
    root = tmp_path_factory.mktemp("benchmark")
    data = write_data(root / "data")
    (root / "truth").mkdir()
    for i in range(4, 8):  # for the probes alone
        write_scene(root / "scene.png", root / "truth" / f"{i:02d}.png", seed=i)
    return train(tiny_config(data, root / "run", steps=2, method="supervised")).out


def test_the_recipes_name_only_real_flags() -> None:
    recipes = sorted(BENCHMARKS.glob("*.yaml"))
    assert [path.stem for path in recipes] == ["camvid", "voc_animals"]
    for path in recipes:
        TrainConfig(**yaml.safe_load(path.read_text(encoding="utf-8")))


def test_the_probe_scores_every_way_to_make_a_pseudo_mask(run_dir: Path) -> None:
    from gmix.data import SegmentationDataset, eval_transform, find_images
    from gmix.evaluation import evaluate
    from gmix.training.saved import load_model

    root = run_dir.parent
    table = rows(run("pseudo_masks.py", run_dir, "--truth", root / "truth", "--images", 4))
    scores = {name: float(cells[0]) for name, cells in table.items() if name != "pseudo mask"}
    assert all(0 <= score <= 100 for score in scores.values())
    for partner in ("similar", "random"):
        for lam in (0.1, 0.3, 0.5):
            assert f"decoupled, lambda {lam}, {partner}, prediction" in scores

    # "direct" is what `gmix evaluate` says of the same network on the same four images.
    saved = load_model(run_dir)
    images = find_images(root / "data" / "images")[4:8]
    truth = [root / "truth" / f"{image.stem}.png" for image in images]
    transform = eval_transform(saved.mean, saved.std)
    own = evaluate(
        saved.net,
        SegmentationDataset(images, truth, saved.classes),
        saved.classes,
        transform=transform,
    )
    assert scores["direct"] == pytest.approx(100 * own.miou, abs=0.06)


def test_a_perfect_pseudo_mask_pulls_exactly_as_the_truth(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gradients
    import torch
    from probe import open_run

    from gmix import GuidedMixLoss, StrongColor
    from gmix.methods import GuidedMix
    from gmix.methods.guidedmix import Guidance

    probe = open_run(run_dir, str(run_dir.parent / "truth"), 4)
    (labeled, unlabeled), *_ = gradients.draw(probe, 1)
    criterion = GuidedMixLoss(objective="cross_entropy")
    method = GuidedMix(probe.net, criterion=criterion, reference=None).train()
    truth = unlabeled.y_labeled
    classes = probe.net.classes
    one_hot = torch.nn.functional.one_hot(truth.clamp(max=classes - 1), classes).movedim(3, 1)

    def pulled(pseudo: torch.Tensor) -> tuple[float, float, float]:
        guidance = Guidance(truth, unlabeled.x_labeled, truth, pseudo, None, pseudo)
        monkeypatch.setattr(method, "guide", lambda *_: guidance)
        return gradients.pull(method, labeled, unlabeled, StrongColor(), 0)

    assert (truth < classes).all()
    assert pulled(one_hot.float()) == pytest.approx((1, 1, 1), abs=1e-3)
    assert max(pulled(one_hot.roll(1, 1).float())[:2]) < 0.5


def test_the_gradient_probe_compares_every_way(run_dir: Path) -> None:
    words = [run_dir, "--truth", run_dir.parent / "truth", "--images", 4, "--batches", 2]
    table = rows(run("gradients.py", *words))
    assert len(table) == 9  # the heading, too
    for name, cells in table.items():
        if name != "pseudo mask, loss":
            assert all(-1 <= float(cell.split(" ±")[0]) <= 1 for cell in cells[:2]), name


def test_an_exported_file_beside_the_network(run_dir: Path, tmp_path: Path) -> None:
    images = run_dir.parent / "data" / "val_images"
    text = run("export.py", "--model", run_dir, "--images", images, "--out", tmp_path / "model.pt2")
    difference, logit = re.findall(r"difference (\S+), largest logit (\S+)", text)[0]
    assert float(difference) < 1e-5 and float(logit) > 0
    assert "100.00 %" in text


def test_the_cost_of_a_step_beside_the_plain_model() -> None:
    words = ["--methods", "guidedmix", "--encoder", "resnet18", "--size", "64x64"]
    text = run("step_cost.py", *words, "--batch", 2, "--repeats", 1)
    table = rows(text)
    # Trained on: labeled, unlabeled. Looked at: both with the teacher and the reference, and the mixes.
    assert table["guidedmix"][0] == "4, 10"
    seconds, ratio = (float(cell) for cell in table["guidedmix"][1:3])
    assert seconds > 0 and ratio > 0
    assert [first for first in table if " x " in first] == ["32 x 32", "64 x 64", "128 x 128"]
    assert table["float32"][1] == "1.00" and "with --amp bf16" in table


def test_statistics_of_other_images_change_the_score_and_nothing_else(
    run_dir: Path, tmp_path: Path
) -> None:
    import json

    data, own = run_dir.parent / "data", {}
    for batches in (0, 2):
        config = tiny_config(
            data, tmp_path / str(batches), steps=2, method="mean_teacher", norm_batches=batches
        )
        results = (train(config).out / "results.json").read_text(encoding="utf-8")
        own[batches] = 100 * json.loads(results)["last"]["miou"]
    probed = tmp_path / "2"
    before = {path: path.read_bytes() for path in probed.rglob("*") if path.is_file()}
    table = rows(run("norm_statistics.py", probed, "--batches", 2, "--threads", 1))
    scores = dict(zip(table["weights of"], map(float, table["2"]), strict=True))
    assert len(scores) == 7 and all(0 <= score <= 100 for score in scores.values())
    assert scores["as trained"] == pytest.approx(own[0], abs=0.06)
    assert scores["crops, unlabeled, as they are and strong"] == pytest.approx(own[2], abs=0.06)
    # Two steps move a momentum of 0.1 a little; the mean of two batches is elsewhere.
    assert len(set(scores.values())) > 2
    assert before == {path: path.read_bytes() for path in probed.rglob("*") if path.is_file()}


def test_with_strength_0_the_run_scores_as_it_did(run_dir: Path) -> None:
    import json

    table = rows(run("adjustment.py", run_dir, "--strengths", 0, 5, "--threads", 1))
    without, strong = map(float, table[run_dir.name])
    own = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["last"]["miou"]
    assert without == pytest.approx(100 * own, abs=0.06)
    assert strong != without


def test_the_plain_loop_beside_reading_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import inference

    write_data(tmp_path / "data")
    words = ["--images", tmp_path / "data" / "images", "--count", 3, "--networks", 0]
    words += ["--threads", 1, "--repeats", 1]
    monkeypatch.setattr(sys, "argv", ["inference.py", *map(str, words)])
    inference.main()
    found = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [row[2] for row in found[3:]] == ["predict", "evaluate"]
    assert all(float(cell) > 0 for row in found[3:] for cell in row[3:])


def test_a_bank_and_its_graph_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import feature_bank

    words = "--sizes 300 --dims 8 --noise 200 --queries 16 --repeats 1 --threads 2"
    monkeypatch.setattr(sys, "argv", ["feature_bank.py", *words.split()])
    feature_bank.main()
    lines = capsys.readouterr().out.splitlines()[2:]
    cells = [line.strip("| ").split(" | ") for line in lines]
    assert [row[:4] for row in cells] == [
        ["300", "8", "clusters", "0.0 MB"],
        ["200", "8", "noise", "0.0 MB"],
    ]
    assert all(float(row[-1].split()[0]) > 90 for row in cells)


@pytest.fixture(scope="module")
def scaling_tables() -> list[str]:
    import scaling

    return "\n".join(scaling.tables()).split("\n\n")


def test_the_tables_of_the_scaling_page_are_what_the_script_counts(
    scaling_tables: list[str],
) -> None:
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert len(scaling_tables) == 3
    for table in scaling_tables:
        assert f"\n\n{table}\n\n" in page, f"run benchmarks/scaling.py: it says\n{table}"


def test_passes_and_messages_are_those_of_a_known_case(scaling_tables: list[str]) -> None:
    passes = rows(scaling_tables[0])
    assert passes["supervised"] == ["128", "64", "16", "2"]
    assert passes["cps"] == ["512", "256", "64", "8"]  # two students see all images
    import segmentation_models_pytorch as smp

    net = smp.DeepLabV3Plus("resnet50", encoder_weights=None, classes=21)
    # Beside what is deployed, GuidedMix trains a classifier of 2048 features.
    gradients = 4 * (sum(p.numel() for p in net.parameters()) + 21 * 2049)
    messages = [
        line.strip("| ").split(" | ")
        for line in scaling_tables[1].splitlines()
        if "ResNet-50 | 8 |" in line
    ]
    assert messages[0][2] == f"{2 * 7 / 8 * gradients / 1e6:.0f} MB"
    memory = rows(scaling_tables[2])["DeepLabV3+, ResNet-50"]
    assert memory[1] == memory[2] == memory[4] == f"{gradients / 1e6:.0f} MB"
    assert memory[3] == f"{2 * gradients / 1e6:.0f} MB"  # AdamW


def test_what_a_pool_costs_is_measured() -> None:
    import scaling

    table = rows("\n".join(scaling.pool(12_345)))
    assert table["`Paths` of 35 letters"][1] == "1 MB"  # 12,345 x (35 + 8)
    assert "2 shards with an index" in table and len(table) == 5


def test_the_nearest_of_all_is_the_image_itself_if_it_is_among_them(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import partners

    data = run_dir.parent / "data"
    again = shutil.copytree(data / "val_images", data / "again")
    images, masks = f"{data / 'val_images'}", f"{data / 'val_masks'}"
    flags = ["--images", str(again), "--masks", masks, "--val-images", images, "--val-masks", masks]
    flags += ["--classes", "3", "--encoder", "resnet18", "--encoder-weights", "none"]
    monkeypatch.setattr(sys, "argv", ["partners.py", *flags, "--size", "64x64"])
    partners.main()
    table = rows(capsys.readouterr().out)
    assert table["nearest of 3"] == table["nearest of 8"] == ["100.0 %"]
    assert len(table) == 4 and 0 < float(table["at random"][0].split()[0]) <= 100


def test_the_trainer_beside_a_hand_written_loop() -> None:
    words = ["--block", 1, "--repeats", 1, "--threads", 1]
    text = run("overhead.py", "--methods", "supervised", *words)
    loop, profile = text.split("\n\n")
    milliseconds, *ratios = map(float, rows(loop)["supervised"])
    assert milliseconds > 0 and all(ratio > 0 for ratio in ratios)
    total, *shares = rows(profile)["supervised"]
    assert float(total) > 0
    assert sum(float(share.rstrip(" %")) for share in shares) == pytest.approx(100, abs=0.3)


def test_a_compiled_step_beside_a_plain_one() -> None:
    words = ["--encoder", "tu-test_resnet", "--size", "32x32", "--batch", 2, "--repeats", 1]
    table = rows(run("compile.py", "--methods", "supervised", *words, "--backend", "eager"))
    plain, compiled, ratio = map(float, table["supervised"][:3])
    assert compiled / plain == pytest.approx(ratio, rel=0.6)
    assert "steps" in table["supervised"][4] or table["supervised"][4] == "never"


def test_imports_and_help() -> None:
    text = run("imports.py", "--repeats", 1)
    assert len(rows(text)) == 6  # the heading, too
    assert float(text.rsplit(" ", 1)[-1]) > 0
