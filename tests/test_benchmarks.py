"""The recipes and probes behind the results page: they run, and compute what they print."""

import io
import json
import re
import subprocess
import sys
from argparse import Namespace
from contextlib import redirect_stdout
from itertools import product
from pathlib import Path
from typing import Any

import forked
import gpu
import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_data import tiny_config, write_data, write_scene
from tiny_nets import tiny_net

from gmix.builders.method import build_method
from gmix.config.train_config import TrainConfig
from gmix.methods import Method
from gmix.training.train import train

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"


def run(script: str, *words: object) -> str:
    done = forked.run(forked.script, BENCHMARKS / script, *words, folder=ROOT)
    assert done.codes == [0], done.err
    return done.out


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
    # As trained: statistics of so few images make tiny differences large.
    as_trained = {"norm_batches": 0, "decide_for": "pixels"}
    return train(tiny_config(data, root / "run", steps=2, method="supervised", **as_trained)).out


def test_the_recipes_name_only_real_flags() -> None:
    recipes = {path.stem: path for path in sorted(BENCHMARKS.glob("*.yaml"))}
    assert [*recipes] == ["bench", "camvid", "voc_animals"]
    bench = yaml.safe_load(recipes.pop("bench").read_text(encoding="utf-8"))
    for path in recipes.values():
        TrainConfig(**yaml.safe_load(path.read_text(encoding="utf-8")))
    for part, half in product(bench["sets"].values(), ("choose", "report")):
        assert len(part["labels"]) == 2
        for method, args in bench["methods"].items():
            flags = {**bench["shared"], **part["flags"], **part[half], "method": method}
            config = TrainConfig(**flags, method_args=args, labels=part["labels"][0])
            assert isinstance(build_method(config, tiny_net(3)), Method)


def bench_line(row: str, place: str, seed: int, score: float) -> dict[str, Any]:
    return {"row": row, "set": place, "labels": 8, "seed": seed, "choose": 0.0, "report": score}


def test_the_bench_tells_gains_of_the_same_seed() -> None:
    import bench

    lines = [
        bench_line("supervised", "a", 0, 50.0),
        bench_line("supervised", "a", 1, 54.0),
        bench_line("supervised", "b", 0, 30.0),
        bench_line("other", "a", 0, 56.0),  # 6 above that seed
        bench_line("other", "a", 1, 56.0),  # 2 above
        bench_line("other", "b", 0, 29.0),  # 1 below
    ]
    heading, rule, *table = bench.table(lines, "report").splitlines()
    assert heading == "|  | a, 8 | b, 8 | mean gain | worst gain | won |"
    assert rule == "| --- | --- | --- | --- | --- | --- |"
    assert table == [
        "| supervised | 52.0 ± 2.0 (2) | 30.0 (1) | +0.0 | +0.0 | 1 of 2 |",
        "| other | 56.0 ± 0.0 (2) | 29.0 (1) | +1.5 | -1.0 | 1 of 2 |",
    ]
    assert bench.table(lines, "choose").splitlines()[2].startswith("| supervised | 0.0 ± 0.0 (2) |")
    assert bench.spread([]) == ""
    # The standard deviation is the root of 3; of four values the error is half of it.
    assert bench.spread([8.0, 8.0 + 12**0.5, 8.0, 8.0]) == "8.9 ± 0.9 (4)"


def test_the_bench_reads_what_a_kill_left(tmp_path: Path) -> None:
    import bench

    assert bench.read(tmp_path / "none") == []
    (tmp_path / "lines").write_text('{"name": "a"}\n{"name": "b"}\n{"na')
    assert [line["name"] for line in bench.read(tmp_path / "lines")] == ["a", "b"]


