"""What people hand to a method: right values where it works, one sentence where it does not, nothing silent."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from test_methods import EVERY, batch_of, some_valid
from tiny_methods import BUILDERS, takers
from tiny_nets import seeded, tiny_net
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gmix import GuidedMixLoss, GuidedMixNet, LabeledReference, StrongColor, StrongView
from gmix import functional as G
from gmix.methods import CCT, CPS, GuidedMix, MeanTeacher, Supervised

NAN = float("nan")
ALL = pytest.mark.parametrize("name", EVERY)
COLORED = {name: BUILDERS[name] for name in takers("mean") if name not in ("paper", "official")}


def photos(n: int = 3) -> Tensor:
    """Values 0 to 255, as files hold them."""
    return torch.randint(256, (n, 3, 32, 24), generator=seeded(n)).float()


# --- masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "convert",
    [
        lambda y: y.int(),
        lambda y: y.short(),
        lambda y: y.byte(),
        lambda y: y[:, None],
        lambda y: y[:, None].byte(),
    ],
    ids=["int32", "int16", "uint8", "N1HW", "N1HW uint8"],
)
@ALL
def test_masks_of_any_integer_type_give_the_same_step(name: str, convert: Any) -> None:
    x_l, y, x_u = batch_of()
    expected, losses = (
        EVERY[name](3)(x_l, masks, x_u, progress=0.5, generator=seeded(0))
        for masks in (y, convert(y))
    )
    assert all(torch.equal(value, losses[term]) for term, value in expected.items())


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
        EVERY["guidedmix"](1)(x_l, masks, x_u, progress=0.5, generator=seeded(0))
        for masks in (y, y.bool())
    )
    assert torch.equal(expected["total"], losses["total"])


# --- images -------------------------------------------------------------------------------------


@ALL
def test_uint8_images_are_refused_with_the_remedy(name: str) -> None:
    x_l, y, x_u = batch_of()
    for images in ((photos().byte(), y, x_u), (x_l, y, photos(4).byte())):
        with pytest.raises(TypeError, match=r"float32 images, got torch.uint8: pass \(x / 255 - "):
            EVERY[name](3)(*images, progress=0.5)


@ALL
def test_images_of_0_to_255_are_refused_before_anything_has_changed(name: str) -> None:
    _, y, _ = batch_of()
    method = EVERY[name](3)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    with pytest.raises(ValueError, match=r"^the images lie in 0..255, whole numbers: they are not"):
        method(photos(), y, photos(4), progress=0.5)
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())
    assert method(*batch_of(), progress=0.5)["total"].isfinite()


@pytest.mark.parametrize("name", COLORED)
def test_mean_and_std_that_are_not_those_of_the_images_are_refused(name: str) -> None:
    x_l, y, x_u = batch_of()
    with pytest.raises(
        ValueError, match=r"x \* std \+ mean is not in 0..1, as strong colours need"
    ):
        COLORED[name](tiny_net(), mean=0.0, std=1.0)(x_l, y, x_u, progress=0.5)


@pytest.mark.parametrize("name", COLORED)
def test_images_of_0_to_1_are_warned_of_once(name: str) -> None:
    _, y, _ = batch_of()
    method = COLORED[name](tiny_net())
    with pytest.warns(UserWarning, match=r"if they are not normalised, pass mean=0.0 and std=1.0"):
        method(photos() / 255, y, photos(4) / 255, progress=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method(photos() / 255, y, photos(4) / 255, progress=0.5)


@pytest.mark.parametrize(("scale", "stats"), [(1 / 255, (0.0, 1.0)), (1.0, (0.0, 1 / 255))])
@pytest.mark.parametrize("name", COLORED)
def test_images_that_are_not_normalised_work_where_mean_and_std_say_so(
    name: str, scale: float, stats: tuple[float, float]
) -> None:
    _, y, _ = batch_of()
    method = COLORED[name](tiny_net(), mean=stats[0], std=stats[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.remember([*zip(photos() * scale, y, strict=True)])
        losses = method(photos() * scale, y, photos(4) * scale, progress=0.5)
    assert losses["total"].isfinite()


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


@pytest.mark.parametrize(
    ("stats", "words"),
    [
        ({"std": 0.0}, "`std` must be above 0, images are divided by it, got 0.0"),
        ({"std": (0.2, 0.0, 0.2)}, "`std` must be above 0"),
        ({"std": -0.2}, "`std` must be above 0"),
        ({"std": float("nan")}, "`std` must be a finite number, or one per channel, got nan"),
        ({"mean": ()}, "`mean` must be a finite number"),
        (
            {"mean": (0.4, 0.5)},
            "`mean` and `std` must have one value, or one per channel, got 2 an",
        ),
        ({"std": (0.4, 0.5)}, "`mean` and `std` must have one value, or one per channel, got 3 an"),
    ],
)
@pytest.mark.parametrize("make", [*COLORED.values(), StrongView, StrongColor])
def test_mean_and_std_that_cannot_be_are_refused(make: Any, stats: Any, words: str) -> None:
    nets = () if make in (StrongView, StrongColor) else (tiny_net(),)
    with pytest.raises(ValueError) as error:
        make(*nets, **stats)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "stats", [{"mean": (0.5,) * 4, "std": 0.2}, {"mean": 0.5, "std": (1.0, 1)}]
)
@pytest.mark.parametrize("name", COLORED)
def test_mean_and_std_of_other_channels_are_named_at_the_first_call(name: str, stats: Any) -> None:
    method = COLORED[name](tiny_net(), **stats)
    with pytest.raises(ValueError, match=r"are for [42] channels, the images have 3: pass one"):
        method(*batch_of(), progress=0.5)


@ALL
def test_images_of_other_channels_are_refused_before_anything_has_changed(name: str) -> None:
    x_l, y, x_u = batch_of()
    method = EVERY[name](3)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    for channels, remedy in ((1, r"images.expand\(-1, 3, -1, -1\)"), (4, "in_channels=4")):
        few = (x.repeat(1, 2, 1, 1)[:, :channels] for x in (x_l, x_u))
        with pytest.raises(ValueError, match=rf"shape \(N, 3, H, W\), got .*{remedy}"):
            method(next(few), y, next(few), progress=0.5)
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())


def test_a_network_and_a_reference_name_images_of_other_channels() -> None:
    x, y, _ = batch_of()
    grey = GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, in_channels=1))
    with pytest.raises(ValueError, match=r"shape \(N, 1, H, W\), got \(3, 3, 32, 24\): convert"):
        grey(x)
    with pytest.raises(ValueError, match=r"got \(3, 32, 24\): pass a batch"):
        tiny_net()(x[0])
    with pytest.raises(ValueError, match=r"shape \(N, 3, H, W\), got \(1, 1, 32, 24\): make grey"):
        GuidedMix(tiny_net()).remember([(x[0, :1], y[0])])


@pytest.mark.parametrize("name", ["guidedmix", "supervised", "cct"])
def test_images_with_holes_are_refused_at_the_first_call(name: str) -> None:
    method = EVERY[name](3)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    for bad in (NAN, math.inf, -math.inf):
        x_l, y, x_u = batch_of()
        x_l[1, 0, 3, 3] = bad
        with pytest.raises(ValueError, match=r"^image 1 of a batch of 3 holds nan or infinite val"):
            method(x_l, y, x_u, progress=0.5)
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())
    method(*batch_of(), progress=0.5)
    assert not method(x_l, y, x_u, progress=0.5)["total"].isfinite()  # later ones are not looked at


@pytest.mark.parametrize("name", ["guidedmix", "supervised", "cct"])
def test_what_is_on_another_device_or_no_tensor_is_named(name: str) -> None:
    method = EVERY[name](3)
    names = ("x_labeled", "y_labeled", "x_unlabeled", "valid_unlabeled")
    given = dict(zip(names, (*batch_of(), some_valid()), strict=True))
    for key, value in given.items():
        with pytest.raises(ValueError, match=rf"^`{key}` is on the device meta, where .* pass one"):
            method(**{**given, key: value.to("meta")}, progress=0.5)
        with pytest.raises(TypeError, match=rf"^`{key}` must be a tensor, got ndarray: pass torch"):
            method(**{**given, key: value.numpy()}, progress=0.5)
    with pytest.raises(ValueError, match=r"^`x_labeled` is on the device meta"):
        method.on_step_start(*(x.to("meta") for x in batch_of()[:2]))


@pytest.mark.parametrize("name", ["guidedmix", "paper", "supervised", "cps"])
def test_a_supervised_loss_without_a_gradient_is_refused(name: str) -> None:
    def detached(logits: Tensor, y: Tensor) -> Tensor:
        return logits.mean().detach()

    method = EVERY[name](3, supervised=detached)
    with pytest.raises(TypeError, match=r"gradients flow through, got a constant: .* without .det"):
        method(*batch_of(), progress=0.5)
    with torch.no_grad():  # who only looks at the losses needs none
        assert method(*batch_of(), progress=0.5)["total"].isfinite()


@pytest.mark.parametrize("where", ["net", "net.model", "net.model.encoder"])
def test_a_network_wrapped_after_the_method_was_made_is_named(where: str) -> None:
    method = EVERY["cps"](3)
    owner, _, name = where.rpartition(".")
    setattr(method.get_submodule(owner), name, nn.DataParallel(method.get_submodule(where)))
    with pytest.raises(TypeError, match=rf"^`{where}` is wrapped in .*: wrap the method instead"):
        method(*batch_of(), progress=0.5)


# --- options ------------------------------------------------------------------------------------


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
        (lambda net: GuidedMixLoss(certainty=NAN), "`certainty` must be at least 0, got nan"),
        (lambda net: GuidedMixLoss(decoupling=NAN), "`decoupling` must be at least 0, got nan"),
        (lambda net: GuidedMix(net, reference={"floor": NAN}), "`floor` must be above 0, got"),
        (lambda net: GuidedMix(net, reference={"capacity": 1.5}), "(whole numbers), `temperature`"),
        (lambda net: GuidedMix(net, adjustment={"strength": NAN}), "must be at least 0, got nan"),
        (
            lambda net: GuidedMix(net, teacher={"decay": "0.9"}),
            "`decay` must be in [0, 1), got 0.9",
        ),
        (lambda net: GuidedMix(net, mixer={"alpha": NAN}), "`alpha` must be above 0, got nan"),
        (
            lambda net: CCT(net, decoders={"noise": 1.5}),
            "how many of each kind, got {'noise': 1.5}",
        ),
        (lambda net: CPS(net, cross=NAN), "`cross` must be at least 0, got nan"),
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


# --- progress -----------------------------------------------------------------------------------

RAMPED = {"guidedmix", "paper", "mean_teacher", "ict", "cct", "prevmatch", "prevmatch, taught"}
RAMPED |= {"gct", "official", "advssl", "s4gan, mlmt", "u2pl"}


@ALL
def test_methods_with_a_ramp_need_to_know_the_progress(name: str) -> None:
    method = EVERY[name](3)
    if name not in RAMPED:
        assert method(*batch_of(), generator=seeded(0))["total"].isfinite()
        return
    with pytest.raises(ValueError, match=r"needs `progress`, the share .* progress=step / steps"):
        method(*batch_of())


@pytest.mark.parametrize("bad", [50, -3, NAN, 1.5, "0.5", torch.tensor(2.0), torch.tensor(NAN)])
@ALL
def test_progress_outside_of_0_to_1_is_refused(name: str, bad: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^`progress` is the share .* in \[0, 1\]: pass step / st"
    ):
        EVERY[name](3)(*batch_of(), progress=bad)


def test_the_ramp_and_the_loss_check_it_too() -> None:
    for bad in (50, -3, NAN, "0.5", [0.5], torch.tensor([0.5, 0.5])):
        with pytest.raises(ValueError, match=r"^`progress` is the share"):
            G.ramp_up(bad)  # type: ignore[call-overload]
    some = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"^`progress`, the share .* is needed"):
        GuidedMixLoss()(some, some[:, 0].long(), logits_unlabeled=some, pseudo=some)


# --- weights ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@ALL
def test_weights_of_another_type_are_refused_in_one_sentence(name: str, dtype: Any) -> None:
    x_l, y, x_u = batch_of()
    method = EVERY[name](3).to(dtype)
    for cast in (lambda x: x, lambda x: x.to(dtype)):
        with pytest.raises(TypeError, match=r"learns float32 weights, .* torch.autocast") as error:
            method(cast(x_l), y, cast(x_u), progress=0.5)
        assert "\n" not in str(error.value)


@ALL
def test_images_of_another_type_are_refused_or_learned_under_autocast(name: str) -> None:
    x_l, y, x_u = batch_of()
    with pytest.raises(
        TypeError, match=r"`x_labeled` must be float32, got torch.float64: pass x_l"
    ):
        EVERY[name](3)(x_l.double(), y, x_u.double(), progress=0.5)
    with pytest.raises(TypeError, match=r"`x_labeled` must be float32, got torch.bfloat16"):
        EVERY[name](3)(x_l.bfloat16(), y, x_u.bfloat16(), progress=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        losses = EVERY[name](3)(x_l.bfloat16(), y, x_u.bfloat16(), progress=0.5)
    losses["total"].backward()
    assert losses["total"].isfinite() and losses["total"].dtype == torch.float32


def statistics(module: nn.Module) -> list[Tensor]:
    return [value.clone() for value in module.buffers()]


@pytest.mark.parametrize("when", ["before", "after"])
@ALL
def test_a_frozen_encoders_statistics_stay(name: str, when: str) -> None:
    method = EVERY[name](3)
    encoder, decoder = method.net.model.encoder, method.net.model.decoder
    if when == "before":
        encoder.requires_grad_(False)
    method.eval()
    method.train()
    encoder.requires_grad_(False)
    frozen, free = statistics(encoder), statistics(decoder)
    weights = [p.clone() for p in encoder.parameters()]
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for seed in range(2):
        method(*batch_of(), progress=0.5, generator=seeded(seed))["total"].backward()
        optimizer.step()
    assert all(map(torch.equal, frozen, statistics(encoder)))
    assert all(map(torch.equal, weights, encoder.parameters()))
    assert not all(map(torch.equal, free, statistics(decoder)))


def test_weights_loaded_after_the_method_was_made_reach_the_teacher() -> None:
    source = tiny_net(seed=5)
    for name in ("guidedmix", "mean_teacher", "classmix", "fixmatch, taught"):
        method: Any = EVERY[name](3)
        method.net.load_state_dict(source.state_dict())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            method.on_step_start(*batch_of()[:2])
        for own, loaded in zip(method.teacher.net.parameters(), source.parameters(), strict=True):
            assert torch.equal(own, loaded), name


def test_weights_loaded_after_the_method_was_made_reach_the_second_student() -> None:
    source = tiny_net(seed=5, mitrans=True)
    late, early = CPS(tiny_net(mitrans=True)), CPS(tiny_net(seed=5, mitrans=True))
    torch.manual_seed(7)  # whose decoders are the same draw
    late.other.reset_decoder()
    torch.manual_seed(7)
    early.other.reset_decoder()
    late.net.load_state_dict(source.state_dict())
    for seed in range(2):  # the second call must not copy again
        losses, expected = (m(*batch_of(), generator=seeded(seed))["total"] for m in (late, early))
        assert torch.equal(losses, expected)
        for method, loss in ((late, losses), (early, expected)):
            optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert all(map(torch.equal, late.state_dict().values(), early.state_dict().values()))


def test_a_second_student_keeps_its_own_weights() -> None:
    given, resumed, trained = CPS(tiny_net()), CPS(tiny_net(seed=3)), CPS(tiny_net())
    given.other.model.encoder.load_state_dict(tiny_net(seed=9).model.encoder.state_dict())
    trained.on_step_start(*batch_of()[:2])
    with torch.no_grad():
        next(trained.other.model.encoder.parameters()).add_(1)
    resumed.load_state_dict(trained.state_dict())
    for method in (given, resumed):
        before = {name: value.clone() for name, value in method.other.state_dict().items()}
        method.on_step_start(*batch_of()[:2])
        after = method.other.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_pseudo_masks_before_the_first_step_are_of_the_weights_that_were_loaded() -> None:
    for name in ("guidedmix", "mean_teacher", "classmix", "cutmix"):
        method: Any = EVERY[name](3)
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


@ALL
def test_a_state_of_another_class_number_is_refused_in_one_sentence(name: str) -> None:
    method = EVERY[name](3)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    state = EVERY[name](4).state_dict()
    with pytest.raises(RuntimeError, match=r"^the state is of another \w+: .* is \(4, ") as error:
        method.load_state_dict(state)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())
    with pytest.raises(RuntimeError, match=r"^the state is of another GuidedMixNet"):
        method.net.load_state_dict(tiny_net(4).state_dict())
    with pytest.raises(RuntimeError, match=r"is missing from it, .*"):
        method.load_state_dict({})
    with pytest.raises(RuntimeError, match=r"nonsense is unknown here, 1 entries differ"):
        method.load_state_dict({**before, "nonsense": torch.zeros(1)})
    # As a part of something larger, which torch loads.
    owner = nn.ModuleDict({"head": nn.Linear(1, 1), "method": method})
    held = {f"method.{key}": value for key, value in state.items()} | {
        f"head.{key}": value for key, value in owner["head"].state_dict().items()
    }
    with pytest.raises(
        RuntimeError, match=rf"^the state is of another {type(method).__name__}: method\."
    ) as error:
        owner.load_state_dict(held)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())


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


def test_cct_has_no_teacher_and_no_memory() -> None:
    method = CCT(tiny_net())
    before = {key: value.clone() for key, value in method.state_dict().items()}
    method.on_step_start(*batch_of()[:2])
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())


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
