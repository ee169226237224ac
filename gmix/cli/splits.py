"""Command line of splits: `gmix splits make | audit`."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Sequence

from gmix.config.commands import SplitsAuditConfig, SplitsMakeConfig
from gmix.config.options import suggest
from gmix.config.parser import parse
from gmix.errors import UsageError
from gmix.runtime.console import print_error, say

SPLITS_HELP = """\
usage: gmix splits COMMAND [flags]

Which images are labeled, which are not, and which a model is judged on.

commands:
  make        choose labeled images at random, by a seed, and write the lists
  audit       look for overlaps, repetitions, missing files and missing classes

`gmix splits COMMAND --help` lists the flags of a command.
"""

MAKE_EXAMPLES = """\
examples:
  gmix splits make --images photos --masks masks --labels 1/8 --seed 0 --out splits/eighth
  gmix splits make --voc VOC2012 --unlabeled-list trainaug --labels 1/16,1/8,1/4 \\
                   --stratify --classes 21 --out splits/voc
"""

AUDIT_EXAMPLES = """\
examples:
  gmix splits audit --root VOC2012 --labeled splits/voc/1_8/labeled.txt \\
                    --unlabeled splits/voc/1_8/unlabeled.txt --val val --classes 21
"""


def splits(words: Sequence[str]) -> int:
    """Run `gmix splits make` or `gmix splits audit`."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(SPLITS_HELP, end="")
        return 0 if words else 2
    command = SPLITS.get(words[0])
    if command is None:
        raise UsageError(f"unknown command splits {words[0]}{suggest(words[0], list(SPLITS))}")
    return command(words[1:])


def make(words: Sequence[str]) -> int:
    """Run `gmix splits make`."""
    about = "Choose labeled images at random, by a seed, and write the lists."
    config = parse(SplitsMakeConfig, "gmix splits make", about, words, MAKE_EXAMPLES)
    from gmix.splits import make_splits

    made = make_splits(config)
    for one in made:
        say(f"{one.folder}: {one.labeled} labeled, {one.unlabeled} unlabeled images")
        if one.absent:
            say(f"  no labeled pixel of {', '.join(one.absent)}")
    say(f"paths are relative to {one.root}; to train on {one.folder}:")
    data = ["--voc"] if config.dataset is None else ["--dataset", config.dataset, "--data"]
    labeled, unlabeled = (str(one.folder / f"{name}.txt") for name in ("labeled", "unlabeled"))
    lists = ["--train-list", labeled, "--unlabeled-list", unlabeled]
    folders = "" if config.images is None else " --val-images DIR --val-masks DIR --classes N"
    join = subprocess.list2cmdline if os.name == "nt" else shlex.join
    say(f"  {join(['gmix', 'train', *data, str(one.root), *lists])}{folders} ...")
    return 0


def audit(words: Sequence[str]) -> int:
    """Run `gmix splits audit`."""
    about = "Look for what is wrong with a split; exit code 1 if --val is trained on."
    config = parse(SplitsAuditConfig, "gmix splits audit", about, words, AUDIT_EXAMPLES)
    from gmix.compare.board import print_table
    from gmix.splits import audit_split

    found = audit_split(config)
    for table in found.tables:
        print_table(table)
    say("", *found.notes)
    if found.leaks:
        leaks = [f"{len(names)} {name}" for name, names in found.leaks.items()]
        return print_error(f"images to be judged on are trained on: {', '.join(leaks)}", 1)
    return 0


SPLITS: dict[str, Callable[[Sequence[str]], int]] = {"make": make, "audit": audit}
