"""What README and docs say is true: their Python runs, their flags, tests and names exist."""

import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from tiny_nets import tiny_batch, tiny_net

import gmix
from gmix.builders.method import build_method
from gmix.config.commands import (
    DemoConfig,
    EvaluateConfig,
    ExportConfig,
    PredictConfig,
    PseudoLabelConfig,
    ReportConfig,
    SplitsAuditConfig,
    SplitsMakeConfig,
)
from gmix.config.options import flag
from gmix.config.parser import parse
from gmix.config.train_config import CompareConfig, TrainConfig
from gmix.methods import METHODS
from gmix.nn.passes import count_first_step

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PARTS = [
    "Selector",
    "Mixer",
    "Decoupler",
    "MITrans",
    "Reference",
    "Teacher",
    "Views",
    "ClassPaste",
    "Adjustment",
    "Loss",
]
COMMANDS: dict[str, type] = {
    "train": TrainConfig,
    "compare": CompareConfig,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "pseudo-label": PseudoLabelConfig,
    "export": ExportConfig,
    "report": ReportConfig,
    "demo": DemoConfig,
    "splits make": SplitsMakeConfig,
    "splits audit": SplitsAuditConfig,
}


def blocks(page: Path, language: str) -> list[tuple[int, str]]:
    """Fenced blocks of one language: the line each starts on, and its text."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, match.start(1)), match[1]) for match in found]


def pages_with(language: str) -> list[Any]:
    return [pytest.param(page, id=page.stem) for page in PAGES if blocks(page, language)]


def offline(code: str) -> str:
    """The only change before a block is run: tests download nothing."""
    return code.replace('encoder_weights="imagenet"', "encoder_weights=None")


def lines_of_bash(page: Path) -> Iterator[list[str]]:
    """The words of every command in the bash blocks of a page."""
    for _, text in blocks(page, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            for part in line.split("&&"):
                if words := shlex.split(part, comments=True):
                    yield words


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Every `gmix ...` command of a page, whatever starts it (`srun`, `torchrun -m`): its name, of
    two words for `gmix splits`, and flags."""
    found = [words[words.index("gmix") :] for words in lines_of_bash(page) if "gmix" in words]
    sizes = [3 if words[1] == "splits" else 2 for words in found]
    return [
        (" ".join(words[1:size]), words[size:]) for words, size in zip(found, sizes, strict=True)
    ]


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_blocks_run_in_order(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line, text in blocks(page, "python"):
        for package in re.findall(r"^from (transformers|monai)\b", text, re.MULTILINE):
            pytest.importorskip(
                package, reason=f"the blocks before ran; {package} is not installed"
            )
        exec(compile("\n" * line + offline(text), str(page), "exec"), namespace)


@pytest.mark.skipif(torch.__version__ < "2.7", reason="FSDP's ignored_params are of torch 2.7")
@pytest.mark.parametrize("page", pages_with("py"))
def test_py_blocks_run_in_two_processes(page: Path, tmp_path: Path) -> None:
    for _, text in blocks(page, "py"):
        small = offline(text).replace('"resnet50"', '"resnet18"')
        Path(tmp_path, "loop.py").write_text(small, encoding="utf-8")
        done = forked.run(forked.script, tmp_path / "loop.py", count=2, folder=tmp_path)
        assert done.codes == [0, 0], done.err


@pytest.mark.parametrize("page", pages_with("yml"))
def test_yml_blocks_are_read_by_accelerate(page: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", minversion="1.6")  # FSDP's second version
    for _, text in blocks(page, "yml"):
        Path(tmp_path, "config.yml").write_text(text, encoding="utf-8")
        config = load_config_from_file(str(tmp_path / "config.yml"))
        known = {action.dest for action in launch_command_parser()._actions}
        known |= {f"fsdp_{field.name}" for field in fields(FullyShardedDataParallelPlugin)}
        assert config.fsdp_config.keys() <= known


@pytest.mark.parametrize("page", pages_with("bash"))
def test_commands_are_understood(page: Path) -> None:
    for command, words in commands(page):
        if "--config" in words:  # the file exists on the reader's machine
            at = words.index("--config")
            del words[at : at + 2]
        while command == "report" and words and not words[0].startswith("-"):
            del words[0]  # the runs
        parse(COMMANDS[command], f"gmix {command}", "", words)


def test_there_are_commands_to_check() -> None:
    assert {command for page in PAGES for command, _ in commands(page)} == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_flags_in_the_text_exist(page: Path) -> None:
    known = {flag(item.name) for kind in COMMANDS.values() for item in fields(kind)}
    known |= {"--config", "--help", "--debug", "--version"}
    known |= {flag(f"no_{item.name}") for item in fields(TrainConfig) if item.default is True}
    spans = re.findall(r"`((?:gmix [a-z]|--)[^`\n]*)`", page.read_text(encoding="utf-8"))
    mentioned = {word for span in spans for word in re.findall(r"(?<!\S)--[a-z][a-z-]*", span)}
    assert mentioned <= known


def test_every_flag_of_train_is_in_the_quickstart() -> None:
    text = (ROOT / "docs" / "quickstart-runner.md").read_text(encoding="utf-8")
    table = text[text.index("## All flags") :]
    assert not [item.name for item in fields(TrainConfig) if f"`{flag(item.name)}" not in table]


def test_defaults_in_the_quickstart_are_the_real_ones() -> None:
    text = (ROOT / "docs" / "quickstart-runner.md").read_text(encoding="utf-8")
    real = {flag(item.name): getattr(TrainConfig(), item.name) for item in fields(TrainConfig)}
    checked = 0
    for row in re.findall(r"^\| `--.*", text, re.MULTILINE):
        _, flags, defaults, *_ = row.split("|")
        names = re.findall(r"`(--[a-z-]+)", flags)
        for name, said in zip(names, map(str.strip, defaults.split(",")), strict=False):
            if real[name]:  # the others are described in words
                is_number = type(real[name]) in (int, float)
                default = "on" if real[name] is True else real[name]
                assert (float(said) if is_number else said) == default, name
                checked += 1
    assert checked > 20


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_yaml_blocks_are_configurations(page: Path) -> None:
    for _, text in blocks(page, "yaml"):
        TrainConfig(**{key.replace("-", "_"): value for key, value in yaml.safe_load(text).items()})


def test_tests_named_in_the_docs_exist() -> None:
    named = {
        match
        for page in PAGES
        for match in re.findall(
            r"(tests/[\w/]+\.py)::(?:\w+\.)?(\w+)", page.read_text(encoding="utf-8")
        )
    }
    assert named
    for file, name in sorted(named):
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"


def test_every_public_name_is_in_the_api() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for name in gmix.__all__:
        assert re.search(rf"^::: gmix\.{name}$", text, re.MULTILINE), name
    members = re.search(r"^::: gmix\.methods\n(?: .*\n)* +members: \[(.*)\]", text, re.MULTILINE)
    assert members and set(members[1].split(", ")) == set(gmix.methods.__all__)


def test_scores_in_the_readme_are_those_of_the_results() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [
        row for row in readme.splitlines() if re.match(r"\| (supervised|UniMatch|GuidedMix)", row)
    ]
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    said = {number for row in rows for number in re.findall(r"[+-]?\d+\.\d", row)}
    assert len(rows) == 3 and said <= set(re.findall(r"(?<=\| )[+-]?\d+\.\d", results))


def test_readme_links_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert links and all((ROOT / link).exists() for link in links), links


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_says_in_which_language_it_is(page: Path) -> None:
    """Blocks of the first five are run, parsed and loaded here; `text` is what something prints."""
    fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(fences[::2]) <= {"python", "py", "bash", "yaml", "yml", "text"}
    assert set(fences[1::2]) <= {""}
    assert len(fences) == 2 * sum(len(blocks(page, language)) for language in set(fences) - {""})


@pytest.mark.parametrize("page", pages_with("bash"))
def test_scripts_in_commands_exist_and_have_these_flags(page: Path) -> None:
    for words in lines_of_bash(page):
        for script in (word for word in words[:2] if word.endswith(".py")):
            source = (ROOT / script.removeprefix("GMIX/")).read_text(encoding="utf-8")
            known = set(re.findall(r'"(--[a-z-]+)"', source))
            if "parse(TrainConfig" in source:
                known |= {flag(item.name) for item in fields(TrainConfig)}
            used = {word.split("=")[0] for word in words if word.startswith("--")}
            assert used <= known, f"{script} {used - known}"


def test_files_named_in_the_docs_exist() -> None:
    for page in PAGES:
        named = re.findall(
            r"`((?:gmix|tests|benchmarks|examples|docs)/[\w./-]+)`", page.read_text("utf-8")
        )
        assert not [name for name in named if not (ROOT / name).exists()], page.name


def test_names_linked_to_the_api_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"\]\[(gmix[\w.]+)\]", page.read_text(encoding="utf-8")):
            assert resolve(name) is not None, f"{page.name}: {name}"


def resolve(name: str) -> Any:
    """The object `gmix.a.b`: modules first, then attributes."""
    first, *rest = name.split(".")
    found: Any = importlib.import_module(first)
    path = first
    for part in rest:
        path += f".{part}"
        found = getattr(found, part, None)
        if found is None:
            found = importlib.import_module(path)
    return found


def equation_rows() -> list[list[str]]:
    text = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[0] not in ("paper", "what")]


