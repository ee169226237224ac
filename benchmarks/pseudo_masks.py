"""When is a guided pseudo mask better than the direct prediction? Measured where the truth is known.

    python benchmarks/pseudo_masks.py runs/voc_animals/supervised-0 --truth DIR/voc_animals/SegmentationClassAug

Takes a finished run, pairs its unlabeled images with their labeled ones, and scores every way to make a pseudo
mask against the true masks in `--truth`, which training never opens: all its pixels; those it is at least
`--threshold` sure of, which are what GuidedMix learns; and which share of a class's pixels these are, in the mean
over the classes.
"""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch
from probe import Probe, open_run
from torch import Tensor

from gmix import LabeledReference, RandomPairSelector, SimilarPairSelector
from gmix import functional as G
from gmix.builders.data import AsTested
from gmix.builders.network import build_net
from gmix.data import eval_transform
from gmix.evaluation import ConfusionMatrix, predict_multiscale
from gmix.training.quality import summary

# Of the default, one at a time.
CHANGES: dict[str, dict[str, Any]] = {
    "": {},
    ", images as they are": {"shorter_side": 1},
    ", shorter side 224": {"shorter_side": 224},
    ", shorter side 320": {"shorter_side": 320},
    ", all positions remembered": {"capacity": 2**14, "positions": 2**14},
    ", temperature 0.05": {"temperature": 0.05},
    ", temperature 0.02": {"temperature": 0.02},
}
ROUNDS, RATE = 20, 0.3  # of what is taught, a simulated network learns this share in a round


class Quality(NamedTuple):
    """What is counted of one way to make pseudo masks."""

    every: ConfusionMatrix
    sure: ConfusionMatrix

    @classmethod
    def of(cls, classes: int) -> "Quality":
        return cls(ConfusionMatrix(classes), ConfusionMatrix(classes))

    def update(self, probs: Tensor, y: Tensor, threshold: float) -> None:
        confidence, labels = G.most_probable(probs)
        self.every.update(labels, y)
        self.sure.update(labels, y.masked_fill(confidence < threshold, 255))

    def cells(self) -> list[str]:
        names = tuple(map(str, range(len(self.every.counts))))
        passed = summary(self.every, self.sure, names)["pass_rate"].values()
        shares = [share for share in passed if share is not None]
        scores = (100 * matrix.scores().miou for matrix in self)
        return [*(f"{score:.1f}" for score in scores), f"{sum(shares) / len(shares):.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the --out folder of a finished `gmix train`")
    parser.add_argument("--truth", required=True, help="true masks of the unlabeled images")
    parser.add_argument("--images", type=int, default=200, help="evenly spaced unlabeled images")
    parser.add_argument("--threshold", type=float, default=0.95, help="where sure pixels begin")
    args = parser.parse_args()

    torch.manual_seed(0)
    probe = open_run(args.run, args.truth, args.images)
    net, classes = probe.net, probe.saved.classes
    references = make_references(probe)
    labeled = list(probe.batches(probe.labeled))
    x_l, y_l = (torch.cat(parts) for parts in zip(*labeled, strict=True))

    found: dict[str, Quality] = {}
    with torch.inference_mode():
        probs_l = torch.cat([G.probabilities(net(x)) for x, _ in labeled])
        known = G.fill_in(probs_l, y_l)
        embedding = torch.cat([net.embed(x) for x, _ in labeled])
        for x, y in probe.batches(probe.unlabeled):
            direct = G.probabilities(net(x))
            flipped = G.probabilities(net(x.flip(-1))).flip(-1)
            enlarged = predict_multiscale(net, x, (1.6,), flip=False)
            larger = torch.lerp(direct, enlarged, 0.5)
            reference = references["referred"]
            masks_of = {
                "direct": direct,
                "mean of direct and flipped": torch.lerp(direct, flipped, 0.5),
                "mean of direct and 1.6 times as large": larger,
                "the same, referred": reference(larger, x),
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
            mean = masks_of["mean of direct and the above, true mask"]
            masks_of["mean, referred"] = reference(mean, x)
            for name, each in references.items():
                masks_of[f"direct, {name}"] = each(direct, x)
            for name, threshold in (("soft targets", None), ("hard labels", args.threshold)):
                masks_of[f"direct, referred, {ROUNDS} times as {name}"] = learn(
                    direct, x, reference, threshold
                )
            for name, probs in masks_of.items():
                quality = found.setdefault(name, Quality.of(classes.num_classes))
                quality.update(probs, y, args.threshold)
    print(f"measured strength: {references['referred'].trust:.2f}\n")
    print("| pseudo mask | mIoU | of the sure pixels | coverage |\n|---|---|---|---|")
    for name, quality in found.items():
        print(f"| {name} | {' | '.join(quality.cells())} |")


def make_references(probe: Probe) -> dict[str, LabeledReference]:
    """The default, changes of it, and one with the features of the trained network."""
    classes = probe.net.classes
    encoder = build_net(probe.config, classes).model.encoder  # as it was when training began
    found = {
        f"referred{name}": LabeledReference(encoder, classes, **change)
        for name, change in CHANGES.items()
    }
    trained = LabeledReference(probe.net.model.encoder, classes)
    found["referred, features of the trained network"] = trained
    labeled = AsTested(probe.labeled, eval_transform(probe.saved.mean, probe.saved.std))
    for reference in found.values():
        reference.remember(labeled)
    for factor in (0.5, 2.0):
        strength = factor * float(found["referred"].trust)
        other = LabeledReference(encoder, classes, strength=strength)
        other.remember(labeled)
        found[f"referred, {factor:g} times the measured strength"] = other
    return found


def learn(probs: Tensor, x: Tensor, reference: LabeledReference, threshold: float | None) -> Tensor:
    """What is left of a prediction that learns its own guided mask, round after round.

    Args:
        probs: The prediction.
        x: Its images.
        reference: Guides it in each round.
        threshold: Hard labels of pixels at least so sure are learned; None: the guided mask itself.
    """
    for _ in range(ROUNDS):
        target = reference(probs, x)
        if threshold is not None:
            confidence, labels = G.most_probable(target)
            target = G.fill_in(probs, labels.masked_fill(confidence < threshold, 255))
        probs = torch.lerp(probs, target, RATE)
    return probs


if __name__ == "__main__":
    main()
