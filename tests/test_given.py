"""What is said of a part is as said; what is not said stays as the method's variant has it."""

import copy
import inspect
from typing import Any

import pytest
import torch
from tiny_nets import seeded, tiny_batch, tiny_net
from torch import nn

import gmix
from gmix import GuidedMixLoss, StrongColor
from gmix.builders.method import build_method
from gmix.config.train_config import TrainConfig
from gmix.methods import FixMatch, GuidedMix, Supervised, UniMatch

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)

# Every option of every part, with a value that no variant has.
OTHER: dict[str, dict[str, Any]] = {
    "selector": {"metric": "cosine"},
    "mixer": {"alpha": 2.0, "max_lambda": 0.2},
    "decoupler": {"mode": "hard", "normalize": "none"},
    "adjustment": {"strength": 0.3, "floor": 0.01},
    "criterion": {
        "objective": "soft_cross_entropy",
        "threshold": 0.2,
        "certainty": 3.0,
        "classification": 0.1,
        "unsupervised": 0.2,
        "decoupling": 0.4,
        "ramp_length": 0.6,
        "ignore_index": 7,
    },
    "teacher": {"decay": 0.7},
    "reference": {
        "capacity": 32,
        "positions": 5,
        "shorter_side": 40,
        "temperature": 0.2,
        "strength": 0.4,
        "floor": 0.3,
    },
    "color": {
        "strength": 0.1,
        "p": 0.3,
        "grey": 0.4,
        "hue": 0.2,
        "mean": (0.1, 0.2, 0.3),
        "std": (0.7, 0.8, 0.9),
    },
    "blur": {"p": 0.1, "sigma": (0.2, 0.9)},
    "paste": {"p": 0.1},
    "cutmix": {"p": 0.1, "area": (0.3, 0.4), "aspect": 2.0},
}
# What a part is made from besides its options.
NEEDS = {"student", "encoder", "classes"}
KINDS: dict[str, Any] = {
    "selector": gmix.SimilarPairSelector,
    "mixer": gmix.LabeledUnlabeledMixer,
    "decoupler": gmix.SoftDecoupler,
    "adjustment": gmix.LogitAdjustment,
    "criterion": GuidedMixLoss,
    "teacher": gmix.EMATeacher,
    "reference": gmix.LabeledReference,
    "color": StrongColor,
    "blur": gmix.GaussianBlur,
    "paste": gmix.ClassPaste,
    "cutmix": gmix.CutMix,
}
# Where the variants differ from the parts on their own, written once more.
VARIANT: dict[str, dict[str, dict[str, Any]]] = {
    "default": {
        "mixer": {"max_lambda": 0.3},
        "criterion": {
            "objective": "cross_entropy",
            "threshold": 0.95,
            "classification": 0.0,
            "decoupling": 0.0,
            "ramp_length": 0.0,
        },
        "color": {"mean": MEAN, "std": STD, "hue": 0.25},
    },
    "paper": {"color": {"mean": MEAN, "std": STD}},
}
CASES = [(part, option) for part, options in OTHER.items() for option in options]


def options_of(kind: Any) -> dict[str, Any]:
    """The options of a part with their defaults, from its signature."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.name not in NEEDS}


def make_object(net: Any, name: str, **options: Any) -> Any:
    needs = {"teacher": (net,), "reference": (net.model.encoder, 3)}
    needs |= dict.fromkeys(("adjustment", "paste"), (3,))
    return KINDS[name](*needs.get(name, ()), **options)


def value_of(part: Any, option: str) -> Any:
    # A reference's strength is measured, unless it is given.
    own = f"given_{option}"
    value = getattr(part, own if hasattr(part, own) else option)
    return tuple(round(v, 6) for v in value.flatten().tolist()) if torch.is_tensor(value) else value


def test_the_table_has_every_part_and_every_option() -> None:
    assert {name: {*options} for name, options in OTHER.items()} == {
        name: {*options_of(kind)} for name, kind in KINDS.items()
    }
    parts = {*GuidedMix(tiny_net()).__dict__} | {*dict(GuidedMix(tiny_net()).named_children())}
    others = {"net", "supervised_loss"}
    everything = GuidedMix(tiny_net(), paste={}, adjustment={})
    assert {*dict(everything.named_children())} - others == {*OTHER}
    assert parts > {"direct", "true_masks", "pair_across", "views", "drop"}


@pytest.mark.parametrize("said_as", ["part", "mapping", "flags"])
@pytest.mark.parametrize("variant", ["default", "paper"])
@pytest.mark.parametrize(("name", "option"), CASES)
def test_one_option_leaves_the_others_as_the_variant_has_them(
    name: str, option: str, variant: Any, said_as: str
) -> None:
    net, value = tiny_net(), OTHER[name][option]
    # What is expensive and not looked at is left out.
    given: dict[str, Any] = {part: None for part in ("teacher", "reference") if part != name}
    if said_as == "flags":
        given[name] = {option: value}
        config = TrainConfig(
            method="guidedmix",
            variant=variant,
            method_args=given,
            encoder="tu-test_resnet",
            channels=1,
        )
        method: Any = build_method(config, net)
    else:
        said = {option: value}
        given[name] = said if said_as == "mapping" else make_object(net, name, **said)
        method = GuidedMix(net, variant=variant, mean=MEAN, std=STD, **given)
        if said_as == "part":
            assert getattr(method, name) is given[name]
    part = getattr(method, name)
    own = dict(VARIANT[variant].get(name, {}))
    if name == "color" and said_as == "flags":  # what this encoder's images are normalised with
        own |= {"mean": (0.5,), "std": (0.5,)}
    expected = {**options_of(KINDS[name]), **own, option: value}
    assert {key: value_of(part, key) for key in expected} == expected
    if option == "capacity":
        assert len(part.keys) == value


def test_the_example_of_the_issue() -> None:
    """A step with one weight changed is the default's step but for this weight."""
    # A network that knows nothing is nowhere 95 % sure.
    plain = GuidedMix(tiny_net(), criterion={"threshold": 0.0})
    light = GuidedMix(tiny_net(), criterion=GuidedMixLoss(threshold=0.0, unsupervised=0.1))
    losses, other = (m(*tiny_batch(), progress=1.0, generator=seeded(0)) for m in (plain, light))
    assert losses.keys() == other.keys()
    for name in losses.keys() - {"total"}:
        assert torch.equal(losses[name], other[name]), name
    difference = losses["total"] - other["total"]
    assert losses["unsupervised"] > 0
    torch.testing.assert_close(difference, 0.9 * losses["unsupervised"])


