"""What a trained network is worth when its logits are adjusted for class frequency afterwards.

    python benchmarks/adjustment.py runs/compare/supervised-0 runs/compare/cutmix-0

`LogitAdjustment`, a part that GuidedMix and Supervised can take, adjusts logits while they are learned. This does it
afterwards: the weights as they are, `strength` times the logarithm of each class's share of labeled pixels taken off
the logits, scored on the run's validation images. Runs that were finished with `--decide-for miou` have a decision of
their own in these logits already. Nothing is written.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gmix import LogitAdjustment
from gmix.builders.data import build_data
from gmix.config.options import parse_size
from gmix.config.train_config import TrainConfig
from gmix.config.yamlfile import read_yaml
from gmix.data import eval_transform
from gmix.evaluation import evaluate
from gmix.runs.saved import SavedModel


class TakenOff(nn.Module):
    """`net` with `offset` taken off its logits."""

    def __init__(self, net: nn.Module, offset: Tensor) -> None:
        super().__init__()
        self.net, self.offset = net, offset

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits - self.offset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of `gmix train`")
    parser.add_argument("--strengths", nargs="+", type=float, default=[0.0, 0.25, 0.5, 0.75])
    parser.add_argument("--val-images", help="other images than the run's own, with --val-masks")
    parser.add_argument("--val-masks")
    parser.add_argument("--val-part", choices=["all", "odd", "even"])
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    other = {
        name: value
        for name in ("val_images", "val_masks", "val_part")
        if (value := getattr(args, name)) is not None
    }
    print("| strength | " + " | ".join(f"{s:g}" for s in args.strengths) + " |")
    print("|" + "---|" * (1 + len(args.strengths)))
    for run in args.runs:
        config = replace(TrainConfig(**read_yaml(run / "config.yaml")), **other)
        cells = " | ".join(f"{100 * miou:.1f}" for miou in scores_of(run, config, args.strengths))
        print(f"| {run.name} | {cells} |", flush=True)


def scores_of(run: Path, config: TrainConfig, strengths: Sequence[float]) -> list[float]:
    saved = SavedModel.from_pretrained(run, torch.device("cpu"))
    data = build_data(config)
    if data.validation is None:
        raise SystemExit(f"{run} must have been trained with validation images")
    adjust = LogitAdjustment(saved.classes.channels, strength=1.0)
    offset = torch.zeros(1, saved.classes.channels, 1, 1)
    for index in range(data.counts["labeled"]):  # each call counts one more mask
        y = data.labeled[index][1].as_subclass(Tensor).long()
        offset = adjust(torch.zeros_like(offset), y)
    return [
        evaluate(
            TakenOff(saved.net, strength * offset).eval(),
            data.validation,
            saved.classes,
            transform=eval_transform(saved.mean, saved.std),
            size=parse_size(config.size) if config.size else None,
        ).miou
        for strength in strengths
    ]


if __name__ == "__main__":
    main()