def test_every_equation_has_a_file_and_a_test() -> None:
    rows = equation_rows()
    for row in rows:
        file = ROOT / row[2].strip("`")
        source = file.read_text(encoding="utf-8")
        names = re.findall(r"\]\[gmix[\w.]*\.(\w+)\]", " ".join(row[3:5]))
        assert not names or any(re.search(rf"(def|class) {name}\b", source) for name in names), row
        assert "::" in row[-1], row
    said = " ".join(row[0] for row in rows)
    numbers = set(map(int, re.findall(r"\d+", " ".join(re.findall(r"Eq\. ([\d\-and ]+)", said)))))
    assert numbers == set(range(1, 13))
    tables = re.findall(r"\d", " ".join(re.findall(r"Tables? ([\d, and]+)", said)))
    assert set(tables) == set("1268")
    figures = re.findall(r"\d", " ".join(re.findall(r"Fig\. ([\d and]+)", said)))
    assert figures == list("4123567")


def test_cards_are_complete() -> None:
    """One for each method and each part, with the same rows."""
    for name, titles in (("methods", METHODS), ("parts", PARTS)):
        text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        cards = {card.split("\n")[0]: card for card in re.split(r"^## ", text, flags=re.MULTILINE)}
        for title in titles:
            rows = re.findall(
                r"^\| (idea|equation|helps|hurts|cost|source) \|", cards[title], re.MULTILINE
            )
            wanted = ["idea", "equation", "helps", "hurts", "cost", "source"]
            assert rows == wanted[: 5 if title == "supervised" else 6], title
            assert "](pictures/" in cards[title], title


