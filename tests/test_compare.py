"""`gmix compare`: what it trains, how it survives, what its tables say; what `gmix train` adds for it."""

import io
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from forked import start
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from test_lock import locked_by_another
from tiny_data import NAMES, tiny_config, write_data, write_scene
from tiny_nets import Labeled, tiny_batch, tiny_net
from torch import Tensor
from true_layouts import WRITERS, write_list

from gmix import functional as G
from gmix.builders.data import Data, build_data
from gmix.cli.main import main
from gmix.compare import Comparison
from gmix.compare.board import LiveBoard, PlainBoard, how_far, print_table
from gmix.compare.child import Child, is_finished
from gmix.compare.plan import Run, plan
from gmix.compare.run import fail, train_all
from gmix.compare.table import classes_table, gain, gap_closed, scores_table
from gmix.config.files import held_out_files, training_files
from gmix.config.options import flag
from gmix.config.train_config import CompareConfig, TrainConfig
from gmix.config.yamlfile import write_yaml
from gmix.data import eval_transform
from gmix.methods import CPS, METHODS, FixMatch, GuidedMix, Method, Supervised
from gmix.nn.passes import count_first_step, encoders
from gmix.runtime.device import peak_memory
from gmix.runtime.interrupts import Interrupts
from gmix.runtime.own import RECORD
from gmix.training import train as running
from gmix.training.quality import judge_pseudo_masks
from gmix.training.train import train

TINY: dict[str, Any] = {
    "steps": 4,
    "checkpoint_every": 2,
    "eval_every": 2,
    "labels": 3,
    "held_out": 2,
}


class Said(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


def run_command(argv: list[str]) -> Said:
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main(argv)
    return Said(code, out.getvalue(), err.getvalue())


def compare_words(data: Path, out: Path, **changes: Any) -> list[str]:
    """A tiny comparison, its flags in a file beside its folder."""
    settings = {**vars(tiny_config(data, out)), **TINY, "seeds": 1, **changes}
    del settings["method"], settings["resume"]
    path = out.parent / f"{out.name}.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return ["compare", "--config", str(path)]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def cells(markdown: str) -> dict[str, list[str]]:
    """First cell of each row to the others."""
    rows = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line[:2] == "| "]
    return {first: rest for first, *rest in rows}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("tiny"), labeled=8, unlabeled=2)


class Forked:
    """A started command as `subprocess.Popen` has it, but for a fork that runs `act` before it."""

    def __init__(
        self, words: list[str], *, stdout: Any, act: Callable[..., object] = int, **settings: Any
    ) -> None:
        assert words[:3] == [sys.executable, "-m", "gmix"]
        assert settings == {
            "stdin": subprocess.DEVNULL,
            "stderr": subprocess.STDOUT,
            "start_new_session": True,  # Ctrl-C is for the parent to pass on
        }
        self.process = start(begin, act, words[3:], out=Path(stdout.name))
        self.poll, self.wait = lambda: self.process.exitcode, self.process.join
        self.terminate = self.process.terminate

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode


def begin(act: Callable[..., object], words: list[str]) -> int:
    act()
    return main(words)


@pytest.fixture(scope="module", autouse=True)
def popen() -> Iterator[SimpleNamespace]:
    """What `gmix compare` takes for `subprocess`."""
    names = ("DEVNULL", "STDOUT")
    forking = SimpleNamespace(Popen=Forked, **{name: getattr(subprocess, name) for name in names})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gmix.compare.child.subprocess", forking)
        yield forking


@pytest.fixture(scope="module")
def compared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Said]:
    """A finished comparison of three methods and two seeds, and what it printed."""
    out = tmp_path_factory.mktemp("compare") / "out"
    argv = compare_words(data, out, methods="fixmatch,guidedmix", seeds=2, jobs=2, report="html")
    return out, run_command(argv)


# --- flags -----------------------------------------------------------------------------------


