"""Losses of labeled images: each against loops, their invariants, `--loss` and `--class-weights`."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from tiny_data import tiny_config, words
from tiny_nets import seeded, tiny_batch, tiny_net
from torch import Tensor

import gmix
from gmix import functional as G
from gmix.builders.data import build_data, find_data, labeled_pixels
from gmix.builders.method import build_loss, build_method
from gmix.cli.main import main
from gmix.compare.plan import plan
from gmix.config.options import LOSSES, WEIGHTED, parse_loss, write_loss
from gmix.config.parser import parse
from gmix.config.train_config import CompareConfig, TrainConfig
from gmix.config.yamlfile import read_settings, write_yaml
from gmix.methods import METHODS
from gmix.nn import supervised
from gmix.runs.card import training_facts
from gmix.runs.checkpoint import list_checkpoints

seeds = st.integers(0, 2**31 - 1)
quick = settings(max_examples=15, deadline=None, derandomize=True)
WEIGHTS = [0.5, 2.0, 1.0, 3.0]


def scene(seed: int, k: int, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits `(2, k, 4, 5)` and masks: the last row is padding, other pixels are ignored, too; class 3 is absent."""
    g = seeded(seed)
    logits = scale * torch.randn(2, k, 4, 5, generator=g)
    y = torch.randint(min(max(k, 2), 3), (2, 4, 5), generator=g)
    y[torch.rand(y.shape, generator=g) < 0.2] = 255
    y[:, -1] = 255
    return logits.requires_grad_(), y


def labeled(logits: Tensor, y: Tensor) -> list[tuple[list[float], int]]:
    """The distribution over all classes and the class of each pixel that has one, in double precision."""
    pixels = []
    for n, row, column in np.ndindex(*y.shape):
        z = logits[n, :, row, column].double().tolist()
        z = [0.0, *z] if len(z) == 1 else z
        p = [math.exp(v) / sum(math.exp(w) for w in z) for v in z]
        if y[n, row, column] != 255:
            pixels.append((p, int(y[n, row, column])))
    return pixels


def naive_mean(losses: list[float], classes: list[int], weights: list[float]) -> float:
    total = sum(weights[c] * loss for loss, c in zip(losses, classes, strict=True))
    norm = sum(weights[c] for c in classes)
    return total / norm if norm else 0.0


def naive_ce(pixels: Any, weights: list[float], gamma: float = 0.0) -> float:
    losses = [-((1 - p[c]) ** gamma) * math.log(p[c]) for p, c in pixels]
    return naive_mean(losses, [c for _, c in pixels], weights)


def naive_ohem(pixels: Any, weights: list[float], threshold: float, min_kept: float) -> float:
    """As `ProbOhemCrossEntropy2d` does it."""
    least = math.ceil(len(pixels) * min_kept) if min_kept < 1 else int(min_kept)
    probs = sorted(p[c] for p, c in pixels)
    if 0 < least <= len(pixels):
        bound = max(threshold, probs[least - 1])
        pixels = [(p, c) for p, c in pixels if p[c] <= bound]
    return naive_ce(pixels, weights)


def naive_dice(pixels: Any, channels: int) -> float:
    losses = []
    for k in [1] if channels == 1 else range(channels):
        truth = [float(c == k) for _, c in pixels]
        probs = [p[k] for p, _ in pixels]
        both = sum(p * t for p, t in zip(probs, truth, strict=True))
        losses.append(1 - 2 * both / (sum(probs) + sum(truth)) if any(truth) else 0.0)
    return sum(losses) / len(losses)


def naive_lovasz(pixels: Any, classes: int) -> float:
    losses = []
    for k in range(classes):
        truth = {i for i, (_, c) in enumerate(pixels) if c == k}
        if not truth:
            continue
        errors = [abs((i in truth) - p[k]) for i, (p, _) in enumerate(pixels)]
        order = sorted(range(len(pixels)), key=lambda i: -errors[i])
        loss, before, wrong = 0.0, 0.0, set[int]()
        for i in order:
            wrong.add(i)
            jaccard = 1 - len(truth - wrong) / len(truth | wrong)
            loss, before = loss + errors[i] * (jaccard - before), jaccard
        losses.append(loss)
    return sum(losses) / max(len(losses), 1)


