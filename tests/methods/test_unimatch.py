"""UniMatch, its own teacher or with one."""

from typing import Any

import naive
import pytest
from method_tester import MethodTester, batch_of
from naive import Batch, Losses
from tiny_nets import seeded
from torch import Generator


class TestUniMatch(MethodTester):
    name = "unimatch"
    options = {"strong": 0.7, "features": 0.3, "drop": 0.4}
    weights = ("strong", "features")
    brings = ""

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        return naive.unimatch(method, batch, g)

    @pytest.mark.parametrize("drop", [0.0, 1.0])
    def test_unimatch_drops_none_or_all_of_its_channels(self, drop: float) -> None:
        losses = self.make(drop=drop)(*batch_of(), generator=seeded(0))
        losses["total"].backward()
        assert losses["features"].isfinite() and losses["features"] > 0


class TestUniMatchTaught(TestUniMatch):
    name = "unimatch, taught"
    brings = "teacher.net."
    test_a_few_steps_lower_the_total = None  # that it learns at all, its parent has shown