def test_help_has_a_line_for_each_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["compare", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 118
    for item in fields(CompareConfig):
        spelled = flag(f"no_{item.name}" if item.default is True else item.name)
        found = [row for row in text.splitlines() if row.startswith(f"  {spelled} ")]
        assert len(found) == (item.name not in ("method", "resume", "guard", "dry_run")), item.name
        assert all(item.metadata["help"] in line for line in found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"methods": "supervised,magic"},
            "--methods magic is unknown: choose one of advssl, cct, ",
        ),
        ({"methods": " , "}, "--methods names no method"),
        ({"seeds": 0}, "--seeds must be at least 1, got 0"),
        ({"jobs": 0}, "--jobs must be at least 1, got 0"),
        ({"held_out": -1}, "--held-out must be at least 0, got -1"),
        ({"full": True, "labels": None}, "--full needs --labels N"),
        ({"out": None}, "--out DIR is missing"),
        ({"val_images": None}, "a comparison needs validation images"),
        ({"val_images": "nowhere"}, "the image folder nowhere does not exist"),
        ({"images": "nowhere"}, "the image folder nowhere does not exist"),
        ({"labels": 50}, "cannot keep 50 of 8 labeled images"),
        ({"classes": None}, "--classes is missing"),
        ({"methods": "cps", "variant": "paper"}, "--variant paper is for guidedmix"),
        (
            {"methods": "cps,cct", "method_args": {"x": 1}},
            "--method-args with x may be meant for any of cps, cct: write one mapping for each",
        ),
        (
            {"methods": "cps,cct", "method_args": {"cps": {"cross": 1}, "x": 1}},
            "--method-args with cps, x may be meant for any of cps, cct",
        ),
        ({"method_args": {"guidedmix": 3}}, "guidedmix must have a mapping of its arguments, got"),
        ({"method": "cps"}, "--method has no place here: name what to compare with --methods"),
        ({"resume": True}, "--resume has no place here: a comparison always goes on"),
    ],
)
def test_bad_settings_end_in_one_line_before_anything_is_trained(
    data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    argv = compare_words(data, tmp_path / "out")
    settings = yaml.safe_load(Path(argv[-1]).read_text(encoding="utf-8"))
    Path(argv[-1]).write_text(yaml.safe_dump({**settings, **changes}), encoding="utf-8")
    said = run_command(argv)
    assert said.code in (1, 2)
    (line,) = said.err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_with_all_masks_is_said_before_some_are_learned(tmp_path: Path) -> None:
    """With --labels 1 no labeled image is judged, with --full one is."""
    WRITERS["voc"](tmp_path / "voc")
    write_list(
        tmp_path / "voc" / "ImageSets" / "Segmentation" / "both.txt", ["a", "2007_000032", "c"]
    )
    argv = ["compare", "--voc", str(tmp_path / "voc"), "--train-list", "both", "--labels", "1"]
    said = run_command([*argv, "--full", "--out", str(tmp_path / "out")])
    assert (said.code, said.out) == (1, "")
    assert "labeled images that are validation images too: 1, such as" in said.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("word", ["--method", "--resume"])
def test_flags_of_a_single_run_are_refused(word: str) -> None:
    said = run_command(["compare", word])
    assert said.code == 2
    assert said.err.startswith(f"gmix: {word} has no place here: ")


def test_the_configuration_of_a_run_is_one_of_a_comparison(tmp_path: Path) -> None:
    write_yaml(TrainConfig(steps=7, method="guidedmix"), tmp_path / "c.yaml")
    said = run_command(["compare", "--config", str(tmp_path / "c.yaml")])
    assert "--out DIR is missing" in said.err  # and nothing before that


# --- what is trained -------------------------------------------------------------------------


def test_all_methods_may_be_named_at_once() -> None:
    config = CompareConfig(methods="guidedmix, all", val_images="v", out="o", seeds=1)
    names = [run.config.method for run in plan(config)]
    assert names[0] == "guidedmix" and sorted(names) == sorted(METHODS)


def test_every_run_has_the_same_flags_but_its_own(tmp_path: Path) -> None:
    config = CompareConfig(
        methods="Fixmatch, guidedmix,fixmatch",
        method_args={"fixmatch": {"threshold": 0.5}},
        variant="paper",
        val_images="v",
        labels=5,
        full=True,
        seeds=2,
        seed=3,
        lr=0.5,
        out=str(tmp_path),
    )
    runs = {run.name: run.config for run in plan(config)}
    methods = ("supervised", "fixmatch", "guidedmix", "supervised-full")
    assert list(runs) == [f"{method}-{seed}" for seed in (3, 4) for method in methods]
    plain = {item.name: getattr(config, item.name) for item in fields(TrainConfig)}
    for name, run in runs.items():
        method, seed = name.replace("-full", "").rsplit("-", 1)
        own = {
            "method": method,
            "seed": int(seed),
            "out": str(tmp_path / name),
            "variant": "paper" if method == "guidedmix" else "default",
            "method_args": {"threshold": 0.5} if method == "fixmatch" else {},
        }
        if "-full-" in name:
            own |= {"labels": None, "held_out": 0}
        assert vars(run) == {**plain, **own}


def test_a_known_data_set_brings_its_validation_images() -> None:
    known = CompareConfig(methods="supervised", dataset="voc", data="v", out="o", seeds=1)
    assert [run.name for run in plan(known)] == ["supervised-0"]


@pytest.mark.parametrize(
    ("methods", "arguments"),
    [
        ("guidedmix", {"guidedmix": {"direct": 1.0}}),
        ("supervised", {"supervised": {"direct": 1.0}}),
    ],
)
def test_arguments_without_a_name_are_for_the_only_method(methods: str, arguments: Any) -> None:
    config = CompareConfig(
        methods=methods, method_args={"direct": 1.0}, val_images="v", out="o", seeds=1
    )
    found = {run.method: run.config.method_args for run in plan(config) if run.config.method_args}
    assert found == arguments


# --- a real comparison -----------------------------------------------------------------------


def test_a_comparison_leaves_runs_tables_and_one_line_each(compared: tuple[Path, Said]) -> None:
    out, said = compared
    assert said.code == 0, said.err
    names = [f"{m}-{s}" for s in (0, 1) for m in ("supervised", "fixmatch", "guidedmix")]
    lines = said.out.splitlines()
    assert lines[0] == "supervised is added: the baseline at equal steps"
    assert [line for line in lines if " starts, " in line] == [
        f"{name} starts, {i} of 6" for i, name in enumerate(names, 1)
    ]
    assert sorted(line.split()[0] for line in lines if " is finished: mIoU " in line) == sorted(
        names
    )
    for name in names:
        assert {path.name for path in (out / name).iterdir()} >= {
            "config.yaml",
            "log.txt",
            "metrics.jsonl",
            "model",
            "results.json",
        }
        assert "step 4/4" in (out / name / "log.txt").read_text(encoding="utf-8")
    for table in (out / "compare.md").read_text(encoding="utf-8").split("\n\n"):
        assert table.rstrip("\n") in said.out or table == "# Comparison"


def test_the_records_are_what_the_runs_say(compared: tuple[Path, Said]) -> None:
    out, _ = compared
    records = read_lines(out / "compare.jsonl")
    assert [(r["method"], r["seed"]) for r in records] == [
        (m, s) for s in (0, 1) for m in ("supervised", "fixmatch", "guidedmix")
    ]
    passes = {"supervised": 2, "fixmatch": 2 + 2 + 2, "guidedmix": 2 + 4 * 2}
    for record in records:
        found = read_json(out / f"{record['method']}-{record['seed']}" / "results.json")
        assert record["last"] == {"miou": found["last"]["miou"], "step": 4}
        assert record["iou"] == found["last"]["iou"] and list(record["iou"]) == list(NAMES)
        for name in ("best", "pseudo", "minutes", "seconds_per_step", "split", "versions"):
            assert record[name] == found[name]
        assert record["image_passes_per_step"] == passes[record["method"]]
        assert record["peak_memory_bytes"] > 50e6
        assert record["images"]["labeled"] == 3
        assert record["split"] == records[0]["split"] and len(record["split"]) == 12
        assert record["pseudo"]["step"] == 4
        assert 0 <= record["pseudo"]["coverage"] <= 1


def test_the_table_is_made_of_the_records(compared: tuple[Path, Said]) -> None:
    out, _ = compared
    records = read_lines(out / "compare.jsonl")
    table = cells((out / "compare.md").read_text(encoding="utf-8"))
    base = [r["last"]["miou"] for r in records if r["method"] == "supervised"]
    for method in ("supervised", "fixmatch", "guidedmix"):
        last = [100 * r["last"]["miou"] for r in records if r["method"] == method]
        best = [100 * r["best"]["miou"] for r in records if r["method"] == method]
        row = table[method]
        assert row[0] == f"{np.mean(last):.1f} ± {np.std(last, ddof=1):.1f}"
        assert row[1] == ", ".join(f"{value:.1f}" for value in last)
        assert row[2] == f"{np.mean(best):.1f}"
        points = np.mean(last) - 100 * np.mean(base)
        assert row[3].startswith("–" if method == "supervised" else f"{points:+.1f}")
        assert ("below supervised" in row[3]) == bool(points < -1e-9)
    for name in NAMES:
        ious = [r["iou"][name] for r in records if r["method"] == "guidedmix"]
        assert table[name][2] == f"{100 * np.mean(ious):.1f}"


def test_the_report_has_a_column_for_each_method(compared: tuple[Path, Said]) -> None:
    out, said = compared
    assert f"report: {out / 'report.html'}" in said.out
    assert not list(out.glob("*/report.html"))  # nobody asked for one of each run
    page = (out / "report.html").read_text(encoding="utf-8")
    names = re.findall(r'<span class="name">([^<]*)</span>', page)
    assert names[:6] == ["Image", "Truth", "Supervised", "FixMatch", "GuidedMix", "What changed"]
    assert "mean of 2 seeds" in page


def test_all_methods_of_a_seed_see_the_same_labeled_images(compared: tuple[Path, Said]) -> None:
    out, _ = compared
    for seed in (0, 1):
        configs = [
            yaml.safe_load((out / f"{m}-{seed}" / "config.yaml").read_text(encoding="utf-8"))
            for m in ("supervised", "fixmatch", "guidedmix")
        ]
        for config in configs:
            del config["method"], config["out"]
        assert configs[0] == configs[1] == configs[2]


@pytest.fixture(scope="module")
def repeated(
    data: Path, compared: tuple[Path, Said], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Said, dict[str, int]]:
    """In a copy of the comparison: one method that cannot work, one with other settings, `--full`.

    Returns:
        The folder, what was printed, and when each result had been written before.
    """
    out = tmp_path_factory.mktemp("repeated") / "out"
    shutil.copytree(compared[0], out)
    for folder in (out / "guidedmix-0").glob("checkpoint-*"):  # finished is finished without them
        shutil.rmtree(folder)
    written = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("*/results.json")}
    arguments = {"cps": {"magic": 1}, "fixmatch": {"threshold": 0.5}}
    methods = "supervised,cps,fixmatch,guidedmix"
    argv = compare_words(data, out, methods=methods, method_args=arguments, full=True, jobs=2)
    return out, run_command(argv), written