@quick
@given(seeds, st.sampled_from([1, 2, 4]), st.booleans())
def test_every_loss_is_the_naive_loop(seed: int, k: int, weighted: bool) -> None:
    logits, y = scene(seed, k)
    pixels, classes = labeled(logits, y), max(k, 2)
    weights = WEIGHTS[:classes] if weighted else [1.0] * classes
    w = torch.tensor(weights) if weighted else None
    found = {
        G.cross_entropy(logits, y, class_weights=w): naive_ce(pixels, weights),
        G.focal_loss(logits, y, class_weights=w): naive_ce(pixels, weights, 2.0),
        G.focal_loss(logits, y, gamma=0.5, class_weights=w): naive_ce(pixels, weights, 0.5),
        G.dice_loss(logits, y): naive_dice(pixels, k),
        G.lovasz_softmax(logits, y): naive_lovasz(pixels, classes),
    }
    for threshold, min_kept in ((0.7, 0.25), (0.2, 0.5), (0.01, 7), (0.5, 1000), (1.0, 1)):
        loss = G.ohem_cross_entropy(
            logits, y, threshold=threshold, min_kept=min_kept, class_weights=w
        )
        found[loss] = naive_ohem(pixels, weights, threshold, min_kept)
    for loss, expected in found.items():
        assert loss.shape == () and loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


ALL: dict[str, Callable[..., Tensor]] = {
    "ce": G.cross_entropy,
    "ohem": G.ohem_cross_entropy,
    "focal": G.focal_loss,
    "dice": G.dice_loss,
    "lovasz": G.lovasz_softmax,
}


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("name", ALL)
def test_nothing_labeled_is_0_with_a_gradient(name: str, k: int) -> None:
    logits, y = scene(0, k)
    kinds: dict[str, Any] = {"class_weights": torch.ones(max(k, 2))} if name in WEIGHTED else {}
    for given_weights in ({}, kinds):
        loss = ALL[name](logits, torch.full_like(y, 255), **given_weights)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss == 0 and loss.shape == () and not gradient.any()


@quick
@given(seeds, st.sampled_from([*ALL]), st.sampled_from([1, 3]))
def test_what_is_ignored_says_nothing_and_gets_no_gradient(seed: int, name: str, k: int) -> None:
    logits, y = scene(seed, k)
    loss = ALL[name](logits, y)
    (gradient,) = torch.autograd.grad(loss, logits)
    ignored = (y == 255).unsqueeze(1)
    assert not gradient.masked_select(ignored).any() and gradient.isfinite().all()
    if loss > 0:
        assert gradient.any()
    # More padding changes nothing, a share of the pixels that are kept included.
    padded = ALL[name](F.pad(logits, (0, 3, 0, 2)), F.pad(y, (0, 3, 0, 2), value=255))
    torch.testing.assert_close(padded, loss)
    other = ALL[name](logits, torch.where(y == 255, -1, y), ignore_index=-1)
    torch.testing.assert_close(other, loss)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_half_precision_logits_are_computed_in_float32(name: str, kind: torch.dtype) -> None:
    logits = scene(0, 3)[0].detach().to(kind).repeat(1, 1, 100, 80)
    y = scene(0, 3)[1].repeat(1, 100, 80)  # as many pixels as overflow a sum in float16
    with torch.autocast("cpu", torch.bfloat16):
        loss = ALL[name](logits, y)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, ALL[name](logits.float(), y))


