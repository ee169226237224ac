"""GuidedMixLoss: each term against loops, and that what is logged is what is learnt."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_nets import seeded
from torch import Tensor

from gmix import GuidedMixLoss

seeds = st.integers(0, 2**31 - 1)
LABELED, UNLABELED, SIZE = 2, 3, 4


def arguments(seed: int, k: int = 3) -> dict[str, Tensor]:
    """One step's inputs; `k = 1` is binary. Everything that could learn asks for a gradient."""
    g = seeded(seed)

    def scores(n: int) -> Tensor:
        return torch.randn(n, k, SIZE, SIZE, generator=g)

    def probs(n: int) -> Tensor:
        return scores(n).sigmoid() if k == 1 else scores(n).mul(2).softmax(1)

    y = torch.randint(max(k, 2), (LABELED, SIZE, SIZE), generator=g)
    y[torch.rand(y.shape, generator=g) < 0.3] = 255
    inputs = {
        "logits_labeled": scores(LABELED),
        "class_logits": torch.randn(LABELED, k, generator=g),
        "logits_unlabeled": scores(UNLABELED),
        "pseudo": probs(UNLABELED),
        "probs_decoupled": probs(LABELED),
        "decoupled_target": probs(LABELED),
    }
    for tensor in inputs.values():
        tensor.requires_grad_()
    inputs["y_labeled"] = y
    inputs["valid"] = torch.rand(UNLABELED, SIZE, SIZE, generator=g) < 0.7
    return inputs


def two_classes(probs: Tensor) -> list[float]:
    """A pixel's distribution as a list, the implied background channel added if binary."""
    p = probs.tolist()
    return [1 - p[0], p[0]] if len(p) == 1 else p


def softmax(logits: Tensor) -> list[float]:
    z = logits.tolist()
    z = [0.0, z[0]] if len(z) == 1 else z
    return [math.exp(v) / sum(math.exp(w) for w in z) for v in z]


def naive(
    a: dict[str, Tensor], objective: str, threshold: float, certainty: float
) -> dict[str, float]:
    pixels = list(np.ndindex(SIZE, SIZE))
    supervised = [
        -math.log(softmax(a["logits_labeled"][n, :, r, c])[int(a["y_labeled"][n, r, c])])
        for n in range(LABELED)
        for r, c in pixels
        if a["y_labeled"][n, r, c] != 255
    ]
    classification = []
    for n in range(LABELED):
        occurring = set(a["y_labeled"][n].flatten().tolist()) - {255}
        k = a["class_logits"].shape[1]
        for channel in range(k):
            p = 1 / (1 + math.exp(-a["class_logits"][n, channel].item()))
            here = (1 if k == 1 else channel) in occurring
            classification.append(-math.log(p if here else 1 - p))
    unsupervised = []
    for n in range(UNLABELED):
        for r, c in pixels:
            if not a["valid"][n, r, c]:
                if objective == "soft_cross_entropy":  # its mean is over all pixels
                    unsupervised.append(0.0)
                continue
            p, q = softmax(a["logits_unlabeled"][n, :, r, c]), two_classes(a["pseudo"][n, :, r, c])
            unknown = -sum(t * math.log(t) for t in q) / math.log(len(q))
            weight = (1 - unknown) ** certainty
            if objective == "squared_error":
                unsupervised.append(sum((s - t) ** 2 for s, t in zip(p, q, strict=True)))
            elif max(q) < threshold:
                unsupervised.append(0.0)
            elif objective == "cross_entropy":
                unsupervised.append(-weight * math.log(p[int(np.argmax(q))]))
            elif objective == "focal":
                z = a["logits_unlabeled"][n, :, r, c].tolist()
                label = int(np.argmax(q)) - (len(z) == 1)
                right = [1 / (1 + math.exp(-v if k == label else v)) for k, v in enumerate(z)]
                each = [-((1 - s) ** 0.5) * math.log(s) / 2 for s in right]
                unsupervised.append(weight * sum(each) / len(each))
            else:
                unsupervised.append(
                    -weight * sum(t * math.log(s) for s, t in zip(p, q, strict=True))
                )
    decoupling = []
    for n in range(LABELED):
        for r, c in pixels:
            p = two_classes(a["probs_decoupled"][n, :, r, c])
            q = two_classes(a["decoupled_target"][n, :, r, c])
            decoupling.append(sum((s - t) ** 2 for s, t in zip(p, q, strict=True)))
    terms = {
        "supervised": supervised,
        "classification": classification,
        "unsupervised": unsupervised,
        "decoupling": decoupling,
    }
    return {name: sum(values) / max(len(values), 1) for name, values in terms.items()}


OBJECTIVES = ["squared_error", "soft_cross_entropy", "cross_entropy", "focal"]
OPTIONS = [
    ("squared_error", 0.0, 0.0),
    *((o, t, c) for o in OBJECTIVES[1:] for t in (0.0, 0.7) for c in (0.0, 1.0, 1.7)),
]


@settings(max_examples=20)
@given(seeds, st.sampled_from(OPTIONS), st.integers(1, 4), st.floats(0, 1))
def test_every_term_is_the_naive_loop_and_total_their_weighted_sum(
    seed: int, option: tuple[Any, float, float], k: int, progress: float
) -> None:
    objective, threshold, certainty = option
    criterion = GuidedMixLoss(
        objective=objective,
        threshold=threshold,
        certainty=certainty,
        classification=0.3,
        unsupervised=0.7,
        decoupling=1.9,
        ramp_length=0.5,
    )
    inputs = arguments(seed, k)
    losses = criterion(**inputs, progress=progress)
    expected = naive(inputs, objective, threshold, certainty)
    ramp = math.exp(-5 * (1 - progress / 0.5) ** 2) if progress < 0.5 else 1.0
    expected["total"] = (
        expected["supervised"]
        + 0.3 * expected["classification"]
        + ramp * (0.7 * expected["unsupervised"] + 1.9 * expected["decoupling"])
    )
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        assert value.shape == () and value.dtype == torch.float32
        assert value.item() == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


