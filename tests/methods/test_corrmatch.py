"""CorrMatch: regions, the moving threshold, and what must always hold of correlations."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from method_tester import MethodTester, batch_of
from naive import Batch, Losses, best, entropy, full, labeled_entropy, paste, share_of
from tiny_nets import seeded
from torch import Generator, Tensor, distributions, nn

from gmix.methods.corrmatch import Correlation, MovingThreshold, divergence, propagate
from gmix.training.micro_batches import MicroBatchStatistics


class TestCorrMatch(MethodTester):
    name = "corrmatch"
    options = {"unsupervised": 0.7, "correlation": 0.3}
    divides = {3: {"threshold": 0.55}}
    weights = ("correlation",)
    brings = "correlation."
    learners = dict.fromkeys(("correlation", "spread"), ("net.model.encoder", "correlation."))
    labeled_too = {"correlation"}

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        x_l, y, x_u, valid = batch
        net, part, classes = method.net, method.correlation, max(method.net.classes, 2)
        view, pasted = method.strong(x_u, g)
        assert pasted.box.any()
        features = net.encode(torch.cat([x_l, x_u]))
        logits = net.decode(features, (32, 24))
        dropped = []
        for f in features:
            draw = torch.rand(4, f.shape[1], generator=g)
            dropped.append(f[3:] * (2.0 * (draw >= 0.5))[:, :, None, None])
        disturbed = net.decode(dropped, (32, 24))

        def correlate(z: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            z = F.relu(part.norm(part.reduce(z)))
            draw = torch.rand(z.shape[:2], generator=g)
            z = z * ((draw >= 0.1) / 0.9)[:, :, None, None]
            one, other = part.one(z).double().flatten(2), part.other(z).double().flatten(2)
            rows = []
            for i in range(12):
                powers = ((one[:, :, i, None] * other).sum(1) / math.sqrt(classes)).exp()
                rows.append(powers / powers.sum(1, keepdim=True))
            maps = torch.stack(rows, 1)
            coarse = F.interpolate(values.detach(), size=(4, 3), mode="bilinear").double()
            out = sum(coarse.flatten(2)[:, :, i, None] * maps[:, None, i] for i in range(12))
            cells = out.view(len(z), -1, 4, 3)  # type: ignore[union-attr]
            return maps, F.interpolate(cells, size=(32, 24), mode="bilinear")

        maps, spread = correlate(features[-1], logits)
        seen = net.encode(view)
        strong = net.decode(seen, (32, 24))
        _, spread_strong = correlate(seen[-1], strong)
        probs = full(logits[3:]).detach()
        labels, confidence = best(probs)
        highest = [
            confidence[valid & (labels == k)].max()
            for k in range(classes)
            if (valid & (labels == k)).any()
        ]
        bound = 0.999 * method.threshold + 0.001 * float(sum(highest)) / len(highest)
        method.moving.level.fill_(bound)
        target, sure, inside = (paste(v, pasted) for v in (labels, confidence >= bound, valid))
        share_of(sure, inside)
        drawn = torch.randint(12, (128,), generator=g).tolist()
        learnt, spread_labels, taken = sure.clone(), target.clone(), 0
        for i, row in np.ndindex(4, 128):
            grey = F.interpolate(
                maps[3 + i, drawn[row]].float().view(1, 1, 4, 3), size=(32, 24), mode="bilinear"
            )[0, 0]
            region = (grey - grey.min()) / (grey.max() - grey.min()) > 0.5
            region &= ~pasted.box[i] & inside[i]
            voters = target[i][region & sure[i]].tolist()
            if not voters or len(voters) < bound * int(region.sum()):
                continue
            winner = max(range(classes), key=voters.count)
            if voters.count(winner) > bound * len(voters):
                spread_labels[i][region], taken = winner, taken + 1
                learnt[i] |= region
        assert 0 < taken < 4 * 128 and not torch.equal(learnt, sure)
        goal = paste(probs, pasted)
        apart: Any = (goal * (goal.log() - full(strong).log())).sum(1)
        weak_sure = confidence >= bound
        losses = {
            "supervised": labeled_entropy(logits[:3], y),
            "correlation": labeled_entropy(spread[:3], y),
            "strong": entropy(strong, spread_labels, inside, learnt),
            "divergence": apart[sure & inside].sum() / inside.sum(),
            "features": entropy(disturbed, labels, valid, weak_sure),
            "spread": entropy(spread_strong, spread_labels, inside, learnt) / 2
            + entropy(spread[3:], labels, valid, weak_sure) / 2,
        }
        total = losses["supervised"] + 0.3 * losses["correlation"]
        several = [losses[term] for term in ("strong", "divergence", "features", "spread")]
        return {**losses, "total": total + 0.7 * sum(several)}

    def test_a_threshold_moves_in_training_only_and_from_where_it_was_saved(self) -> None:
        method: Any = self.midway(momentum=0.5)
        method.eval()(*batch_of(), generator=seeded(0))
        start = method.moving.level.clone()
        assert start == pytest.approx(method.threshold)
        method.train()(*batch_of(), generator=seeded(0))
        assert method.moving.level != start
        other: Any = self.make()
        other.load_state_dict(method.state_dict())
        assert other.moving.level == method.moving.level

    def test_micro_batches_move_it_once_to_their_mean(self) -> None:
        method: Any = self.midway(momentum=0.5)
        start, ends = method.moving.level.clone(), list[Tensor]()
        statistics = MicroBatchStatistics(method, 2)
        for seed in (0, 1):
            x_l, y, x_u = batch_of()
            method(x_l, y, x_u[2 * seed :][:2], generator=seeded(seed))
            ends.append(method.moving.level.clone())
            statistics.end_micro_batch()
            assert method.moving.level == start
        statistics.end_step(lambda tensors: tensors)
        assert ends[0] != ends[1]
        torch.testing.assert_close(method.moving.level, (ends[0] + ends[1]) / 2)

    def test_the_weights_of_corrmatch_weigh_four_terms_alike(self) -> None:
        light, heavy = (
            self.make(unsupervised=weight)(*batch_of(), generator=seeded(0))
            for weight in (0.5, 2.0)
        )
        four = sum(light[term] for term in ("strong", "divergence", "features", "spread"))
        torch.testing.assert_close(heavy["total"] - light["total"], 1.5 * four)


@given(st.integers(0, 2**31 - 1), st.sampled_from([1, 2, 5]), st.sampled_from([0.0, 0.4, 0.6, 1.0]))
def test_regions_are_voted_on_one_after_the_other(seed: int, classes: int, bound: float) -> None:
    g, height, width = seeded(seed), 4, 5
    labels = torch.randint(max(classes, 2), (2, height, width), generator=g)
    labels[torch.rand(labels.shape, generator=g) < 0.1] = 255
    sure = (torch.rand(labels.shape, generator=g) < 0.7) & (labels != 255)
    region = torch.rand(2, 6, height, width, generator=g) < 0.3
    region &= (labels != 255)[:, None]
    before = [v.clone() for v in (region, labels, sure)]
    found, learned = propagate(region, labels, sure, torch.tensor(bound), classes)
    assert all(map(torch.equal, before, (region, labels, sure)))
    expected, marked = labels.clone(), sure.clone()
    for i, r in np.ndindex(2, 6):
        places = [at for at in np.ndindex(height, width) if region[i, r][at]]
        voters = [int(labels[i][at]) for at in places if sure[i][at]]
        # In float32, as the method compares.
        if not voters or len(voters) < float(np.float32(bound) * np.float32(len(places))):
            continue
        counts = [voters.count(k) for k in range(max(classes, 2))]
        if max(counts) > float(np.float32(bound) * np.float32(len(voters))):
            for at in places:
                expected[i][at], marked[i][at] = counts.index(max(counts)), True
    assert torch.equal(found, expected) and torch.equal(learned, marked)
    assert torch.equal(found == 255, labels == 255)  # padding stays padding
    assert learned[sure].all()


@pytest.mark.parametrize("classes", [1, 2, 7])
def test_divergences_are_those_of_torch(classes: int) -> None:
    logits, other = torch.randn(2, 3, classes, 4, 5, generator=seeded(0))
    if classes == 1:
        kinds: Any = distributions.Bernoulli
        one, two = kinds(logits=other[:, 0]), kinds(logits=logits[:, 0])
        target = other.sigmoid()
    else:
        kinds = distributions.Categorical
        one, two = (kinds(logits=v.movedim(1, -1)) for v in (other, logits))
        target = other.softmax(1)
    expected = distributions.kl_divergence(one, two)
    found = divergence(logits, target)
    torch.testing.assert_close(found, expected)
    assert found.min() >= -1e-6
    certain = (target == target.amax(1, keepdim=True)).float()  # log 0 counts for nothing
    assert divergence(logits, certain).isfinite().all()


def test_rows_of_a_correlation_are_distributions_that_dropping_leaves_so() -> None:
    part, z = Correlation(12, 3), torch.randn(2, 12, 4, 5, generator=seeded(0))
    for training in (True, False):
        maps = part.train(training)(z, seeded(1))
        assert maps.shape == (2, 20, 20)
        torch.testing.assert_close(maps.sum(2), torch.ones(2, 20))
    assert torch.equal(part(z, seeded(1)), part(z, seeded(2)))  # nothing is dropped


def test_a_threshold_follows_the_surest_pixel_of_each_class() -> None:
    moving, expected, g = MovingThreshold(0.85, 0.9), 0.85, seeded(0)
    for step in range(6):
        confidence = torch.rand(3, 8, 8, generator=g)
        labels = torch.randint(5, (3, 8, 8), generator=g).masked_fill(confidence < 0.3, 255)
        labels[labels == 2] = 0
        if step == 3:
            labels[:] = 255  # only padding: it stays
        highest = [
            float(confidence[labels == k].max()) for k in (0, 1, 3, 4) if (labels == k).any()
        ]
        if highest:
            expected = 0.9 * expected + 0.1 * sum(highest) / len(highest)
        moving.update(confidence, labels, 6)
        assert moving.level.item() == pytest.approx(expected, abs=1e-6)


def test_statistics_of_frozen_modules_are_left_alone() -> None:
    owner = nn.ModuleList([MovingThreshold(0.5, 0.5).eval(), nn.BatchNorm1d(2)])
    statistics = MicroBatchStatistics(owner, 2)
    assert len(statistics.running) == 2  # of BatchNorm
