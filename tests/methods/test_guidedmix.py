"""The whole method: one step of each variant against plain torch, and the traps around it."""

import copy
import math
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from method_tester import MethodTester
from tiny_nets import Labeled, seeded, tiny_batch, tiny_net
from torch import Tensor, nn

import gmix
from gmix import GuidedMixLoss
from gmix.methods import GuidedMix, Supervised

UNSURE = {  # nets that know nothing yet are never 95% sure
    "objective": "cross_entropy",
    "threshold": 0.36,
    "certainty": 0.0,
    "decoupling": 0.0,
    "ramp_length": 0.0,
}


def default(classes: int = 3, **parts: Any) -> GuidedMix:
    """The default variant, which knows the labeled images of `tiny_batch` and says so."""
    given = {"criterion": UNSURE, "reference": {"strength": 0.5}, **parts}
    method = GuidedMix(tiny_net(classes), **given)
    x, y, _ = tiny_batch(classes=classes)
    if parts.get("mean") == 0.0:
        x = x.sigmoid() / parts["std"]
    remember(method, x, y)
    return method


def mixing(classes: int = 3, **parts: Any) -> GuidedMix:
    """Half of its pseudo masks are decoupled, with every part that the default can have."""
    return default(classes, **{"direct": 0.5, "adjustment": {}, **parts})


def remember(method: GuidedMix, x: Tensor, y: Tensor) -> None:
    method.remember([*zip(x, y.where(y != 255, method.ignore_index), strict=True)])


def paper(classes: int = 3, **parts: Any) -> GuidedMix:
    return GuidedMix(tiny_net(classes), variant="paper", **parts)


VARIANTS = pytest.mark.parametrize("make", [default, mixing, paper])


class TestGuidedMix(MethodTester):
    name = "guidedmix"
    needs_progress = True
    weights = ()
    brings = "reference."

    def make(self, classes: int = 3, **options: Any) -> GuidedMix:
        return default(classes, **options)

    midway = make  # the reference belongs to the weights that it was made with

    def pseudo_masks(self, method: GuidedMix, batch: Labeled) -> Tensor:
        return method.guide(*batch, seeded(0)).pseudo

    test_a_step_is_this_plain_code = None  # below: it sees each part
    test_every_trained_parameter_gets_a_gradient = None


class TestDecouplingGuidedMix(TestGuidedMix):
    test_a_few_steps_lower_the_total = None  # that it learns at all, its parent has shown

    def make(self, classes: int = 3, **options: Any) -> GuidedMix:
        return mixing(classes, **options)

    midway = make


class TestPaper(TestGuidedMix):
    name = "paper"
    brings = "classifier."
    labeled_too = {"classification", "decoupling"}
    sizes = [(2, 5, 3), (4, 1, 1), (3, 2, 7)]  # two labeled images or more

    def make(self, classes: int = 3, **options: Any) -> GuidedMix:
        return paper(classes, **options)

    midway = make


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: p.grad for name, p in module.named_parameters()}


def assert_gradients_equal(one: nn.Module, other: nn.Module) -> None:
    expected = gradients(other)
    for name, gradient in gradients(one).items():
        torch.testing.assert_close(
            gradient, expected[name], atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
        )


def closest(query: Tensor, key: Tensor, exclude_self: bool = False) -> list[int]:
    distance = [[math.dist(q, k) for k in key.tolist()] for q in query.tolist()]
    if exclude_self:
        for i, row in enumerate(distance):
            row[i] = math.inf
    return [min(range(len(row)), key=row.__getitem__) for row in distance]


def occurring(y: Tensor, classes: int) -> Tensor:
    return torch.tensor([[float((mask == k).any()) for k in range(classes)] for mask in y])


def per_image(lam: Tensor) -> Tensor:
    return lam[:, None, None, None]


# --- against plain torch ----------------------------------------------------------------------


