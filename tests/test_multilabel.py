"""Classes that overlap: K binary tasks of one network."""

from typing import Any

import pytest
import torch
from tiny_nets import seeded, tiny_net
from torch import Tensor, nn

import gmix
from gmix import MultiLabelNet
from gmix.methods import METHODS, GuidedMix
from gmix.methods.method import MULTILABEL, Method

K = 3
ORDER = [2, 0, 1]
BUILDERS = {name: entry.load() for name, entry in METHODS.items()}
TAKEN = [name for name, builder in BUILDERS.items() if builder.multilabel]
# The product of two means, or one step against all classes, is not the mean over the classes.
JOINT = ("ict", "vat", "cutmix", "cps")


def channels(chosen: list[int]) -> nn.Module:
    """A model of K channels, reduced to those chosen, in this order."""
    torch.manual_seed(0)
    net = tiny_net(K)
    layer = net.last_layer
    assert layer.bias is not None
    layer.weight = nn.Parameter(layer.weight.detach()[chosen])
    layer.bias = nn.Parameter(layer.bias.detach()[chosen])
    layer.out_channels = len(chosen)
    return net.model


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = seeded(1)
    x, u = torch.randn(3, 3, 32, 32, generator=g), torch.randn(4, 3, 32, 32, generator=g)
    valid = torch.ones(4, 32, 32, dtype=torch.bool)
    valid[:, :, :7] = False
    return x, torch.randint(2, (3, K, 32, 32), generator=g), u, valid


def losses_of(name: str, net: gmix.GuidedMixNet, y: Tensor, **options: Any) -> dict[str, Tensor]:
    x, _, u, valid = batch()
    if name == "guidedmix":
        options = {"reference": None, "criterion": {"threshold": 0.55}, **options}
    elif "threshold" in BUILDERS[name].__init__.__annotations__:
        options = {"threshold": 0.55, **options}
    torch.manual_seed(5)  # for a second student
    method = BUILDERS[name](net, **options)
    found: dict[str, Tensor] = method(
        x, y, u, progress=0.5, valid_unlabeled=valid, generator=seeded(3)
    )
    return found


@pytest.mark.parametrize("name", [*(n for n in TAKEN if n not in JOINT), "mixing"])
def test_k_classes_are_the_mean_of_k_binary_networks(name: str) -> None:
    options: dict[str, Any] = {}
    if name == "mixing":
        name, options = "guidedmix", {"direct": 0.5}
    y = batch()[1]
    found = losses_of(name, MultiLabelNet(channels([0, 1, 2])), y, **options)
    each = [losses_of(name, gmix.GuidedMixNet(channels([k])), y[:, k], **options) for k in range(K)]
    for term, value in found.items():
        torch.testing.assert_close(value, torch.stack([one[term] for one in each]).mean())
    learned = [value for term, value in found.items() if term not in ("supervised", "previous")]
    assert all(value > 0 for value in learned)


@pytest.mark.parametrize("name", JOINT)
def test_one_class_is_the_binary_case_and_the_order_of_more_is_of_no_account(name: str) -> None:
    y = batch()[1]
    one = losses_of(name, MultiLabelNet(channels([1])), y[:, 1:2])
    binary = losses_of(name, gmix.GuidedMixNet(channels([1])), y[:, 1])
    torch.testing.assert_close(one, binary)
    if name != "cps":  # whose second student has other channels
        several = losses_of(name, MultiLabelNet(channels([0, 1, 2])), y)
        turned = losses_of(name, MultiLabelNet(channels(ORDER)), y[:, ORDER])
        torch.testing.assert_close(several, turned)


def test_each_class_ignores_its_own_pixels() -> None:
    y = batch()[1].clone()
    y[:, 1, :16] = 255
    found = losses_of("supervised", MultiLabelNet(channels([0, 1, 2])), y)["supervised"]
    total, count = 0.0, 0
    for k in range(K):
        loss = losses_of("supervised", gmix.GuidedMixNet(channels([k])), y[:, k])["supervised"]
        total += float(loss) * int((y[:, k] != 255).sum())
        count += int((y[:, k] != 255).sum())
    assert found.item() == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize(
    "name", ["CrossEntropyLoss", "OHEMLoss", "FocalLoss", "DiceLoss", "LovaszLoss"]
)
def test_losses_take_planes(name: str) -> None:
    y = batch()[1]
    loss = getattr(gmix, name)()
    z = torch.randn(3, K, 32, 32, generator=seeded(4))
    tall = loss(z.flatten(1, 2)[:, None], y.flatten(1, 2))  # the planes, one below the other
    torch.testing.assert_close(loss(z[:, None], y), tall)


def test_every_other_method_refuses_in_one_sentence() -> None:
    names = {BUILDERS[name].__name__ for name in TAKEN}
    assert names == set(MULTILABEL.replace(" or ", ", ").split(", "))
    for name in METHODS.keys() - set(TAKEN):
        with pytest.raises(
            TypeError, match=f"^{BUILDERS[name].__name__} has no meaning for classes that overlap"
        ):
            BUILDERS[name](MultiLabelNet(channels([0, 1, 2])))
    net = MultiLabelNet(channels([0, 1, 2]))
    for make, words in (
        (lambda: GuidedMix(net), "`reference` compares classes"),
        (lambda: GuidedMix(net, reference=None, paste={}), "`paste` compares classes"),
        (lambda: GuidedMix(net, variant="paper"), "no image-level classifier"),
        (lambda: GuidedMix(net, variant="official"), "compares classes"),
        (lambda: gmix.methods.Supervised(net, adjustment={}), "`adjustment` compares classes"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_masks_are_one_per_class() -> None:
    x, y, u, valid = batch()
    method: Method = gmix.methods.FixMatch(MultiLabelNet(channels([0, 1, 2])))
    for bad, words in (
        (
            y[:, 0],
            r"shape \(3, 3, 32, 32\), a mask of 0 and 1 for each of the 3 classes, got \(3, 32, 32\)",
        ),
        (y[:, :2], r"got \(3, 2, 32, 32\)"),
        (y.float(), r"as an integer, got torch.float32"),
        (2 * y, r"must hold classes 0 to 1, or 255"),
    ):
        with pytest.raises((ValueError, TypeError), match=words):
            method(x, bad, u)
    as_bool = method(x, y.bool(), u, valid_unlabeled=valid, generator=seeded(0))
    torch.testing.assert_close(as_bool, method(x, y, u, valid_unlabeled=valid, generator=seeded(0)))


def test_overlapping_classes_are_learned() -> None:
    """Two squares that overlap, and a third class on both: more than a softmax could hold."""
    g = seeded(0)
    x = torch.randn(4, 3, 32, 32, generator=g)
    y = torch.zeros(4, K, 32, 32, dtype=torch.int64)
    y[:, 0, 4:20, 4:20] = y[:, 1, 12:28, 12:28] = 1
    y[:, 2] = y[:, 0] | y[:, 1]
    x = x * 0.1 + 3 * y.float()
    torch.manual_seed(0)
    net = MultiLabelNet(tiny_net(K).model)
    method = gmix.methods.MeanTeacher(net)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for step in range(60):
        optimizer.zero_grad()
        method(x[:2], y[:2], x[2:], progress=step / 60, generator=g)["total"].backward()
        optimizer.step()
    found = net.eval().model(x) > 0
    wrong = (found != y.bool()).float().mean()
    assert wrong < 0.05 and (found.sum(1) == K).any()
    assert method.pseudo_masks(x, y, x).shape == (4, 1, K, 32, 32)
