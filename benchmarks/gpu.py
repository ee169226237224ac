"""What a GPU shows and a CPU cannot: the tests marked cuda, seconds and memory of real steps, loading, real trainings.

    python benchmarks/gpu.py --data DIR --out runs/gpu            # 12 minutes on a fast card
    python benchmarks/gpu.py --data DIR --out runs/gpu            # again: goes on with what is missing
    python benchmarks/gpu.py --out runs/gpu --table               # prints what is known, and runs nothing

Every job runs in a process of its own and ends with a line of `OUT/gpu.jsonl`. A stage has a part of `--minutes`; a job
that would begin after the end of its stage is left for the next call, and one that lasts longer than all the time left
is ended. `DIR` holds voc_animals, camvid and nuclei (`benchmarks/bench.py` says how); without it nothing is trained.
`--smoke` runs one small job of each stage on a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import yaml
from bench import HERE, Run, judged_on, located, read, words_of
from torch import Tensor

from gmix import GuidedMixNet
from gmix.builders.method import build_method
from gmix.builders.network import build_net
from gmix.cli.main import main as gmix
from gmix.config.train_config import TrainConfig
from gmix.methods import METHODS
from gmix.nn.ema import EMATeacher
from gmix.nn.views import StrongView, disturb
from gmix.runtime.device import peak_memory
from gmix.runtime.precision import amp_dtype, mixed_precision

ROOT = HERE.parent
SEEDS = (0, 1, 2)


class Job(NamedTuple):
    """Something to run and measure: its stage, its name, and what does it."""

    stage: str
    name: str
    run: Callable[[], dict[str, Any]]


class Size(NamedTuple):
    """A step of real size."""

    arch: str
    encoder: str
    side: int
    classes: int
    batch: int  # labeled, and as many unlabeled
    args: dict[str, Any] | None = None  # of the architecture


SIZES = {
    "voc 321": Size("DeepLabV3Plus", "resnet50", 321, 21, 8),
    "voc 512": Size("DeepLabV3Plus", "resnet101", 512, 21, 12),
    "cityscapes 801": Size("DeepLabV3Plus", "resnet50", 801, 19, 4),
    "150 classes": Size("DeepLabV3Plus", "resnet50", 512, 150, 8),
    "1,000 classes": Size("Unet", "resnet50", 320, 1000, 4),
}
SMALL = {"encoder_depth": 3, "decoder_channels": [16, 8, 8]}
TINY = {"tiny": Size("Unet", "tu-test_resnet", 64, 3, 2, SMALL)}
SMOKE = {"encoder": TINY["tiny"].encoder, "encoder_weights": "none", "model_args": SMALL}
SMOKE |= {"crop": "32x32", "device": "cpu"}
# The share of the time that each stage may use.
SHARES = {"tests": 0.15, "steps": 0.3, "loading": 0.05, "trainings": 0.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="runs, and gpu.jsonl")
    parser.add_argument("--data", type=Path, help="the folder that holds the sets")
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--steps", type=int, default=1500, help="of a training")
    parser.add_argument("--stages", default=",".join(SHARES), help="some of them, NAME,NAME")
    parser.add_argument("--smoke", action="store_true", help="small, and on a CPU")
    parser.add_argument("--table", action="store_true", help="print what is known, run nothing")
    parser.add_argument("--job", help="only this, for the script's own child processes")
    args = parser.parse_args()
    lines = args.out / "gpu.jsonl"
    if args.table:
        print(tables(read(lines)))
        return
    if not (args.smoke or torch.cuda.is_available()):
        parser.error("there is no CUDA device here: --smoke runs small jobs on a CPU")
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = {f"{job.stage}: {job.name}": job for job in plan(args)}
    if args.job:
        print(json.dumps(jobs[args.job].run()))
        return
    done = {line["job"] for line in read(lines)}
    began, share = time.monotonic(), 0.0
    for stage in args.stages.split(","):
        share += SHARES[stage]
        of_stage = {name: job for name, job in jobs.items() if job.stage == stage}
        for name, job in of_stage.items():
            left = 60 * args.minutes - (time.monotonic() - began)
            if name in done or left < 60 * args.minutes * (1 - share) or left <= 0:
                continue
            started = time.monotonic()
            found = job.run() if args.smoke else in_a_process(name, left)
            line = {"job": name, "device": device_name(args), **found}
            line["wall"] = round(time.monotonic() - started, 1)
            print(json.dumps(line), flush=True)
            if "error" not in found:
                with lines.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    print(tables(read(lines)))


def plan(args: argparse.Namespace) -> Iterator[Job]:
    """All jobs, those that matter most first within a stage."""
    device = torch.device("cpu" if args.smoke else "cuda")
    if not args.smoke:
        yield Job("tests", "pytest -m cuda", cuda_tests)
    yield Job("tests", "resumed to the bit", lambda: resumed(args))
    names = ["bare", "by hand, fixmatch", "by hand, unimatch", "guidedmix", "unimatch", "fixmatch"]
    names += [] if args.smoke else [name for name in METHODS if name not in names]
    for (title, size), name in itertools.product((TINY if args.smoke else SIZES).items(), names):
        yield Job(
            "steps", f"{title}, {name}", lambda size=size, name=name: step_cost(size, name, device)
        )
    for crop in ("64x64",) if args.smoke else ("320x320", "512x512"):
        yield Job("loading", crop, lambda crop=crop: loading(crop, args))
    if args.data is not None:
        bench = yaml.safe_load((HERE / "bench.yaml").read_text())
        methods = ("supervised", "guidedmix", "unimatch", "fixmatch")
        sets = ("nuclei",) if args.smoke else ("voc_animals", "camvid")
        seeds = SEEDS[:1] if args.smoke else SEEDS
        for seed, name, method in itertools.product(seeds, sets, methods):
            run = Run(
                name,
                bench["sets"][name]["labels"][0],
                method,
                method,
                bench["methods"][method],
                seed,
            )
            if not args.smoke or method == "guidedmix":
                yield Job("trainings", run.name, lambda run=run: training(run, bench, args))  # fmt: skip


def in_a_process(name: str, seconds: float) -> dict[str, Any]:
    """Run a job in a process of its own; what it prints last is its result."""
    command = [sys.executable, __file__, *sys.argv[1:], "--job", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"error": "no time was left"}
    if done.returncode:
        return {"error": (done.stdout + done.stderr)[-1500:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def device_name(args: argparse.Namespace) -> str:
    return "CPU" if args.smoke else torch.cuda.get_device_name()


# --- tests -------------------------------------------------------------------------------------


def cuda_tests() -> dict[str, Any]:
    """The tests marked cuda."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-n0", "-p", "no:cacheprovider"]
    command += [str(ROOT / "tests" / "test_cuda.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    *_, last = [line for line in done.stdout.splitlines() if line.strip()] or [done.stderr]
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    return {"passed": done.returncode == 0, "said": last, "failed": failed}


def resumed(args: argparse.Namespace) -> dict[str, Any]:
    """A training in one go and the same in two: are the weights equal? And does the model export?"""
    scenes = args.out / "scenes"
    if not scenes.exists():
        from gmix.demo import write_scenes
        from gmix.demo.scenes import Folders

        write_scenes(Folders.inside(scenes), labeled=8, unlabeled=16, val=4, seed=0)
    steps = 4 if args.smoke else 40
    flags: dict[str, Any] = {
        "images": scenes / "train/images",
        "masks": scenes / "train/masks",
        "unlabeled": scenes / "unlabeled/images",
        "classes": scenes / "classes.txt",
        "encoder": "resnet18",
        "encoder_weights": "none",
        "crop": "64x64",
        "steps": steps,
        "batch_labeled": 2,
        "batch_unlabeled": 2,
        "norm_batches": 0,
        "workers": 0,
        "checkpoint_every": steps // 2,
        "report": "none",
        "trackers": "none",
        "deterministic": True,
        "device": "cpu" if args.smoke else "cuda",
    }
    whole, parts = args.out / "whole", args.out / "parts"
    call("train", **flags, out=whole, resume=whole.exists())
    if not parts.exists():
        done = subprocess.Popen(
            [sys.executable, "-m", "gmix", *words_of("train", **flags, out=parts)],
            stdout=subprocess.DEVNULL,
        )
        while done.poll() is None and not list(parts.glob("checkpoints/*")):
            time.sleep(0.2)
        done.kill()
        done.wait()
    call("train", **flags, out=parts, resume=True)
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (whole, parts)]
    exported = args.out / "model.pt2"
    if not (args.smoke or exported.exists()):
        call("export", model=whole, out=exported)
    return {"equal": weights[0] == weights[1], "exported": exported.exists()}


# --- steps -------------------------------------------------------------------------------------


def step_cost(size: Size, name: str, device: torch.device, repeats: int = 10) -> dict[str, Any]:
    """Median seconds and peak memory of a step with the optimizer, on random images; the first three warm up."""
    if device.type == "cpu":
        repeats = 1
    torch.manual_seed(0)
    config = TrainConfig(
        method=name if name in METHODS else "supervised",
        arch=size.arch,
        encoder=size.encoder,
        encoder_weights="none",
        model_args=size.args or {},
    )
    net = build_net(config, size.classes).to(device, memory_format=torch.channels_last)
    by_hand = {"bare": Bare, "by hand, fixmatch": HandFixMatch, "by hand, unimatch": HandUniMatch}
    method: Any = (
        by_hand[name](net) if name in by_hand else build_method(config, net).to(device).train()
    )
    images = torch.randn(2, size.batch, 3, size.side, size.side, device=device)
    x_l, x_u = (x.to(memory_format=torch.channels_last) for x in images)
    y = torch.randint(size.classes, (size.batch, size.side, size.side), device=device)
    if name not in by_hand:
        method.remember([(x, m) for x, m in zip(x_l, y, strict=True)])
    learned = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, 1e-4)
    dtype, seconds = amp_dtype("auto", device), []
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats + (3 if device.type == "cuda" else 0)):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        with mixed_precision(device, dtype):
            total = method(x_l, y, x_u, progress=0.5)["total"]
        scaler.scale(total).backward()
        scaler.step(optimizer)
        scaler.update()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    memory = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory(device)
    return {"seconds": statistics.median(seconds[-repeats:]), "memory": memory, "amp": str(dtype)}


