"""Tab completion of commands, flags and values, in bash and zsh."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from gmix.config import commands
from gmix.config.options import DATASETS, LOSSES, flag
from gmix.config.recipes import recipe_names
from gmix.config.train_config import CompareConfig, TrainConfig
from gmix.methods import METHODS

FLAGS: dict[str, type[Any]] = {
    "demo": commands.DemoConfig,
    "train": TrainConfig,
    "compare": CompareConfig,
    "report": commands.ReportConfig,
    "evaluate": commands.EvaluateConfig,
    "predict": commands.PredictConfig,
    "pseudo-label": commands.PseudoLabelConfig,
    "export": commands.ExportConfig,
    "splits make": commands.SplitsMakeConfig,
    "splits audit": commands.SplitsAuditConfig,
}

# Known words are suggested; if there are none, bash falls back to file names.
SCRIPT = """\
if [ -n "$ZSH_VERSION" ]; then
  typeset -f compdef >/dev/null || {{ autoload -U compinit && compinit; }}
  autoload -U +X bashcompinit && bashcompinit
fi
_gmix() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD - 1]}}"
  local command="${{COMP_WORDS[1]}}" known=""
  [ "$command" != splits ] || command="splits ${{COMP_WORDS[2]}}"
  case "$COMP_CWORD $command $before" in
    1\\ *) known="{commands}" ;;
    2\\ splits*) known="{splits}" ;;
{cases}
  esac
  COMPREPLY=($(compgen -W "$known" -- "$word"))
}}
complete -o default -F _gmix gmix
"""


def completion_script() -> str:
    r"""Return the script for the shell to evaluate: `eval "$(gmix completion)"`.

    Examples:
        >>> [line.strip() for line in completion_script().splitlines() if "--dataset)" in line]
        ['*\\ --dataset) known="voc sbd context cityscapes ade20k coco coco_stuff camvid" ;;']
    """
    values, cases = {"--config": ""}, []
    for command, kind in FLAGS.items():
        names, hints = ["--config", "--help"], get_type_hints(kind)
        for item in fields(kind):
            if item.init and hints[item.name] is bool:
                names.append(flag(f"no_{item.name}" if item.default else item.name))
            elif item.init:
                names.append(flag(item.name))
                values[flag(item.name)] = " ".join(choices(hints[item.name]))
        escaped = command.replace(" ", "\\ ")
        cases.append(f'*\\ {escaped}\\ *) known="{" ".join(names)}" ;;')
    values |= {
        "--recipe": " ".join(recipe_names()),
        "--dataset": DATASETS.replace(",", ""),
        "--method": " ".join(METHODS),
        "--loss": " ".join(LOSSES),
    }
    # Flags that take a value come first.
    cases = [f'*\\ {name}) known="{words}" ;;' for name, words in values.items()] + cases
    first = dict.fromkeys(command.split()[0] for command in FLAGS)
    return SCRIPT.format(
        commands=" ".join([*first, "completion"]),
        splits=" ".join(command.split()[1] for command in FLAGS if " " in command),
        cases="\n".join(f"    {case}" for case in cases),
    )


def choices(hint: Any) -> list[str]:
    """List the values that a `Literal` type allows; empty for other types.

    Examples:
        >>> choices(Literal["onnx", "torch"] | None), choices(int)
        (['onnx', 'torch'], [])
    """
    literals = [part for part in (hint, *get_args(hint)) if get_origin(part) is Literal]
    return [str(word) for part in literals for word in get_args(part)]