def test_finished_runs_are_read_and_not_repeated(repeated: tuple[Path, Said, Any]) -> None:
    out, said, written = repeated
    for name in ("supervised-0", "guidedmix-0"):
        assert f"{name} was finished before: mIoU " in said.out
        assert (out / name / "results.json").stat().st_mtime_ns == written[name]


def test_a_failing_run_is_named_and_the_others_go_on(repeated: tuple[Path, Said, Any]) -> None:
    out, said, written = repeated
    assert said.code == 1
    (line,) = said.err.splitlines()
    assert line.startswith("gmix: 2 of 5 runs failed: cps-0: --method cps: ")
    assert "magic" in line
    # What `gmix train` says of a folder that was started with other settings.
    assert "fixmatch-0: cannot resume" in line
    assert "it was started with --method-args {}" in line
    assert (out / "fixmatch-0" / "results.json").stat().st_mtime_ns == written["fixmatch-0"]
    assert "supervised-full-0 is finished" in said.out  # the last of all
    assert [r["method"] for r in read_lines(out / "compare.jsonl")] == [
        "supervised",
        "guidedmix",
        "supervised-full",
    ]
    text = (out / "compare.md").read_text(encoding="utf-8")
    assert "Not finished: cps-0, fixmatch-0." in text


def test_all_masks_are_an_upper_bound(repeated: tuple[Path, Said, Any]) -> None:
    out, said, _ = repeated
    found = read_json(out / "supervised-full-0" / "results.json")
    assert found["images"]["labeled"] == 8
    assert found["pseudo"] is None
    assert "gap to all masks closed" in said.out
    assert cells(said.out)["supervised-full"][4] == "–"
    assert " ± " not in cells(said.out)["supervised"][0]  # one seed


