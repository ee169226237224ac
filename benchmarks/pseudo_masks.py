"""When is a guided pseudo mask better than the direct prediction? Measured where the truth is known.

    python benchmarks/pseudo_masks.py runs/voc_animals/supervised-0 --truth DIR/voc_animals/SegmentationClassAug

Takes a finished run, pairs its unlabeled images with their labeled ones, and scores every way to make a pseudo
mask against the true masks in `--truth`, which training never opens.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from probe import open_run

from gmix import LabeledReference, RandomPairSelector, SimilarPairSelector
from gmix import functional as G
from gmix.evaluation import ConfusionMatrix, predict_multiscale
from gmix.training.build import build_net

# Of the default, one at a time.
CHANGES: dict[str, dict[str, Any]] = {
    "": {},
    ", images as they are": {"shorter_side": 1},
    ", shorter side 224": {"shorter_side": 224},
    ", shorter side 320": {"shorter_side": 320},
    ", all positions remembered": {"capacity": 2**14, "positions": 2**14},
    ", temperature 0.05": {"temperature": 0.05},
    ", temperature 0.02": {"temperature": 0.02},
    ", tolerance 0.5": {"tolerance": 0.5},
    ", tolerance 1": {"tolerance": 1.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the --out folder of a finished `gmix train`")
    parser.add_argument("--truth", required=True, help="true masks of the unlabeled images")
    parser.add_argument("--images", type=int, default=200, help="evenly spaced unlabeled images")
    args = parser.parse_args()

    torch.manual_seed(0)
    probe = open_run(args.run, args.truth, args.images)
    net, classes = probe.net, probe.saved.classes

    pretrained = build_net(probe.config, net.classes).model.encoder
    references = {
        f"referred{name}": LabeledReference(pretrained, net.classes, **change)
        for name, change in CHANGES.items()
    }
    trained = LabeledReference(net.model.encoder, net.classes)
    references["referred, features of the trained network"] = trained
    labeled = list(probe.batches(probe.labeled))
    x_l, y_l = (torch.cat(parts) for parts in zip(*labeled, strict=True))
    for x, y in labeled:
        for reference in references.values():
            reference.add(x, y)

    matrices: dict[str, ConfusionMatrix] = {}
    with torch.inference_mode():
        probs_l = torch.cat([G.probabilities(net(x)) for x, _ in labeled])
        known = G.fill_in(probs_l, y_l)
        embedding = torch.cat([net.embed(x) for x, _ in labeled])
        for x, y in probe.batches(probe.unlabeled):
            direct = G.probabilities(net(x))
            flipped = G.probabilities(net(x.flip(-1))).flip(-1)
            enlarged = predict_multiscale(net, x, (1.6,), flip=False)
            larger = torch.lerp(direct, enlarged, 0.5)
            masks_of = {
                "direct": direct,
                "mean of direct and flipped": torch.lerp(direct, flipped, 0.5),
                "mean of direct and 1.6 times as large": larger,
                "the same, referred": references["referred"](larger, x),
            }
            query = net.embed(x)
            for name, selector in (
                ("similar", SimilarPairSelector()),
                ("random", RandomPairSelector()),
            ):
                partner = selector(query, embedding)
                for value in (0.1, 0.3, 0.5):
                    lam = torch.full((len(x),), value)
                    mixed = G.probabilities(net(G.mix(x_l[partner], x, lam)))
                    for source, p in (("prediction", probs_l), ("true mask", known)):
                        out = G.decouple(mixed, p[partner], lam)
                        masks_of[f"decoupled, lambda {value}, {name}, {source}"] = out
                        if value == 0.3 and name == "similar":
                            masks_of[f"mean of direct and the above, {source}"] = (direct + out) / 2
            for name, reference in references.items():
                masks_of[f"direct, {name}"] = again = reference(direct, x)
                for _ in range(4):
                    again = reference(again, x)
                masks_of[f"direct, {name}, 5 times"] = again
            mean = masks_of["mean of direct and the above, true mask"]
            masks_of["mean, referred"] = references["referred"](mean, x)
            for name, probs in masks_of.items():
                matrix = matrices.setdefault(name, ConfusionMatrix(classes.num_classes))
                matrix.update(G.most_probable(probs)[1], y)
    print("| pseudo mask | mIoU |\n|---|---|")
    for name, matrix in matrices.items():
        print(f"| {name} | {100 * matrix.scores().miou:.1f} |")


if __name__ == "__main__":
    main()