def test_the_bench_plans_seed_by_seed() -> None:
    import bench

    given = {"sets": {"x": {"labels": [2, 4]}, "y": {"labels": [3, 6]}}}
    given["methods"] = {"supervised": {}, "fixmatch": {"threshold": 0.5}}
    words: dict[str, Any] = {
        "methods": "",
        "sets": "",
        "tries": [],
        "labels": "few",
        "seeds": "0,1",
    }
    runs = list(bench.plan(given, Namespace(**words)))
    assert [run.name for run in runs[:4]] == [
        "x-2-supervised-0",
        "y-3-supervised-0",
        "x-2-fixmatch-0",
        "y-3-fixmatch-0",
    ]
    assert len(runs) == 8 and {run.seed for run in runs[4:]} == {1}
    words |= {"methods": "fixmatch", "sets": "y", "labels": "both", "seeds": "3"}
    words["tries"] = ["low={threshold: 0.2}", "taught={teacher: {decay: 0.9}}"]
    found = [(run.name, run.method, run.args) for run in bench.plan(given, Namespace(**words))]
    taught = {"threshold": 0.5, "teacher": {"decay": 0.9}}
    assert found == [
        ("y-3-fixmatch+low-3", "fixmatch", {"threshold": 0.2}),
        ("y-3-fixmatch+taught-3", "fixmatch", taught),
        ("y-6-fixmatch+low-3", "fixmatch", {"threshold": 0.2}),
        ("y-6-fixmatch+taught-3", "fixmatch", taught),
    ]


def test_the_bench_finds_its_folders() -> None:
    import bench

    flags = {"images": "a/b", "classes": 7, "size": "8x8", "val_images": "DIGITS/val/images"}
    data, out = Path("data"), Path("out")
    assert bench.located(flags, data, out) == {
        "images": str(data / "a" / "b"),
        "classes": 7,
        "size": "8x8",
        "val_images": str(out / "digits" / "val" / "images"),
    }
    assert bench.located({"classes": "a.txt"}, data, out) == {"classes": str(data / "a.txt")}