def at_step(step: int, act: Callable[[], object]) -> None:
    """Make the training that begins in this process do something after that step."""

    def due(now: int, every: int) -> bool:
        if now == step:
            running.due = original
            act()
        return original(now, every)

    original = running.due
    running.due = due


def kill() -> None:
    """What the first process does."""
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGKILL))


def ask_to_stop(tests: int) -> None:
    """What the second one does: have the comparison stopped, and wait until it is told so itself."""

    def act() -> None:
        before = signal.getsignal(signal.SIGTERM)
        os.kill(tests, signal.SIGTERM)
        while signal.getsignal(signal.SIGTERM) is before:  # the first one puts it back
            time.sleep(0.01)

    at_step(6, act)


def test_a_killed_and_a_stopped_comparison_ends_with_the_same_results(
    data: Path, tmp_path: Path, popen: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = {"steps": 8, "checkpoint_every": 2, "eval_every": 4, "method": "supervised"}
    straight = TrainConfig(**{**vars(tiny_config(data, tmp_path / "straight")), **TINY, **long})
    train(straight)
    argv = compare_words(data, tmp_path / "out", methods="supervised", **long)
    folder = tmp_path / "out" / "supervised-0"
    monkeypatch.setattr(popen, "Popen", partial(Forked, act=kill))
    said = run_command(argv)
    assert said.code == 1
    assert "1 of 1 runs failed: supervised-0: it was ended by SIGKILL" in said.err
    assert not (folder / "results.json").exists()

    started: list[Forked] = []

    def stopped(*words: Any, **settings: Any) -> Forked:
        started.append(Forked(*words, act=partial(ask_to_stop, os.getpid()), **settings))
        return started[0]

    monkeypatch.setattr(popen, "Popen", stopped)
    said = run_command(argv)
    assert said.code == 0
    assert "stopped with 0 of 1 runs finished, everything is saved: repeat the command" in said.out
    assert started[0].returncode == 0  # it saved, and was not cut off
    log = (folder / "log.txt").read_text(encoding="utf-8")
    assert "going on after step 2" in log and "stopped after step 7" in log

    monkeypatch.setattr(popen, "Popen", subprocess.Popen)  # as people have it
    assert run_command(argv).code == 0
    found, expected = (read_json(p / "results.json") for p in (folder, tmp_path / "straight"))
    for name in ("last", "best", "pseudo", "images", "image_passes_per_step"):
        assert found[name] == expected[name]
    weights = [
        load_file(p / "model" / "model.safetensors") for p in (folder, Path(str(straight.out)))
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no such lock")
def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    run = Run("cps", 0, TrainConfig(out=str(tmp_path)))
    with (
        locked_by_another(tmp_path),
        pytest.raises(ValueError, match="another process is training"),
    ):
        Child(run)
    assert [path.name for path in tmp_path.iterdir()] == [".gmix-lock"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="on Windows no signal ends a process")
@pytest.mark.parametrize(
    ("code", "said", "reason"),
    [
        (0, "", "it was stopped: repeat the command to go on"),
        (1, "gmix: no mask\n", "no mask"),
        (1, "Traceback\nKeyError: 1\n", "KeyError: 1"),
        (3, "", "exit code 3"),
        (-9, "", "it was ended by SIGKILL, as happens when memory runs out"),
        (-6, "", "it was ended by SIGABRT"),
    ],
)
def test_a_run_without_a_result_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, said: str, reason: str
) -> None:
    def ended(words: Any, **settings: Any) -> Any:
        assert settings["start_new_session"]  # Ctrl-C is for the parent to pass on
        return SimpleNamespace(returncode=code)

    monkeypatch.setattr("gmix.compare.child.subprocess.Popen", ended)
    (tmp_path / "log.txt").write_text("gmix: what an earlier one said\n")
    child = Child(Run("cps", 0, TrainConfig(out=str(tmp_path))))
    with child.log.open("a") as log:
        log.write(said)
    assert child.failure() == reason


@pytest.mark.parametrize("jobs", [1, 2])
def test_as_many_runs_go_at_a_time_as_asked_for(monkeypatch: pytest.MonkeyPatch, jobs: int) -> None:
    going: list[str] = []
    most = []

    class Quick:
        process = SimpleNamespace(wait=lambda: 0)

        def __init__(self, run: Run) -> None:
            self.run = run
            going.append(run.name)
            most.append(len(going))

        def ended(self) -> bool:
            going.remove(self.run.name)
            return True

        def failure(self) -> str:
            return "a reason"

    monkeypatch.setattr("gmix.compare.run.Child", Quick)
    monkeypatch.setattr("gmix.compare.run.PAUSE", 0)
    config = CompareConfig(val_images="v", out="o", seeds=3, methods="supervised", jobs=jobs)
    comparison = Comparison(config, plan(config))
    train_all(comparison, comparison.runs, PlainBoard(), Interrupts())
    assert max(most) == jobs and not going
    assert list(comparison.failures) == [run.name for run in plan(config)]


def test_finished_means_under_these_settings(compared: tuple[Path, Said], data: Path) -> None:
    out, _ = compared
    settings = yaml.safe_load((out / "fixmatch-0" / "config.yaml").read_text(encoding="utf-8"))
    config = TrainConfig(**settings)
    assert is_finished(Run("fixmatch", 0, config))
    assert is_finished(Run("fixmatch", 0, replace(config, workers=1, eval_every=1)))
    assert not is_finished(Run("fixmatch", 0, replace(config, lr=0.5)))
    assert not is_finished(Run("fixmatch", 0, replace(config, held_out=1)))  # measures anew
    assert not is_finished(Run("fixmatch", 2, replace(config, out=str(out / "fixmatch-2"))))


# --- what it shows ---------------------------------------------------------------------------


def test_the_live_table_has_a_row_a_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = CompareConfig(val_images="v", out=str(tmp_path), seeds=2, steps=9)
    runs = plan(config)
    running = runs[1]
    running.folder.mkdir()
    rows = [{"step": 2, "losses": {}}, {"step": 2, "validation": {"miou": 0.25}}, {"step": 5}]
    text = "cut off}\n" + "".join(json.dumps(row) + "\n" for row in rows) + '{"st'
    (running.folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    assert how_far(running.folder) == (5, 0.25)
    assert how_far(tmp_path / "nowhere") == (0, None)
    for board in (PlainBoard(), LiveBoard()):
        with board:
            board.note("hello [x]")
            board.update(runs, [record("supervised", 0, 0.5)], [running])
        shown = capsys.readouterr().out
        assert "hello [x]" in shown
        if isinstance(board, LiveBoard):
            lines = {line.split()[1]: line for line in shown.splitlines() if "/2" in line}
            for part in ("1/2", "50.0"):
                assert part in lines["supervised"]
            assert "seed" not in lines["supervised"]  # the other one is running
            for part in ("0/2", "seed 0: 5/9", "25.0"):
                assert part in lines["guidedmix"]


def test_a_terminal_gets_a_drawn_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = classes_table([record("cps", 0, 0.5)], ["cps"])
    print_table(table)
    assert "| cat | 50.0 |" in capsys.readouterr().out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(table)
    drawn = capsys.readouterr().out
    assert "| cat" not in drawn
    assert "cat" in drawn and "50.0" in drawn


# --- tables of made-up results ---------------------------------------------------------------


def record(method: str, seed: int, miou: float, **changes: Any) -> dict[str, Any]:
    """A line of compare.jsonl."""
    return {
        "method": method,
        "seed": seed,
        "last": {"miou": miou, "step": 9},
        "best": {"miou": miou + 0.01, "step": 5},
        "iou": {"cat": miou, "cow": None},
        "images": {"labeled": 3},
        "split": "1854c52b11fd",
        "seconds_per_step": 0.5,
        "image_passes_per_step": 8,
        "peak_memory_bytes": 10**9,
        "minutes": 1.0,
        "pseudo": None,
        "versions": {},
        **changes,
    }


def test_a_method_below_supervised_says_so() -> None:
    mious = {"supervised": 0.5, "cps": 0.48, "cct": 0.53, "classmix": 0.5}
    records = [record(method, 0, miou) for method, miou in mious.items()]
    table = scores_table(records, list(mious))
    column = table.head.index("points against supervised")
    assert [row[column] for row in table.rows] == ["–", "-2.0, below supervised", "+3.0", "+0.0"]
    assert "below supervised" in table.markdown()


unit = st.floats(0, 1)


@given(st.lists(st.tuples(unit, unit, unit), min_size=2, max_size=5))
def test_statistics_of_the_table(mious: list[tuple[float, float, float]]) -> None:
    methods = ["supervised", "cps", "supervised-full"]
    records = [
        record(method, seed, miou)
        for seed, each in enumerate(mious)
        for method, miou in zip(methods, each, strict=True)
    ]
    base, own, full = np.array(mious).T
    table = scores_table(records, methods)
    row = dict(zip(table.head, table.rows[1], strict=True))
    percent = [100 * value for value in own.tolist()]
    spread = f"{statistics.mean(percent):.1f} ± {statistics.stdev(percent):.1f}"
    assert row["mIoU of the last weights"] == spread
    assert statistics.stdev(percent) == pytest.approx(np.std(percent, ddof=1), abs=1e-9)
    best = row["best checkpoint (chosen with the validation masks)"]
    assert float(best) == pytest.approx(np.mean(percent) + 1, abs=0.051)
    shares = [each[table.head.index("gap to all masks closed")] for each in table.rows]
    assert shares[0] == shares[2] == "–"
    change, gap = np.mean(own - base), np.mean(full - base)
    assert gain(records, "cps") == pytest.approx(change, abs=1e-9)
    closed = gap_closed(records, "cps")
    if closed is None:
        assert gap <= 1e-9
    elif gap > 1e-6:
        assert closed == pytest.approx(change / gap, rel=1e-3, abs=1e-9)


def test_tables_that_cannot_be_written_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "compare.md").mkdir()
    with pytest.raises(ValueError, match=r"cannot write .*compare\.md: "):
        Comparison(CompareConfig(out=str(tmp_path)), []).write()
    assert {path.name for path in tmp_path.iterdir()} == {"compare.jsonl", "compare.md", RECORD}


def test_only_seeds_both_have_are_compared() -> None:
    records = [record("supervised", s, m) for s, m in [(0, 0.2), (1, 0.8)]]
    records += [record("cps", 0, 0.3), record("supervised-full", 0, 0.4)]
    assert gain(records, "cps") == pytest.approx(0.1)
    assert gap_closed(records, "cps") == pytest.approx(0.5)
    assert gain(records, "cct") is None
    assert gap_closed([record("cps", 0, 0.3)], "cps") is None
    for more in ("cps", "supervised-full"):  # a seed that the third has not
        assert gap_closed([*records, record(more, 1, 0.8)], "cps") == pytest.approx(0.5)
    worse = [record("supervised", 0, 0.5), record("cps", 0, 0.6), record("supervised-full", 0, 0.4)]
    assert gap_closed(worse, "cps") is None  # there is no gap to close


def test_costs_and_pseudo_masks_are_means_and_memory_is_the_worst() -> None:
    pseudo = [{"precision": 0.9, "coverage": 0.5}, {"precision": None, "coverage": 0.0}]
    records = [
        record(
            "cps",
            seed,
            0.5,
            pseudo=pseudo[seed],
            peak_memory_bytes=[10**9, 3 * 10**9][seed],
            seconds_per_step=[0.2, 0.3][seed],
        )
        for seed in (0, 1)
    ]
    table = scores_table(records, ["supervised", "cps", "cct"])
    (row,) = table.rows
    assert "gap to all masks closed" not in table.head
    assert row[-4:] == ["0.250", "8", "3,000 MB", "90% / 25%"]
    blank = record("cps", 0, 0.5, image_passes_per_step=None, peak_memory_bytes=None)
    assert scores_table([blank], ["cps"]).rows[0][-3:] == ["–", "–", "–"]


def test_a_class_that_never_occurs_has_a_dash() -> None:
    records = [record("supervised", 0, 0.25), record("supervised", 1, 0.75)]
    table = classes_table(records, ["supervised", "cps"])
    assert table.head == ["class", "supervised"]
    assert table.rows == [["cat", "50.0"], ["cow", "–"]]


def test_failures_are_told_in_the_order_of_the_plan() -> None:
    config = CompareConfig(val_images="v", out="o", seeds=2, methods="supervised")
    comparison = Comparison(config, plan(config))
    for run in reversed(comparison.runs):
        fail(comparison, run, "a reason", PlainBoard())
    assert list(comparison.failures) == ["supervised-0", "supervised-1"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"held_out": 0, "labels": 3}, "--held-out is 0"),
        ({"labels": None}, "every mask is learned from"),
        ({"labels": 3}, "leaves no mask of an unlabeled image unused"),
    ],
)
def test_an_empty_column_of_pseudo_masks_is_explained(changes: dict[str, Any], reason: str) -> None:
    config = CompareConfig(val_images="v", out="o", seeds=1, **changes)
    comparison = Comparison(config, plan(config))
    comparison.done["supervised-0"] = record("supervised", 0, 0.5)
    (line,) = [line for line in comparison.notes if "pseudo masks" in line]
    assert reason in line
    comparison.done["supervised-0"]["pseudo"] = {"precision": 1.0, "coverage": 1.0}
    assert not [line for line in comparison.notes if "pseudo masks" in line]


