"""What a user's own code can get wrong in any method: options that are no such number."""

import inspect
import math
from typing import Any, cast

import pytest
from tiny_nets import tiny_net

from gmix.methods import METHODS

OTHERS = ("self", "net", "supervised", "variant", "parts")


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