@pytest.mark.parametrize("name", ALL)
def test_extreme_logits_give_finite_gradients(name: str) -> None:
    logits = torch.tensor([200.0, -200.0, 0.0]).view(1, 3, 1, 1).repeat(1, 1, 1, 3).requires_grad_()
    y = torch.tensor([[[0, 1, 2]]])
    for k, z, mask in ((3, logits, y), (1, logits[:, :1], y.clamp(max=1))):
        losses = [ALL[name](z, mask)]
        if name == "focal":
            losses.append(G.focal_loss(z, mask, gamma=0.5))
        for loss in losses:
            (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
            assert loss.isfinite() and gradient.isfinite().all(), k


def test_where_smp_and_torch_agree_and_where_smp_does_not() -> None:
    """The reasons in the docstrings: if SMP changes, one of these fails, and our own loss may go."""
    logits, y = scene(3, 4)
    nothing = torch.full_like(y, 255)
    torch.testing.assert_close(
        G.cross_entropy(logits, y, class_weights=torch.tensor(WEIGHTS)),
        F.cross_entropy(logits, y, torch.tensor(WEIGHTS), ignore_index=255),
    )
    lovasz = smp.losses.LovaszLoss("multiclass", ignore_index=255)
    torch.testing.assert_close(G.lovasz_softmax(logits, y), lovasz(logits, y))
    assert lovasz(logits, nothing).shape != ()
    focal = smp.losses.FocalLoss("multiclass", gamma=0.0, ignore_index=255)
    assert focal(logits, nothing).isnan()
    assert abs(focal(logits, y) - G.cross_entropy(logits, y)) > 0.1
    hinge = smp.losses.LovaszLoss("binary", ignore_index=255)
    assert hinge(torch.ones(1, 1, 2, 2), torch.ones(1, 2, 2).long()) == 0  # a probability of 0.73


def test_weights_of_frequent_classes_are_low() -> None:
    weights = G.balanced_weights(torch.tensor([900, 90, 10, 0]))
    for found, pixels in zip(weights.tolist(), (900, 90, 10), strict=False):
        assert found == pytest.approx(min(10, 1000 / (3 * pixels)))
    assert weights[3] == 1
    alike = G.balanced_weights(torch.tensor([5, 5])) == 1
    assert alike.all()
    with pytest.raises(ValueError, match="no pixel has a class"):
        G.balanced_weights(torch.zeros(3, dtype=torch.long))


def test_a_sum_is_the_sum_and_saves_what_its_losses_hold() -> None:
    logits, y = scene(1, 4)

    def mine(logits: Tensor, y: Tensor) -> Tensor:
        return logits.square().mean()

    terms = [
        (0.5, gmix.CrossEntropyLoss(WEIGHTS)),
        (1.0, gmix.DiceLoss()),
        (2.0, mine),
    ]
    total = gmix.LossSum(terms)
    expected = sum(w * loss(logits, y) for w, loss in terms)
    torch.testing.assert_close(total(logits, y), expected)
    assert [*total.state_dict()] == ["parts.0.class_weights"]
    assert "class_weights=[0.5, 2.0, 1.0, 3.0]" in repr(total)


@pytest.mark.parametrize("name", ["ce", "ohem", "focal", "dice", "lovasz", "0.5*ce+lovasz"])
def test_every_module_is_its_function_and_compiles_to_one_graph(name: str) -> None:
    logits, y = scene(2, 4)
    loss = build_loss(TrainConfig(loss=name), 4) or gmix.CrossEntropyLoss()
    expected = sum(w * ALL[part](logits, y) for w, part in parse_loss(name))
    torch.testing.assert_close(loss(logits, y), expected)
    if "+" not in name:
        compiled: Any = torch.compile(loss, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(logits, y), expected)


some, mask = torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: gmix.CrossEntropyLoss([1.0, 0.0]), "one finite number above 0 per class, got [1.0"),
        (lambda: gmix.FocalLoss(class_weights=[1.0, math.nan]), "above 0 per class, got [1.0, nan]"),
        (lambda: gmix.CrossEntropyLoss([1.0, 2.0])(some, mask), "shape (3,), got (2,)"),
        (lambda: gmix.OHEMLoss(threshold=0.0), "`threshold` must be in (0, 1], got 0.0"),
        (lambda: gmix.OHEMLoss(min_kept=0), "above 0, or below 1 a share of them, got 0"),
        (lambda: gmix.FocalLoss(gamma=-1.0), "`gamma` must be at least 0, got -1.0"),
        (lambda: gmix.LossSum([]), "at least one pair of a weight and a loss"),
        (lambda: gmix.LossSum([(0.0, G.dice_loss)]), "must be a number above 0, got 0.0"),
        (lambda: gmix.LossSum([(1.0, gmix.DiceLoss)]), "a loss to call with logits and masks"),
        (lambda: G.dice_loss(some, mask[:, :1]), "`target` must have shape (1, 2, 2)"),
        (lambda: G.lovasz_softmax(some, mask[:, :1]), "`target` must have shape (1, 2, 2)"),
        (lambda: G.focal_loss(some, mask[:, :1]), "`target` must have shape (1, 2, 2)"),
        (lambda: G.balanced_weights(torch.ones(2), cap=0.0), "`cap` must be above 0, got 0.0"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused(call: Any, said: str) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    assert said in str(error.value) and "\n" not in str(error.value)


# The command line


def test_the_flags_name_every_module() -> None:
    assert [*LOSSES] == [*ALL] and {*LOSSES.values(), "LossSum"} == {*supervised.__all__}
    for name, module in LOSSES.items():
        takes = "class_weights" in getattr(gmix, module).__init__.__code__.co_varnames
        assert takes == (name in WEIGHTED)


@quick
@given(
    st.dictionaries(st.sampled_from([*LOSSES]), st.floats(1e-9, 1e20, exclude_min=True), min_size=1)
)
def test_a_written_loss_is_read_back(terms: dict[str, float]) -> None:
    pairs = [(weight, name) for name, weight in terms.items()]
    assert parse_loss(write_loss(pairs)) == pairs


def test_spellings_of_a_loss_are_one_setting() -> None:
    for text in ("0.5*ce+lovasz", " .5 * CE + 1*Lovasz", "5e-1*ce+1.0*lovasz"):
        assert TrainConfig(loss=text).loss == "0.5*ce+lovasz"
    assert TrainConfig(loss="1.0*CE") == TrainConfig()
    assert CompareConfig(loss="focal", class_weights="AUTO").class_weights == "auto"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"loss": "ce+dise"}, "dise is no loss (ce, ohem, focal, dice, lovasz), did you mean dice?"),
        ({"loss": "ce+"}, "a name is missing in 'ce+'"),
        ({"loss": "2ce"}, "2ce is no loss"),
        ({"loss": "x*ce"}, "the weight of ce must be a number above 0, e.g. 0.5*ce, got 'x'"),
        ({"loss": "0*ce+dice"}, "must be a number above 0, e.g. 0.5*ce, got '0'"),
        ({"loss": "nan*dice"}, "must be a number above 0"),
        ({"loss": "ce+ce"}, "names ce twice"),
        ({"class_weights": "1,-2"}, "above 0, one per class, got -2 as number 2"),
        ({"class_weights": "1, nan"}, "above 0, one per class, got nan as number 2"),
        ({"class_weights": "nowhere.txt"}, "cannot read nowhere.txt, expected auto or a file"),
        ({"loss": "dice+lovasz", "class_weights": "auto"}, "--loss dice+lovasz takes none"),
    ],
)  # fmt: skip
def test_bad_flags_are_refused_in_one_sentence(given: dict[str, Any], said: str) -> None:
    for kind in (TrainConfig, CompareConfig):
        with pytest.raises(ValueError) as error:
            kind(**given)
        assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["1\n0\n2", "1\nnan\n2", "1\ninf\n2", "1\none\n2", "1 2 3", "1, 2", "", "5"]
)
def test_bad_files_of_weights_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "weights.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"^--class-weights"):
        TrainConfig(class_weights=str(path))


