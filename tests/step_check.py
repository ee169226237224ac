"""Compare a step of a method with a naive computation of it: losses, gradients, and what it leaves behind."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from test_methods import batch_of, some_valid
from tiny_nets import seeded


def check_step(
    method: Any,
    plain_step: Callable[..., dict[str, Any]],
    classes: int,
    padded: bool,
    *,
    progress: float = 0.05,
) -> None:
    """Equal gradients also say: targets are constants, none reaches a teacher."""
    batch = batch_of(classes)
    valid = some_valid() if padded else None
    plain = copy.deepcopy(method)
    losses = method(*batch, progress=progress, valid_unlabeled=valid, generator=seeded(7))
    losses["total"].backward()
    every = torch.ones(4, 32, 24, dtype=torch.bool)
    expected = plain_step(plain, *batch, every if valid is None else valid, seeded(7))
    expected["total"].backward()
    assert losses.keys() == expected.keys()
    for term, value in losses.items():
        assert value.dtype == torch.float32 and value > 1e-3, term
        torch.testing.assert_close(
            value.double(), expected[term], atol=1e-5, rtol=1e-4, msg=lambda m, t=term: f"{t}: {m}"
        )
    naive = {key: p.grad for key, p in plain.named_parameters()}
    for key, p in method.named_parameters():
        torch.testing.assert_close(
            p.grad, naive[key], atol=1e-5, rtol=2e-3, msg=lambda m, k=key: f"{k}: {m}"
        )
    after = plain.state_dict()
    for key, value in method.state_dict().items():  # BatchNorm statistics, a second network
        torch.testing.assert_close(value, after[key], msg=lambda m, k=key: f"{k}: {m}")