def test_what_is_said_wins_even_if_it_is_what_the_part_has_anyway() -> None:
    said = GuidedMixLoss(objective="squared_error", certainty=0.0, decoupling=1.0)
    method = GuidedMix(tiny_net(), criterion=said, mixer=gmix.LabeledUnlabeledMixer(1.0, 0.5))
    assert method.criterion.objective == "squared_error" and method.criterion.decoupling == 1.0
    assert method.mixer.max_lambda == 0.5  # by position, too


def test_a_part_of_another_class_is_left_as_it_is() -> None:
    class Sharp(GuidedMixLoss):
        def __init__(self) -> None:
            super().__init__(certainty=4.0)

    method = GuidedMix(tiny_net(), criterion=Sharp(), selector=gmix.RandomPairSelector())
    assert isinstance(method.criterion, Sharp) and method.criterion.certainty == 4.0
    assert method.criterion.objective == "cross_entropy" and method.criterion.threshold == 0.95
    assert isinstance(method.selector, gmix.RandomPairSelector)

    class Own(nn.Module):
        max_lambda = 0.5

    own: Any = Own()
    assert GuidedMix(tiny_net(), mixer=own).mixer is own and own.max_lambda == 0.5


def test_copies_remember_what_was_said() -> None:
    criterion = copy.deepcopy(GuidedMixLoss(decoupling=1.0))
    assert GuidedMix(tiny_net(), criterion=criterion).criterion.decoupling == 1.0
    assert GuidedMix(tiny_net(), criterion=copy.deepcopy(criterion)).criterion.threshold == 0.95


def test_a_part_of_two_methods_is_never_changed_behind_the_first_ones_back() -> None:
    criterion = GuidedMixLoss(classification=0.1)
    first = GuidedMix(tiny_net(), variant="paper", criterion=criterion)
    with pytest.raises(ValueError, match=r"^this criterion belongs to a method .* make one for"):
        GuidedMix(tiny_net(), criterion=criterion)
    assert first.criterion.objective == "squared_error"
    assert GuidedMix(tiny_net(), variant="paper", criterion=criterion).criterion is criterion


def test_other_methods_take_mappings_as_well() -> None:
    net = tiny_net()
    for method in (FixMatch(net, teacher={"decay": 0.5}), UniMatch(net, teacher={"decay": 0.5})):
        assert method.teacher.decay == 0.5
    assert Supervised(net, adjustment={"strength": 0.2}).adjustment.strength == 0.2
    assert FixMatch(net).teacher is None and Supervised(net).adjustment is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mixer": 3}, "mixer must be a mapping of its options, LabeledUnlabeledMixer or None"),
        ({"mixer": {"max_lamda": 0.3}}, "'max_lamda'"),
        ({"teacher": "ema"}, "teacher must be a mapping of its options, EMATeacher or None"),
        ({"color": StrongColor}, "color must be a mapping of its options, StrongColor or None"),
        ({"criterion": nn.MSELoss()}, "got MSELoss: pass another loss of the labeled images as"),
    ],
)
def test_what_is_no_part_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError) as error:
        GuidedMix(tiny_net(), **given)
    assert words in str(error.value) and "\n" not in str(error.value)