def test_the_table_of_methods_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    rows = [row.split(" | ")[:3] for row in re.findall(r"^\| (`.*)$", text, re.MULTILINE)]
    expected = []
    for name, entry in METHODS.items():
        kind = entry.path.partition(":")[2]
        expected.append([f"`{name}`", f"[`{kind}`][gmix.methods.{kind}]", entry.learns_from])
    assert rows == expected


@pytest.mark.parametrize("name", ["methods", "parts"])
def test_scores_on_the_cards_are_measured_ones(name: str) -> None:
    """Every number with a decimal in a table is one of the pages that say how it was measured."""
    docs = {page.stem: page.read_text(encoding="utf-8") for page in PAGES}
    measured = docs["results"] + docs["experiments"] + docs["differences-from-the-paper"]
    known = set(re.findall(r"\d+\.\d+", measured))
    rows = re.findall(r"^\| (?!equation|cost|source)(.*) \|$", docs[name], re.MULTILINE)
    numbers = {number for row in rows for number in re.findall(r"\d+\.\d+", row)}
    assert len(numbers) > 15
    assert numbers <= known, sorted(numbers - known)


@pytest.mark.parametrize("name", METHODS)
def test_passes_on_the_cards_are_counted(name: str) -> None:
    n, m = 2, 3
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    in_table = re.search(rf"^\| `{name}` .*$", text, re.MULTILINE)
    on_card = re.search(
        rf"^## {name}$.*?^\| cost \| ([\dnm +]+) passes", text, re.MULTILINE | re.DOTALL
    )
    assert in_table and on_card
    method = build_method(TrainConfig(method=name), tiny_net())
    told: list[int] = []
    count_first_step(method, told.append)
    method(*tiny_batch(n, m), progress=1.0)
    for said in (in_table[0].split(" | ")[3].split("(")[0], on_card[1]):
        assert told == [total(said, n, m)], said


def total(said: str, n: int, m: int) -> int:
    """`3n + 4m` in numbers."""
    terms = re.findall(r"(\d*)([nm])", said)
    return sum(int(factor or 1) * (n if letter == "n" else m) for factor, letter in terms)
