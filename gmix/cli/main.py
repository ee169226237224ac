"""The command line: `gmix train | compare | report | evaluate | predict | pseudo-label | export | splits | demo`.

Nothing heavy is imported before a command has parsed its flags, so help and errors appear at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmix import __version__
from gmix.cli.splits import splits
from gmix.config.commands import (
    DemoConfig,
    EvaluateConfig,
    ExportConfig,
    PredictConfig,
    PseudoLabelConfig,
    ReportConfig,
)
from gmix.config.options import parse_size, suggest
from gmix.config.parser import missing, parse
from gmix.config.train_config import CompareConfig, TrainConfig
from gmix.errors import Interrupted, UsageError
from gmix.runtime.console import (
    describe_failures,
    explain,
    is_main_process,
    print_error,
    print_scores,
    report_left_out,
    say,
    show_anything,
    warn,
)

if TYPE_CHECKING:
    from gmix.runs.saved import SavedModel

HELP = """\
usage: gmix COMMAND [flags]

A few masks, many images, one better segmentation model.

commands:
  demo          see it work: trains on small scenes made here; a few minutes, no download
  train         train on your images, with GuidedMix or another method
  compare       train several methods alike on your images, and put them into one table
  report        show what trainings did, in one HTML file of pictures and curves
  evaluate      score a trained model: mIoU, and IoU and Dice of each class
  predict       write class masks and overlays for a folder of images
  pseudo-label  write what a model is sure of, for an annotation tool to go on with
  export        write a trained model as one file that runs without gmix: ONNX, torch.export
  splits        choose which images are labeled; check such lists before you train on them
  completion    print what lets bash and zsh complete these commands: eval "$(gmix completion)"

`gmix COMMAND --help` lists the flags of a command; `gmix --version` prints the version.
"""

TRAIN_EXAMPLES = """\
examples:
  gmix train --images photos --masks masks --val-images val/photos --val-masks val/masks \\
             --classes names.txt --out runs/first
  gmix train --dataset voc --data VOC2012 --unlabeled-list trainaug --labels 92 --out runs/voc
  gmix train --recipe voc_1-8_r101 --data VOC2012 --out runs/eighth
  gmix train --config runs/first/config.yaml --seed 1 --out runs/second
  gmix train --config runs/first/config.yaml --resume
"""

COMPARE_EXAMPLES = """\
examples:
  gmix compare --methods supervised,unimatch,guidedmix --labels 55 --seeds 3 --steps 1500 \\
               --images photos --masks masks --val-images val/photos --val-masks val/masks \\
               --classes names.txt --out runs/compare
  gmix compare --config runs/first/config.yaml --full --labels 20 --out runs/compare
