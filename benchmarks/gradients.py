"""Does the unsupervised loss pull where the true masks would? The cosine between the two gradients.

    python benchmarks/gradients.py runs/voc_animals/supervised-0 --truth DIR/voc_animals/SegmentationClassAug

Takes a finished run and draws training batches from it. For each way to make a pseudo mask it compares the
gradient of the unsupervised loss with that of the cross-entropy towards the true masks of the same unlabeled
images, which are in `--truth` and which training never opens.
"""

import argparse
import copy
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from probe import Probe, open_run
from torch import Tensor

from gmix import CutMix, LabeledReference, StrongColor
from gmix.builders.data import AsTested, Data, build_stream
from gmix.builders.network import build_net
from gmix.data import Batch, eval_transform
from gmix.methods import GuidedMix
from gmix.nn.network import GuidedMixNet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the --out folder of a finished `gmix train`")
    parser.add_argument("--truth", required=True, help="true masks of the unlabeled images")
    parser.add_argument("--images", type=int, default=200, help="evenly spaced unlabeled images")
    parser.add_argument("--batches", type=int, default=10)
    args = parser.parse_args()

    probe = open_run(args.run, args.truth, args.images)
    color = StrongColor(mean=probe.saved.mean, std=probe.saved.std)
    print("| pseudo mask, loss | cosine, image as it is | strong view | relative length |")
    print("|---|---|---|---|")
    batches = list(draw(probe, args.batches))
    for name, method in methods(probe).items():
        pulls = [pull(method, *batch, color, seed) for seed, batch in enumerate(batches)]
        plain, strong, length = (list(column) for column in zip(*pulls, strict=True))
        print(
            f"| {name} | {mean(plain)} | {mean(strong)} | {statistics.mean(length):.2f} |",
            flush=True,
        )


def methods(probe: Probe) -> dict[str, GuidedMix]:
    """From the paper's way to the default's, one change at a time; the views are added later."""
    soft = {
        "objective": "soft_cross_entropy",
        "threshold": 0.0,
        "decoupling": 0.0,
        "ramp_length": 0.0,
    }
    ways: dict[str, dict[str, Any]] = {
        "as printed: decoupled, squared error": {"variant": "paper", "reference": None},
        "as printed, soft cross-entropy": {
            "variant": "paper",
            "criterion": soft,
            "reference": None,
        },
        "decoupled, by a teacher": {"direct": 0.0, "criterion": soft, "reference": None},
        "direct, by a teacher": {"criterion": soft, "reference": None},
        "mean of both": {"direct": 0.5, "criterion": soft, "reference": None},
        "direct, referred": {"criterion": soft},
        "mean of both, referred": {"direct": 0.5, "criterion": soft},
        "direct, referred, hard labels above 0.95 (the default)": {},
    }
    # As it was when training began: with the pretrained encoder.
    pretrained = build_net(probe.config, probe.net.classes).model.encoder
    reference = LabeledReference(pretrained, probe.net.classes)
    reference.remember(AsTested(probe.labeled, eval_transform(probe.saved.mean, probe.saved.std)))
    common = {"cutmix": None, "color": None, "reference": reference}
    return {
        name: GuidedMix(copy.deepcopy(probe.net), **{**common, **way}).train()
        for name, way in ways.items()
    }


def draw(probe: Probe, number: int) -> Iterator[tuple[Batch, Batch]]:
    """Training batches: labeled images, and unlabeled images with their true masks."""
    streams = [
        build_stream(
            probe.config,
            Data(probe.saved.classes, part, None, None, {}),
            probe.saved.mean,
            probe.saved.std,
        )
        for part in (probe.labeled, probe.unlabeled)
    ]
    return ((streams[0][t], streams[1][t]) for t in range(number))


def pull(
    method: GuidedMix, labeled: Batch, unlabeled: Batch, color: StrongColor, seed: int
) -> tuple[float, float, float]:
    """Cosine on the image as it is and on its strong view; on the latter, also the relative length."""
    generator = torch.Generator().manual_seed(seed)
    x, truth = unlabeled.x_labeled, unlabeled.y_labeled
    pseudo = method.guide(labeled.x_labeled, labeled.y_labeled, x, generator).pseudo
    pasted = CutMix()(x, generator)
    views = (
        (x, truth, pseudo),
        (pasted.apply(color(x, generator)), pasted.apply(truth), pasted.apply(pseudo)),
    )
    found = []
    for view, y, target in views:
        both = torch.cat([labeled.x_labeled, view])
        logits = method.net(both)[len(labeled.x_labeled) :]
        loss = method.criterion(logits, y, logits_unlabeled=logits, pseudo=target, progress=1.0)
        right, own = (gradient(method.net, loss[term]) for term in ("supervised", "unsupervised"))
        cosine = torch.cosine_similarity(own, right, dim=0).item()
        found.append((cosine, (own.norm() / right.norm()).item()))
    (plain, _), (strong, length) = found
    return plain, strong, length


def gradient(net: GuidedMixNet, loss: Tensor) -> Tensor:
    """Of the deployed model's weights, as one vector."""
    weights = list(net.model.parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, retain_graph=True)])


def mean(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):+.2f}{spread}"


if __name__ == "__main__":
    main()