@pytest.mark.parametrize("full", [True, False])
def test_the_upper_bound_is_explained_and_may_be_of_another_split(full: bool) -> None:
    config = CompareConfig(val_images="v", out="o", seeds=1, full=full, labels=3)
    comparison = Comparison(config, plan(config))
    judged = {"precision": 1.0, "coverage": 1.0}
    # Its masks are all learned from, so there are none to judge by.
    comparison.done["supervised-full-0"] = record("supervised-full", 0, 0.6, split="all")
    comparison.done["guidedmix-0"] = record("guidedmix", 0, 0.5, pseudo=judged)
    notes = comparison.notes
    assert "Split 1854c52b11fd." in notes
    assert any("the upper bound" in note for note in notes) == full
    assert not any("No pseudo masks were judged" in note for note in notes)
    methods = ["guidedmix", *["supervised-full"] * full]  # in the order of the plan
    assert [found["method"] for found in comparison.records] == methods


# --- what a step costs -----------------------------------------------------------------------


def first_step(method: Method, batch: Labeled) -> list[int]:
    told: list[int] = []
    count_first_step(method, told.append)
    for _ in range(2):  # the second step is not counted
        method(*batch, progress=0.5, generator=torch.Generator().manual_seed(0))
    return told


N, M = 4, 3