@pytest.mark.parametrize("direct", [1.0, 0.5])
def test_a_default_step_is_this_plain_code(direct: float) -> None:
    x_l, y, x_u = tiny_batch()
    valid = torch.rand(4, 32, 32, generator=seeded(3)) < 0.8
    criterion = {**UNSURE, "classification": 0.7}
    method = default(paste=gmix.ClassPaste(3), direct=direct, adjustment={}, criterion=criterion)
    with torch.no_grad():  # a student that has moved away from its teacher
        for p in method.net.parameters():
            p.mul_(1.05)
        method.teacher.step.fill_(1)
    plain = copy.deepcopy(method)
    losses = method(x_l, y, x_u, valid_unlabeled=valid.clone(), progress=1.0, generator=seeded(7))
    losses["total"].backward()

    net, g = plain.net, seeded(7)
    with torch.no_grad():
        plain.teacher.update(net)
        teacher = plain.teacher.net
        partner = closest(teacher.embed(x_u), teacher.embed(x_l))
        pseudo = teacher(x_u).softmax(1)
        if direct < 1:
            b = torch.rand(4, generator=g)
            lam = per_image(2 * 0.3 * torch.minimum(b, 1 - b))
            mixed = lam * x_l[partner] + (1 - lam) * x_u
            known = F.one_hot(y.clamp(max=2), 3).permute(0, 3, 1, 2).float()
            known = torch.where((y == 255)[:, None], teacher(x_l).softmax(1), known)
            left = (teacher(mixed).softmax(1) - lam * known[partner]).clamp(min=0)
            pseudo = (1 - direct) * left / left.sum(1, keepdim=True) + direct * pseudo
        ratio = F.interpolate(plain.reference.likelihood(x_u), size=(32, 32), mode="bilinear")
        pseudo = pseudo * (ratio + 0.01) ** 0.5
        pseudo = pseudo / pseudo.sum(1, keepdim=True)
        region, x_p = plain.paste(y[partner], g), x_u.clone()
        assert region.any() and not region.all()
        for i, j in enumerate(partner):
            x_p[i, :, region[i]] = x_l[j, :, region[i]]
            pseudo[i, :, region[i]] = F.one_hot(y[j][region[i]], 3).T.float()
            valid[i, region[i]] = True
        x_s = plain.blur(plain.color(x_p, g), g)
        box, source = plain.cutmix(x_s, g)
        assert box.any()
        view, aim, inside = x_s.clone(), pseudo.clone(), valid.clone()
        for i, j in enumerate(source.tolist()):
            assert j == (i - 1) % 4
            view[i, :, box[i]] = x_s[j, :, box[i]]
            aim[i, :, box[i]] = pseudo[j, :, box[i]]
            inside[i, box[i]] = valid[j, box[i]]
    target, inside = torch.cat([pseudo, aim]), torch.cat([valid, inside])

    features = net.encode(torch.cat([x_l, x_p, view]))
    embedding = features[-1][:3].mean((2, 3))
    own = []
    for feature in features:
        kept = torch.rand(4, feature.shape[1], generator=g) >= 0.5
        own.append(2 * kept[:, :, None, None] * feature[3:7])
    seen = net.decode([torch.cat([f[:3], f[7:]]) for f in features], (32, 32))
    logits = torch.cat([seen[:3], net.decode(own, (32, 32)), seen[3:]])
    confidence, label = target.max(1)
    learnt = (confidence >= 0.36) & inside
    assert 0.05 < learnt.float().mean() < 0.9
    pixels = F.cross_entropy(logits[3:], label, reduction="none")
    share = torch.tensor([(y == k).sum() for k in range(3)]) / (y < 3).sum()
    adjusted = logits[:3] + 0.5 * share.log()[:, None, None]
    expected = {
        "supervised": F.cross_entropy(adjusted, y, ignore_index=255),
        "classification": F.binary_cross_entropy_with_logits(
            plain.classifier(embedding), occurring(y, 3)
        ),
        "unsupervised": (pixels * learnt).sum() / inside.sum(),
    }
    expected["total"] = sum(expected.values()) - 0.3 * expected["classification"]
    expected["total"].backward()
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)
    assert_gradients_equal(method, plain)


