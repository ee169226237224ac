"""What holds for every method: one class of tests, of which each method's own tests are a subclass."""

import copy
import math
import warnings
from collections.abc import Iterator
from typing import Any

import naive
import pytest
import segmentation_models_pytorch as smp
import torch
from naive import Batch, Losses
from tiny_methods import BUILDERS, takers
from tiny_nets import Labeled, seeded, tiny_batch, tiny_net
from torch import Generator, Tensor, nn

from gmix import GuidedMixNet

SURE = {3: 0.45, 1: 0.6}  # about half of the pixels of nets that know nothing yet


def batch_of(classes: int = 3) -> Labeled:
    """3 labeled and 4 unlabeled images of 32 x 24."""
    x_l, y, x_u = tiny_batch(classes=classes)
    return Labeled(x_l[..., :24], y[..., :24], x_u[..., :24])


def some_valid() -> Tensor:
    return torch.rand(4, 32, 24, generator=seeded(3)) < 0.8


def photos(n: int = 3) -> Tensor:
    """Values 0 to 255, as files hold them."""
    return torch.randint(256, (n, 3, 32, 24), generator=seeded(n)).float()


def values_of(method: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in method.state_dict().items()}


def assert_unchanged(method: nn.Module, before: dict[str, Tensor]) -> None:
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())


def optimizer_of(method: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)


# Calls that are refused: the error, words of it, and which arguments are bad.
Refused = tuple[type[Exception], str, dict[str, Any]]


def bad_batches() -> Iterator[Refused]:
    x_l, y, x_u = batch_of()
    for bad, words in (
        (
            y[:, None].expand(-1, 3, -1, -1),
            r"got \(3, 3, 32, 24\): pass one-hot masks as y_labeled.argmax\(1\)$",
        ),
        (
            y[..., None].expand(-1, -1, -1, 3),
            r"got \(3, 32, 24, 3\): pass one-hot masks as y_labeled.argmax\(-1\)$",
        ),
        (y[:2], r"shape \(3, 32, 24\).* got \(2, 32, 24\)"),
        (y[:, :16], r"shape .* got \(3, 16, 24\)"),
        (torch.where(y == 2, 3, y), r"classes 0 to 2, or 255 .* got 3"),
        (torch.where(y == 2, -1, y), "got -1"),
    ):
        yield ValueError, f"^`y_labeled` must .*{words}", {"y_labeled": bad}
    words = r"^`y_labeled` must hold .* got torch.float32: pass y_labeled.long\(\)$"
    yield TypeError, words, {"y_labeled": y.float()}
    for images in (x_l[:0], x_l[0]):
        words = "^`x_labeled` must be one image or more, shape"
        yield ValueError, words, {"x_labeled": images, "y_labeled": y[:0]}
    for bad in ({"x_labeled": photos().byte()}, {"x_unlabeled": photos(4).byte()}):
        yield TypeError, r"float32 images, got torch.uint8: pass \(x / 255 - ", bad
    for dtype in (torch.float64, torch.bfloat16):
        bad = {"x_labeled": x_l.to(dtype), "x_unlabeled": x_u.to(dtype)}
        yield TypeError, f"`x_labeled` must be float32, got {dtype}: pass x_l", bad
    bad = {"x_labeled": photos(), "x_unlabeled": photos(4)}
    yield ValueError, "^the images lie in 0..255, whole numbers: they are not", bad
    for value in (math.nan, math.inf, -math.inf):
        hole = x_l.clone()
        hole[1, 0, 3, 3] = value
        yield ValueError, "^image 1 of a batch of 3 holds nan or infinite val", {"x_labeled": hole}
    for channels, remedy in ((1, r"images.expand\(-1, 3, -1, -1\)"), (4, "in_channels=4")):
        few = (x.repeat(1, 2, 1, 1)[:, :channels] for x in (x_l, x_u))
        words = rf"shape \(N, 3, H, W\), got .*{remedy}"
        yield ValueError, words, dict(zip(("x_labeled", "x_unlabeled"), few, strict=True))
    given = {**batch_of()._asdict(), "valid_unlabeled": some_valid()}
    for key, tensor in given.items():
        words = f"^`{key}` is on the device meta, where .* pass one"
        yield ValueError, words, {**given, key: tensor.to("meta")}
        words = f"^`{key}` must be a tensor, got ndarray: pass torch"
        yield TypeError, words, {**given, key: tensor.numpy()}
    for told in (50, -3, math.nan, 1.5, "0.5", torch.tensor(2.0), torch.tensor(math.nan)):
        words = r"^`progress` is the share .* in \[0, 1\]: pass step / st"
        yield ValueError, words, {"progress": told}