@pytest.mark.parametrize(
    ("build", "passes"),
    [
        (CPS, 2 * (N + M)),  # two students
        (lambda net: CPS(net, cutmix={}), 2 * (N + M + M)),  # labeled, unlabeled, pasted
        (lambda net: GuidedMix(net, variant="official"), N + M),
        (GuidedMix, M + M + (N + 2 * M)),  # the teacher's, the reference's, the student's
        (lambda net: GuidedMix(net, direct=0.5), (N + M) + M + M + (N + 2 * M)),  # the mixed, too
        (lambda net: GuidedMix(net, views=1, drop=0.0), M + M + (N + M)),
        # The network itself: labeled, unlabeled, mixed; then the step, and two labeled ones mixed.
        (lambda net: GuidedMix(net, variant="paper"), (N + M + M) + (N + M) + N),
    ],
)
def test_image_passes_are_counted_in_the_first_step(
    build: Callable[[Any], Method], passes: int
) -> None:
    method = build(tiny_net()).train()
    assert first_step(method, tiny_batch(N, M)) == [passes]
    assert not method._forward_hooks
    assert not any(encoder._forward_pre_hooks for encoder in encoders(method))


def test_cost_of_a_run_survives_resuming(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "run", **{**TINY, "steps": 2}, method="fixmatch")
    train(config)
    before = read_json(tmp_path / "run" / "results.json")
    assert before["image_passes_per_step"] == 6
    assert before["peak_memory_bytes"] > 50e6
    train(replace(config, resume=True))
    after = read_json(tmp_path / "run" / "results.json")
    for name in ("image_passes_per_step", "peak_memory_bytes", "pseudo", "last"):
        assert after[name] == before[name]


