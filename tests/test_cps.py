"""CPS with CutMix: one step against naive code, and whose weights and labels it takes."""

from typing import Any

import pytest
import torch
from step_check import check_step
from test_methods import batch_of, best, entropy, full, labeled_entropy, make, moved, paste
from tiny_nets import seeded, tiny_net
from torch import Tensor

from gmix import CutMix
from gmix.methods import CPS


def plain_cutmix(
    method: Any, x_l: Tensor, y: Tensor, x_u: Tensor, valid: Tensor, g: torch.Generator
) -> dict[str, Any]:
    pasted, losses = method.cutmix(x_u, g), {}
    assert 0.2 < pasted.box.float().mean() < 0.55 and pasted.box.flatten(1).any(1).all()
    students = method.net, method.other
    with torch.no_grad():
        labels = [paste(best(full(student(x_u)))[0], pasted) for student in students]
    assert 0.1 < (labels[0] == labels[1]).float().mean() < 0.9
    inside = paste(valid, pasted)
    outputs = [student(torch.cat([x_l, paste(x_u, pasted)])) for student in students]
    losses["supervised"] = sum(labeled_entropy(logits[:3], y) for logits in outputs)
    losses["cross"] = sum(
        entropy(logits[3:], told, inside, inside)
        for logits, told in zip(outputs, labels[::-1], strict=True)
    )
    return {**losses, "total": losses["supervised"] + 0.7 * losses["cross"]}


@pytest.mark.parametrize(("classes", "padded"), [(3, False), (3, True), (1, True)])
def test_a_step_with_cutmix_is_this_plain_code(classes: int, padded: bool) -> None:
    method = moved(make("cps", classes, cross=0.7, cutmix={}))
    check_step(method, plain_cutmix, classes, padded)


def test_the_weight_is_the_authors_for_voc_unless_it_is_given() -> None:
    found: Any = [CPS(tiny_net(), **options).weight for options in ({}, {"cutmix": {}})]
    assert found == [1.5, 1.0]
    assert CPS(tiny_net(), cross=5, cutmix={}).weight == 5
    with pytest.raises(ValueError, match="`cross` must be at least 0, got -1"):
        CPS(tiny_net(), cross=-1)


def test_the_boxes_are_a_part() -> None:
    for given in ({"p": 0.0}, CutMix(p=0.0)):
        method: Any = CPS(tiny_net(), cutmix=given)
        assert (method.cutmix.p, method.cutmix.area) == (0.0, (0.25, 0.5))
        assert not method.cutmix(batch_of().x_unlabeled, seeded(0)).box.any()