def test_weights_are_one_per_class(tmp_path: Path) -> None:
    path = tmp_path / "weights.txt"
    path.write_text("1\n\n2.5\n")
    config = TrainConfig(class_weights=str(path))
    assert config.class_weights == "1.0,2.5"
    write_yaml(config, tmp_path / "config.yaml")
    path.unlink()  # the run is repeated without it
    assert (
        parse(TrainConfig, "gmix train", "", ["--config", str(tmp_path / "config.yaml")]) == config
    )
    for channels in (1, 2):
        loss = build_loss(config, channels)
        assert isinstance(loss, gmix.CrossEntropyLoss) and loss.class_weights is not None
        assert loss.class_weights.tolist() == [1.0, 2.5]
    with pytest.raises(ValueError, match="must hold one number per class, 3, got 2"):
        build_loss(config, 3)


def test_the_default_is_the_cross_entropy_that_methods_have() -> None:
    assert build_loss(TrainConfig(), 3) is None
    for name in METHODS:
        assert build_method(TrainConfig(method=name), tiny_net()).supervised_loss is None


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_a_loss_from_the_flags(name: str) -> None:
    config = TrainConfig(method=name, loss="ce+dice", class_weights="auto")
    method = build_method(config, tiny_net(), [60, 30, 10])
    assert isinstance(method.supervised_loss, gmix.LossSum)
    batch = tiny_batch()
    method.remember(list(zip(batch.x_labeled, batch.y_labeled, strict=True)))
    method(*batch, progress=0.5)["total"].backward()