def test_a_paper_step_is_this_plain_code() -> None:
    x_l, y, x_u = tiny_batch()
    valid = torch.rand(4, 32, 32, generator=seeded(3)) < 0.8
    method = paper()
    plain = copy.deepcopy(method)
    losses = method(x_l, y, x_u, progress=0.1, valid_unlabeled=valid, generator=seeded(7))
    losses["total"].backward()

    net, g = plain.net, seeded(7)

    def draw(n: int) -> Tensor:
        b = torch.rand(n, generator=g)
        return per_image(torch.minimum(b, 1 - b))

    def decoupled(mixed: Tensor, labeled: Tensor, lam: Tensor) -> Tensor:
        left = (net(mixed).softmax(1) - lam * labeled).clamp(min=0)
        return left / left.sum(1, keepdim=True)

    with torch.no_grad():
        features = net.encode(torch.cat([x_l, x_u]))
        embedding, probs = features[-1].mean((2, 3)), net.decode(features, (32, 32)).softmax(1)
        partner = closest(embedding[3:], embedding[:3])
        lam = draw(4)
        pseudo = decoupled(lam * x_l[partner] + (1 - lam) * x_u, probs[partner], lam)
    features = net.encode(torch.cat([x_l, x_u]))
    logits, embedding = net.decode(features, (32, 32)), features[-1].mean((2, 3))
    known = logits[:3].softmax(1).detach()
    partner = closest(embedding[:3].detach(), embedding[:3].detach(), exclude_self=True)
    lam = draw(3)
    left = decoupled(lam * x_l[partner] + (1 - lam) * x_l, known[partner], lam)
    error = (logits[3:].softmax(1) - pseudo).square().sum(1)
    expected = {
        "supervised": F.cross_entropy(logits[:3], y, ignore_index=255),
        "classification": F.binary_cross_entropy_with_logits(
            plain.classifier(embedding[:3]), occurring(y, 3)
        ),
        "unsupervised": error[valid].mean(),
        "decoupling": (left - known).square().sum(1).mean(),
    }
    ramp = math.exp(-5 * (1 - 0.1 / 0.3) ** 2)
    expected["total"] = (
        expected["supervised"]
        + expected["classification"]
        + ramp * (expected["unsupervised"] + expected["decoupling"])
    )
    expected["total"].backward()
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)
    assert_gradients_equal(method, plain)


def test_the_classifier_belongs_to_the_method_whatever_else_is_made_of_the_network() -> None:
    net = tiny_net()
    before = {name: p.requires_grad for name, p in net.named_parameters()}
    method: Any = GuidedMix(net, criterion={"classification": 1.0})
    assert GuidedMix(net).classifier is None  # its loss is off, and nothing else would train it
    Supervised(net)(*tiny_batch())["total"].backward()
    assert {name: p.requires_grad for name, p in net.named_parameters()} == before

    method(*tiny_batch(), progress=1.0, generator=seeded(0))["total"].backward()
    assert method.classifier.weight.grad.any() and method.classifier.bias.grad.any()
    held = {name for name in method.state_dict() if "classifier" in name}
    assert held == {"classifier.weight", "classifier.bias"}  # the teacher has no copy either


# --- the steps of one call --------------------------------------------------------------------


@VARIANTS
@pytest.mark.parametrize("classes", [1, 3])
def test_guidance_is_consistent(make: Any, classes: int) -> None:
    x_l, y, x_u = tiny_batch(classes=classes)
    method = make(classes).eval()
    partners, direct, mix, pseudo = method.guide(x_l, y, x_u, seeded(0))
    predictor = method.net if method.teacher is None else method.teacher.net
    probabilities = gmix.functional.probabilities
    torch.testing.assert_close(direct, probabilities(predictor(x_u)))
    expected = direct
    assert (partners is None) == (mix is None) == (method.direct == 1)
    if mix is not None:
        partner, x_partner, y_partner, query, key = partners
        torch.testing.assert_close((query, key), (predictor.embed(x_u), predictor.embed(x_l)))
        assert torch.equal(x_partner, x_l[partner]) and torch.equal(y_partner, y[partner])
        assert partner.tolist() == closest(predictor.embed(x_u), predictor.embed(x_l))
        lam = per_image(mix.lam)
        assert lam.min() >= 0 and lam.max() <= method.mixer.max_lambda
        torch.testing.assert_close(mix.image, lam * x_l[partner] + (1 - lam) * x_u)
        torch.testing.assert_close(mix.predicted, probabilities(predictor(mix.image)))
        labeled = probabilities(predictor(x_l))
        if method.true_masks:
            labeled = gmix.functional.fill_in(labeled, y)
        torch.testing.assert_close(mix.labeled, labeled[partner])
        torch.testing.assert_close(
            mix.decoupled, gmix.functional.decouple(mix.predicted, labeled[partner], mix.lam)
        )
        expected = method.direct * direct + (1 - method.direct) * mix.decoupled
    if method.reference is not None:
        expected = method.reference(expected, x_u)
    torch.testing.assert_close(pseudo, expected)
    for probs in (direct, pseudo, *(mix or ())[2:]):
        assert probs.shape == (4, classes, 32, 32) and not probs.requires_grad
        assert probs.min() >= 0 and probs.max() <= 1 + 1e-6
        if classes > 1:
            torch.testing.assert_close(probs.sum(1), torch.ones(4, 32, 32))


def test_direct_1_is_plain_self_training_and_0_only_the_decoupled() -> None:
    x_l, y, x_u = tiny_batch()
    teacher = default().teacher.net
    alone = default(direct=1.0, reference=None).guide(x_l, y, x_u)
    assert alone.mix is None
    torch.testing.assert_close(alone.pseudo, teacher(x_u).softmax(1))
    guided = default(direct=0.0, reference=None).guide(x_l, y, x_u)
    torch.testing.assert_close(guided.pseudo, guided.mix.decoupled)
    assert not torch.allclose(alone.pseudo, guided.pseudo, atol=1e-4)


