"""The base class of all methods: what it is given, and when a step begins."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import naive
import pytest
import segmentation_models_pytorch as smp
import torch
from method_tester import BAD_STATS, MethodTester, batch_of, photos
from naive import Batch, Losses
from tiny_methods import BUILDERS
from tiny_nets import seeded, tiny_net
from torch import Generator, Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader

from gmix import GuidedMixLoss, GuidedMixNet, LabeledReference, StrongColor, StrongView
from gmix import functional as G
from gmix.methods import CCT, CPS, GuidedMix, MeanTeacher, Supervised


class TestSupervised(MethodTester):
    name = "supervised"
    weights = ()
    draws = False
    brings = ""

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        x, y, *_ = batch
        loss = naive.labeled_entropy(method.net(x), y)
        return {"supervised": loss, "total": loss}


def test_a_binary_mask_holds_0_and_1_and_what_is_ignored() -> None:
    x, y, _ = batch_of(2)
    y = torch.where(y == 255, 7, y)
    assert {0, 1, 7} == set(y.unique().tolist())
    method = Supervised(tiny_net(1), ignore_index=7)
    assert method(x, y)["total"].isfinite()
    with pytest.raises(ValueError, match=r"classes 0 to 1, or 7 \(`ignore_index`\).* got 255"):
        method(x, torch.where(y == 1, 255, y))


def test_other_devices_are_asked_for_their_masks_once() -> None:
    # Values on a GPU have to be waited for; those of a fake one are none at all.
    method = Supervised(tiny_net())
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(3, 3, 32, 32, device="cuda")
        y = torch.empty(3, 32, 32, dtype=torch.int64, device="cuda")
        with pytest.raises(RuntimeError, match="nonzero"):
            method._check_labeled(x, y)
        method._check_labeled(x, y)


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("dice", "`supervised` must be a loss to call with logits and masks, None for"),
        (nn.CrossEntropyLoss, "`supervised` must be a loss to call"),
        (lambda logits, y: logits.mean((1, 2, 3)), "must return a scalar of floating point, the"),
        (nn.CrossEntropyLoss(reduction="none", ignore_index=255), 'the loss with reduction="mean"'),
        (lambda logits, y: logits.mean()[None], "got shape (1,) of torch.float32: build the loss"),
        (lambda logits, y: (logits > 0).sum(), "got shape () of torch.int64: return one tensor"),
        (lambda logits, y: logits.detach().numpy(), "got a ndarray: return one tensor, computed"),
        (lambda logits, y: {"loss": logits}, "got a dict of loss: return one tensor"),
        (lambda logits, y: (logits, logits), "got a tuple of 2: return one tensor"),
        (lambda logits, y: None, "got None: return one tensor"),
        (lambda logits, y: 0.5, "got a float: return one tensor"),
    ],
)
@pytest.mark.parametrize("name", ["supervised", "guidedmix", "cct"])
def test_what_is_no_supervised_loss_is_refused(name: str, loss: Any, words: str) -> None:
    with pytest.raises(TypeError) as error:
        BUILDERS[name](tiny_net(), supervised=loss)(*batch_of(), progress=1.0)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_memory_gets_converted_masks_as_well() -> None:
    x_l, y, _ = batch_of()
    for method in (GuidedMix(tiny_net(), adjustment={}), Supervised(tiny_net(), adjustment={})):
        method.on_step_start(x_l, y[:, None].byte())
        pixels = method.adjustment.pixels
        assert pixels.tolist() == [int((y == k).sum()) for k in range(3)]


def test_binary_masks_may_be_bool() -> None:
    x_l, y, x_u = batch_of(1)
    y = (y == 1).long()
    expected, losses = (
        BUILDERS["guidedmix"](tiny_net(1))(x_l, masks, x_u, progress=0.5, generator=seeded(0))
        for masks in (y, y.bool())
    )
    assert torch.equal(expected["total"], losses["total"])


def test_a_strong_view_of_unnormalised_images_is_that_of_normalised_ones() -> None:
    raw = photos() / 255
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])
    view = StrongColor(mean=mean.tolist(), std=std.tolist())
    normalised = (raw - mean[:, None, None]) / std[:, None, None]
    expected = view(normalised, seeded(1)) * std[:, None, None] + mean[:, None, None]
    for factor in (1.0, 255.0):
        found = StrongColor(mean=0.0, std=1 / factor)(raw * factor, seeded(1)) / factor
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        assert 0.2 < found.mean() < 0.8  # not white


@pytest.mark.parametrize("make", [StrongView, StrongColor])
def test_mean_and_std_that_cannot_be_are_refused(make: Any) -> None:
    for stats, words in BAD_STATS:
        with pytest.raises(ValueError) as error:
            make(**stats)
        assert words in str(error.value) and "\n" not in str(error.value)


def test_a_network_and_a_reference_name_images_of_other_channels() -> None:
    x, y, _ = batch_of()
    grey = GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, in_channels=1))
    with pytest.raises(ValueError, match=r"shape \(N, 1, H, W\), got \(3, 3, 32, 24\): convert"):
        grey(x)
    with pytest.raises(ValueError, match=r"got \(3, 32, 24\): pass a batch"):
        tiny_net()(x[0])
    with pytest.raises(ValueError, match=r"shape \(N, 3, H, W\), got \(1, 1, 32, 24\): make grey"):
        GuidedMix(tiny_net()).remember([(x[0, :1], y[0])])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda net: GuidedMix(net, views=1.5),
            "`views` must be at least 1 and a whole number, got 1.5",
        ),
        (
            lambda net: GuidedMix(net, views="2"),
            "`views` must be at least 1 and a whole number, got '2'",
        ),
        (lambda net: GuidedMix(net, drop="0.5"), "`drop` must be in [0, 1], got '0.5'"),
        (lambda net: GuidedMix(net, direct=None), "`direct` is a weight in [0, 1], got None"),
        (
            lambda net: GuidedMix(net, ignore_index=1.5),
            "`ignore_index` must be the whole number that",
        ),
        (lambda net: CCT(net, ignore_index=None), "there is no class, got None"),
        (lambda net: GuidedMixLoss(ignore_index="255"), "there is no class, got '255'"),
        (lambda net: GuidedMixLoss(certainty=math.nan), "`certainty` must be at least 0, got nan"),
        (
            lambda net: GuidedMixLoss(decoupling=math.nan),
            "`decoupling` must be at least 0, got nan",
        ),
        (lambda net: GuidedMix(net, reference={"floor": math.nan}), "`floor` must be above 0, got"),
        (lambda net: GuidedMix(net, reference={"capacity": 1.5}), "(whole numbers), `temperature`"),
        (
            lambda net: GuidedMix(net, adjustment={"strength": math.nan}),
            "must be at least 0, got nan",
        ),
        (
            lambda net: GuidedMix(net, teacher={"decay": "0.9"}),
            "`decay` must be in [0, 1), got 0.9",
        ),
        (lambda net: GuidedMix(net, mixer={"alpha": math.nan}), "`alpha` must be above 0, got nan"),
        (
            lambda net: CCT(net, decoders={"noise": 1.5}),
            "how many of each kind, got {'noise': 1.5}",
        ),
        (lambda net: CPS(net, cross=math.nan), "`cross` must be at least 0, got nan"),
        (
            lambda net: MeanTeacher(net, unsupervised="1"),
            "`unsupervised` must be at least 0, got '1'",
        ),
    ],
)
def test_options_that_are_no_such_numbers_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError) as error:
        make(tiny_net())
    assert words in str(error.value)


def test_the_ramp_and_the_loss_check_it_too() -> None:
    for bad in (50, -3, math.nan, "0.5", [0.5], torch.tensor([0.5, 0.5])):
        with pytest.raises(ValueError, match=r"^`progress` is the share"):
            G.ramp_up(bad)  # type: ignore[call-overload]
    some = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"^`progress`, the share .* is needed"):
        GuidedMixLoss()(some, some[:, 0].long(), logits_unlabeled=some, pseudo=some)


def test_weights_loaded_after_the_method_was_made_reach_the_teacher() -> None:
    source = tiny_net(seed=5)
    for name in ("guidedmix", "mean_teacher", "classmix", "fixmatch, taught"):
        method: Any = BUILDERS[name](tiny_net())
        method.net.load_state_dict(source.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            method.on_step_start(*batch_of()[:2])
        for own, loaded in zip(method.teacher.net.parameters(), source.parameters(), strict=True):
            assert torch.equal(own, loaded), name


def test_pseudo_masks_before_the_first_step_are_of_the_weights_that_were_loaded() -> None:
    for name in ("guidedmix", "mean_teacher", "classmix", "cutmix"):
        method: Any = BUILDERS[name](tiny_net())
        method.net.load_state_dict(tiny_net(seed=5).state_dict())
        with torch.no_grad():
            expected = method.net.eval()(batch_of()[2]).softmax(1)
        assert torch.allclose(method.pseudo_masks(*batch_of()), expected, atol=1e-6), name


def test_weights_loaded_after_the_reference_was_made_are_warned_of() -> None:
    source, words = (
        tiny_net(seed=5),
        r"other weights than when GuidedMix was made.*load weights first",
    )
    x, y, _ = batch_of()
    labeled = [*zip(x, y, strict=True)]
    late = GuidedMix(tiny_net())
    late.net.load_state_dict(source.state_dict())
    with pytest.warns(UserWarning, match=words):
        late.remember(labeled)
    own = LabeledReference(source.model.encoder, 3)
    early, given, without, restored = (
        GuidedMix(tiny_net()),
        GuidedMix(tiny_net(), reference=own),
        GuidedMix(tiny_net(seed=1), reference=None),
        GuidedMix(tiny_net()),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in (early, given, without):
            method.remember(labeled)
        restored.load_state_dict(early.state_dict())
        for method in (early, given, without, restored, late):
            method(*batch_of(), progress=0.5)


def test_a_state_with_holes_is_refused_in_one_sentence() -> None:
    x, y, _ = batch_of()
    method = GuidedMix(tiny_net())
    method.remember([*zip(x, y, strict=True)])
    before = {key: value.clone() for key, value in method.state_dict().items()}
    for key in (*list(before)[:2], "reference.encoder_sum", "teacher.step"):
        for bad in (None, [1.0], "text"):
            for strict in (True, False):
                with pytest.raises(RuntimeError, match=rf"{key} is of type \w+ in it and") as error:
                    method.load_state_dict({**before, key: bad}, strict=strict)
                assert "\n" not in str(error.value)
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())
    with pytest.raises(RuntimeError, match=r"is of type NoneType in it and \(16, 3, 3, 3\) here"):
        method.net.load_state_dict(dict.fromkeys(method.net.state_dict()))
    with pytest.raises(TypeError, match=r"state_dict to be dict-like"):
        method.load_state_dict(None)  # type: ignore[arg-type]


# --- micro-batches ------------------------------------------------------------------------------


def micro_batches(
    method: Any, optimizer: Any, steps: int, parts: int, order: Callable[..., None]
) -> None:
    for step in range(steps):
        order(method, optimizer, step, parts)


def zero_first(method: Any, optimizer: Any, step: int, parts: int) -> None:
    optimizer.zero_grad()
    for part in range(parts):
        losses = method(*batch_of(), progress=0.5, generator=seeded(step * parts + part))
        (losses["total"] / parts).backward()
    optimizer.step()


def zero_last(method: Any, optimizer: Any, step: int, parts: int) -> None:
    for part in range(parts):
        losses = method(*batch_of(), progress=0.5, generator=seeded(step * parts + part))
        (losses["total"] / parts).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)


def in_a_closure(method: Any, optimizer: Any, step: int, parts: int) -> None:
    """As Lightning does: the last micro-batch goes forward within `optimizer.step`."""
    optimizer.zero_grad()

    def closure(part: int = parts - 1) -> Tensor:
        losses = method(*batch_of(), progress=0.5, generator=seeded(step * parts + part))
        (losses["total"] / parts).backward()
        total: Tensor = losses["total"]
        return total

    for part in range(parts - 1):
        closure(part)
    optimizer.step(closure)


class ByData(torch.optim.Optimizer):
    """An optimizer of the older kind, whose changes no version of a tensor shows."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.01})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data.sub_(0.01 * p.grad)