def test_all_runs_of_a_comparison_have_the_loss() -> None:
    config = CompareConfig(val_images="val", out="o", loss="ce+dice", class_weights="auto")
    assert {(run.config.loss, run.config.class_weights) for run in plan(config)} == {
        ("ce+dice", "auto")
    }


def test_the_card_lists_the_loss() -> None:
    config = TrainConfig(voc="VOC2012", loss="ohem", class_weights="1,2")
    facts = training_facts(config, {"labeled": 2}, "1f2e", None)
    assert facts["settings"] == {"loss": "ohem", "class_weights": "1.0,2.0"}


def test_a_training_with_dice_and_weights_is_resumed_and_no_other_loss_goes_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"loss": "ce+dice", "class_weights": "auto", "steps": 2, "checkpoint_every": 1}
    out = tmp_path / "out"
    config = tiny_config(data, out, method="supervised", **asked)
    assert main(["train", *words(config)]) == 0
    written = read_settings(out)
    assert (written["loss"], written["class_weights"]) == ("ce+dice", "auto")
    pixels = sum(
        np.bincount(np.asarray(Image.open(path)).ravel(), minlength=3)
        for path in sorted((data / "masks").iterdir())
    )
    assert labeled_pixels(build_data(config)) == labeled_pixels(find_data(config)) == (*pixels,)
    checkpoint = list_checkpoints(out)[-1].path
    state = load_file(checkpoint / "method.safetensors")
    torch.testing.assert_close(
        state["supervised_loss.parts.0.class_weights"], G.balanced_weights(torch.tensor(pixels))
    )
    # Resumed after the first step, it ends with the same weights.
    shutil.rmtree(checkpoint)
    assert main(["train", *words(config), "--resume"]) == 0
    again = load_file(checkpoint / "method.safetensors")
    assert all(torch.equal(again[name], value) for name, value in state.items())
    capsys.readouterr()
    for changed in (["--loss", "ce+2*dice"], ["--class-weights", "1,2,3"]):
        assert main(["train", *words(config), "--resume", *changed]) != 0
        said = capsys.readouterr().err
        assert f"it was started with {changed[0]}" in said and said.count("\n") == 1