def bad_unlabeled() -> Iterator[Refused]:
    x_u, valid = batch_of().x_unlabeled, some_valid()
    for nothing in (None, x_u[:0]):
        yield ValueError, "^NAME needs `x_unlabeled`", {"x_unlabeled": nothing}
    for images in (x_u[..., :16], x_u[:, :2]):
        yield ValueError, "same shape but for their number", {"x_unlabeled": images}
    for shape in (valid[:1], valid[:, None], valid[..., :1]):
        yield ValueError, "valid.*shape", {"valid_unlabeled": shape}
    words = "type torch.bool, .* and torch.uint8"
    yield ValueError, words, {"valid_unlabeled": valid.byte()}


BAD_STATS: list[tuple[dict[str, Any], str]] = [
    ({"std": 0.0}, "`std` must be above 0, images are divided by it, got 0.0"),
    ({"std": (0.2, 0.0, 0.2)}, "`std` must be above 0"),
    ({"std": -0.2}, "`std` must be above 0"),
    ({"std": math.nan}, "`std` must be a finite number, or one per channel, got nan"),
    ({"mean": ()}, "`mean` must be a finite number"),
    ({"mean": (0.4, 0.5)}, "`mean` and `std` must have one value, or one per channel, got 2 an"),
    ({"std": (0.4, 0.5)}, "`mean` and `std` must have one value, or one per channel, got 3 an"),
]