class Bare(torch.nn.Module):
    """The network and cross-entropy, on the labeled images: what a step costs at least."""

    def __init__(self, net: GuidedMixNet) -> None:
        super().__init__()
        self.net = net.train()

    def forward(self, x_l: Tensor, y: Tensor, x_u: Tensor, progress: float) -> dict[str, Tensor]:
        return {"total": F.cross_entropy(self.net.model(x_l).float(), y)}


class HandFixMatch(torch.nn.Module):
    """FixMatch with a teacher, as one would write it: no checks, no options."""

    views = 1

    def __init__(self, net: GuidedMixNet) -> None:
        super().__init__()
        self.net, self.teacher, self.view = net.train(), EMATeacher(net), StrongView()
        self.to(next(net.parameters()).device)

    def forward(self, x_l: Tensor, y: Tensor, x_u: Tensor, progress: float) -> dict[str, Tensor]:
        self.teacher.update(self.net)
        with torch.no_grad():
            weak = self.teacher.net(x_u).float().softmax(1)
        views = [self.view(x_u) for _ in range(self.views)]
        features, n = self.net.encode(torch.cat([x_l, *self.clean(x_u), *(x for x, _ in views)])), len(x_l)  # fmt: skip
        size = (x_l.shape[2], x_l.shape[3])
        m = len(x_u) * len(self.clean(x_u))
        logits = self.net.decode([torch.cat([f[:n], f[n + m :]]) for f in features], size).float()
        confidence, label = weak.max(1)
        total = F.cross_entropy(logits[:n], y)
        for part, (_, pasted) in zip(logits[n:].chunk(self.views), views, strict=True):
            loss = F.cross_entropy(part, pasted.apply(label), reduction="none")
            total = total + (loss * (pasted.apply(confidence) > 0.95)).mean() / self.views
        if m:
            dropped = self.net.decode(disturb([f[n : n + m] for f in features], 0.5), size).float()
            loss = F.cross_entropy(dropped, label, reduction="none")
            total = total + (loss * (confidence > 0.95)).mean()
        return {"total": total}

    def clean(self, x_u: Tensor) -> list[Tensor]:
        """The unchanged images, if their features are disturbed."""
        return []