def test_memory_is_in_bytes_on_every_system(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")

    class Usage(NamedTuple):
        ru_maxrss: int = 3000

    cpu = torch.device("cpu")
    monkeypatch.setattr(resource, "getrusage", lambda who: Usage())
    for system, expected in (("linux", 3000 * 1024), ("darwin", 3000)):
        monkeypatch.setattr(sys, "platform", system)
        assert peak_memory(cpu) == expected
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory(cpu) is None


# --- held-out images -------------------------------------------------------------------------


def stems(config: TrainConfig) -> list[str]:
    found = held_out_files(config, training_files(config)[1])
    return [] if found is None else [path.stem for path in found[0]]


def test_held_out_masks_are_those_that_labels_left_unused(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, labels=2)
    assert [p.stem for p in training_files(config)[0][0]] == ["00", "04"]
    assert stems(replace(config, held_out=9)) == ["01", "02", "03", "05", "06", "07"]
    assert stems(replace(config, held_out=3)) == ["01", "03", "06"]
    assert stems(replace(config, held_out=0)) == []
    assert stems(replace(config, held_out=3, labels=None)) == []
    assert stems(replace(config, held_out=3, labels=8)) == []
    # They stay unlabeled images; what a run is judged on is not one.
    built = build_data(replace(config, held_out=3))
    assert built.counts == {"labeled": 2, "unlabeled": 8, "validation": 3, "held_out": 3}
    config = replace(config, val_images=config.images, val_masks=config.masks, held_out=3)
    with pytest.raises(ValueError, match="has no mask"):
        build_data(config)


def test_held_out_of_nothing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data", validation=0)
    settings: dict[str, Any] = {"method": "supervised", "val_images": None, "val_masks": None}
    train(tiny_config(data, tmp_path / "out", **settings, steps=1, held_out=3))
    assert "--held-out 3 judges nothing: --labels leaves no mask" in capsys.readouterr().out


def test_held_out_masks_in_which_all_is_ignored_are_named(tmp_path: Path) -> None:
    """What they judge would be nan from the first step to the last."""
    data = write_data(tmp_path / "data", labeled=4, unlabeled=0)
    config = tiny_config(data, tmp_path / "out", labels=2, held_out=2)
    for path in held_out_files(config, training_files(config)[1])[1]:
        Image.new("L", (64, 64), 255).save(path)
    with pytest.raises(
        ValueError, match=r"^no held-out mask has a pixel of any class, from .*\.png"
    ):
        build_data(config)


def test_a_damaged_image_is_left_out_also_where_a_value_range_is_given(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    (data / "images" / "01.png").write_bytes(b"cut")
    config = tiny_config(data, tmp_path / "out", skip_damaged=1, value_range="0-100")
    notes = build_data(config).notes
    assert any("--value-range 0-100 is for images of more than 8 bits" in note for note in notes)
    assert any("left out: cannot read image" in note for note in notes)


def test_a_broken_held_out_mask_is_named_before_training(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    (data / "masks" / "01.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"01\.png"):
        build_data(tiny_config(data, tmp_path, labels=2, held_out=2))


@pytest.mark.parametrize("method", ["supervised", "guidedmix"])
def test_training_is_bit_equal_with_and_without(data: Path, tmp_path: Path, method: str) -> None:
    ends = []
    for held_out in (0, 3):
        out = tmp_path / str(held_out)
        train(tiny_config(data, out, **{**TINY, "held_out": held_out}, method=method, cache=True))
        (last,) = out.glob("checkpoint-*4")
        ends.append(
            {p.stem + k: v for p in last.glob("*.safetensors") for k, v in load_file(p).items()}
        )
        rows = read_lines(out / "metrics.jsonl")
        judged = {row["step"]: row["pseudo"] for row in rows if "pseudo" in row}
        results = read_json(out / "results.json")
        assert list(judged) == ([2, 4] if held_out else [])
        assert results["pseudo"] == ({"step": 4, **judged[4]} if held_out else None)
        assert results["images"].get("held_out", 0) == held_out
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def odd_data(root: Path) -> Path:
    """Eight images with masks, one of them smaller, one with ignored pixels."""
    data = write_data(root, labeled=8, unlabeled=0)
    write_scene(data / "images" / "05.png", data / "masks" / "05.png", seed=5, size=48)
    mask = np.array(Image.open(data / "masks" / "01.png"))
    mask[:20] = 255
    Image.fromarray(mask).save(data / "masks" / "01.png")
    return data


def prepared(build: Callable[..., Method], classes: int) -> Method:
    """A method after one step: a teacher and a memory have seen something."""
    method = build(tiny_net(classes)).train()
    method(*tiny_batch(2, 2, classes), progress=1.0, generator=torch.Generator().manual_seed(0))
    return method


def judge(method: Method, data: Data) -> dict[str, Any]:
    found = judge_pseudo_masks(method, data, transform=eval_transform(), batch_labeled=2, seed=0)
    assert found is not None
    return found


@pytest.mark.parametrize("size", [None, "32x40"])
@pytest.mark.parametrize(
    ("build", "classes"),
    [
        (lambda net: FixMatch(net, threshold=0.4), 3),
        (lambda net: FixMatch(net, threshold=0.6), 1),
        (GuidedMix, 3),
        (lambda net: FixMatch(net, threshold=1.0), 3),  # nothing is ever sure
    ],
    ids=["fixmatch", "binary", "guidedmix", "unsure"],
)
def test_pseudo_masks_are_judged_as_a_plain_loop_does(
    tmp_path: Path, build: Callable[..., Method], classes: int, size: str | None
) -> None:
    config = tiny_config(odd_data(tmp_path / "data"), tmp_path, labels=3, held_out=5, size=size)
    if classes == 1:
        config = replace(config, classes=1, label_map="0:0,1:1,2:1,255:255")
    data = build_data(config)
    method, calls = prepared(build, classes), list[tuple[Tensor, ...]]()
    original = method.pseudo_masks

    def spy(*inputs: Any) -> Tensor:
        probs = original(*inputs)
        calls.append((*inputs[:3], probs))
        return probs

    method.pseudo_masks = spy  # type: ignore[method-assign]
    found = judge(method, data)

    # All held-out images, whole, in order, a few at a time and of one size.
    samples: Any = data.held_out
    images = [x for _, _, batch, _ in calls for x in batch]
    assert len(images) == data.counts["held_out"] == 5
    for image, (pixels, _) in zip(images, samples, strict=False):
        assert torch.equal(image, eval_transform()(pixels))
        assert size is None or image.shape == (3, 32, 40)
    for x_labeled, y_labeled, x, _ in calls:
        assert x_labeled.shape == (2, *x.shape[1:])
        assert y_labeled.shape == (2, *x.shape[2:])
        assert len(x) <= 4

    # One pixel after the other.
    number = max(classes, 2)
    every, sure = np.zeros((number, number), int), np.zeros((number, number), int)
    for probs, (_, mask) in zip((p for *_, b in calls for p in b), samples, strict=False):
        p = probs.numpy()
        for y in range(mask.shape[0]):
            for x in range(mask.shape[1]):
                true = int(mask[y, x])
                if true == 255:
                    continue
                each = [1 - p[0, y, x], p[0, y, x]] if classes == 1 else list(p[:, y, x])
                label = max(range(number), key=lambda k, each=each: each[k])
                every[true, label] += 1
                if each[label] >= np.float32(method.threshold):
                    sure[true, label] += 1

    def ratio(part: Any, whole: Any) -> Any:
        return None if whole == 0 else pytest.approx(part / whole, abs=1e-3)

    names = data.classes.names
    assert found["coverage"] == ratio(sure.sum(), every.sum())
    assert found["precision"] == ratio(np.trace(sure), sure.sum())
    assert found["precision_by_class"] == {
        name: ratio(sure[k, k], sure[:, k].sum()) for k, name in enumerate(names)
    }
    assert found["pass_rate"] == {
        name: ratio(sure[k].sum(), every[k].sum()) for k, name in enumerate(names)
    }
    union = every.sum(0) + every.sum(1) - np.diag(every)
    assert found["miou"] == pytest.approx(np.mean(np.diag(every)[union > 0] / union[union > 0]))


@pytest.mark.parametrize("variant", ["default", "paper", "official"])
def test_judging_leaves_no_trace_and_repeats_itself(tmp_path: Path, variant: Any) -> None:
    data = build_data(tiny_config(odd_data(tmp_path / "d"), tmp_path, labels=3, held_out=3))
    method = prepared(lambda net: GuidedMix(net, variant=variant), 3)
    state = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    modes = [module.training for module in method.modules()]
    random = torch.get_rng_state()
    first = judge(method, data)
    assert torch.equal(torch.get_rng_state(), random)
    torch.manual_seed(99)
    assert judge(method, data) == first
    assert [module.training for module in method.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in method.state_dict().items())
    assert all(p.grad is None for p in method.parameters())


def test_a_careless_method_does_no_harm_either(tmp_path: Path) -> None:
    class Careless(Supervised):
        """Draws from the global generator, and forgets that BatchNorm notices what it sees."""

        def pseudo_masks(self, *inputs: Any) -> Tensor:
            torch.rand(3)
            return G.probabilities(self.net(inputs[2]))

    data = build_data(tiny_config(odd_data(tmp_path / "d"), tmp_path, labels=3, held_out=3))
    method = Careless(tiny_net()).train()
    state = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    random = torch.get_rng_state()
    judge(method, data)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, state[name]) for name, tensor in method.state_dict().items())
    assert all(module.training for module in method.modules())
