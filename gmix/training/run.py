"""One training, from flags to a folder of results: `gmix train` and `gmix demo` call it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from gmix.data import eval_transform
from gmix.evaluation import Scores, add_other_processes, count_pixels
from gmix.evaluation.scoring import BATCH_SIZE
from gmix.network import GuidedMixNet
from gmix.say import complain
from gmix.training.build import (
    build_data,
    build_stream,
    describe_data,
    image_format,
    image_stats,
    remember_labeled,
)
from gmix.training.card import training_facts
from gmix.training.checkpoint import remove_old
from gmix.training.compiled import compile_call
from gmix.training.config import TrainConfig
from gmix.training.cost import count_first_step, count_passes, peak_memory
from gmix.training.decide import DECIDING, decide_for_miou, unlabeled_pixels
from gmix.training.deterministic import deterministic
from gmix.training.device import fit_settings, prepare_device
from gmix.training.fit import Report, fit
from gmix.training.flags import missing
from gmix.training.interrupts import Interrupted, Interrupts
from gmix.training.loading import Loader, shortage
from gmix.training.lock import locked, refuse_locked
from gmix.training.methods import refuse_few
from gmix.training.nonfinite import (
    Guard,
    NonFinite,
    batch_names,
    first_names,
    refuse_spoiled,
    save_reproduction,
)
from gmix.training.norm import renew_statistics, unlabeled_views
from gmix.training.options import parse_size
from gmix.training.processes import Processes, start_processes
from gmix.training.progress import SilentProgress, make_progress
from gmix.training.quality import judge_pseudo_masks
from gmix.training.rescue import everything_saved, rescue
from gmix.training.results import Metrics, write_results
from gmix.training.saved import SavedModel
from gmix.training.state import build_parts, find_checkpoint, restore
from gmix.training.trackers import available_trackers, open_trackers
from gmix.training.yamlfile import write_yaml
from gmix.whole import refuse_unwritable, sweep, whole_folder


class Result(NamedTuple):
    """What a finished training came to."""

    scores: Scores | None  # of the last weights; None without validation images
    best: tuple[float, int] | None  # highest mIoU seen and its step
    names: tuple[str, ...]  # of the classes
    minutes: float
    out: Path

    @property
    def miou(self) -> float:
        """mIoU of the last weights, 0..1; nan without validation images."""
        return math.nan if self.scores is None else self.scores.miou


def train(config: TrainConfig, on_report: Callable[[Report], None] | None = None) -> Result:
    """Build, fit, evaluate, and write everything into `config.out`.

    Written there: `config.yaml` (repeats the run), `metrics.jsonl` (one line per report and
    validation), `checkpoint-STEP/` (the last ones), `best/` (with `keep_best`), `model/` and
    `results.json` (at the end). A process killed at any moment leaves each of them whole.

    Args:
        config: the flags of `gmix train`.
        on_report: called after each report of `fit`, for those who want to look on.

    Raises:
        ValueError: on bad input, or if something cannot be written, in one sentence.
        FloatingPointError: if a loss is not finite; says where the step is saved.
        Interrupted: after SIGINT or SIGTERM, once the state is saved.
    """
    if config.out is None:
        raise missing(config, "out")
    with ExitStack() as at_end:
        return train_into(Path(config.out), config, on_report, at_end)


def train_into(
    out: Path, config: TrainConfig, on_report: Callable[[Report], None] | None, at_end: ExitStack
) -> Result:
    """`train`, with what is to be released at its end, however it ends."""
    began = perf_counter()
    processes = start_processes(config.device)
    refuse_uneven(config, processes)
    # What is written says in how many parts, so that another number of processes does the same.
    config = replace(config, accumulate=processes.parts(config.accumulate))
    available_trackers(config.trackers)
    with processes.one_by_one():
        if processes.first:
            refuse_unwritable(out)
            refuse_locked(out)
        checkpoint, notes = find_checkpoint(config, out)
    device = prepare_device(processes.device or config.device, config.threads)
    with processes.one_by_one() if config.download else nullcontext():
        data = build_data(config)
    if config.keep_best and data.validation is None:
        raise ValueError("--keep-best needs validation images: add some, or leave the flag out")
    parts = build_parts(config, data.classes.channels, device)
    refuse_few(config, parts.method, config.accumulate)
    start = 0
    if checkpoint is not None:
        start = checkpoint.step
        restore(parts, checkpoint, device)
        notes += other_images(parts.tally.split, data.split)
    parts.tally.split = data.split
    parts.tally.left_out += [name for name in data.left_out if name not in parts.tally.left_out]
    before = parts.tally.seconds
    if config.held_out > 0 and data.held_out is None:
        notes.append(
            f"--held-out {config.held_out} judges nothing: --labels leaves no mask of an unlabeled image unused"
        )

    mean, std = image_stats(config)
    size = None if config.size is None else parse_size(config.size)
    # Nothing is written by the others, nor before all that could be refused is in order.
    if processes.first:
        out.mkdir(parents=True, exist_ok=True)
        at_end.enter_context(locked(out))
        if checkpoint is None:
            find_checkpoint(config, out)  # another run may have begun and ended meanwhile
        sweep(out)
        remove_old(out, config.keep_last)
        write_yaml(config, out / "config.yaml")
    lines = out / "metrics.jsonl" if processes.first else None
    metrics = Metrics(lines, data.classes.names, start)
    stream = build_stream(config, data, mean, std)
    transform = eval_transform(mean, std)

    if checkpoint is None:
        remember_labeled(parts.method, config, data)

    def deployable() -> GuidedMixNet:
        """The network so far, finished with unlabeled images: alike for every method, with none without them."""
        net = parts.deployed
        if data.unlabeled is None:
            return net
        finishing = build_stream(config, data, mean, std, finishing=True)
        if config.norm_batches > 0:
            seen = load(finishing, range(config.norm_batches))
            supervised = not config.learns_unlabeled
            views = unlabeled_views(
                seen, mean=mean, std=std, seed=config.seed, device=device, supervised=supervised
            )
            net = renew_statistics(net, views)
        if config.decide_for == "miou":
            asked = load(finishing, range(DECIDING))
            pixels = unlabeled_pixels(net, (batch.to(device) for batch in asked), config.seed)
            net = decide_for_miou(net, pixels)
        return net

    def inform(text: str) -> None:
        if processes.first:
            show.note(text)
        else:
            complain(text, 0)

    load = partial(Loader, config, device=device, tell=inform, known=parts.tally.left_out)

    def score(net: GuidedMixNet) -> Scores | None:
        if data.validation is None:
            return None
        count = partial(
            count_pixels,
            net,
            data.validation,
            data.classes,
            transform=transform,
            size=size,
            device=device,
            indices=processes.share(data.counts["validation"], BATCH_SIZE),
        )
        return add_other_processes(processes.together(count)).scores()

    def judge() -> dict[str, Any] | None:
        return judge_pseudo_masks(
            parts.method,
            data,
            transform=transform,
            batch_labeled=config.batch_labeled,
            seed=config.seed,
        )

    def validate(step: int) -> tuple[GuidedMixNet, Scores | None, dict[str, Any] | None]:
        net = deployable()
        scores, pseudo = score(net), judge()
        if scores is not None:
            show.miou = scores.miou
            metrics.scores(step, scores)
            tally.best = max(tally.best or (-1.0, 0), (scores.miou, step))
            if config.keep_best and tally.best[1] == step:
                write_model(net, "best", step, scores)
        if pseudo is not None:
            metrics.pseudo(step, pseudo)
        return net, scores, pseudo

    def save(step: int) -> None:
        refuse_spoiled(parts.method, step)
        if processes.first:
            parts.save(out, step, config.keep_last)

    def write_model(net: GuidedMixNet, name: str, step: int, scores: Scores | None) -> None:
        if not processes.first:
            return
        reached = None if scores is None else {"step": step, **scores.to_dict(data.classes.names)}
        facts = training_facts(config, data.counts, data.split, reached)
        saved = SavedModel(net, data.classes, size, mean, std, image_format(config), facts)
        with whole_folder(out / name) as aside:
            saved.save_pretrained(aside)

    def describe_step(bad: NonFinite, *, save: bool = True) -> str:
        """What was not finite, in which images, and where that is saved."""
        labeled, unlabeled = map(first_names, batch_names(stream, bad.step))
        text = f"{bad}; labeled images: {labeled}; unlabeled: {unlabeled or 'none'}"
        if not (save and processes.first):
            return text
        # Without a guard the weights have moved on since.
        state = partial(parts.save, step=bad.step - 1) if guard is not None else None
        try:
            return f"{text}; saved in {save_reproduction(out, bad, config, stream, state)}"
        except ValueError as error:
            return f"{text}; {error}"

    def leave_out(bad: NonFinite) -> None:
        # One of them is enough to look at: each is as large as a checkpoint.
        show.note(f"left out: {describe_step(bad, save=not parts.tally.skipped)}")

    guard = None
    if config.skip_nonfinite > 0:
        guard = Guard(config.skip_nonfinite, parts.tally.skipped, leave_out)
    tally = parts.tally
    share = stream.share(processes.rank, processes.count)
    short = shortage(config, share)
    if short is not None:
        notes.append(short)
    stopping = False

    def report_when(step: int) -> bool:
        nonlocal stopping
        if not interrupts.asked:
            loader.fetch()  # what is wrong with the next batch is known while all is well
        stopping = processes.any(interrupts.asked or loader.error is not None)
        return stopping or is_due(config, step)

    progress = make_progress if processes.first else SilentProgress
    names = config.trackers if processes.first else "none"
    with (
        open_trackers(names, config, out, start) as metrics.log,
        deterministic(config.deterministic),
        Interrupts() as interrupts,
        progress(config.steps, start) as show,
    ):
        show.note(f"{config.method}: {describe_data(data)}; writing to {out}")
        for note in (*data.notes, *notes):
            show.note(note)
        if processes.count > 1:
            show.note(f"{processes.count} processes share the {config.accumulate} parts of a step")
        if start:
            show.note(f"going on after step {start}")
        loader = load(share, range(start, config.steps), waiting=interrupts.waiting)
        at_end.callback(loader.close)
        # A validation that failed did so before its step was saved.
        lacking = start > 0 and due(start, config.eval_every) and metrics.lacks_validation(start)
        if start == config.steps or processes.any(lacking):
            net, scores, pseudo = validate(start)
        if start < config.steps:

            def tell(images: int) -> None:
                tally.image_passes = images * processes.count

            if config.compile:
                tell(count_passes(parts.method, share[start].to(device)))
                compile_call(parts.method, device)
            else:
                count_first_step(parts.method, tell, calls=len(processes.share(config.accumulate)))
        reports = fit(
            parts.method,
            loader,
            parts.optimizer,
            start=start,
            average=parts.average,
            processes=processes,
            guard=guard,
            report_when=report_when,
            **fit_settings(config, device),
        )
        for report in explained(reports, describe_step):
            last = report.step == config.steps
            tally.step_seconds += report.seconds * report.steps
            rescued = partial(rescue, partial(save, report.step), report.step, config.steps)
            with rescued():
                metrics.report(report)
                if last or due(report.step, config.eval_every):
                    net, scores, pseudo = validate(report.step)
                show.report(report)
            tally.seconds = before + perf_counter() - began
            tally.peak_memory = max(tally.peak_memory or 0, peak_memory(device) or 0) or None
            if last or stopping or due(report.step, config.checkpoint_every):
                save(report.step)
            if on_report is not None:
                with rescued():
                    on_report(report)
            if stopping and not last:
                saved = everything_saved(report.step, config.steps)
                if loader.error is not None:
                    remedy = f"{loader.error.remedy}, and repeat the command with --resume"
                    raise ValueError(f"{loader.error.reason}; {saved}: {remedy}") from loader.error
                raise Interrupted(f"{saved}: repeat the command with --resume to go on")
    write_model(net, "model", config.steps, scores)
    if processes.first:
        write_results(
            out / "results.json", config, data.classes.names, data.counts, tally, scores, pseudo
        )
    return Result(scores, tally.best, data.classes.names, tally.seconds / 60, out)


def explained(
    reports: Iterable[Report], describe_step: Callable[[NonFinite], str]
) -> Iterator[Report]:
    """The reports of `fit`; if a loss is not finite, with all there is to say about it."""
    try:
        yield from reports
    except NonFinite as bad:
        advice = "try a lower --lr, --amp none, or --resume with --skip-nonfinite N"
        raise FloatingPointError(f"{describe_step(bad)}; {advice}") from bad


def refuse_uneven(config: TrainConfig, processes: Processes) -> None:
    """Make sure that the parts of a step are of equal size.

    Raises:
        ValueError: if they are not.

    Examples:
        >>> refuse_uneven(TrainConfig(accumulate=2), Processes())
    """
    parts = processes.parts(config.accumulate)
    unlabeled = config.batch_unlabeled if config.learns_unlabeled else 0
    if config.batch_labeled % parts or unlabeled % parts:
        raise ValueError(
            f"{processes.count} processes share a step's images in {parts} equal parts: --batch-labeled "
            f"{config.batch_labeled} and --batch-unlabeled {unlabeled} must be multiples of {parts}"
        )


def other_images(before: str, now: str) -> list[str]:
    """What to say if a training goes on with other images: maybe only a broken one was deleted.

    Args:
        before: `Data.split` of the steps done.
        now: that of the steps to come.

    Examples:
        >>> other_images("1854c52b11fd", "1854c52b11fd")
        []
    """
    if before == now:
        return []
    return [
        f"the images are not those it was trained on so far (split {before}, now {now}): if that is not "
        "meant, start anew in another --out"
    ]


def is_due(config: TrainConfig, step: int) -> bool:
    """Whether anything happens after this step."""
    every = (config.log_every, config.eval_every, config.checkpoint_every)
    return any(due(step, interval) for interval in every)


def due(step: int, every: int) -> bool:
    """Whether what happens every so many steps happens now; 0 means never.

    Examples:
        >>> due(40, 20), due(41, 20), due(40, 0)
        (True, False, False)
    """
    return every > 0 and step % every == 0
