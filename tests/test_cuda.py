"""For people with a GPU, `pytest -m cuda`: the same numbers as on the CPU, half precision, no waiting."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from tiny_nets import AverageEncoder, tiny_batch, tiny_net
from torch import Tensor, nn

import gmix
from gmix import methods
from gmix.methods import GuidedMix, Supervised

pytestmark = pytest.mark.cuda
DEVICE = "cuda"


def to_device(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.to(DEVICE)
    return (
        {k: to_device(v) for k, v in value.items()}
        if isinstance(value, dict)
        else tuple(map(to_device, value))
        if isinstance(value, tuple)
        else value
    )


def tensors(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    return [t for part in (out.values() if isinstance(out, dict) else out) for t in tensors(part)]


@contextmanager
def no_waiting() -> Iterator[None]:
    """Reading a value back from the GPU is an error in here."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    with torch.backends.cudnn.flags(allow_tf32=False):
        yield


def probs(k: int) -> Tensor:
    logits = torch.randn(4, k, 16, 16)
    return logits.sigmoid() if k == 1 else logits.softmax(1)


def loss_inputs(k: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    y = torch.randint(max(k, 2), (4, 16, 16))
    y[:, :3] = 255
    given = {
        "class_logits": torch.randn(4, k),
        "logits_unlabeled": torch.randn(4, k, 16, 16),
        "pseudo": probs(k),
        "valid": torch.rand(4, 16, 16) < 0.7,
        "probs_decoupled": probs(k),
        "decoupled_target": probs(k),
        "progress": 0.1,
    }
    return (torch.randn(4, k, 16, 16), y), given


def reference(classes: int) -> gmix.LabeledReference:
    part = gmix.LabeledReference(AverageEncoder(), classes, capacity=100)
    x, y = torch.randn(3, 3, 16, 16), torch.randint(max(classes, 2), (3, 16, 16))
    part.remember(list(zip(x, y, strict=True)))
    return part


def image() -> Tensor:
    return torch.randn(4, 3, 16, 16)


PARTS: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]] = {
    "mixer": lambda: (gmix.LabeledUnlabeledMixer(), (image(), image(), torch.rand(4) / 2), {}),
    "similar": lambda: (gmix.SimilarPairSelector(), (torch.randn(6, 8), torch.randn(5, 8)), {}),
    "cosine": lambda: (
        gmix.SimilarPairSelector("cosine"),
        (torch.randn(6, 8), torch.randn(6, 8), True),
        {},
    ),
    "decoupler": lambda: (gmix.SoftDecoupler(), (probs(3), probs(3), torch.rand(4) / 2), {}),
    "decoupler, hard": lambda: (
        gmix.SoftDecoupler("hard"),
        (probs(1), probs(1), torch.rand(4) / 2),
        {},
    ),
    "loss": lambda: (gmix.GuidedMixLoss(), *loss_inputs(3)),
    "loss, binary": lambda: (gmix.GuidedMixLoss(), *loss_inputs(1)),
    "loss, thresholded": lambda: (
        gmix.GuidedMixLoss(objective="cross_entropy", threshold=0.5),
        *loss_inputs(3),
    ),
    "reference": lambda: (reference(3), (probs(3), image()), {}),
    "reference, binary": lambda: (reference(1), (probs(1), image()), {}),
    "network": lambda: (tiny_net(mitrans=True).eval(), (torch.randn(2, 3, 37, 40),), {}),
}


@pytest.mark.parametrize("name", PARTS)
def test_every_part_gives_the_same_on_the_gpu_without_waiting(name: str) -> None:
    torch.manual_seed(0)
    part, args, options = PARTS[name]()
    expected = tensors(part(*args, **options))
    part, args, options = part.to(DEVICE), to_device(args), to_device(options)
    with no_waiting():
        out = tensors(part(*args, **options))
    for value, wanted in zip(out, expected, strict=True):
        assert value.device.type == DEVICE
        torch.testing.assert_close(value.cpu(), wanted, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda g: gmix.functional.sample_lambda(64, alpha=0.4, generator=g, device=DEVICE),
        lambda g: gmix.RandomPairSelector()(
            torch.zeros(9, 2, device=DEVICE), torch.zeros(9, 2, device=DEVICE), True, g
        ),
        lambda g: gmix.StrongColor().to(DEVICE)(torch.ones(4, 3, 8, 8, device=DEVICE), g),
        lambda g: gmix.CutMix()(torch.ones(4, 3, 8, 8, device=DEVICE), g).box,
    ],
)
def test_what_is_drawn_follows_a_generator_on_the_gpu(
    make: Callable[[torch.Generator], Tensor],
) -> None:
    once, again, other = (make(torch.Generator(DEVICE).manual_seed(s)) for s in (0, 0, 1))
    assert once.device.type == DEVICE
    assert torch.equal(once, again) and not torch.equal(once, other)


class FixedMixer(gmix.LabeledUnlabeledMixer):
    """A lambda that does not depend on which device draws it."""

    def forward(self, labeled: Tensor, unlabeled: Tensor, *_: Any, **__: Any) -> gmix.Mixed:
        return super().forward(labeled, unlabeled, torch.full_like(unlabeled[:, 0, 0, 0], 0.25))


METHODS: dict[str, Callable[[], nn.Module]] = {
    "supervised": lambda: Supervised(tiny_net()),
    "default": lambda: GuidedMix(tiny_net(), mixer=FixedMixer(), color=None, cutmix=None),
    "paper": lambda: GuidedMix(tiny_net(), variant="paper", mixer=FixedMixer()),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_step_gives_the_same_on_the_gpu(name: str) -> None:
    method, batch = METHODS[name](), tiny_batch()
    on_gpu = copy.deepcopy(method).to(DEVICE)
    expected = method(*batch, progress=0.5)
    losses = on_gpu(*to_device(tuple(batch)), progress=0.5)
    for key, value in losses.items():
        torch.testing.assert_close(value.cpu(), expected[key], atol=1e-3, rtol=1e-2)


EVERY: dict[str, Callable[[Any], nn.Module]] = {
    **{name: entry.load() for name, entry in methods.METHODS.items()},
    "guidedmix, paper": partial(GuidedMix, variant="paper"),
    "guidedmix, official": partial(GuidedMix, variant="official"),
}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("classes", [1, 3])
def test_a_whole_training_step_never_waits_and_is_finite(
    name: str, dtype: torch.dtype | None, classes: int
) -> None:
    method = EVERY[name](tiny_net(classes).to(DEVICE)).to(DEVICE)
    trained = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=128.0, enabled=dtype is torch.float16)
    generator = torch.Generator(DEVICE).manual_seed(0)
    x_l, y, x_u = to_device(tuple(tiny_batch(classes=classes)))
    valid = torch.ones(4, 32, 32, dtype=torch.bool, device=DEVICE)
    method.remember([*zip(x_l, y, strict=True)])

    def step(progress: float) -> dict[str, Tensor]:
        optimizer.zero_grad()
        with torch.autocast(DEVICE, dtype, enabled=dtype is not None):
            losses: dict[str, Tensor] = method(
                x_l, y, x_u, progress=progress, valid_unlabeled=valid, generator=generator
            )
        scaler.scale(losses["total"]).backward()
        if dtype is not torch.float16:  # a scaler looks for infinite gradients
            optimizer.step()
        return losses

    step(0.0)  # the first one builds what libraries build once
    with no_waiting():
        losses = step(0.5)
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    assert all(p.grad.isfinite().all() for p in trained if p.grad is not None)
    assert all(p.isfinite().all() for p in method.parameters())