class ByHand:
    """No optimizer of torch at all."""

    def __init__(self, parameters: Any) -> None:
        self.parameters = list(parameters)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        if closure is not None:
            with torch.enable_grad():
                closure()
        for p in self.parameters:
            if p.grad is not None:
                p -= 0.01 * p.grad


OPTIMIZERS: dict[str, Any] = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "data": ByData,
    "hand": ByHand,
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("order", [zero_first, zero_last, in_a_closure])
def test_the_teacher_moves_once_a_step_however_many_micro_batches(
    order: Any, optimizer: str
) -> None:
    method = MeanTeacher(tiny_net())
    made = OPTIMIZERS[optimizer]([p for p in method.parameters() if p.requires_grad])
    for steps, parts in ((2, 3), (3, 1), (1, 4)):
        before = int(method.teacher.step)
        micro_batches(method, made, steps, parts, order)
        assert int(method.teacher.step) - before == steps


def test_a_step_of_micro_batches_moves_the_teacher_as_one_of_a_whole_batch() -> None:
    """The same two steps, each batch whole or given twice in a row: equal teachers."""
    x_l, y, x_u = batch_of()
    teachers = []
    for parts in (1, 2):
        method = MeanTeacher(tiny_net(), unsupervised=0.0)
        method.color.p = 0.0  # the same view each time
        optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(parts):
                (method(x_l, y, x_u, progress=1.0)["total"] / parts).backward()
            optimizer.step()
        teachers.append(method.teacher)
    assert teachers[0].step == teachers[1].step == 3
    for one, other in zip(teachers[0].net.parameters(), teachers[1].net.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_every_micro_batch_is_counted() -> None:
    x_l, y, x_u = batch_of()
    method = GuidedMix(tiny_net(), adjustment={})
    for start in range(3):
        method(x_l[start:][:1], y[start:][:1], x_u, progress=0.5)
    assert method.teacher.step == 1
    assert method.adjustment.pixels.tolist() == [int((y == k).sum()) for k in range(3)]


def test_a_scaler_that_skips_a_step_moves_no_teacher() -> None:
    method = MeanTeacher(tiny_net())
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for factor, moved in ((1.0, 1), (float("inf"), 2), (1.0, 2), (1.0, 3)):
        optimizer.zero_grad()
        losses = method(*batch_of(), progress=0.5)
        assert method.teacher.step == moved
        scaler.scale(losses["total"] * factor).backward()
        scaler.step(optimizer)
        scaler.update()


def test_begin_moves_it_always_and_counts_as_the_steps_begin() -> None:
    """What the trainer of gmix calls, once a step, skipped steps included."""
    method = MeanTeacher(tiny_net())
    method.on_step_start(*batch_of()[:2])
    method.on_step_start(*batch_of()[:2])
    assert method.teacher.step == 2
    method(*batch_of(), progress=0.5, step_started=True)
    method(*batch_of(), progress=0.5)  # who forgets `step_started` moves no teacher twice
    assert method.teacher.step == 2


def test_lightning_may_accumulate_and_never_end() -> None:
    pl = pytest.importorskip("pytorch_lightning")

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.method = MeanTeacher(tiny_net())

        def training_step(self, batch: Any, _: int) -> Tensor:
            total: Tensor = self.method(*batch, progress=min(self.global_step / 100, 1))["total"]
            return total

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), lr=0.01)

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    for accumulate in (1, 3):
        module = Module()
        trainer = pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            accumulate_grad_batches=accumulate,
            enable_model_summary=False,
            **quiet,
        )
        trainer.fit(module, DataLoader([tuple(batch_of())] * 6, batch_size=None))  # type: ignore[arg-type]
        assert trainer.global_step == 6 // accumulate
        assert module.method.teacher.step == 6 // accumulate