def test_the_bench_trains_scores_both_halves_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench

    from gmix.cli.main import main

    write_data(tmp_path / "tiny", labeled=4, unlabeled=2, validation=2)
    own = tiny_config(Path("tiny"), Path("out"), steps=2)
    shared = ("encoder", "encoder_weights", "crop", "batch_labeled", "batch_unlabeled", "steps")
    shared += ("norm_batches", "workers", "threads", "device", "amp", "trackers", "report")
    folders = {name: getattr(own, name) for name in ("images", "masks", "val_images", "val_masks")}
    tiny = {
        "labels": [2, 3],
        "flags": {**folders, "classes": own.classes, "model_args": own.model_args},
        "choose": {"val_part": "odd"},
        "report": {"val_part": "even"},
    }
    given = {
        "shared": {name: getattr(own, name) for name in shared},
        "sets": {"tiny": tiny},
        "methods": {"supervised": {}, "guidedmix": {"views": 1, "drop": 0.0}},
    }
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump(given, sort_keys=False))
    commands = []

    def in_this_process(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert words[:3] == [sys.executable, "-m", "gmix"]
        commands.append(words[3])
        return subprocess.CompletedProcess(words, main(words[3:]), *capsys.readouterr())

    monkeypatch.setattr(bench, "HERE", tmp_path)
    monkeypatch.setattr(bench, "DIGITS", {"labeled": 1, "unlabeled": 1, "val": 1, "seed": 0})
    monkeypatch.setattr(bench.subprocess, "run", in_this_process)
    words = ["--out", tmp_path / "out", "--data", tmp_path, "--labels", "few", "--seeds", 5]
    monkeypatch.setattr(sys, "argv", ["bench.py", *map(str, words)])
    bench.main()
    assert commands == 2 * ["train", "evaluate", "evaluate"]
    lines = bench.read(tmp_path / "out" / "bench.jsonl")
    assert [(line["name"], line["steps"]) for line in lines] == [
        ("tiny-2-supervised-5", 2),
        ("tiny-2-guidedmix-5", 2),
    ]
    for line in lines:
        folder = tmp_path / "out" / line["name"]
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert (config["labels"], config["seed"], config["val_part"]) == (2, 5, "even")
        assert config["method_args"] == line["args"]
        # What training said of its last weights is what `report` is; `choose` is of the other image.
        results = json.loads((folder / "results.json").read_text())
        assert line["report"] == pytest.approx(100 * results["last"]["miou"], abs=0.01)
        halves = [
            json.loads((folder / f"{half}.json").read_text()) for half in ("report", "choose")
        ]
        assert halves[0]["split"] != halves[1]["split"]
        assert line["choose"] == pytest.approx(100 * halves[1]["miou"], abs=0.01)
    bench.main()
    assert len(commands) == 6  # nothing is done twice
    monkeypatch.setattr(sys, "argv", ["bench.py", *map(str, words[:2]), "--table", "report"])
    capsys.readouterr()
    bench.main()
    assert capsys.readouterr().out == bench.table(lines, "report") + "\n"


def test_the_probe_scores_every_way_to_make_a_pseudo_mask(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pseudo_masks

    from gmix.data import SegmentationDataset, eval_transform, find_images
    from gmix.evaluation import evaluate
    from gmix.runs.saved import SavedModel

    root = run_dir.parent
    monkeypatch.setattr(pseudo_masks, "ROUNDS", 2)
    monkeypatch.setattr(pseudo_masks, "CHANGES", {"": {}, ", all remembered": {"capacity": 2**14}})
    words = ["pseudo_masks.py", run_dir, "--truth", root / "truth", "--images", 4]
    monkeypatch.setattr(sys, "argv", [*map(str, words)])
    pseudo_masks.main()
    table = rows(capsys.readouterr().out)
    scores = {name: float(cells[0]) for name, cells in table.items() if name != "pseudo mask"}
    assert all(0 <= score <= 100 for score in scores.values())
    for share in (float(cells[2]) for name, cells in table.items() if name != "pseudo mask"):
        assert 0 <= share <= 1
    for partner in ("similar", "random"):
        for lam in (0.1, 0.3, 0.5):
            assert f"decoupled, lambda {lam}, {partner}, prediction" in scores

    # "direct" is what `gmix evaluate` says of the same network on the same four images.
    saved = SavedModel.from_pretrained(run_dir)
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
        guidance = Guidance(None, pseudo, None, pseudo)
        monkeypatch.setattr(method, "guide", lambda *_: guidance)
        return gradients.pull(method, labeled, unlabeled, StrongColor(), 0)

    assert (truth < classes).all()
    assert pulled(one_hot.float()) == pytest.approx((1, 1, 1), abs=1e-3)
    assert max(pulled(one_hot.roll(1, 1).float())[:2]) < 0.5


def test_the_gradient_probe_compares_every_way(run_dir: Path) -> None:
    words = [run_dir, "--truth", run_dir.parent / "truth", "--images", 4, "--batches", 2]
    table = rows(run("gradients.py", *words))
    assert len(table) == 9  # the heading, too
    assert "direct, referred, hard labels above 0.95 (the default)" in table
    for name, cells in table.items():
        if name != "pseudo mask, loss":
            assert all(-1 <= float(cell.split(" ±")[0]) <= 1 for cell in cells[:2]), name


def test_an_exported_file_beside_the_network(run_dir: Path, tmp_path: Path) -> None:
    images = run_dir.parent / "data" / "val_images"
    text = run("export.py", "--model", run_dir, "--images", images, "--out", tmp_path / "model.pt2")
    difference, logit = re.findall(r"difference (\S+), largest logit (\S+)", text)[0]
    assert float(difference) < 1e-5 and float(logit) > 0
    assert "100.00 %" in text


def test_the_cost_of_a_step_beside_the_plain_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import step_cost

    words = "--methods guidedmix --encoder tu-test_resnet --size 64x64 --batch 2 --repeats 1 --sides 8 16"
    monkeypatch.setattr(sys, "argv", ["step_cost.py", *words.split()])
    monkeypatch.setattr(subprocess, "check_output", forked.check_output)
    step_cost.main()
    table = rows(capsys.readouterr().out)
    # Trained on: labeled, and two views of the unlabeled. Looked at: these by the teacher and by the reference.
    assert table["guidedmix"][0] == "6, 4"
    seconds, ratio = (float(cell) for cell in table["guidedmix"][1:3])
    assert seconds > 0 and ratio > 0
    assert [first for first in table if " x " in first] == ["8 x 8", "16 x 16"]
    assert table["float32"][1] == "1.00" and "with --amp bf16" in table


def test_statistics_of_other_images_change_the_score_and_nothing_else(
    run_dir: Path, tmp_path: Path
) -> None:
    data, own = run_dir.parent / "data", {}
    for batches in (0, 2):
        config = tiny_config(
            data,
            tmp_path / str(batches),
            steps=2,
            method="mean_teacher",
            norm_batches=batches,
            decide_for="pixels",
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
    gradients = 4 * sum(p.numel() for p in net.parameters())  # GuidedMix trains nothing besides
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
    assert "2 shards with an index" in table and len(table) == 4


def test_the_trainer_beside_a_hand_written_loop(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import overhead

    for name in ("LABELED", "UNLABELED", "VALIDATION"):
        monkeypatch.setattr(overhead, name, 4)
    words = "--methods supervised --block 1 --repeats 1 --threads 1"
    monkeypatch.setattr(sys, "argv", ["overhead.py", *words.split()])
    overhead.main()
    loop, profile = capsys.readouterr().out.split("\n\n")
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


def test_imports_and_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import imports

    from gmix.cli.main import main

    def here(command: list[str], check: bool, stdout: int) -> None:
        """As the process does, but for its start and the imports."""
        assert command[0] == sys.executable and check and stdout == subprocess.DEVNULL
        if command[1] == "-c":
            exec(command[2], {})
        else:
            assert command[1:3] == ["-m", "gmix"]
            with redirect_stdout(io.StringIO()):
                try:
                    code: Any = main(command[3:])
                except SystemExit as ended:  # that of a command's own help
                    code = ended.code
            assert code == 0

    monkeypatch.setattr(subprocess, "run", here)
    monkeypatch.setattr(sys, "argv", ["imports.py", "--repeats", "1"])
    imports.main()
    text = capsys.readouterr().out
    assert len(rows(text)) == 6  # the heading, too
    assert float(text.rsplit(" ", 1)[-1]) > 0


@pytest.mark.parametrize("half", ["report", "choose"])
def test_the_tables_of_the_results_are_those_of_the_runs(half: str) -> None:
    import bench

    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert bench.table(bench.read(BENCHMARKS / "bench.jsonl"), half) in page


def test_the_gpu_script_runs_on_a_cpu_and_goes_on_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps and trainings; what its other stages start has tests of its own."""
    for part, count in (("train", 9), ("test", 3)):
        for folder in ("images", "masks"):
            (tmp_path / "nuclei" / folder / part).mkdir(parents=True)
        for i in range(count):
            image, mask = (
                tmp_path / "nuclei" / folder / part / f"{i}.png" for folder in ("images", "masks")
            )
            write_scene(image, mask, seed=i)
            with Image.open(mask) as opened:
                Image.fromarray((np.array(opened) == 1).astype(np.uint8)).save(mask)
    words = ["gpu.py", "--smoke", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*words, "--stages", "steps,trainings"])
    gpu.main()
    said = capsys.readouterr().out
    steps = rows(said)
    assert {"tiny, bare", "tiny, by hand, unimatch", "tiny, guidedmix"} <= steps.keys()
    assert all(float(steps[name][0]) > 0 for name in steps if name.startswith("tiny"))
    assert 0 < float(steps["nuclei"][1]) < 100 and steps["nuclei"][2] == "1"
    monkeypatch.setattr(gpu, "step_cost", None)  # nothing is measured twice
    monkeypatch.setattr(gpu, "training", None)
    gpu.main()
    assert said.endswith(capsys.readouterr().out)
    monkeypatch.setattr(sys, "argv", [*words[:1], *words[2:]])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main()
    assert "there is no CUDA device here: --smoke" in capsys.readouterr().err