class HandUniMatch(HandFixMatch):
    """UniMatch with a teacher: two strong views, and dropped feature channels."""

    views = 2

    def clean(self, x_u: Tensor) -> list[Tensor]:
        return [x_u]


# --- loading -----------------------------------------------------------------------------------


def loading(crop: str, args: argparse.Namespace) -> dict[str, Any]:
    """Images a second of one loader process, as `benchmarks/data.py` measures it."""
    few = ["--batches", "1", "--repeats", "1", "--batch", "2"] if args.smoke else []
    few += ["--images", str(args.out / "scenes/unlabeled/images")] if args.smoke else []
    command = [sys.executable, str(HERE / "data.py"), "--crop", crop, *few]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [line.split("|")[1:3] for line in out.splitlines() if line.startswith("| ")][1:]
    return {"images_per_second": {name.strip(): float(value) for name, value in rows}}


# --- trainings ---------------------------------------------------------------------------------


def training(run: Run, bench: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """A run of the bench at 320 pixels; scored on the reporting half, last weights."""
    known, folder = bench["sets"][run.set], args.out.resolve() / run.name
    flags, half = (
        located(known[part], args.data.resolve(), args.out) for part in ("flags", "report")
    )
    larger = {"size": "320x426", "crop": "320x320", "amp": "auto", "threads": 4, "workers": 6}
    if args.smoke:
        larger = {"size": "64x64", **SMOKE}
    settings = {**bench["shared"], **flags, **half, **larger, "labels": run.labels}
    settings |= {"steps": 2 if args.smoke else args.steps, "seed": run.seed}
    settings |= {"method": run.method, "method_args": run.args}
    call("train", **settings, out=folder, resume=folder.is_dir())
    scores = folder / "report.json"
    call("evaluate", model=folder, **judged_on(flags, half), out=scores)
    result = json.loads((folder / "results.json").read_text())
    return {
        "set": run.set,
        "method": run.row,
        "seed": run.seed,
        "miou": round(100 * json.loads(scores.read_text())["miou"], 2),
        "minutes": result.get("minutes"),
    }


def call(command: str, **flags: Any) -> None:
    """Run a command of gmix in this process.

    Raises:
        RuntimeError: If it fails; it has said why.
    """
    if gmix(words_of(command, **flags)):
        raise RuntimeError(f"gmix {command} failed")


# --- tables ------------------------------------------------------------------------------------


def tables(lines: list[dict[str, Any]]) -> str:
    """All results as Markdown, a table per stage."""
    known: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        known.setdefault(line["job"].partition(":")[0], []).append(line)
    out = [f"On {' and '.join(sorted({line['device'] for line in lines}))}."]
    for line in known.get("tests", []):
        out.append(f"{line['job']}: {line.get('said', line.get('equal'))}")
    rows = [
        f"| {line['job'].partition(': ')[2]} | {line['seconds']:.3f} | {line['memory'] / 2**30:.1f} | {line['amp']} |"
        for line in known.get("steps", [])
    ]
    out += table("| step | seconds | GiB | autocast |", rows)
    rows = [f"| {line['job']} | {line['images_per_second']} |" for line in known.get("loading", [])]
    out += table("| loader, one process | images/s |", rows)
    scores: dict[tuple[str, str], list[float]] = {}
    for line in known.get("trainings", []):
        scores.setdefault((line["set"], line["method"]), []).append(line["miou"])
    rows = [
        f"| {name} | {method} | {statistics.mean(values):.1f} | {len(values)} |"
        for (name, method), values in sorted(scores.items())
    ]
    out += table("| set | method | mIoU | seeds |", rows)
    return "\n".join(out)


def table(head: str, rows: list[str]) -> list[str]:
    rule = "|" + "---|" * (head.count("|") - 1)
    return ["", head, rule, *rows] if rows else []


if __name__ == "__main__":
    main()
