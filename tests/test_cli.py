"""The command line, end to end, with every mistake a person can make."""

import itertools
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from tiny_data import NAMES, tiny_config, words, write_data

from gmix.cli.main import main
from gmix.config.commands import (
    DemoConfig,
    EvaluateConfig,
    PredictConfig,
    ReportConfig,
    SplitsAuditConfig,
    SplitsMakeConfig,
)
from gmix.config.options import flag
from gmix.config.parser import parse
from gmix.config.recipes import read_recipe, recipe_names
from gmix.config.train_config import TrainConfig
from gmix.config.yamlfile import write_yaml
from gmix.errors import UsageError

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("run")
    config = tiny_config(data, out, method="supervised", steps=2, checkpoint_every=0)
    assert main(["train", *words(config)]) == 0
    return out


def complaint(capsys: Capture, argv: list[str], code: int = 1) -> str:
    """Run a command that must fail, return the only line on stderr."""
    capsys.readouterr()
    assert main(argv) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gmix: ")
    return line


# --- help ------------------------------------------------------------------------------------


def test_help_does_not_wait_for_torch() -> None:
    code = """
import sys
from gmix.cli.main import main
for words in ("", "train", "predict", "splits", "splits make"):
    try:
        main([*words.split(), "--help"])
    except SystemExit as stop:
        assert stop.code == 0
for slow in ("torch", "segmentation_models_pytorch"):
    assert slow not in sys.modules, "help imported " + slow
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gmix", "--help"], check=True, capture_output=True, text=True
    )
    for command in ("demo", "train", "compare", "evaluate", "predict", "splits"):
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("train", TrainConfig),
        ("evaluate", EvaluateConfig),
        ("predict", PredictConfig),
        ("demo", DemoConfig),
        ("report", ReportConfig),
        ("splits make", SplitsMakeConfig),
        ("splits audit", SplitsAuditConfig),
    ],
)
def test_help_has_a_line_for_each_flag(capsys: Capture, command: str, kind: type) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 118
    for item in fields(kind):
        spelled = flag(f"no_{item.name}") if item.default is True else flag(item.name)
        # A long help goes on in the next lines, further to the right.
        (line,) = re.findall(rf"^  {spelled} .*(?:\n {{10,}}.*)*", text, re.MULTILINE)
        line = " ".join(line.split())
        assert " ".join(item.metadata["help"].split()) in line
        if isinstance(item.default, (int, float, str)) and not isinstance(item.default, bool):
            assert line.endswith(f"[{item.default}]")


def test_without_a_command_help_is_shown(capsys: Capture) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out
    assert main(["splits"]) == 2
    found = capsys.readouterr().out
    assert "\n  make " in found and "\n  audit " in found


def test_version(capsys: Capture) -> None:
    import gmix

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gmix {gmix.__version__}\n"


# --- flags and YAML --------------------------------------------------------------------------


def test_every_flag_is_a_yaml_key_and_flags_win(tmp_path: Path) -> None:
    config = TrainConfig(
        images="i",
        classes=7,
        label_map={0: 0, 8: 1},
        ema=0.9,
        mitrans=True,
        method_args={"pairs": "random", "n": 2},
        out="o",
    )
    write_yaml(config, tmp_path / "c.yaml")
    at = ["--config", str(tmp_path / "c.yaml")]
    assert parse(TrainConfig, "gmix train", "", at) == config
    flags = [*at, "--out", "p", "--no-mitrans", "--seed", "4"]
    found = parse(TrainConfig, "gmix train", "", flags)
    assert (found.out, found.mitrans, found.seed, found.ema) == ("p", False, 4, 0.9)


def configured(path: Path, text: str, *argv: str) -> TrainConfig:
    """The flags of a YAML file and a command line."""
    path.write_text(text)
    return parse(TrainConfig, "gmix train", "", ["--config", str(path), *argv])


ODD_NUMBERS = [
    "010",
    "-010",
    "00",
    "0x1F",
    "0b11",
    "1_000",
    "1_8",
    "1:30",
    "1:30:00",
    "1:30.5",
    "1_0.5",
]


@pytest.mark.parametrize(
    ("name", "odd"),
    zip(itertools.cycle(["steps", "lr", "labels", "ema"]), ODD_NUMBERS, strict=False),
)
def test_numbers_that_yaml_reads_as_others_are_refused(tmp_path: Path, name: str, odd: str) -> None:
    meant = f"{odd} is {yaml.safe_load(odd)} in YAML 1.1: write a decimal number"
    for text in (f"{name}: {odd}", f"{name}: '{odd}'", f"method_args: {{a: [{{b: {odd}}}]}}"):
        with pytest.raises(ValueError, match=re.escape(meant)):
            configured(tmp_path / "c.yaml", text)
    for argv in (
        [f"--{name}", odd],
        [f"--{name}={odd}"],
        ["--method-args", f"{{a: [{odd}]}}"],
        ["--model-args", f"{{a: {odd}}}"],
        ["--method-args.a.b", odd],
    ):
        with pytest.raises(ValueError, match=re.escape(meant)):
            parse(TrainConfig, "gmix train", "", argv)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("cache: yes", "yes is true in YAML 1.1: write true or false, or put quotes around it"),
        ("encoder_weights: No", "No is false in YAML 1.1"),
        ("method_args: {teacher: off}", "off is false in YAML 1.1"),
        ("out: 2026-11-30", "2026-11-30 is a date in YAML 1.1: write another value, or put quotes"),
        (
            "label_map: 8:1",
            "8:1 is 481 in YAML 1.1: write a decimal number, or put quotes around it",
        ),
        ("label_map: {010: 1}", "010 is 8 in YAML 1.1"),
        ("label_map: {8: 010}", "010 is 8 in YAML 1.1"),
        ("steps: !!int 010", "010 is 8 in YAML 1.1"),
    ],
)
def test_other_surprises_of_yaml_are_refused(tmp_path: Path, text: str, meant: str) -> None:
    with pytest.raises(ValueError, match=re.escape(meant)):
        configured(tmp_path / "c.yaml", text)


def test_what_is_plain_is_read_as_it_looks(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    text = "steps: 10\nlr: 1e-3\nencoder_lr: .5\ncache: True\nlabel_map: '8:1'\nout: '2026-11-30'\n"
    found = configured(
        path, text + "method_args: {a: 1e-3, b: '010', c: 'yes', d: [-2, 0, 1.5E+2]}"
    )
    assert (found.steps, found.lr, found.encoder_lr, found.cache) == (10, 0.001, 0.5, True)
    assert (found.label_map, found.out) == ("8:1", "2026-11-30")
    assert found.method_args == {"a": 0.001, "b": "010", "c": "yes", "d": [-2, 0, 150.0]}
    again = configured(
        path, text, "--method-args", "{a: 1e-3, b: '010', c: 'yes', d: [-2, 0, 1.5E+2]}"
    )
    assert again == found
    assert configured(path, text, "--method-args.a", "1e-3").method_args == {"a": 0.001}
    assert configured(path, "", "--label-map", "8:1", "--out", "010").label_map == "8:1"
    write_yaml(found, tmp_path / "again.yaml")
    assert configured(tmp_path / "again.yaml", (tmp_path / "again.yaml").read_text()) == found


def test_recipes_and_runs_are_read_strictly() -> None:
    for name in recipe_names():
        read_recipe(name)


def test_yaml_keys_may_be_spelled_like_flags(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("batch-labeled: 3\nval_part: odd\n")
    found = parse(TrainConfig, "gmix train", "", ["--config", str(tmp_path / "c.yaml")])
    assert (found.batch_labeled, found.val_part) == (3, "odd")


def test_words_mean_what_the_configuration_says(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, labels=2, label_map="0:0,1:1,2:2", method_args={"a": 1})
    assert parse(TrainConfig, "gmix train", "", words(config)) == config


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown command trian, did you mean train?"),
        (["train", "--step", "3"], "unknown flag --step, did you mean --steps?"),
        (["train", "--val-part", "some"], "--val-part expects all or odd or even, got some"),
        (["train", "--optimizer", "adam"], "--optimizer expects adamw or sgd, got adam"),
        (["train", "--steps"], "--steps"),
        (["train", "--images", "x"], "--out DIR is missing: where everything is written (see "),
        (["compare"], "--out DIR is missing: where everything is written (see "),
        (["evaluate"], "--model DIR is missing: --out folder of a finished `gmix train` (see "),
        (["predict", "--images", "x"], "--model DIR is missing: "),
        (["predict", "--images", "x", "--model", "x"], "--out DIR is missing: gets masks/NAME.png"),
    ],
)
def test_bad_flags_are_one_line(capsys: Capture, argv: list[str], message: str) -> None:
    assert message in complaint(capsys, argv, code=2)


def test_debug_raises() -> None:
    with pytest.raises(UsageError):
        main(["train", "--stps", "3", "--debug"])


# --- bad input -------------------------------------------------------------------------------


def broken_unlabeled_image(data: Path) -> None:
    for i in range(4, 8):
        (data / "images" / f"{i:02d}.png").write_bytes(b"no picture")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_unlabeled_image_is_named_even_by_a_loader_process(
    capsys: Capture, tmp_path: Path, workers: int
) -> None:
    data = write_data(tmp_path / "data")
    broken_unlabeled_image(data)
    config = tiny_config(data, tmp_path / "out", workers=workers)
    line = complaint(capsys, ["train", *words(config)])
    assert line.startswith("gmix: cannot read image")
    assert "0" in Path(line.split(": ")[1].split()[-1]).stem


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "--images DIR and --masks DIR are missing"),
        ({"val_masks": None}, "--val-images needs --val-masks DIR"),
        ({"val_images": None}, "--val-masks needs --val-images DIR"),
        ({"voc": "nowhere"}, "either --data ROOT (--voc ROOT) or --images and --masks"),
        ({"voc": "nowhere", "images": None, "masks": None}, "nowhere is no folder: expected that"),
        ({"data": "nowhere"}, "--data nowhere needs --dataset NAME: voc, sbd"),
        ({"data": "nowhere", "dataset": "vco"}, "--dataset vco is unknown: choose one of ade20k"),
        ({"data": "nowhere", "voc": "nowhere"}, "either --voc ROOT or --dataset NAME"),
        ({"unlabeled_list": "some.txt"}, "--unlabeled-list some.txt needs --voc ROOT, the folder"),
        ({"train_list": "some.txt"}, "--train-list some.txt needs --voc ROOT"),
        ({"val_list": "v.txt", "dataset": "voc"}, "--val-list v.txt needs --data ROOT, the folder"),
        ({"channels": 4}, "it is an array of 64x64x3, expected 4 channels"),
        ({"channels": 0}, "--channels must be at least 1, got 0"),
        ({"classes": None}, "--classes is missing"),
        ({"arch": "Unot"}, "--arch Unot is unknown: choose one of"),
        ({"encoder": "resnet35"}, "cannot build Unet with the encoder resnet35"),
        ({"model_args": {"decoder_channels": [8]}}, "cannot build Unet"),
        ({"method": "magic"}, "--method magic is unknown: choose one of advssl, cct, classmix"),
        ({"method": "guidedmix", "method_args": {"magic": 3}}, "GuidedMix has no part 'magic'"),
        ({"method": "guidedmix", "method_args": {"teacher": 3}}, "teacher must be a mapping"),
        ({"method": "guidedmix", "method_args": {"teacher": {"dcay": 3}}}, "'dcay'"),
        ({"method": "guidedmix", "method_args": {"selector": "best"}}, "selector best is unknown"),
        ({"variant": "paper"}, "--method supervised: it has no --variant paper"),
        ({"variant": "best", "method": "guidedmix"}, "`variant` must be one of"),
        ({"device": "cuda:77"}, "--device cuda:77 cannot be used here"),
        ({"device": "abacus"}, "--device abacus cannot be used here"),
    ],
)
def test_bad_settings_end_in_one_line(
    capsys: Capture, data: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = tiny_config(data, tmp_path / "out", method="supervised")
    for name, value in changes.items():
        setattr(config, name, value)
    assert message in complaint(capsys, ["train", *words(config)])
    assert not (tmp_path / "out").exists()


def test_guidedmix_without_unlabeled_images_says_what_to_do(
    capsys: Capture, tmp_path: Path
) -> None:
    data = write_data(tmp_path / "data", unlabeled=0)
    line = complaint(capsys, ["train", *words(tiny_config(data, tmp_path / "out"))])
    assert "needs unlabeled images" in line
    assert "--labels N" in line


# --- commands --------------------------------------------------------------------------------


def test_evaluate_repeats_the_score_of_the_run(run: Path, data: Path, capsys: Capture) -> None:
    expected = json.loads((run / "results.json").read_text())["last"]
    scores = run / "scores.json"
    base = ["evaluate", "--model", str(run), "--device", "cpu", "--threads", "1"]
    assert main([*base, "--out", str(scores)]) == 0
    assert json.loads(scores.read_text())["miou"] == pytest.approx(expected["miou"], abs=1e-6)
    text = capsys.readouterr().out
    assert all(f"{name} " in text for name in (*NAMES, "mIoU", "pixel accuracy"))
    folders = ["--val-images", str(data / "val_images"), "--val-masks", str(data / "val_masks")]
    assert main([*base, *folders, "--flip", "--scales", "0.5,1", "--val-part", "odd"]) == 0


def test_predict_writes_every_image_it_can(
    run: Path, data: Path, tmp_path: Path, capsys: Capture
) -> None:
    argv = ["predict", "--model", str(run), "--images", str(data / "images"), "--device", "cpu"]
    assert main([*argv, "--out", str(tmp_path / "all")]) == 0
    assert "8 of 8 images are done" in capsys.readouterr().out
    assert len(list((tmp_path / "all" / "masks").glob("*.png"))) == 8
    assert len(list((tmp_path / "all" / "overlays").glob("*.jpg"))) == 8

    images = tmp_path / "images"
    images.mkdir()
    (images / "bad.jpg").write_bytes(b"no picture")
    Image.new("L", (20, 30)).save(images / "good.jpg")
    argv[4] = str(images)
    line = complaint(capsys, [*argv, "--out", str(tmp_path / "some"), "--masks-only"])
    assert "1 of 2 images were left out" in line
    assert "bad.jpg" in line
    assert [p.name for p in (tmp_path / "some").rglob("*.png")] == ["good.png"]


def test_guidedmix_from_the_command_line(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "out", steps=2, ema=0.9, checkpoint_every=0)
    assert main(["train", *words(config)]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["method"] == "guidedmix"
    assert found["images"]["unlabeled"] == 4
