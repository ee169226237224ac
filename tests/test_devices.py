"""No part waits for the GPU or mixes devices (on fake CUDA tensors), and each compiles into one graph."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from tiny_methods import BUILDERS
from tiny_nets import AverageEncoder, tiny_net
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensorMode,
)

import gmix
from gmix.methods import GuidedMix
from gmix.nn import late
from gmix.nn.views import GaussianBlur, StrongView

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*CUDA is not available"),
    pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor"),
]
N, K, SIZE = 4, 3, 32

# name -> (the part, its inputs); made inside the test, on whatever device is the default there
PARTS: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]] = {
    "mixer": lambda: (gmix.LabeledUnlabeledMixer(), (images(), images(), lam()), {}),
    "mixer, lambda drawn": lambda: (gmix.LabeledUnlabeledMixer(), (images(), images()), {}),
    "similar": lambda: (gmix.SimilarPairSelector(), (torch.randn(N, 8), torch.randn(5, 8)), {}),
    "cosine, not itself": lambda: (
        gmix.SimilarPairSelector("cosine"),
        (torch.randn(N, 8), torch.randn(N, 8)),
        {"exclude_self": True},
    ),
    "random": lambda: (gmix.RandomPairSelector(), (torch.randn(N, 8), torch.randn(5, 8)), {}),
    "random, not itself": lambda: (
        gmix.RandomPairSelector(),
        (torch.randn(N, 8), torch.randn(N, 8), True),
        {},
    ),
    "decoupler": lambda: (gmix.SoftDecoupler(), (probs(), probs(), lam()), {}),
    "decoupler, rescale": lambda: (
        gmix.SoftDecoupler(normalize="rescale"),
        (probs(), probs(), lam()),
        {},
    ),
    "decoupler, hard": lambda: (gmix.SoftDecoupler("hard"), (probs(), probs(), lam()), {}),
    "decoupler, binary": lambda: (
        gmix.SoftDecoupler(),
        (probs()[:, :1], probs()[:, :1], lam()),
        {},
    ),
    "class paste": lambda: (gmix.ClassPaste(K), (masks(),), {}),
    "logit adjustment": lambda: (gmix.LogitAdjustment(K), (logits(), masks()), {}),
    "loss": lambda: (gmix.GuidedMixLoss(), (logits(), masks()), every_term(K)),
    "loss, binary": lambda: (gmix.GuidedMixLoss(), (logits(1), masks(2)), every_term(1)),
    "loss, thresholded": lambda: (
        gmix.GuidedMixLoss(objective="cross_entropy", threshold=0.5),
        (logits(), masks()),
        every_term(K),
    ),
    "loss, soft": lambda: (
        gmix.GuidedMixLoss(objective="soft_cross_entropy", threshold=0.5),
        (logits(), masks()),
        every_term(K),
    ),
    "reference": lambda: (reference(), (probs(), images()), {}),
    "color": lambda: (gmix.StrongColor(), (images(),), {}),
    "color, hue": lambda: (gmix.StrongColor(hue=0.25), (images(),), {}),
    "blur": lambda: (GaussianBlur(), (images(),), {}),
    "cutmix": lambda: (gmix.CutMix(), (images(),), {}),
    "strong view": lambda: (StrongView(), (images(),), {}),
    "network": lambda: (tiny_net(mitrans=True).eval(), (images(),), {}),
}


def images(n: int = N) -> Tensor:
    return torch.randn(n, 3, SIZE, SIZE)


def masks(classes: int = K) -> Tensor:
    y = torch.randint(classes, (N, SIZE, SIZE))
    return torch.where(torch.rand(y.shape) < 0.2, 255, y)


def logits(k: int = K) -> Tensor:
    return torch.randn(N, k, SIZE, SIZE)


def probs(k: int = K) -> Tensor:
    return logits(k).sigmoid() if k == 1 else logits(k).softmax(1)


def lam() -> Tensor:
    return torch.rand(N) / 2


def every_term(k: int) -> dict[str, Any]:
    return {
        "class_logits": torch.randn(N, k),
        "logits_unlabeled": logits(k),
        "pseudo": probs(k),
        "valid": torch.rand(N, SIZE, SIZE) < 0.7,
        "probs_decoupled": probs(k),
        "decoupled_target": probs(k),
        "progress": 0.1,
    }


def reference() -> gmix.LabeledReference:
    # Empty: what is remembered is looked at, once before training. What is asked is not.
    return gmix.LabeledReference(AverageEncoder(), K, capacity=100)


def tensors(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    return [t for part in (out.values() if isinstance(out, dict) else out) for t in tensors(part)]


class Fake(FakeTensorMode):
    def __deepcopy__(self, memo: object) -> "Fake":
        return self  # a copied tensor stays in the same world


@contextmanager
def fake() -> Iterator[None]:
    """What is made inside is a CUDA tensor without values: no GPU needed, and none to read."""
    with Fake(), torch.device("cuda"):
        yield


def test_the_check_itself_finds_waits_and_strays() -> None:
    with fake():
        x = torch.randn(2, 3)
        with pytest.raises(DataDependentOutputException):
            x.sum().item()
        with pytest.raises(RuntimeError, match=r"[Dd]evice"):
            x + torch.zeros(2, 3, device="cpu")


@pytest.mark.parametrize("name", PARTS)
def test_no_part_waits_for_the_gpu_or_mixes_devices(name: str) -> None:
    with fake():
        part, args, options = PARTS[name]()
        with torch.device("cpu"):  # where what is made without a word strays
            out = tensors(part(*args, **options))
    assert out and all(t.device.type == "cuda" for t in out)


def test_pasting_and_following_do_not_either() -> None:
    with fake():
        x = images()
        pasted = gmix.CutMix()(x)
        assert pasted.apply(x).device.type == pasted.apply(masks()).device.type == "cuda"
        net = tiny_net()
        teacher = gmix.EMATeacher(net)
        teacher.update(net)
        assert {t.device.type for t in teacher.state_dict().values()} == {"cuda"}


METHODS = {
    **BUILDERS,
    "guidedmix, pasting": partial(GuidedMix, paste={}),
    "paper, random pairs": partial(GuidedMix, variant="paper", selector="random"),
}


# Of these, binary networks go other ways.
BINARY = ("guidedmix", "paper", "official", "unimatch", "u2pl", "corrmatch", "s4gan", "gct", "cct")


@pytest.mark.parametrize(
    ("name", "classes"),
    [*((name, 3) for name in METHODS if "taught" not in name), *((name, 1) for name in BINARY)],
)
def test_no_step_waits_for_the_gpu_or_mixes_devices(
    name: str, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "ict" and torch.__version__ < "2.12":
        pytest.skip(f"torch {torch.__version__} asks for a driver to draw even fake numbers")
    # Forward only: torch's backward engine wants a real GPU, see test_cuda.py. CCT asks it for a
    # direction in the midst of its forward; here it gets one without a value.
    monkeypatch.setattr(torch.func, "grad", lambda distance: torch.empty_like)
    # What has no values has no checksum.
    monkeypatch.setattr(late, "checksum", lambda module: torch.zeros(32))
    with fake():
        method = METHODS[name](tiny_net(classes, mitrans=True))
        # The one wait is in the first step, which looks at the batch and at the weights.
        method.masks_seen = method.images_seen = True
        method.step_started_at = -1
        y = masks(2)
        valid = torch.rand(5, SIZE, SIZE) < 0.9
        x_l, x_u = images(), images(5)
        with torch.device("cpu"):
            losses = method(x_l, y, x_u, progress=0.5, valid_unlabeled=valid)
        assert all(loss.device.type == "cuda" for loss in losses.values())


@pytest.mark.parametrize("name", PARTS)
def test_every_part_compiles_into_one_graph(name: str) -> None:
    torch.manual_seed(0)
    part, args, options = PARTS[name]()
    torch.compiler.reset()
    compiled = torch.compile(part, fullgraph=True, backend="eager")
    outputs = []
    for call in (part, compiled):
        torch.manual_seed(1)  # parts that draw draw the same
        outputs.append(tensors(call(*args, **options)))
    for expected, out in zip(*outputs, strict=True):
        torch.testing.assert_close(out, expected)
