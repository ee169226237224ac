"""U2PL: its percentiles, its bank, and what must always hold of unreliable pixels."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from test_methods import batch_of, make, moved
from tiny_nets import seeded, tiny_net
from torch import Tensor

from gmix.methods import U2PL
from gmix.methods.u2pl import percentile
from gmix.nn.bank import FeatureBank


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


def test_fewer_pixels_are_left_out_as_the_training_goes_on() -> None:
    """The factor is all pixels over reliable ones: 1 / (1 - alpha (1 - t))."""
    method: Any = moved(make("u2pl", unreliable=0.4)).eval()
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
