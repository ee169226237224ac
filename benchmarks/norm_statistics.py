"""Is a network held back by its BatchNorm statistics? The same weights with statistics of other images.

    python benchmarks/norm_statistics.py runs/compare/fixmatch-0 runs/compare/guidedmix-0

While it trains, each batch is normalised by its own statistics; their running average, from whatever passes there
were, serves later. Here the average is taken anew, over one kind of images at a time, and the run's validation
images are scored again. Nothing is written. "As trained" are the statistics of the last checkpoint; what `gmix train`
tests and saves has those of the column "crops, unlabeled, as they are and strong" (`--norm-batches`).
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.optim.swa_utils import update_bn

from gmix import StrongColor
from gmix.builders.data import build_data, build_stream
from gmix.config.options import parse_size
from gmix.config.train_config import TrainConfig
from gmix.config.yamlfile import read_yaml
from gmix.data import Batch, eval_transform
from gmix.evaluation import evaluate
from gmix.runs.checkpoint import list_checkpoints
from gmix.runs.saved import SavedModel
from gmix.training.norm import unlabeled_views

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="folders of `gmix train`")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    table = {run: scores_of(run, args.batches) for run in args.runs}
    columns = list(next(iter(table.values())))
    print("| weights of | " + " | ".join(columns) + " |\n|" + "---|" * (1 + len(columns)))
    for run, scores in table.items():
        cells = " | ".join(f"{100 * scores[column]:.1f}" for column in columns)
        print(f"| {run.name} | {cells} |")


def scores_of(run: Path, batches: int) -> dict[str, float]:
    # Any other method than supervised finds the unlabeled images too.
    config = replace(TrainConfig(**read_yaml(run / "config.yaml")), method="guidedmix")
    saved, size = (
        SavedModel.from_pretrained(run, CPU),
        parse_size(config.size) if config.size else None,
    )
    data = build_data(config)
    if data.validation is None or data.unlabeled is None:
        raise SystemExit(f"{run} must have been trained with validation and unlabeled images")
    transform = eval_transform(saved.mean, saved.std)
    trained = load_file(list_checkpoints(run)[-1].path / "method.safetensors")
    saved.net.load_state_dict(
        {name.removeprefix("net."): t for name, t in trained.items() if name.startswith("net.")}
    )
    net, validation, unlabeled = saved.net, data.validation, data.unlabeled
    stream = build_stream(config, data, saved.mean, saved.std)
    seen: list[Batch] = [stream[step] for step in range(batches)]
    both = list(unlabeled_views(seen, mean=saved.mean, std=saved.std, seed=config.seed, device=CPU))
    colors, generator = (
        StrongColor(mean=saved.mean, std=saved.std),
        torch.Generator().manual_seed(0),
    )

    def crops(batch: Batch) -> Tensor:
        assert batch.x_unlabeled is not None
        return batch.x_unlabeled

    def whole(step: int) -> Tensor:
        count, each = data.counts["unlabeled"], config.batch_unlabeled
        chosen = [(step * each + i) * count // (each * batches) for i in range(each)]
        return torch.stack([transform(unlabeled[index]) for index in chosen])

    kinds: dict[str, Callable[[int], Tensor]] = {
        "crops, labeled": lambda t: seen[t].x_labeled,
        "crops, unlabeled": lambda t: crops(seen[t]),
        "crops, both": lambda t: torch.cat([seen[t].x_labeled, crops(seen[t])]),
        "crops, strong colours": lambda t: colors(crops(seen[t]), generator),
        "crops, unlabeled, as they are and strong": lambda t: both[t],
        "whole unlabeled images": whole,
    }

    def score() -> float:
        return evaluate(net, validation, saved.classes, transform=transform, size=size).miou

    scores = {"as trained": score()}
    for name, images in kinds.items():
        update_bn((images(step) for step in range(batches)), net)
        scores[name] = score()
    return scores


if __name__ == "__main__":
    main()