class Counted(nn.Module):
    """Sums up what it is called with; has a weight of its own, to be moved and learned with the method's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        self.calls.append((logits, y))
        return self.weight * logits.square().mean()


class MethodTester:
    """A subclass names its method, computes one step naively, and says what is special about it."""

    name: str
    # Options of the naive step, and of it for a number of classes, such that thresholds divide the pixels.
    options: dict[str, Any] = {}
    divides: dict[int, dict[str, Any]] = {}
    # Options that are the weight of the term of their name; lengths of ramps, and the weights they rise to.
    weights: tuple[str, ...] = ("unsupervised",)
    ramps: list[tuple[float, float]] = []
    needs_progress = False
    # Whether it draws random numbers; how many networks learn; how names in its state start that are not the network's.
    draws, students, brings = True, 1, "teacher.net."
    # How the names of the parameters start that learn from a term, if it is not the network as a whole.
    learners: dict[str, tuple[str, ...]] = {}
    # Terms that learn from labeled images, too, and terms that may be 0 with one class.
    labeled_too: set[str] = set()
    may_vanish: set[str] = set()
    # Of batches: labeled and unlabeled images, classes.
    sizes = [(1, 2, 3), (2, 1, 1), (3, 2, 7)]
    # Options with which a few steps lower the total, and how many do.
    easy: dict[str, Any] = {}
    steps = 16

    def step(self, method: Any, batch: Batch, g: Generator) -> Losses:
        """The losses of one step at a progress of 0.05, and what it changes, in code as plain as can be."""
        raise NotImplementedError

    def move(self, method: Any, g: Generator) -> None:
        """Bring what the method has besides a network and a teacher to the middle of a training."""

    def make(self, classes: int = 3, **options: Any) -> Any:
        """The method on a tiny network, with thresholds that it reaches untrained."""
        for threshold in ("threshold", "previous_threshold"):
            if self.name in takers(threshold):
                options.setdefault(threshold, SURE.get(classes, 0.5))
        net = tiny_net(classes)
        torch.manual_seed(3)  # with others, a ReLU at the end of one of CCT's decoders starts dead
        return BUILDERS[self.name](net, **options)

    def midway(self, classes: int = 3, **options: Any) -> Any:
        """As in the middle of a training: the student has left its teacher, BatchNorm has seen images."""
        method, g = self.make(classes, **options), seeded(9)
        with torch.no_grad():
            for p in method.net.parameters():
                p.add_(0.04 * torch.randn(p.shape, generator=g))
            for module in method.net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    shape = module.running_mean.shape
                    module.running_mean.copy_(torch.randn(shape, generator=g) / 9)
                    module.running_var.copy_(torch.rand(shape, generator=g) + 0.5)
            if getattr(method, "teacher", None) is not None:
                method.teacher.step.fill_(9)
            self.move(method, g)
        return method

    @property
    def unlabeled(self) -> bool:
        return self.name != "supervised"

    @property
    def colored(self) -> bool:
        return self.name in takers("mean") and self.name not in ("paper", "official")

    # --- one step ---------------------------------------------------------------------------------

    @pytest.mark.parametrize(("classes", "padded"), [(3, False), (3, True), (1, True)])
    def test_a_step_is_this_plain_code(self, classes: int, padded: bool) -> None:
        """Equal gradients also say: targets are constants, none reaches a teacher."""
        batch, valid = batch_of(classes), some_valid() if padded else None
        method = self.midway(classes, **{**self.options, **self.divides.get(classes, {})})
        plain = copy.deepcopy(method)
        losses = method(*batch, progress=0.05, valid_unlabeled=valid, generator=seeded(7))
        losses["total"].backward()

        every = torch.ones(4, 32, 24, dtype=torch.bool)
        expected = self.step(plain, Batch(*batch, every if valid is None else valid), seeded(7))
        expected["total"].backward()
        assert losses.keys() == expected.keys()
        for term, value in losses.items():
            assert value.dtype == torch.float32, term
            assert value > 1e-3 or (classes == 1 and term in self.may_vanish), term
            torch.testing.assert_close(
                value.double(),
                expected[term].double(),
                atol=1e-5,
                rtol=1e-4,
                msg=lambda m, t=term: f"{t}: {m}",
            )
        wanted = {key: p.grad for key, p in plain.named_parameters()}
        for key, p in method.named_parameters():
            torch.testing.assert_close(
                p.grad, wanted[key], atol=1e-5, rtol=2e-3, msg=lambda m, k=key: f"{k}: {m}"
            )
        after = plain.state_dict()
        for key, value in method.state_dict().items():  # BatchNorm statistics, the teacher
            torch.testing.assert_close(value, after[key], msg=lambda m, k=key: f"{k}: {m}")

    def test_every_weight_weighs_its_own_term(self) -> None:
        for term in self.weights:
            light, heavy = (
                self.make(**{term: weight})(*batch_of(), progress=1.0, generator=seeded(1))
                for weight in (0.5, 2.0)
            )
            for key in light.keys() - {"total"}:
                assert light[key] == heavy[key]  # terms come unweighted
            assert light[term] > 0
            torch.testing.assert_close(heavy["total"] - light["total"], 1.5 * light[term])

    def test_a_ramp_rises_to_1(self) -> None:
        for length, weight in self.ramps:
            done = self.make()(*batch_of(), progress=1.0, generator=seeded(1))["total"]
            for told, omega in ((0, math.exp(-5)), (length / 2, math.exp(-1.25)), (length, 1.0)):
                losses = self.make()(*batch_of(), progress=told, generator=seeded(1))
                expected = losses["supervised"] + weight * omega * losses["unsupervised"]
                torch.testing.assert_close(losses["total"], expected)
            assert losses["total"] == done

    @pytest.mark.parametrize("autocast", [False, True])
    def test_every_trained_parameter_gets_a_gradient(self, autocast: bool) -> None:
        method = self.make()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = method(*batch_of(), progress=1.0, generator=seeded(0))
        trained = {key: p for key, p in method.named_parameters() if p.requires_grad}
        assert not any(key.startswith("teacher.") for key in trained)
        assert {f"net.{key}" for key, _ in method.net.named_parameters()} <= trained.keys()
        for term in losses.keys() - {"total"}:
            value, learns = losses[term], self.learners.get(term, ("net.model",))
            assert value.dtype == torch.float32 and value > 0
            found = torch.autograd.grad(
                value, list(trained.values()), retain_graph=True, allow_unused=True
            )
            for key, gradient in zip(trained, found, strict=True):
                assert (gradient is not None) == key.startswith(learns), f"{term}: {key}"
                if gradient is not None:
                    assert gradient.isfinite().all(), f"{term}: {key}"
                    # a bias before a BatchNorm or inside a softmax may truly get zero
                    assert gradient.dim() == 1 or gradient.any(), f"{term}: {key}"
        losses["total"].backward()
        for key, p in method.named_parameters():
            assert (p.grad is not None) == (key in trained), key

    def test_a_few_steps_lower_the_total(self) -> None:
        g = seeded(2)
        (x_l, y_l), (x_u, _) = naive.squares(4, g), naive.squares(4, g)
        method = self.make(**self.easy)
        optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
        totals, steps = [], self.steps
        for step in range(steps):
            if not 4 <= step < steps - 4:  # the same views and full weights, whatever the step
                with torch.no_grad():
                    probe = copy.deepcopy(method)(x_l, y_l, x_u, progress=1.0, generator=seeded(99))
                totals.append(probe["total"].item())
            optimizer.zero_grad()
            losses = method(x_l, y_l, x_u, progress=step / steps, generator=seeded(step))
            losses["total"].backward()
            optimizer.step()
        assert sum(totals[4:]) < 0.6 * sum(totals[:4])

    # --- randomness and state ---------------------------------------------------------------------

    def test_it_draws_from_its_generator_only_and_leaves_its_inputs_alone(self) -> None:
        batch, valid = batch_of(), some_valid()
        before = [value.clone() for value in (*batch, valid)]

        def step(seed: int | None) -> Tensor:
            method, generator = self.make(), None if seed is None else seeded(seed)
            state = torch.get_rng_state()
            losses = method(*batch, valid_unlabeled=valid, progress=1.0, generator=generator)
            assert seed is None or torch.equal(torch.get_rng_state(), state)
            return torch.stack([losses[term] for term in sorted(losses)])

        one = step(1)
        assert torch.equal(one, step(1))
        assert torch.equal(one, step(2)) != self.draws
        # without one, torch's own is used (each `make` seeds it alike)
        assert torch.equal(step(None), step(None))
        assert all(map(torch.equal, before, (*batch, valid)))

    def test_what_it_brings_along_is_saved_with_it_and_not_with_its_net(self) -> None:
        alone, method = tiny_net(), self.make()
        assert method.net.state_dict().keys() == alone.state_dict().keys()
        assert method.net.model.state_dict().keys() == alone.model.state_dict().keys()
        assert {type(m) for m in method.net.modules()} == {type(m) for m in alone.modules()}
        assert_unchanged(alone, method.net.state_dict())  # nor does it change the net it is given
        own = {key for key in method.state_dict() if not key.startswith("net.")}
        assert any(key.startswith(self.brings) for key in own) if self.brings else not own

    def test_state_dict_brings_everything_back(self) -> None:
        method, other = self.make(), self.make()
        optimizer = optimizer_of(method)
        for seed in range(2):
            optimizer.zero_grad()
            method(*tiny_batch(seed=seed), progress=1.0, generator=seeded(seed))["total"].backward()
            optimizer.step()
        with torch.no_grad():
            for key, p in other.named_parameters():
                if not key.startswith("reference."):  # which is rebuilt, not loaded
                    p.add_(1.0)
        other.load_state_dict(method.state_dict())
        expected, again = (
            m(*batch_of(), progress=1.0, generator=seeded(5)) for m in (method, other)
        )
        for term, value in expected.items():
            assert torch.equal(value, again[term]), term
        assert_unchanged(method, other.state_dict())

    def test_a_teacher_follows_in_training_only_and_is_always_in_eval_mode(self) -> None:
        if getattr(self.make(), "teacher", None) is None:
            return
        decay = {"decay": 0.9}
        method = self.make(**(decay if self.name in takers("decay") else {"teacher": decay}))
        method.eval()(*batch_of(), progress=1.0)
        assert method.teacher.step == 0 and method.teacher.decay == 0.9
        method.train()(*batch_of(), progress=1.0)
        assert method.teacher.step == 1 and not any(m.training for m in method.teacher.modules())

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_a_frozen_encoders_statistics_stay(self, when: str) -> None:
        method = self.make()
        encoder, decoder = method.net.model.encoder, method.net.model.decoder
        if when == "before":
            encoder.requires_grad_(False)
        method.eval()
        method.train()
        encoder.requires_grad_(False)
        frozen, free = values_of(encoder), values_of(decoder)
        optimizer = optimizer_of(method)
        for seed in range(2):
            method(*batch_of(), progress=0.5, generator=seeded(seed))["total"].backward()
            optimizer.step()
        assert_unchanged(encoder, frozen)
        assert not all(torch.equal(value, free[key]) for key, value in decoder.named_buffers())

    def test_a_state_of_another_class_number_is_refused_in_one_sentence(self) -> None:
        method = self.make()
        before, state = values_of(method), self.make(4).state_dict()
        owner = nn.ModuleDict({"method": method})  # a part of something larger, which torch loads
        held = {f"method.{key}": value for key, value in state.items()}
        name = type(method).__name__
        for part, given, words in (
            (method, state, r"the state is of another \w+: .* is \(4, "),
            (method.net, tiny_net(4).state_dict(), "the state is of another GuidedMixNet"),
            (method, {}, ".*is missing from it, "),
            (method, {**before, "nonsense": torch.zeros(1)}, ".*nonsense is unknown here, 1 entr"),
            (owner, held, rf"the state is of another {name}: method\."),
        ):
            with pytest.raises(RuntimeError, match=f"^{words}") as error:
                part.load_state_dict(given)
            assert len(str(error.value)) < 300 and "\n" not in str(error.value)
            assert_unchanged(method, before)

    # --- another loss of the labeled images -------------------------------------------------------

    def test_the_supervised_loss_can_be_exchanged(self) -> None:
        loss, batch = Counted(), batch_of()
        method = self.make(supervised=loss)
        losses = method(*batch, progress=0.5, generator=seeded(0))
        usual = self.make()(*batch, progress=0.5, generator=seeded(0))
        assert len(loss.calls) == self.students
        assert all(torch.equal(y, batch.y_labeled) for _, y in loss.calls)
        expected = sum(2.0 * logits.square().mean() for logits, _ in loss.calls)
        torch.testing.assert_close(losses["supervised"], expected)
        assert losses.keys() == usual.keys()
        for term in losses.keys() - {"supervised", "total"}:  # which are as they were
            assert torch.equal(losses[term], usual[term]), term
        change = losses["supervised"] - usual["supervised"]
        torch.testing.assert_close(losses["total"] - usual["total"], change, atol=1e-4, rtol=1e-4)
        losses["total"].backward()
        assert loss.weight.grad is not None and "supervised_loss.weight" in method.state_dict()

    def test_a_dice_loss_of_smp_trains_and_a_constant_is_refused(self) -> None:
        dice = smp.losses.DiceLoss("multiclass", ignore_index=255)
        method, batch = self.make(supervised=dice), batch_of()
        with torch.autocast("cpu", torch.bfloat16):
            losses = method(*batch, progress=1.0, generator=seeded(0))
        assert losses["supervised"].dtype == torch.float32 and 0 < losses["supervised"] < 2
        losses["total"].backward()
        assert method.net.model.segmentation_head[0].weight.grad.any()

        method = self.make(supervised=lambda logits, y: logits.mean().detach())
        with pytest.raises(TypeError, match=r"gradients flow through, got a constant: .* without"):
            method(*batch, progress=0.5)
        with torch.no_grad():  # who only looks at the losses needs none
            assert method(*batch, progress=0.5)["total"].isfinite()

    # --- pseudo masks -----------------------------------------------------------------------------

    @pytest.mark.parametrize(("classes", "training"), [(1, False), (3, True), (3, False)])
    def test_pseudo_masks_are_probabilities_and_change_nothing(
        self, classes: int, training: bool
    ) -> None:
        method, batch = self.midway(classes).train(training), batch_of(classes)
        if training:
            method.net.model.encoder.eval()  # how BatchNorm is frozen
        before = values_of(method)
        modes = {key: module.training for key, module in method.named_modules()}
        state = torch.get_rng_state()
        probs = method.pseudo_masks(*batch, generator=seeded(0))
        assert probs.shape == (4, classes, 32, 24) and probs.dtype == torch.float32
        assert not probs.requires_grad and probs.min() >= 0 and probs.max() <= 1 + 1e-6
        if classes > 1:
            torch.testing.assert_close(probs.sum(1), torch.ones(4, 32, 24))
        assert {key: module.training for key, module in method.named_modules()} == modes
        assert_unchanged(method, before)
        assert torch.equal(torch.get_rng_state(), state)
        still = method.eval()
        torch.testing.assert_close(probs, self.pseudo_masks(still, batch))
        assert torch.equal(probs, still.pseudo_masks(*batch, generator=seeded(0)))

    def pseudo_masks(self, method: Any, batch: Labeled) -> Tensor:
        """The pseudo masks of a method in eval mode."""
        teacher = getattr(method, "teacher", None)
        net: GuidedMixNet = method.net if teacher is None else teacher.net
        return naive.full(net(batch.x_unlabeled))[:, -net.classes :].float()

    def test_what_is_learned_after_pseudo_masks_under_autocast_has_gradients(self) -> None:
        method = self.make()
        with torch.autocast("cpu", torch.bfloat16):
            method.pseudo_masks(*batch_of(), generator=seeded(0))
            losses = method(*batch_of(), progress=1.0, generator=seeded(0))
        losses["total"].backward()
        assert all(p.grad is not None for p in method.net.model.encoder.parameters())

    # --- inputs of many kinds ---------------------------------------------------------------------

    def test_batches_of_any_sizes(self) -> None:
        for labeled, unlabeled, classes in self.sizes:
            method, batch = self.make(classes), tiny_batch(labeled, unlabeled, classes)
            with torch.autocast("cpu", torch.bfloat16, enabled=classes == 7):
                losses = method(*batch, progress=1.0, generator=seeded(0))
            losses["total"].backward()
            assert all(value.isfinite() for value in losses.values())
            assert all(value.dtype == torch.float32 for value in losses.values())
            assert all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)
            assert method.net.model.segmentation_head[0].weight.grad.any()

    def test_images_that_no_stride_divides(self) -> None:
        x_l, y, x_u = (value[..., :35, :37] for value in tiny_batch(size=40))
        valid = torch.ones(4, 35, 37, dtype=torch.bool)
        losses = self.make()(x_l, y, x_u, valid_unlabeled=valid, progress=1.0, generator=seeded(0))
        assert all(value.isfinite() for value in losses.values())

    def test_a_batch_without_any_label_still_gives_a_finite_step(self) -> None:
        x_l, y, x_u = batch_of()
        losses = self.make()(x_l, torch.full_like(y, 255), x_u, progress=1.0, generator=seeded(0))
        losses["total"].backward()
        assert losses["supervised"] == 0 and losses["total"].isfinite()
        assert (losses["total"] > 0) == self.unlabeled

    def test_only_padding_is_nothing_to_learn_from(self) -> None:
        nothing = torch.zeros(4, 32, 24, dtype=torch.bool)
        losses = self.make()(
            *batch_of(), valid_unlabeled=nothing, progress=1.0, generator=seeded(0)
        )
        losses["total"].backward()
        for term in losses.keys() - self.labeled_too:
            assert (losses[term] > 0) == (term in ("supervised", "total")), term

    def test_the_ignore_index_reaches_every_part(self) -> None:
        x_l, y, x_u = batch_of()
        told: dict[str, Any] = {"valid_unlabeled": some_valid(), "progress": 1.0}
        expected = self.make()(x_l, y, x_u, **told, generator=seeded(0))
        method = self.make(ignore_index=-1)
        y = torch.where(y == 255, -1, y)
        for term, value in method(x_l, y, x_u, **told, generator=seeded(0)).items():
            assert torch.equal(value, expected[term]), term

    def test_masks_and_progress_of_any_type_give_the_same_step(self) -> None:
        x_l, y, x_u = batch_of()
        expected = self.make()(x_l, y, x_u, progress=0.5, generator=seeded(0))
        for masks in (y.int(), y[:, None].byte()):
            found = self.make()(x_l, masks, x_u, progress=torch.tensor(0.5), generator=seeded(0))
            for term, value in expected.items():
                torch.testing.assert_close(found[term], value)

    def test_bfloat16_images_are_learned_under_autocast(self) -> None:
        x_l, y, x_u = batch_of()
        with torch.autocast("cpu", torch.bfloat16):
            losses = self.make()(x_l.bfloat16(), y, x_u.bfloat16(), progress=0.5)
        losses["total"].backward()
        assert losses["total"].isfinite() and losses["total"].dtype == torch.float32

    def test_what_cannot_be_learned_is_refused_before_anything_has_changed(self) -> None:
        """In one sentence with the remedy."""
        counting = {"adjustment": {}} if self.name in takers("adjustment") else {}
        method = self.make(**counting)
        before = values_of(method)
        for error, words, changes in [*bad_batches(), *(bad_unlabeled() if self.unlabeled else [])]:
            given = {**batch_of()._asdict(), "progress": 0.5, **changes}
            with pytest.raises(
                error, match=words.replace("NAME", type(method).__name__)
            ) as refused:
                method(**given)
            assert "\n" not in str(refused.value)
            if "`y_labeled` must" in words:
                with pytest.raises(error, match=words):
                    method.on_step_start(given["x_labeled"], given["y_labeled"])
        if self.needs_progress:
            with pytest.raises(ValueError, match=r"needs `progress`, .* progress=step / steps"):
                method(*batch_of())
        assert_unchanged(method, before)
        told = {"progress": 1.0} if self.needs_progress else {}
        assert method(*batch_of(), **told)["total"] > 0
        x_l, y, x_u = batch_of()  # of later images no value is looked at
        assert not method(x_l * math.nan, y, x_u, **told)["total"].isfinite()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
    def test_weights_of_another_type_are_refused_in_one_sentence(self, dtype: Any) -> None:
        x_l, y, x_u = batch_of()
        method = self.make().to(dtype)
        for cast in (lambda x: x, lambda x: x.to(dtype)):
            with pytest.raises(TypeError, match=r"learns float32 weights, .* torch.autoc") as error:
                method(cast(x_l), y, cast(x_u), progress=0.5)
            assert "\n" not in str(error.value)

    def test_options_that_cannot_be_are_refused(self) -> None:
        with pytest.raises(TypeError, match=r"got Unet: wrap the model, GuidedMixNet\(model\)$"):
            BUILDERS[self.name](tiny_net().model)
        for option in ("threshold", "ramp_length", "whole", "previous_threshold"):
            for value in (-0.1, 2.0) if self.name in takers(option) else ():
                with pytest.raises(ValueError, match=rf"`{option}` .* in \[0, 1\], got {value}"):
                    BUILDERS[self.name](tiny_net(), **{option: value})

    # --- mean and std -----------------------------------------------------------------------------

    def test_mean_and_std_are_those_of_the_images(self) -> None:
        if not self.colored:
            return
        x_l, y, x_u = batch_of()
        raw = photos() / 255, y, photos(4) / 255
        with pytest.raises(ValueError, match=r"x \* std \+ mean is not in 0..1, as strong colours"):
            self.make(mean=0.0, std=1.0)(x_l, y, x_u, progress=0.5)
        for stats in ({"mean": (0.5,) * 4, "std": 0.2}, {"mean": 0.5, "std": (1.0, 1)}):
            with pytest.raises(ValueError, match=r"are for [42] channels, the images have 3: pass"):
                self.make(**stats)(x_l, y, x_u, progress=0.5)
        method = self.make()
        with pytest.warns(UserWarning, match="if they are not normalised, pass mean=0.0 and std=1"):
            method(*raw, progress=0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            method(*raw, progress=0.5)  # it warns once
            for scale, std in ((1.0, 1.0), (255.0, 1 / 255)):
                method = self.make(mean=0.0, std=std)
                method.remember([*zip(raw[0] * scale, y, strict=True)])
                losses = method(raw[0] * scale, y, raw[2] * scale, progress=0.5)
                assert losses["total"].isfinite()

    def test_mean_and_std_that_cannot_be_are_refused(self) -> None:
        for stats, words in BAD_STATS if self.colored else []:
            with pytest.raises(ValueError) as error:
                BUILDERS[self.name](tiny_net(), **stats)
            assert words in str(error.value) and "\n" not in str(error.value)
