"""What a user's own code can get wrong in any method: options that are no such number, weights loaded late."""

import inspect
import math
from typing import Any, cast

import pytest
import torch
from tiny_nets import tiny_batch, tiny_net

from gmix.methods import METHODS

OTHERS = ("self", "net", "supervised", "variant", "parts")


METHODS_OF_TWO = ({"name": "cps"}, {"name": "gct"}, {"name": "s4gan", "mlmt": True})


@pytest.mark.parametrize("options", METHODS_OF_TWO)
def test_weights_loaded_later_reach_every_encoder(options: dict[str, Any]) -> None:
    options = dict(options)
    method = cast(Any, METHODS[options.pop("name")].load())(tiny_net(), **options)
    method.net.load_state_dict(tiny_net(seed=1).state_dict())
    method.on_step_start(*tiny_batch()[:2])
    first = method.net.model.encoder.state_dict()
    copies = [m for n, m in method.named_modules() if n.endswith("encoder")]
    assert len(copies) > 1
    assert all(torch.equal(m.state_dict()[n], t) for m in copies for n, t in first.items())
    method.net.load_state_dict(tiny_net(seed=2).state_dict())  # once training, each has its own
    method.step_started_at = None
    for other in copies[1:]:
        other.load_state_dict({n: t + 1 for n, t in first.items()})
    method.on_step_start(*tiny_batch()[:2])
    assert all(torch.equal(copies[1].state_dict()[n], t + 1) for n, t in first.items())


@pytest.mark.parametrize("name", METHODS)
def test_every_number_of_every_method_is_checked(name: str) -> None:
    net, method = tiny_net(), cast(Any, METHODS[name].load())
    for option in inspect.signature(method).parameters.values():
        if option.name in OTHERS:
            continue
        for wrong in (math.nan, -1, "0.5"):
            if option.name in ("mean", "ignore_index") and wrong == -1:
                continue  # which both may be
            with pytest.raises((TypeError, ValueError), match=rf"^`?{option.name}`? .* got"):
                method(net, **{option.name: wrong})