LEARNS = {
    "supervised": "logits_labeled",
    "classification": "class_logits",
    "unsupervised": "logits_unlabeled",
    "decoupling": "probs_decoupled",
}


@pytest.mark.parametrize("name", LEARNS)
@pytest.mark.parametrize("k", [1, 3])
def test_every_logged_term_moves_the_total_and_its_gradient(name: str, k: int) -> None:
    inputs = arguments(0, k)
    weights = {"classification": 0.5, "unsupervised": 2.0, "decoupling": 3.0}
    criterion = GuidedMixLoss(**weights)
    losses = criterion(**inputs, progress=1.0)
    of_total, of_term = (
        torch.autograd.grad(losses[key], inputs[LEARNS[name]], retain_graph=True)[0]
        for key in ("total", name)
    )
    assert of_term.abs().max() > 1e-4
    torch.testing.assert_close(of_total, weights.get(name, 1.0) * of_term)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_targets_never_learn(objective: Any) -> None:
    inputs = arguments(1)
    total = GuidedMixLoss(objective=objective)(**inputs, progress=1.0)["total"]
    targets = inputs["pseudo"], inputs["decoupled_target"]
    assert torch.autograd.grad(total, targets, allow_unused=True) == (None, None)


def test_weight_0_is_logged_but_learns_nothing() -> None:
    inputs = arguments(0)
    losses = GuidedMixLoss(unsupervised=0.0)(**inputs, progress=1.0)
    (gradient,) = torch.autograd.grad(losses["total"], inputs["logits_unlabeled"])
    assert losses["unsupervised"] > 0 and not gradient.any()
    sure = torch.tensor([0.75, 0.25]).view(1, 2, 1, 1)
    assert GuidedMixLoss(objective="cross_entropy", threshold=0.75).weight(sure) == 1


def test_a_term_without_its_inputs_is_left_out() -> None:
    inputs = arguments(0)
    losses = GuidedMixLoss()(inputs["logits_labeled"], inputs["y_labeled"])
    assert losses.keys() == {"supervised", "total"} and losses["total"] == losses["supervised"]


def test_the_ignore_index_is_a_setting() -> None:
    inputs = arguments(0)
    expected = GuidedMixLoss()(**inputs, progress=1.0)
    inputs["y_labeled"] = torch.where(inputs["y_labeled"] == 255, -1, inputs["y_labeled"])
    losses = GuidedMixLoss(ignore_index=-1)(**inputs, progress=1.0)
    for name, value in losses.items():
        assert value == expected[name]


def test_an_image_that_is_ignored_altogether_gives_0_and_not_nan() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    class_logits = torch.zeros(1, 3)
    losses = GuidedMixLoss()(logits, torch.full((1, 4, 4), 255), class_logits=class_logits)
    losses["total"].backward()
    assert losses["supervised"] == 0 and logits.grad is not None and not logits.grad.any()
    # no class occurs: the classifier is told so
    assert losses["classification"].item() == pytest.approx(math.log(2))


def test_half_precision_logits_are_compared_in_float32() -> None:
    inputs = {
        name: value.detach().bfloat16() if value.is_floating_point() else value
        for name, value in arguments(0).items()
    }
    in_full = {n: v.float() if v.is_floating_point() else v for n, v in inputs.items()}
    with torch.autocast("cpu", torch.bfloat16):
        losses = GuidedMixLoss()(**inputs, progress=1.0)
    for name, value in GuidedMixLoss()(**in_full, progress=1.0).items():
        assert losses[name].dtype == torch.float32
        torch.testing.assert_close(losses[name], value)


some, y = torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: GuidedMixLoss(objective="hinge"), "`objective` must be one of"),  # type: ignore[arg-type]
        (lambda: GuidedMixLoss(threshold=1.5), "`threshold` must be in [0, 1], got 1.5"),
        (lambda: GuidedMixLoss(certainty=-1.0), "`certainty` must be at least 0, got -1.0"),
        (lambda: GuidedMixLoss(unsupervised=-1.0), "must be at least 0"),
        (lambda: GuidedMixLoss(ramp_length=2.0), "`ramp_length` must be in [0, 1], got 2.0"),
        (lambda: GuidedMixLoss()(some, y, pseudo=some), "`logits_unlabeled` and `pseudo` belong"),
        (lambda: GuidedMixLoss()(some, y, logits_unlabeled=some), "pass both or neither"),
        (lambda: GuidedMixLoss()(some, y, probs_decoupled=some), "`decoupled_target` belong"),
        (lambda: GuidedMixLoss()(some, y, decoupled_target=some), "`probs_decoupled` and"),
        (lambda: GuidedMixLoss()(some, y[:, :2]), "`target` must have shape (1, 4, 4)"),
        (
            lambda: GuidedMixLoss()(some, y, logits_unlabeled=some, pseudo=some[:, :1], progress=1.0),
            "(1, 2, 4, 4) and (1, 1, 4, 4)",
        ),
        (
            lambda: GuidedMixLoss()(
                some, y, logits_unlabeled=some, pseudo=some, valid=torch.ones(4, 4) > 0, progress=1.0
            ),
            "`valid` must have shape (1, 4, 4), one value per pixel, got (4, 4)",
        ),
    ],
)  # fmt: skip
def test_bad_settings_and_half_pairs_are_refused(call: Any, words: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)