# --- gradients --------------------------------------------------------------------------------


@VARIANTS
@pytest.mark.parametrize("mitrans", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_every_trained_parameter_gets_a_gradient(make: Any, mitrans: bool, autocast: bool) -> None:
    # Autocast caches weights it has cast. The paper's variant casts the student's own weights under
    # no_grad first: a cached copy without a gradient must not be what the student then learns with.
    parts = {"paper": {}, "mixing": {"criterion": {**UNSURE, "classification": 1.0}, "direct": 0.5}}
    method = GuidedMix(
        tiny_net(mitrans=mitrans),
        variant="paper" if make is paper else "default",
        **parts.get(make.__name__, {"criterion": UNSURE}),
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = method(*tiny_batch(), progress=1.0, generator=seeded(0))
    losses["total"].backward()
    assert all(value.dtype == torch.float32 and value > 0 for value in losses.values())
    trained = {n for n, p in method.named_parameters() if p.requires_grad}
    expected = {f"net.{n}" for n, _ in method.net.named_parameters()}
    if make is not default:  # which does not ask which classes occur
        expected |= {"classifier.weight", "classifier.bias"}
    assert trained == expected
    for name, p in method.named_parameters():
        if name not in trained:
            assert p.grad is None, name
            continue
        assert p.grad is not None and p.grad.isfinite().all(), name
        # a bias before a BatchNorm or inside a softmax may truly get zero
        assert p.dim() == 1 or p.grad.any(), name


# --- state ------------------------------------------------------------------------------------


def statistics(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.named_buffers()}


def test_mixed_images_never_touch_the_students_batch_norm() -> None:
    x_l, y, x_u = tiny_batch()
    # The student's view is the image itself.
    method = mixing(color=None, blur=None, cutmix=None, views=1, drop=0.0)
    plain = copy.deepcopy(method.net)
    method(x_l, y, x_u, progress=1.0, generator=seeded(0))
    plain(torch.cat([x_l, x_u]))
    expected = statistics(plain)
    assert any(name.endswith("running_mean") for name in expected)
    for name, value in statistics(method.net).items():
        torch.testing.assert_close(value, expected[name])


# --- inputs of many kinds ---------------------------------------------------------------------


def test_one_labeled_image_is_enough_for_the_default() -> None:
    assert default()(*tiny_batch(1, 2), progress=1.0)["total"].isfinite()
    method = paper(teacher=gmix.EMATeacher(tiny_net()))
    with pytest.raises(ValueError, match=r"^L_dec needs two labeled images or more, got 1$"):
        method(*tiny_batch(1, 2), progress=1.0)
    assert method.teacher is not None and method.teacher.step == 0
    method.criterion.decoupling = 0.0
    assert method(*tiny_batch(1, 2), progress=1.0)["total"].isfinite()


@VARIANTS
def test_the_ignore_index_reaches_every_part(make: Any) -> None:
    x_l, y, x_u = tiny_batch()
    expected = make()(x_l, y, x_u, progress=1.0, generator=seeded(0))
    criterion = copy.deepcopy(make().criterion)
    criterion.ignore_index = 77
    for method in (make(criterion=criterion), make(ignore_index=77)):
        losses = method(x_l, torch.where(y == 255, 77, y), x_u, progress=1.0, generator=seeded(0))
        for name, value in losses.items():
            assert torch.equal(value, expected[name])
        assert method.ignore_index == method.criterion.ignore_index == 77


def test_a_class_that_is_ignored_is_not_remembered() -> None:
    x_l, y, _ = tiny_batch()
    method = default(criterion=GuidedMixLoss(ignore_index=0))
    method.remember([*zip(x_l, y.clamp(max=2), strict=True)])
    values = method.reference.values
    assert not values[:, 0].any() and values[:, 1:].any()


def test_without_remember_the_reference_is_silent() -> None:
    method = GuidedMix(tiny_net())
    with pytest.warns(UserWarning, match=r"call `method.remember\(labeled\)` once"):
        copy.deepcopy(method)(*tiny_batch(), progress=1.0)
    silent, without = (m.guide(*tiny_batch()).pseudo for m in (method, default(reference=None)))
    torch.testing.assert_close(silent, without)
    assert not torch.allclose(default().guide(*tiny_batch()).pseudo, without, atol=1e-3)
    default(reference=None).remember([])  # and a method without one has nothing to remember


def test_images_that_are_not_normalised_are_not_remembered() -> None:
    """Images of 0..255 make features that say nothing, and the reference would be silent for no visible reason."""
    photos, y, _ = tiny_batch()
    photos = (photos.sigmoid() * 255).round()
    for images in (photos, photos.byte()):
        method = GuidedMix(tiny_net())
        with pytest.raises(ValueError, match="whole numbers: they are not normalised"):
            method.remember([*zip(images, y, strict=True)])
        assert not method.reference.remembers
    fits = GuidedMix(tiny_net(), mean=0.0, std=1 / 255)
    fits.remember([*zip(photos, y, strict=True)])
    assert fits.reference.remembers


@pytest.mark.parametrize(
    "parts",
    [
        {"selector": gmix.RandomPairSelector()},
        {"decoupler": gmix.SoftDecoupler("hard")},
        {"decoupler": gmix.SoftDecoupler(normalize="none")},
        {"mixer": gmix.LabeledUnlabeledMixer(alpha=0.4, max_lambda=0.4)},
        {"true_masks": True},
        {"color": gmix.StrongColor(), "cutmix": gmix.CutMix(p=1.0)},
    ],
    ids=lambda parts: "-".join(parts),
)
def test_every_part_can_be_exchanged(parts: dict[str, Any]) -> None:
    batch = tiny_batch()
    usual = paper()(*batch, progress=1.0, generator=seeded(0))
    losses = paper(**parts)(*batch, progress=1.0, generator=seeded(0))
    losses["total"].backward()
    assert losses["total"].isfinite() and losses["total"] != usual["total"]


def test_the_paper_with_a_teacher_is_one_argument() -> None:
    net = tiny_net()
    method = GuidedMix(net, variant="paper", teacher=gmix.EMATeacher(net))
    assert method.guide(*tiny_batch()).pseudo.isfinite().all()
    assert method(*tiny_batch(), progress=1.0)["decoupling"] > 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: GuidedMix(tiny_net(), variant="printed"), "['default', 'paper', 'official'], got 'printed'"),  # type: ignore[arg-type]
        (lambda: default(direct=1.2), "`direct` is a weight in [0, 1], got 1.2"),
        (lambda: default(views=0, drop=0.0), "`views` must be at least 1"),
        (lambda: default(drop=1.5), "`drop` must be in [0, 1], got 1.5"),
        (lambda: default(techer=None), "no part 'techer': choose from ['adjustment', "),
        (
            lambda: default(ignore_index=0, criterion=GuidedMixLoss(ignore_index=7)),
            "`ignore_index` is 0 here and 7 in `criterion`: say it once",
        ),
        (lambda: default(mixer=None), "`mixer` cannot be None"),
        (lambda: default(selector=None), "`selector` cannot be None"),
        (lambda: paper(decoupler=None), "`decoupler` cannot be None"),
        (lambda: paper(criterion=None), "`criterion` cannot be None"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_one_sentence(call: Any, words: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("lacks", ["ignore_index", "threshold", "classification", "decoupling"])
def test_a_criterion_has_what_is_asked_of_it(lacks: str) -> None:
    loss = GuidedMixLoss()
    delattr(loss, lacks)
    del loss.given_options  # as a class that does not note its options
    with pytest.raises(TypeError, match="the whole objective, a GuidedMixLoss"):
        default(criterion=loss)


def test_only_parts_that_are_not_given_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    net, copied, deepcopy = tiny_net(), [], copy.deepcopy
    own = gmix.EMATeacher(net)

    def counted(x: Any, *memo: Any) -> Any:
        copied.extend([x] * isinstance(x, nn.Module) * (not memo))
        return deepcopy(x, *memo)

    monkeypatch.setattr(copy, "deepcopy", counted)
    GuidedMix(net)
    assert copied == [net, net.model.encoder]
    copied.clear()
    assert GuidedMix(net, teacher=own, reference=None).teacher is own
    GuidedMix(net, variant="paper")
    assert not copied


def test_what_led_to_the_pseudo_masks_is_free_before_the_student_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = mixing()
    seen: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []
    guide = method.guide

    def watched(*args: Any) -> Any:
        guidance = guide(*args)
        seen.extend(weakref.ref(value) for value in (guidance.direct, *guidance.mix))
        return guidance

    monkeypatch.setattr(method, "guide", watched)
    method.color.register_forward_pre_hook(lambda *_: alive.extend(r() is not None for r in seen))
    method(*tiny_batch(), progress=1.0, generator=seeded(0))
    assert alive == [False] * 6