"""

REPORT_EXAMPLES = """\
examples:
  gmix report runs/first
  gmix report runs/compare --palette colorblind --images 10
  gmix report runs/supervised runs/guidedmix --out both.html
  gmix report runs/guidedmix --figure decoupling --out figure5.pdf
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments after `gmix`; None takes those of the process.

    Returns:
        0 on success, 1 if the command fails, 2 if the command line is invalid. Both errors print one line to stderr;
        with `--debug` the exception is raised instead.
    """
    show_anything()
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if words else 2
    if words[0] == "--version":
        print(f"gmix {__version__}")
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        hint = suggest(words[0], list(COMMANDS))
        return print_error(f"unknown command {words[0]}{hint} (see `gmix --help`)", 2)
    if os.environ.get("WORLD_SIZE", "1") != "1" and words[0] not in ("train", "evaluate"):
        return print_error(f"gmix {words[0]} is for one process: start it without a launcher", 2)
    try:
        return command(words[1:])
    except Interrupted as stopped:
        if is_main_process():
            say(stopped)
        return 0
    except KeyboardInterrupt:
        return print_error("stopped", 130)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, UsageError):
            return print_error(f"{error} (see `gmix {words[0]} --help`)", 2)
        return print_error(explain(error), 1)


def train(words: Sequence[str]) -> int:
    """Run `gmix train`."""
    about = "Train a segmentation model on a few masks and many images."
    config = parse(TrainConfig, "gmix train", about, words, TRAIN_EXAMPLES)
    if config.dry_run:
        if not is_main_process():
            return 0
        from gmix.training.plan import describe, plan

        say(*describe(plan(config)))
        return 0
    from gmix.compare.guard import check_guard, guard
    from gmix.training.train import train as run

    if config.guard:
        check_guard(config)
    result = run(config)
    helped = guard(config) if config.guard else ""
    if not is_main_process():
        return 0
    if result.scores is not None:
        print_scores(result.scores.to_dict(result.names))
    if result.best is not None:
        say(f"best mIoU {100 * result.best[0]:.1f} at step {result.best[1]}")
    say(f"{result.minutes:.1f} minutes; model and results are in {result.out}")
    if helped:
        say(helped)
    if config.report != "none":
        announce_report([result.out], config)
    return 0


def compare(words: Sequence[str]) -> int:
    """Run `gmix compare`."""
    about = "Train several methods with equal steps on your images, and compare them."
    config = parse(CompareConfig, "gmix compare", about, words, COMPARE_EXAMPLES)
    from gmix.compare import compare as run
    from gmix.compare.board import print_table

    found = run(config)
    if found.done:
        for table in found.tables:
            print_table(table)
        say("", *found.notes, f"all of this is in {config.out}/compare.md")
        if config.report != "none":
            finished = [run.folder for run in found.runs if run.name in found.done]
            announce_report(finished, config, Path(str(config.out)) / "report.html")
    if found.failures:
        return print_error(describe_failures(found.failures, len(found.runs)), 1)
    return 0


def report(words: Sequence[str]) -> int:
    """Run `gmix report`."""
    about = "Show what one or more trainings did, in one HTML file that fetches nothing."
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    runs, flags = words[:first], words[first:]
    config = parse(ReportConfig, "gmix report RUN [RUN ..]", about, flags, REPORT_EXAMPLES)
    if not runs:
        raise UsageError("RUN is missing: name the --out folders of `gmix train`, then the flags")
    if config.figure is not None:
        from gmix.report.figures import draw_figure

        say(f"figure: {draw_figure(runs, config)}")
        return 0
    from gmix.report import write_report

    say(f"report: {write_report(runs, config)}")
    return 0


def announce_report(runs: Sequence[Path], config: TrainConfig, out: Path | None = None) -> None:
    """Draw the report of finished trainings and print its path; warn if that fails."""
    from gmix.report import try_report

    file = None if out is None else str(out)
    written = try_report(runs, ReportConfig(out=file, device=config.device, threads=config.threads))
    if written is not None:
        say(f"report: {written}")


def evaluate(words: Sequence[str]) -> int:
    """Run `gmix evaluate`."""
    about = "Score a trained model on images with masks, at the masks' own resolution."
    config = parse(EvaluateConfig, "gmix evaluate", about, words)
    from gmix.deploy.evaluate import score_model

    found = score_model(config)
    if not is_main_process():
        return 0
    print_scores(found)
    if config.incomparable_center is not None:
        warn(
            f"only the centre {config.incomparable_center} of each image was scored: these numbers "
            "compare with no others"
        )
    return 0


def model_and_images(
    config: PredictConfig | PseudoLabelConfig, model: str, folder: str
) -> tuple[SavedModel, list[Path], Any]:
    """Load a model, find the images it is asked about and how, and say what it cannot see of them."""
    from gmix.builders.notes import clipped
    from gmix.data import find_images
    from gmix.deploy.evaluate import build_predict
    from gmix.runs.saved import SavedModel
    from gmix.runtime.device import prepare_device

    images, how = find_images(folder), build_predict(config)
    saved = SavedModel.from_pretrained(model, prepare_device(config.device, config.threads))
    if note := clipped(images, saved.format, which=""):
        warn(note)
    return saved, images, how


def predict(words: Sequence[str]) -> int:
    """Run `gmix predict`."""
    about = "Write a class mask and an overlay for each image of a folder."
    config = parse(PredictConfig, "gmix predict", about, words)
    if config.model is None or config.images is None or config.out is None:
        raise missing(config, "model", "images", "out")
    from gmix.deploy.predict import predict_folder

    saved, images, how = model_and_images(config, config.model, config.images)
    failures = predict_folder(
        saved, images, Path(config.out), overlays=not config.masks_only, predict=how
    )
    say(f"{len(images) - len(failures)} of {len(images)} images are done, see {config.out}")
    return report_left_out([failure.reason for failure in failures], len(images))


def pseudo_label(words: Sequence[str]) -> int:
    """Run `gmix pseudo-label`."""
    about = "Write masks of what a model is sure of, how sure it is, and the regions as COCO JSON."
    config = parse(PseudoLabelConfig, "gmix pseudo-label", about, words)
    if config.model is None or config.images is None or config.out is None:
        raise missing(config, "model", "images", "out")
    from gmix.deploy.pseudo_label import pseudo_label_folder

    saved, images, how = model_and_images(config, config.model, config.images)
    made = pseudo_label_folder(
        saved,
        images,
        Path(config.out),
        min_confidence=config.min_confidence,
        min_area=config.min_area,
        predict=how,
    )
    say(
        f"{made.images} of {len(images)} images: {made.regions} regions, {100 * made.sure:.1f} % of "
        f"the pixels are labeled, see {config.out}"
    )
    return report_left_out([failure.reason for failure in made.failures], len(images))


def export(words: Sequence[str]) -> int:
    """Run `gmix export`."""
    about = "Write a trained model as one file: images in 0..255 to logits, without gmix."
    config = parse(ExportConfig, "gmix export", about, words)
    if config.model is None or config.out is None:
        raise missing(config, "model", "out")
    format, size = config.chosen_format(), None
    if config.size is not None:
        size = parse_size(config.size)
    from gmix.deploy.export import export_model
    from gmix.runs.saved import SavedModel

    saved = SavedModel.from_pretrained(config.model)
    difference = export_model(saved, config.out, format, size)
    say(f"{config.out} gives the model's logits, checked on noise: {difference:.1e} apart at most")
    return 0


def demo(words: Sequence[str]) -> int:
    """Run `gmix demo`."""
    about = "Train supervised and GuidedMix on scenes made here, and compare the two."
    config = parse(DemoConfig, "gmix demo", about, words)
    from gmix.demo import run_demo

    try:
        run_demo(Path(config.out), seed=config.seed, steps=config.steps)
    except Interrupted:
        say(f"stopped; the same command goes on with what is in {config.out}")
    return 0


def completion(words: Sequence[str]) -> int:
    """Run `gmix completion`."""
    if words:
        print('usage: eval "$(gmix completion)"    in ~/.bashrc or ~/.zshrc')
        return 0 if words[0] in ("-h", "--help") else 2
    from gmix.cli.completion import completion_script

    print(completion_script(), end="")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": demo,
    "train": train,
    "compare": compare,
    "report": report,
    "evaluate": evaluate,
    "predict": predict,
    "pseudo-label": pseudo_label,
    "export": export,
    "splits": splits,
    "completion": completion,
}
