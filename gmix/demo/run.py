"""Train both methods on the demo's scenes, compare them, and draw their predictions."""

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gmix.builders.data import Data, build_data
from gmix.config.train_config import TrainConfig
from gmix.data import Sample, eval_transform, to_rgb
from gmix.demo.scenes import NAMES, PALETTE, Folders, write_scenes
from gmix.deploy.predict import predict_image
from gmix.methods import GuidedMix
from gmix.report import try_report
from gmix.report.sheet import picture_sheet
from gmix.runs.checkpoint import list_checkpoints
from gmix.runs.saved import SavedModel
from gmix.runtime.console import say
from gmix.runtime.own import check_own, own_file
from gmix.training.session import look_back
from gmix.training.state import find_checkpoint
from gmix.training.train import Result, train

LABELED, UNLABELED, VALIDATION = 48, 400, 80
SIZE, SEEN = 96, 48  # pixels of a scene, and of the networks' input
STEPS = 300
# With so few steps, the threshold is lower, and digits are pasted with their true masks. The reference does not
# enlarge scenes, which would take twice the time.
GUIDANCE = {
    "criterion": {"threshold": 0.9},
    "paste": {},
    "reference": {"shorter_side": SEEN},
}


class DemoResult(NamedTuple):
    """The results of the demo: two mIoUs in 0..1, and the picture sheet."""

    supervised: float
    guidedmix: float
    sheet: Path


def run_demo(out: Path, seed: int = 0, steps: int | None = None) -> DemoResult:
    """Write scenes, train supervised and GuidedMix with equal steps, print and draw the result.

    Writes into `out`: `scenes/` (ordinary folders of images and masks), `supervised/` and
    `guidedmix/` (two runs as `gmix train` writes them), `sheet.png` and `report.html`. If `out` holds an
    unfinished demo, it is resumed.

    Args:
        out: Folder to write into.
        seed: Seed of scenes, weights and batches: the same seed gives the same result.
        steps: Training steps of each method; `None` for enough steps to show the difference.

    Raises:
        ValueError: If `out` holds a demo with another seed or number of steps.
        ModuleNotFoundError: If an optional package is missing; the message has the command that installs it.
    """
    folders = Folders.inside(out / "scenes")
    configs = [
        demo_config(out, folders, method, STEPS if steps is None else steps, seed)
        for method in ("supervised", "guidedmix")
    ]
    for config in configs:
        find_checkpoint(config, Path(str(config.out)))  # raises before a scene is overwritten
    sheet = out / "sheet.png"
    check_own([sheet])
    write_scenes(
        folders, labeled=LABELED, unlabeled=UNLABELED, val=VALIDATION, size=SIZE, seed=seed
    )
    supervised, guidedmix = (train(config) for config in configs)
    console = Console()
    console.print(comparison(supervised, guidedmix))
    with own_file(sheet) as aside:
        draw_sheet(aside, configs[1], supervised, guidedmix)
    for what, path in (
        ("pictures", sheet),
        ("report", try_report([config.out for config in configs if config.out])),
    ):
        if path is not None:
            say(f"{what}: {path}")
    return DemoResult(supervised.miou, guidedmix.miou, sheet)


def demo_config(out: Path, folders: Folders, method: str, steps: int, seed: int) -> TrainConfig:
    """Return the flags of one of the demo's two runs; only the method and its settings differ."""
    return TrainConfig(
        images=str(folders.images),
        masks=str(folders.masks),
        unlabeled=str(folders.unlabeled),
        val_images=str(folders.val_images),
        val_masks=str(folders.val_masks),
        classes=str(folders.classes),
        encoder="tu-tf_efficientnet_lite0",
        encoder_weights="lite0",
        # In deeper maps a whole digit would be one or two pixels.
        model_args={"encoder_depth": 3, "decoder_channels": [96, 64, 48]},
        method=method,
        method_args=GUIDANCE if method == "guidedmix" else {},
        size=f"{SEEN}x{SEEN}",
        scale="0.9-1.1",
        rotate=5.0,
        batch_labeled=16,
        batch_unlabeled=16,
        lr=3e-3,
        encoder_lr=1.0,
        steps=steps,
        seed=seed,
        amp="none",  # the same result on more machines
        cache=True,
        workers=0,
        eval_every=100,
        checkpoint_every=100,
        out=str(out / method),
        resume=True,
    )


def comparison(supervised: Result, guidedmix: Result) -> Table:
    """Make a table of the two results."""
    table = Table(title=f"on {VALIDATION} scenes never seen in training", title_justify="left")
    table.add_column("method")
    table.add_column("learned from")
    table.add_column("mIoU", justify="right")
    table.add_column("minutes", justify="right")
    masks = f"{LABELED} scenes with masks"
    for name, source, result in (
        ("supervised", masks, supervised),
        ("GuidedMix", f"{masks}, {UNLABELED} without", guidedmix),
    ):
        table.add_row(name, source, f"{100 * result.miou:.1f}", f"{result.minutes:.1f}")
    return table


def draw_sheet(
    path: Path, config: TrainConfig, supervised: Result, guidedmix: Result, rows: int = 4
) -> Path:
    """Draw the first validation scenes with the predictions of both networks.

    The last column shows the pseudo mask that GuidedMix would learn for the scene without its mask.

    Args:
        path: The file to write.
        config: Flags of the GuidedMix run.
        supervised: The supervised run.
        guidedmix: The GuidedMix run.
        rows: Number of scenes.
    """
    data = build_data(config)
    assert data.validation is not None  # demo_config names validation folders
    scenes: list[Sample] = [data.validation[i] for i in range(rows)]
    labeled: list[Sample] = [data.labeled[i] for i in range(data.counts["labeled"])]
    pseudo = pseudo_masks(config, data, labeled, scenes).argmax(dim=1)
    seen_by = [SavedModel.from_pretrained(result.out) for result in (supervised, guidedmix)]
    return picture_sheet(
        [
            (
                to_rgb(image),
                mask.numpy(),
                *(predict_image(saved, image) for saved in seen_by),
                target.numpy(),
            )
            for (image, mask), target in zip(scenes, pseudo, strict=True)
        ],
        ["image", "truth", "supervised", "GuidedMix", "pseudo mask"],
        NAMES,
        PALETTE,
        path,
        notes=[
            "new to both",
            "",
            f"mIoU {100 * supervised.miou:.1f}",
            f"mIoU {100 * guidedmix.miou:.1f}",
            "what it would learn from",
        ],
        heading=f"{LABELED} scenes with masks, {UNLABELED} without: same network, same steps",
    )


def pseudo_masks(
    config: TrainConfig, data: Data, labeled: list[Sample], scenes: list[Sample]
) -> Tensor:
    """Compute the pseudo masks of `scenes` with the GuidedMix of a finished run."""
    checkpoint = list_checkpoints(Path(str(config.out)))[-1]
    session = look_back(config, checkpoint, data, torch.device("cpu"))
    method: GuidedMix = session.state.method.eval()
    transform = eval_transform(*session.stats)
    x_labeled, x_scenes = (
        torch.stack([transform(sample.image).as_subclass(Tensor) for sample in samples])
        for samples in (labeled, scenes)
    )
    # Validation scenes are read at their own size; the network needs them at the size of the labeled ones.
    x_scenes = F.interpolate(x_scenes, x_labeled.shape[2:], mode="bilinear", antialias=True)
    masks = torch.stack([sample.mask.as_subclass(Tensor) for sample in labeled])
    generator = torch.Generator().manual_seed(config.seed)
    return method.pseudo_masks(x_labeled, masks, x_scenes, generator)
