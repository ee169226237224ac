"""U2PL: its percentiles, its bank, and what must always hold of unreliable pixels."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from method_tester import MethodTester, batch_of
from naive import Batch, Losses, best, copied, entropy, followed, full, labeled_entropy, paste
from tiny_nets import seeded, tiny_net
from torch import Generator, Tensor

from gmix.methods import U2PL
from gmix.methods.u2pl import percentile
from gmix.nn.bank import FeatureBank


class TestU2PL(MethodTester):
    name = "u2pl"
    steps = 24
    options = {"unsupervised": 0.7, "contrastive": 0.3, "queries": 16, "negatives": 5, "bank": 40}
    weights = ("unsupervised", "contrastive")
    learners = {"contrastive": ("net.model.encoder", "projector.")}
    labeled_too = {"contrastive"}
    needs_progress = True
    easy = {"contrastive": 0.1}

    def move(self, method: Any, g: Generator) -> None:
        ring = method.bank.ring
        ring.copy_(F.normalize(torch.randn(ring.shape, generator=g), dim=2))
        method.bank.written.copy_(torch.tensor([30, 50, 20][: len(ring)]))

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        x_l, y, x_u, valid = batch
        classes, bank = max(method.net.classes, 2), method.bank
        pasted = method.cutmix(x_u, g)
        assert pasted.box.any()
        teacher = followed(method)
        labels, _ = best(full(teacher(x_u)))
        labels, inside = paste(labels, pasted), paste(valid, pasted)
        x = torch.cat([x_l, paste(x_u, pasted)])
        with torch.no_grad():
            keys = copied(method.projector_teacher, method.projector)(teacher.encode(x)[-1])
            probs = full(teacher(x))
        doubt = -(probs * probs.log()).sum(1)[3:]
        share = 0.2 * 0.95
        bounds = np.percentile(doubt[inside].numpy(), [100 * share, 100 * (1 - share)])
        low, high = inside & (doubt <= bounds[0]), inside & (doubt >= bounds[1])
        reliable = inside & ~high
        features = method.net.encode(x)
        logits = method.net.decode(features, (32, 24))
        unsupervised = (
            entropy(logits[3:], labels, reliable, reliable) * inside.sum() / reliable.sum()
        )
        z, rows = method.projector(features[-1]), []
        for i, r, c in np.ndindex(7, 4, 3):  # the pixel at the corner of each cell
            at = (i % 3 if i < 3 else i - 3, 8 * r, 8 * c)
            label = int(y[at]) if i < 3 else int(labels[at])
            usable = label != 255 if i < 3 else None
            sure = usable if i < 3 else bool(low[at])
            unsure = usable if i < 3 else bool(high[at])
            values = probs[i, :, 8 * r, 8 * c].tolist()
            rows.append((z[i, :, r, c].double(), keys[i, :, r, c].double(), label, sure, unsure))
            rows[-1] = (*rows[-1], values, i < 3)
        first = 1 if classes < 4 else min(3, classes // 2)
        places = torch.rand(classes, len(rows), generator=g)
        picks = torch.rand(classes, 16, generator=g)
        draws = torch.rand(classes, 16 * 5, generator=g).view(classes, 16, 5)
        total: Any = 0
        seen, added = 0, []
        for k in range(classes):
            own = [row for row in rows if row[3] and row[2] == k]
            anchors = [row for row in own if row[5][k] > 0.3]
            fresh = []
            for j, (_, key, label, _, unsure, values, labeled) in enumerate(rows):
                rank = sum(value > values[k] for value in values)
                fits = (label != k and rank < first) if labeled else first <= rank < 20
                if unsure and fits:
                    fresh.append((float(places[k, j]), key))
            new = [key for _, key in sorted(fresh, key=lambda pair: -pair[0])[: bank.size // 8]]
            added.append(new)
            start = int(bank.written[k])
            held = [
                bank.ring[k, row].double()
                for row in range(start - 1, max(start - bank.size, 0) - 1, -1)
            ]
            pool = held + new
            seen += bool(own)
            if not anchors or not pool:
                continue
            centre = sum(key / (key * key).sum().sqrt() for _, key, *_ in own)
            terms = []
            for q in range(16):
                anchor = anchors[int(picks[k, q] * len(anchors))][0]
                others = [pool[int(u * len(pool))] for u in draws[k, q]]
                cosines = [F.cosine_similarity(anchor, other, 0) for other in (centre, *others)]
                powers = [(cosine / 0.5).exp() for cosine in cosines]
                terms.append(-(powers[0] / sum(powers)).log())
            total = total + sum(terms) / 16
        assert seen > 1 and sum(map(len, added)) > 2
        for k, new in enumerate(added):
            for key in new:
                bank.ring[k, bank.written[k]] = key / (key * key).sum().sqrt()
                bank.written[k] += 1
        bank.begun.copy_(bank.written - torch.tensor([len(new) for new in added]))
        supervised, contrastive = labeled_entropy(logits[:3], y), total / seen
        losses = {
            "supervised": supervised,
            "unsupervised": unsupervised,
            "contrastive": contrastive,
        }
        return {**losses, "total": supervised + 0.7 * unsupervised + 0.3 * contrastive}

    def test_fewer_pixels_are_left_out_as_the_training_goes_on(self) -> None:
        """The factor is all pixels over reliable ones: 1 / (1 - alpha (1 - t))."""
        method: Any = self.midway(unreliable=0.4).eval()
        method.cutmix.p = 0.0
        x_l, y, x_u = batch_of()
        with torch.no_grad():
            probs = method.teacher.net(x_u).softmax(1)
            loss = F.cross_entropy(
                method.net(torch.cat([x_l, x_u]))[3:], probs.argmax(1), reduction="none"
            )
        doubt = -(probs * probs.log()).sum(1)
        for progress, share in ((0.0, 0.4), (0.5, 0.2), (1.0, 0.0)):
            found = method(x_l, y, x_u, progress=progress, generator=seeded(0))["unsupervised"]
            kept = doubt < np.percentile(doubt.numpy(), 100 * (1 - share))
            assert kept.float().mean() == pytest.approx(1 - share, abs=1e-3)
            torch.testing.assert_close(
                found, loss[kept].mean() / kept.float().mean(), rtol=1e-4, atol=1e-5
            )


@given(st.integers(0, 2**31 - 1), st.integers(1, 40), st.floats(0, 1))
def test_percentiles_are_those_of_numpy(seed: int, n: int, share: float) -> None:
    g = seeded(seed)
    values, counted = torch.rand(n, generator=g), torch.rand(n, generator=g) < 0.7
    found = percentile(values, counted, share)
    if not counted.any():
        assert not (values < found).any() and not (values >= found).any()
        return
    expected = np.percentile(values[counted].double().numpy(), 100 * share)
    assert found.item() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(found, percentile(values.view(1, n), counted.view(1, n), share))
    if len(values[counted]) > 1:
        as_tensor = percentile(values, counted, torch.tensor(share))
        torch.testing.assert_close(as_tensor, found, atol=1e-5, rtol=0)


def test_a_bank_is_a_list_whose_newest_are_drawn() -> None:
    bank, lists, g = FeatureBank(2, 8, 3), [list[Tensor](), list[Tensor]()], seeded(0)
    for step in range(12):
        bank.start_step()
        before = [rows[::-1][:8] for rows in lists]
        for _ in range(2):  # micro-batches
            fresh = torch.randn(2, 4, 3, generator=g)
            number = torch.randint(5, (2, 1), generator=g)
            counted = torch.arange(4) < number
            for k in (0, 1):  # each draws what was there at the start of the step, or its own
                pool = [*before[k], *fresh[k, : int(number[k])]]
                drawn = torch.arange(len(pool))[None].expand(2, -1)
                columns = bank.columns(drawn)[k]
                assert bank.held[k] == len(before[k])
                found = torch.cat([bank.ring[k], fresh[k]])[columns]
                assert torch.equal(found, torch.stack(pool) if pool else found), (step, k)
            bank.add(fresh, counted)
            for k in (0, 1):
                lists[k] += list(fresh[k, : int(number[k])])
    assert bank.written.tolist() == [len(rows) for rows in lists] and min(map(len, lists)) > 16


@pytest.mark.parametrize("classes", [1, 3, 7])
def test_a_bank_holds_unit_features_that_are_not_trained(classes: int) -> None:
    method: Any = U2PL(tiny_net(classes), bank=16)
    for seed in range(3):
        losses = method(*batch_of(classes), progress=0.1, generator=seeded(seed))
        assert losses["contrastive"].isfinite()
    bank = method.bank
    assert bank.written.any() and not bank.ring.requires_grad
    for ring, written in zip(bank.ring, bank.written.tolist(), strict=True):
        torch.testing.assert_close(ring[:written].norm(dim=1), torch.ones(min(written, 32)))
        assert not ring[written:].any()
    before = bank.written.clone()
    method.eval()(*batch_of(classes), progress=0.1, generator=seeded(0))
    assert torch.equal(bank.written, before)  # nothing is added in eval mode


def test_negatives_are_other_classes_places() -> None:
    """One labeled cell of class 0, one sure and two hazy unlabeled ones, by hand."""
    method: Any = U2PL(tiny_net(4), bank=32, low_rank=2, queries=4, negatives=3).train()
    keys = torch.eye(256)[:, :4].T.reshape(4, 256, 1, 1)
    probs = torch.tensor(
        [[0.5, 0.3, 0.1, 0.1], [0.1, 0.6, 0.2, 0.1], [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]]
    )
    probs = probs + torch.tensor([0.0, 0.0, 0.0, -1e-3])  # no ties
    label, low = torch.tensor([0.0, 1, 0, 3]), torch.tensor([1.0, 1, 0, 0])
    high = torch.tensor([1.0, 0, 1, 1])
    cells = torch.cat([probs, torch.stack([label, low, high], 1)], 1)[..., None, None]
    method.bank.start_step()
    loss = method.contrast(keys.clone().requires_grad_(), keys, cells, 1, seeded(0))
    assert loss > 0
    held = [
        {int(key.argmax()) for key in ring[:count]}
        for ring, count in zip(method.bank.ring, method.bank.written.tolist(), strict=True)
    ]
    # The labeled cell 0 may be taken for 1; cells 2 and 3 are hardly their two least likely classes.
    assert held == [{3}, {0, 3}, {2}, {2}]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unreliable": 1.2}, r"`unreliable` must be in \[0, 1\], got 1.2"),
        ({"bank": 7}, "`bank` must be a whole number, at least 8, got 7"),
    ],
)
def test_options_that_cannot_be_are_refused(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        U2PL(tiny_net(), **options)
