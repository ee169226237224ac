"""The scripts behind the results page: they run, resume, and compute what they print."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tiny_data import tiny_config, write_data, write_scene

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
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe like those in benchmarks/, with `{data}` where the data is to be filled in."""
    root = tmp_path_factory.mktemp("benchmark")
    data = write_data(root / "data")
    (root / "truth").mkdir()
    for i in range(4, 8):  # the masks of the unlabeled images, for the probe alone
        write_scene(root / "scene.png", root / "truth" / f"{i:02d}.png", seed=i)
    config = vars(tiny_config(data, root / "unused", steps=2))
    for name in ("method", "seed", "out", "resume"):
        del config[name]
    text = yaml.safe_dump(config).replace(str(data), "{data}")
    (root / "recipe.yaml").write_text(text, encoding="utf-8")
    return root / "recipe.yaml"


@pytest.fixture(scope="module")
def printed(recipe: Path) -> str:
    data, out = recipe.parent / "data", recipe.parent / "runs"
    return run("table.py", recipe, "--data", data, "--out", out, "--seeds", 2)


def test_the_table_holds_mean_and_spread_of_the_last_weights(recipe: Path, printed: str) -> None:
    table = rows(printed)
    for method in ("supervised", "guidedmix"):
        scores = [
            100 * json.loads(path.read_text(encoding="utf-8"))["last"]["miou"]
            for path in sorted((recipe.parent / "runs").glob(f"{method}-*/results.json"))
        ]
        assert len(scores) == 2
        mean, spread = statistics.mean(scores), statistics.stdev(scores)
        assert table[method][0] == f"**{mean:.1f}** ± {spread:.1f}"
        assert table[method][1] == ", ".join(f"{score:.1f}" for score in scores)


def test_finished_runs_are_read_and_not_repeated(recipe: Path, printed: str) -> None:
    results = sorted((recipe.parent / "runs").glob("*/results.json"))
    before = {path: path.stat().st_mtime_ns for path in results}
    data, out = recipe.parent / "data", recipe.parent / "runs"
    again = run("table.py", recipe, "--data", data, "--out", out, "--seeds", 2)
    assert {path: path.stat().st_mtime_ns for path in results} == before
    assert rows(again) == rows(printed)


def test_shards_share_the_runs_and_set_changes_the_recipe(recipe: Path, tmp_path: Path) -> None:
    words = [recipe, "--data", recipe.parent / "data", "--out", tmp_path, "--seeds", 1]
    run("table.py", *words, "--shard", "1/2", "--set", "steps=1", "batch_unlabeled=3")
    assert [path.name for path in tmp_path.iterdir()] == ["guidedmix-0"]
    config = yaml.safe_load((tmp_path / "guidedmix-0" / "config.yaml").read_text())
    assert config["steps"] == 1 and config["batch_unlabeled"] == 3


def test_the_recipes_name_only_real_flags() -> None:
    from gmix.training.config import TrainConfig

    recipes = sorted(BENCHMARKS.glob("*.yaml"))
    assert [path.stem for path in recipes] == ["camvid", "voc_animals"]
    for path in recipes:
        TrainConfig(**yaml.safe_load(path.read_text(encoding="utf-8")))


def test_the_probe_scores_every_way_to_make_a_pseudo_mask(recipe: Path, printed: str) -> None:
    from gmix.data import SegmentationDataset, eval_transform, find_images
    from gmix.evaluation import evaluate
    from gmix.training.saved import load_model

    root = recipe.parent
    run_dir = root / "runs" / "supervised-0"
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
    recipe: Path, printed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gradients
    import torch
    from probe import open_run

    from gmix import GuidedMixLoss, StrongColor
    from gmix.methods import GuidedMix
    from gmix.methods.guidedmix import Guidance

    run_dir = recipe.parent / "runs" / "supervised-0"
    probe = open_run(run_dir, str(recipe.parent / "truth"), 4)
    (labeled, unlabeled), *_ = gradients.draw(probe, 1)
    criterion = GuidedMixLoss(objective="cross_entropy")
    method = GuidedMix(probe.net, criterion=criterion, reference=None).train()
    truth = unlabeled.y_labeled
    classes = probe.net.classes
    one_hot = torch.nn.functional.one_hot(truth.clamp(max=classes - 1), classes).movedim(3, 1)

    def pulled(pseudo: torch.Tensor) -> tuple[float, float, float]:
        guidance = Guidance(truth, method.mixer(*[unlabeled.x_labeled] * 2), *[pseudo] * 3)
        monkeypatch.setattr(method, "guide", lambda *_: guidance)
        return gradients.pull(method, labeled, unlabeled, StrongColor(), 0)

    assert (truth < classes).all()
    assert pulled(one_hot.float()) == pytest.approx((1, 1, 1), abs=1e-3)
    assert max(pulled(one_hot.roll(1, 1).float())[:2]) < 0.5


def test_the_gradient_probe_compares_every_way(recipe: Path, printed: str) -> None:
    run_dir = recipe.parent / "runs" / "supervised-0"
    words = [run_dir, "--truth", recipe.parent / "truth", "--images", 4, "--batches", 2]
    table = rows(run("gradients.py", *words))
    assert len(table) == 9  # the heading, too
    for name, cells in table.items():
        if name != "pseudo mask, loss":
            assert all(-1 <= float(cell.split(" ±")[0]) <= 1 for cell in cells[:2]), name
