"""Completion by TAB, in real shells."""

import shlex
import shutil
import subprocess
from collections.abc import Callable

import pytest

from gmix.cli import main as cli
from gmix.cli import splits as cli_splits
from gmix.cli.completion import FLAGS, completion_script
from gmix.config.options import DATASETS
from gmix.config.parser import parse
from gmix.config.recipes import recipe_names
from gmix.methods import METHODS

Complete = Callable[[str], list[str]]


@pytest.fixture(params=[("bash", "--norc"), ("zsh", "-f")], ids=lambda shell: shell[0])
def complete(request: pytest.FixtureRequest) -> Complete:
    """What the shell proposes for a line whose last word is not complete."""
    name, bare = request.param
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    # zsh calls functions of bash in this emulation.
    emulate = "emulate ksh\n" if name == "zsh" else ""

    def ask(line: str) -> list[str]:
        words = line.split(" ")
        code = (
            f"{completion_script()}\n{emulate}COMP_WORDS=({' '.join(map(shlex.quote, words))})\n"
            f'COMP_CWORD={len(words) - 1}\n_gmix\nprintf "%s\\n" "${{COMPREPLY[@]}}"'
        )
        done = subprocess.run([name, bare, "-c", code], capture_output=True, text=True, check=True)
        assert not done.stderr, done.stderr
        proposed = done.stdout.split()
        if name == "zsh":  # which leaves out by itself what does not begin like the word
            proposed = [word for word in proposed if word.startswith(words[-1])]
        return proposed

    return ask


def test_shells_complete_commands_flags_and_values(complete: Complete) -> None:
    assert complete("gmix ") == [*cli.COMMANDS]
    assert complete("gmix e") == ["evaluate", "export"]
    assert complete("gmix train --val-") == [
        *("--val-images", "--val-masks", "--val-list", "--val-part")
    ]
    assert complete("gmix train --images photos --val-part ") == ["all", "odd", "even"]
    assert complete("gmix train --recipe voc_1-8_d") == [
        name for name in recipe_names() if name.startswith("voc_1-8_d")
    ]
    assert complete("gmix train --dataset coco") == ["coco", "coco_stuff"]
    assert complete("gmix train --method ") == [*METHODS]
    assert complete("gmix splits ") == [*cli_splits.SPLITS]
    assert complete("gmix splits audit --lab") == ["--labeled", "--label-map"]


def test_shells_are_left_to_complete_names_of_files(complete: Complete) -> None:
    assert complete("gmix train --images ph") == []
    assert complete("gmix splits make --config sp") == []
    assert complete("gmix nonsense --im") == []


def test_every_command_and_method_is_known() -> None:
    single = {command for command in FLAGS if " " not in command}
    assert single | {"splits", "completion"} == set(cli.COMMANDS)
    assert {f"splits {name}" for name in cli_splits.SPLITS} == set(FLAGS) - single
    assert len(DATASETS.split(", ")) == 8


@pytest.mark.parametrize("command", FLAGS)
def test_flags_are_those_of_the_parser(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(FLAGS[command], f"gmix {command}", "", ["--help"])
    shown = {line.split()[0] for line in capsys.readouterr().out.splitlines() if "  --" in line}
    escaped = command.replace(" ", "\\ ")
    (case,) = [line for line in completion_script().splitlines() if f"*\\ {escaped}\\ *)" in line]
    proposed = set(case.split('"')[1].split())
    assert {name for name in shown if name.startswith("--")} <= proposed


def test_the_command_prints_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion"]) == 0
    assert capsys.readouterr().out == completion_script()
    assert cli.main(["completion", "--help"]) == 0
    assert cli.main(["completion", "fish"]) == 2


def test_help_fits_a_screen() -> None:
    lines = cli.HELP.splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
