"""The published methods: one step of each against naive code, and the traps around them."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny_methods import BUILDERS, ONE_OF_EACH, takers
from tiny_nets import Labeled, seeded, tiny_batch, tiny_net
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gmix import GuidedMixNet, GuidedMixUnet
from gmix.builders.method import build_method
from gmix.config.train_config import TrainConfig
from gmix.methods import CCT, CPS, GuidedMix, Method, Supervised
from gmix.methods import cct as cct_file
from gmix.methods import vat as vat_file
from gmix.methods.cct import DECODERS, adversarial, auxiliary_decoder, box_in, disturb
from gmix.methods.classmix import half_of_classes
from gmix.nn.mitrans import NonLocalBlock, PixelShuffleBlock
from gmix.nn.views import Pasted

seeds = st.integers(0, 2**31 - 1)


TEACHERS = [*takers("decay"), "fixmatch, taught", "unimatch, taught", "prevmatch, taught"]
SURE = {3: 0.45, 1: 0.6}  # about half of the pixels of nets that know nothing yet
# But for these, of which tests/test_guidedmix.py says what a step is.
EACH = pytest.mark.parametrize("name", sorted({*BUILDERS} - {"supervised", "guidedmix", "paper"}))


def make(name: str, classes: int = 3, **options: Any) -> Method:
    """With a threshold that untrained nets reach."""
    if name in takers("threshold"):
        options = {"threshold": SURE.get(classes, 0.5), **options}
    if name in takers("previous_threshold"):
        options = {"previous_threshold": SURE.get(classes, 0.5), **options}
    net = tiny_net(classes)
    torch.manual_seed(3)  # with others, a ReLU at the end of one of CCT's decoders starts dead
    return BUILDERS[name](net, **options)


EVERY: dict[str, Callable[..., Method]] = {name: partial(make, name) for name in BUILDERS}


def moved(method: Any) -> Any:
    """As in the middle of a training: the student has left its teacher, BatchNorm has seen images."""
    g = seeded(9)
    with torch.no_grad():
        for p in method.net.parameters():
            p.add_(0.04 * torch.randn(p.shape, generator=g))
        for module in method.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=g) / 9)
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=g) + 0.5)
    if getattr(method, "teacher", None) is not None:
        method.teacher.step.fill_(9)
    if hasattr(method, "other"):  # the second student has left its start, too
        with torch.no_grad():
            next(method.other.model.encoder.parameters()).mul_(0.9)
    if hasattr(method, "snapshots"):
        for k in (1, 2, 3):
            earlier = copy.deepcopy(method.net)
            with torch.no_grad():
                for p in earlier.parameters():
                    p.add_(0.04 * torch.randn(p.shape, generator=g))
            method.snapshots.take(earlier, (k + 0.5) * method.snapshots.every)
    if hasattr(method, "bank"):  # it holds something
        ring = method.bank.ring
        ring.copy_(F.normalize(torch.randn(ring.shape, generator=g), dim=2))
        method.bank.written.copy_(torch.tensor([30, 50, 20][: len(ring)]))
    if hasattr(method, "discriminator"):  # it tells maps apart
        with torch.no_grad():
            for p in method.discriminator.parameters():
                p.mul_(3)
    return method


def batch_of(classes: int = 3) -> Labeled:
    """3 labeled and 4 unlabeled images of 32 x 24."""
    x_l, y, x_u = tiny_batch(classes=classes)
    return Labeled(x_l[..., :24], y[..., :24], x_u[..., :24])


def some_valid() -> Tensor:
    return torch.rand(4, 32, 24, generator=seeded(3)) < 0.8


# --- one step against naive code ----------------------------------------------------------------


def full(logits: Tensor) -> Tensor:
    """Probabilities of all classes, of background and foreground if binary."""
    logits = logits.double()
    if logits.shape[1] == 1:
        foreground = 1 / (1 + (-logits).exp())
        return torch.cat([1 - foreground, foreground], 1)
    return logits.exp() / sum(logits[:, k : k + 1].exp() for k in range(logits.shape[1]))


def best(probs: Tensor) -> tuple[Tensor, Tensor]:
    """Each pixel's class and how sure it is."""
    values = probs.detach().numpy()
    labels = np.zeros((len(values), *values.shape[2:]), dtype=np.int64)
    confidence = np.zeros(labels.shape)
    for i, r, c in np.ndindex(*labels.shape):
        for k, value in enumerate(values[i, :, r, c]):
            if value > confidence[i, r, c]:
                labels[i, r, c], confidence[i, r, c] = k, value
    return torch.from_numpy(labels), torch.from_numpy(confidence)


def entropy(logits: Tensor, labels: Tensor, counted: Tensor, learnt: Tensor) -> Any:
    """Cross-entropy, image by image and class by class; `learnt` of the `counted` pixels."""
    total: Any = 0
    for probs, mask, some in zip(full(logits), labels, learnt & counted, strict=True):
        for k, prob in enumerate(probs):
            total = total - prob[some & (mask == k)].log().sum()
    return total / counted.sum()


def labeled_entropy(logits: Tensor, y: Tensor) -> Any:
    return entropy(logits, y, y != 255, y != 255)


def error(logits: Tensor, target: Tensor, valid: Tensor) -> Any:
    """Squared error summed over the classes, mean over the valid pixels."""
    total: Any = 0
    for probs, wanted, inside in zip(full(logits), target.detach(), valid, strict=True):
        for prob, value in zip(probs, wanted, strict=True):
            total = total + ((prob - value) ** 2)[inside].sum()
    return total / valid.sum()


def paste(values: Tensor, pasted: Pasted) -> Tensor:
    out = values.clone()
    for i, j in enumerate(pasted.source.tolist()):
        out[i][..., pasted.box[i]] = values[j][..., pasted.box[i]]
    return out


def share_of(sure: Tensor, valid: Tensor) -> float:
    """Of the pixels that are not padding."""
    share = int((sure & valid).sum()) / int(valid.sum())
    assert 0.1 < share < 0.9, f"choose another threshold: {share}"
    return share


def followed(method: Any) -> nn.Module:
    """The teacher one step closer to the student."""
    teacher, t = method.teacher, int(method.teacher.step)
    keep = min(0.99, (1 + t) / (10 + t))
    with torch.no_grad():
        for p, new in zip(teacher.net.parameters(), method.net.parameters(), strict=True):
            p.copy_(keep * p + (1 - keep) * new)
        for own, new in zip(teacher.net.buffers(), method.net.buffers(), strict=True):
            own.copy_(new)
    teacher.step += 1
    assert not teacher.net.training
    found: nn.Module = teacher.net
    return found


def ramp(progress: float, length: float) -> float:
    return math.exp(-5 * (1 - progress / length) ** 2)


def plain_mean_teacher(
    method: Any, x_l: Tensor, y: Tensor, x_u: Tensor, valid: Tensor, g: torch.Generator
) -> dict[str, Any]:
    target = full(followed(method)(x_u))
    logits = method.net(torch.cat([x_l, method.color(x_u, g)]))
    supervised = labeled_entropy(logits[:3], y)
    unsupervised = error(logits[3:], target, valid)
    total = supervised + 0.7 * ramp(0.05, 0.08) * unsupervised
    return {"supervised": supervised, "unsupervised": unsupervised, "total": total}


def plain_cutmix(
    method: Any, x_l: Tensor, y: Tensor, x_u: Tensor, valid: Tensor, g: torch.Generator
) -> dict[str, Any]:
    target = full(followed(method)(x_u))
    pasted = method.cutmix(x_u, g)
    view = paste(method.color(x_u, g), pasted)
    target, inside = paste(target, pasted), paste(valid, pasted)
    assert pasted.box.flatten(1).any(1).all()
    share = share_of(best(target)[1] >= method.threshold, inside)
    logits = method.net(torch.cat([x_l, view]))
    supervised = labeled_entropy(logits[:3], y)
    unsupervised = share * error(logits[3:], target, inside)
    total = supervised + 0.7 * unsupervised
    return {"supervised": supervised, "unsupervised": unsupervised, "total": total}


def plain_ict(
    method: Any, x_l: Tensor, y: Tensor, x_u: Tensor, valid: Tensor, g: torch.Generator
) -> dict[str, Any]:
    probs = full(followed(method)(x_u))
    confidence = best(probs)[1]
    gammas = torch._standard_gamma(torch.full((2, 4), 0.6), generator=g)
    lam = [float(min(a, b) / (a + b)) for a, b in gammas.T]
    assert max(lam) > 0.1
    colored = method.color(x_u, g)
    view, target, sure = colored.clone(), probs.clone(), confidence.clone()
    inside = valid.clone()
    for i, share in enumerate(lam):
        j = (i - 1) % 4
        view[i] = (1 - share) * colored[i] + share * colored[j]
        target[i] = (1 - share) * probs[i] + share * probs[j]
        sure[i] = (1 - share) * confidence[i] + share * confidence[j]
        inside[i] = valid[i] & valid[j]
    logits = method.net(torch.cat([x_l, view]))
    supervised = labeled_entropy(logits[:3], y)
    share = share_of(sure >= method.threshold, inside)
    unsupervised = share * error(logits[3:], target, inside)
    total = supervised + 0.7 * ramp(0.05, 0.25) * unsupervised
    return {"supervised": supervised, "unsupervised": unsupervised, "total": total}


def plain_vat(
    method: Any, x_l: Tensor, y: Tensor, x_u: Tensor, valid: Tensor, g: torch.Generator
) -> dict[str, Any]:
    still = copy.deepcopy(method.net).eval()
    features = method.net.encode(torch.cat([x_l, x_u])) if method.at == "features" else [x_u]
    start = features[-1][-4:].detach()
    state = g.get_state()
    draw, steps = torch.rand(start.shape, generator=g).double() - 0.5, []
    for i, (image, direction) in enumerate(zip(start, draw, strict=True)):
        predict, one = still, slice(i, i + 1)
        if method.at == "features":
            predict = Continued(still, [f[3 + i][None].detach() for f in features[:-1]])
        found = naive_adversarial(image[None], predict, direction[None], valid[one], xi=1.0)
        steps.append(7.5 / 2 * found)
    predict = still
    if method.at == "features":
        predict = Continued(still, [f[3:].detach() for f in features[:-1]])
    moved = adversarial(
        start, predict, xi=1.0, length=7.5, weight=valid, generator=g.set_state(state)
    )
    torch.testing.assert_close(moved, torch.cat(steps).float(), atol=1e-4, rtol=1e-3)
    # From here on with the rounded one: a gradient may jump between the two.
    if method.at == "images":
        logits = method.net(torch.cat([x_l, x_u, x_u + moved]))
    else:
        doubled = [torch.cat([f, f[3:]]) for f in features]
        added = torch.cat([torch.zeros(7, *moved.shape[1:]), moved])
        logits = method.net.decode([*doubled[:-1], doubled[-1] + added], (32, 24))
    before, after = full(logits[3:7]).detach(), full(logits[7:])
    supervised = labeled_entropy(logits[:3], y)
    unsupervised = (before * (before.log() - after.log())).sum(1)[valid].sum() / valid.sum()
    total = supervised + 0.7 * unsupervised
    return {"supervised": supervised, "unsupervised": unsupervised, "total": total}


class Continued(nn.Module):
    """Logits from the deepest features, given the others."""

    def __init__(self, net: GuidedMixNet, given: list[Tensor]) -> None:
        super().__init__()
        self.net, self.given = net, given

    def forward(self, z: Tensor) -> Tensor:
        return self.net.decode([*(f.to(z.dtype) for f in self.given), z], (32, 24))


def plain_classmix(
    method: Any, x_l: Tensor, y: Tensor, x_u: Tensor, valid: Tensor, g: torch.Generator
) -> dict[str, Any]:
    probs = full(followed(method)(x_u))
    labels, confidence = best(probs)
    draw = torch.rand(4, probs.shape[1], generator=g)
    image, mask, sure, inside = x_u.clone(), labels.clone(), confidence.clone(), valid.clone()
    for i in range(4):
        present = {int(k) for k in labels[i][valid[i]]}
        assert len(present) > 1
        order = sorted(present, key=lambda k, i=i: float(draw[i, k]), reverse=True)
        chosen = order[: len(present) // 2]
        for r, c in np.ndindex(32, 24):
            if not (valid[i, r, c] and int(labels[i, r, c]) in chosen):
                j = (i + 1) % 4
                image[i, :, r, c] = x_u[j, :, r, c]
                mask[i, r, c] = labels[j, r, c]
                sure[i, r, c], inside[i, r, c] = confidence[j, r, c], valid[j, r, c]
    view = method.blur(method.color(image, g), g)
    logits = method.net(torch.cat([x_l, view]))
    supervised = labeled_entropy(logits[:3], y)
    share = share_of(sure >= method.threshold, inside)
    unsupervised = share * entropy(logits[3:], mask, inside, inside)
    total = supervised + 0.7 * unsupervised
    return {"supervised": supervised, "unsupervised": unsupervised, "total": total}


def plain_fixmatch(
    method: Any, x_l: Tensor, y: Tensor, x_u: Tensor, valid: Tensor, g: torch.Generator
) -> dict[str, Any]:
    view, pasted = method.strong(x_u, g)
    assert pasted.box.any()
    if method.teacher is None:
        weak, strong = method.net(torch.cat([x_l, x_u])), method.net(view)
        labeled, weak = weak[:3], weak[3:]
    else:
        weak = followed(method)(x_u)
        labeled, strong = method.net(torch.cat([x_l, view])).split([3, 4])
    labels, confidence = best(full(weak))
    labels, confidence, inside = (paste(v, pasted) for v in (labels, confidence, valid))
    sure = confidence >= method.threshold
    share_of(sure, inside)
    supervised = labeled_entropy(labeled, y)
    unsupervised = entropy(strong, labels, inside, sure)
    total = supervised + 0.7 * unsupervised
    return {"supervised": supervised, "unsupervised": unsupervised, "total": total}


def plain_unimatch(
    method: Any, x_l: Tensor, y: Tensor, x_u: Tensor, valid: Tensor, g: torch.Generator
) -> dict[str, Any]:
    (one, at_one), (two, at_two) = method.view(x_u, g), method.view(x_u, g)
    assert at_one.box.any() and at_two.box.any() and not torch.equal(one, two)
    if method.teacher is None:
        features = method.net.encode(torch.cat([x_l, x_u]))
        labeled, weak = method.net.decode(features, (32, 24)).split([3, 4])
        strong = method.net(torch.cat([one, two]))
    else:
        weak = followed(method)(x_u)
        features = method.net.encode(torch.cat([x_l, x_u, one, two]))
        several = [f[[0, 1, 2, *range(7, 15)]] for f in features]
        labeled, strong = method.net.decode(several, (32, 24)).split([3, 8])
    dropped = []
    for f in features:
        draw = torch.rand(4, f.shape[1], generator=g)
        kept = [[float(u >= 0.4) / 0.6 for u in row] for row in draw.tolist()]
        dropped.append(f[3:7] * torch.tensor(kept)[:, :, None, None])
    labels, confidence = best(full(weak))
    each: Any = 0
    for out, pasted in ((strong[:4], at_one), (strong[4:], at_two)):
        mask, sure, inside = (paste(v, pasted) for v in (labels, confidence, valid))
        each = each + entropy(out, mask, inside, sure >= method.threshold) / 2
    share_of(confidence >= method.threshold, valid)
    disturbed = method.net.decode(dropped, (32, 24))
    losses = {
        "supervised": labeled_entropy(labeled, y),
        "strong": each,
        "features": entropy(disturbed, labels, valid, confidence >= method.threshold),
    }
    total = losses["supervised"] + 0.7 * losses["strong"] + 0.3 * losses["features"]
    return {**losses, "total": total}


def plain_prevmatch(
    method: Any, x_l: Tensor, y: Tensor, x_u: Tensor, valid: Tensor, g: torch.Generator
) -> dict[str, Any]:
    kept = method.snapshots
    assert int(kept.taken) == 3 and len(kept.weights) == 3
    kept.weights[0] = torch.cat([v.detach().flatten() for _, v in of_a_snapshot(method.net)])
    kept.taken += 1
    kept.moment.fill_(5)  # 0.05 of the training
    outputs: list[Tensor] = []
    decode = method.net.decode
    method.net.decode = lambda *given: outputs.append(decode(*given)) or outputs[-1]
    losses = plain_unimatch(method, x_l, y, x_u, valid, g)
    del method.net.decode
    strong, disturbed = outputs[-2][-8:], outputs[-1]

    order = torch.rand(3, generator=g).argsort(descending=True).tolist()
    number = 1 + int(2 * float(torch.rand((), generator=g)))
    drawn = [-math.log(1 - u) for u in torch.rand(2, generator=g).tolist()][:number]
    logits: Any = 0
    for k, weight in zip(order, drawn, strict=False):
        net, at = copy.deepcopy(method.net).eval(), 0
        with torch.no_grad():
            for _, value in of_a_snapshot(net):
                value.copy_(kept.weights[k, at : at + value.numel()].view(value.shape))
                at += value.numel()
            logits = logits + weight / sum(drawn) * net(x_u)
    assert at == kept.weights.shape[1]
    g.set_state(seeded(7).get_state())
    boxes = [method.view(x_u, g)[1] for _ in range(2)]
    labels, confidence = best(full(logits))
    previous = entropy(disturbed, labels, valid, confidence >= method.previous_threshold) / 2
    share_of(confidence >= method.previous_threshold, valid)
    for out, pasted in zip(strong.chunk(2), boxes, strict=True):
        mask, sure, inside = (paste(v, pasted) for v in (labels, confidence, valid))
        previous = previous + entropy(out, mask, inside, sure >= method.previous_threshold) / 4
    total = losses["total"] + 0.6 * 0.1 * previous
    return {**losses, "previous": previous, "total": total}


def of_a_snapshot(net: nn.Module) -> list[tuple[str, Tensor]]:
    every = [*net.named_parameters(), *net.named_buffers()]
    return [(name, value) for name, value in every if "num_batches" not in name]


def plain_unimatch_v2(
    method: Any, x_l: Tensor, y: Tensor, x_u: Tensor, valid: Tensor, g: torch.Generator
) -> dict[str, Any]:
    (one, at_one), (two, at_two) = method.view(x_u, g), method.view(x_u, g)
    assert at_one.box.any() and at_two.box.any()
    labels, confidence = best(full(followed(method)(x_u)))
    whole = [place < 2 for place in torch.randperm(4, generator=g).tolist()]
    features = method.net.encode(torch.cat([x_l, one, two]))
    dropped = []
    for f in features:
        factors = torch.ones(8, f.shape[1])
        for i, row in enumerate(torch.rand(4, f.shape[1], generator=g).tolist()):
            for k, u in enumerate(row):
                if not whole[i]:
                    factors[i, k], factors[4 + i, k] = (2, 0) if u < 0.5 else (0, 2)
        dropped.append(f[3:] * factors[:, :, None, None])
    labeled = method.net.decode([f[:3] for f in features], (32, 24))
    strong = method.net.decode(dropped, (32, 24))
    each: Any = 0
    for out, pasted in ((strong[:4], at_one), (strong[4:], at_two)):
        mask, sure, inside = (paste(v, pasted) for v in (labels, confidence, valid))
        each = each + entropy(out, mask, inside, sure >= method.threshold) / 2
    share_of(confidence >= method.threshold, valid)
    supervised = labeled_entropy(labeled, y)
    return {"supervised": supervised, "strong": each, "total": supervised + 0.7 * each}


def plain_cps(
    method: Any, x_l: Tensor, y: Tensor, x_u: Tensor, valid: Tensor, g: torch.Generator
) -> dict[str, Any]:
    inside = torch.cat([torch.ones(3, 32, 24, dtype=torch.bool), valid])
    one, other = (net(torch.cat([x_l, x_u])) for net in (method.net, method.other))
    first, second = best(full(one))[0], best(full(other))[0]
    assert 0.1 < (first == second).float().mean() < 0.9
    supervised = labeled_entropy(one[:3], y) + labeled_entropy(other[:3], y)
    cross = entropy(one, second, inside, inside) + entropy(other, first, inside, inside)
    return {"supervised": supervised, "cross": cross, "total": supervised + 0.7 * cross}


def plain_cct(
    method: Any, x_l: Tensor, y: Tensor, x_u: Tensor, valid: Tensor, g: torch.Generator
) -> dict[str, Any]:
    features = method.net.encode(torch.cat([x_l, x_u]))
    logits = method.net.decode(features, (32, 24))
    target, z = full(logits[3:]), features[-1][3:]
    objects = torch.zeros(4, 1, 4, 3)
    labels = best(target)[0]
    for i, _, r, c in np.ndindex(*objects.shape):
        objects[i, 0, r, c] = float(labels[i, 8 * r, 8 * c] > 0)
    assert 0.1 < objects.mean() < 0.9
    errors = []
    for kind, decoder in zip(ONE_OF_EACH, method.decoders, strict=True):
        factor, added = naive_disturb(kind, z.detach(), objects, decoder, g)
        errors.append(error(decoder(z * factor + added), target, valid))
    assert len(errors) == 7
    supervised = labeled_entropy(logits[:3], y)
    unsupervised = sum(errors) / 7 / target.shape[1]
    total = supervised + 0.7 * ramp(0.05, 0.1) * unsupervised
    return {"supervised": supervised, "unsupervised": unsupervised, "total": total}


PREVIOUS = {"strong": 0.7, "features": 0.3, "drop": 0.4, "previous": 0.6}
PREVIOUS |= {"kept": 3, "models": 2, "every": 0.01}


def plain_advssl(
    method: Any, x_l: Tensor, y: Tensor, x_u: Tensor, valid: Tensor, g: torch.Generator
) -> dict[str, Any]:
    judge, classes, known = method.discriminator, method.net.classes, y != 255
    logits = method.net(torch.cat([x_l, x_u]))
    maps = full(logits)[:, -classes:].float()
    truth = torch.zeros_like(maps[:3])
    for i, r, c in np.ndindex(*y.shape):
        for k in range(classes):
            truth[i, k, r, c] = float(y[i, r, c] == k + (classes == 1))
    judge.requires_grad_(False)  # as its authors do
    scores = judge(maps)[:, 0].double()
    judge.requires_grad_(True)
    real, fake = judge(truth)[:, 0].double(), judge(maps.detach())[:, 0].double()
    trusted = valid & (1 / (1 + (-scores[3:]).exp()) >= method.threshold)
    share_of(trusted, valid)
    both = torch.cat([known, valid])
    losses = {
        "supervised": labeled_entropy(logits[:3], y),
        "adversarial": (1 + (-scores[:3]).exp()).log()[known].mean(),
        "adversarial_unlabeled": (1 + (-scores[3:]).exp()).log()[valid].mean(),
        "unsupervised": entropy(logits[3:], best(full(logits[3:]))[0], trusted, trusted),
        "discriminator": (
            (1 + (-real).exp()).log()[known].mean() + (1 + fake.exp()).log()[both].mean()
        )
        / 2,
    }
    total = losses["supervised"] + losses["discriminator"] + 0.3 * losses["adversarial"]
    total = total + 0.2 * losses["adversarial_unlabeled"] + 0.7 * losses["unsupervised"]
    return {**losses, "total": total}


def plain_s4gan(
    method: Any, x_l: Tensor, y: Tensor, x_u: Tensor, valid: Tensor, g: torch.Generator
) -> dict[str, Any]:
    critic, classes = method.discriminator, method.net.classes
    logits = method.net(torch.cat([x_l, x_u]))
    maps = full(logits)[:, -classes:].float()
    made = maps[3:] * valid[:, None]
    truth = torch.zeros_like(maps[:3])
    for i, r, c in np.ndindex(*y.shape):
        for k in range(classes):
            truth[i, k, r, c] = float(y[i, r, c] == k + (classes == 1))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = torch.cat([x_l, x_u]) * std[:, None, None] + mean[:, None, None]
    pairs = torch.cat([torch.cat([truth, made]), images.clamp(0, 1)], 1)
    critic.requires_grad_(False)
    features = critic(pairs, g)
    trust = 1 / (1 + (-critic.last(features[3:])[:, 0]).exp())
    critic.requires_grad_(True)
    scores = critic.last(critic(pairs.detach(), g))[:, 0].double()
    trusted = (trust > method.threshold)[:, None, None] & valid
    share_of(trusted, valid)
    labels = best(full(logits[3:]))[0]
    if method.branch is not None:
        teacher = method.branch_teacher
        with torch.no_grad():  # its first step copies
            for p, new in zip(teacher.parameters(), method.branch.parameters(), strict=True):
                p.copy_(new)
            teacher.step += 1
            occurs = teacher.net(x_u)
        if classes > 1:
            gone = full(logits[3:]).clone()
            for i, k in np.ndindex(4, classes):
                if 1 / (1 + math.exp(-float(occurs[i, k]))) < 0.2:
                    gone[i, k] = 0
            labels = best(gone)[0]
    real, fake = features[:3].double(), features[3:].double()
    losses = {
        "supervised": labeled_entropy(logits[:3], y),
        "matching": sum(
            (real[:, k].sum() / 3 - fake[:, k].sum() / 4).abs() for k in range(real.shape[1])
        )
        / real.shape[1],
        "unsupervised": entropy(logits[3:], labels, trusted, trusted),
        "discriminator": (
            (1 + (-scores[:3]).exp()).log().mean() + (1 + scores[3:].exp()).log().mean()
        )
        / 2,
    }
    total = losses["supervised"] + losses["discriminator"]
    total = total + 0.3 * losses["matching"] + 0.7 * losses["unsupervised"]
    if method.branch is not None:
        view = method.blur(method.color(x_u, g), g)
        found = method.branch(torch.cat([x_l, view])).double()
        present = torch.zeros(3, classes)
        for i, k in np.ndindex(3, classes):
            present[i, k] = float((y[i] == k + (classes == 1)).any())
        chance = 1 / (1 + (-found[:3]).exp())
        right = torch.where(present > 0, chance, 1 - chance)
        apart = [
            1 - (a * b).sum() / (a * a).sum().sqrt() / (b * b).sum().sqrt()
            for a, b in zip(found[3:], occurs.double(), strict=True)
        ]
        losses["classification"] = -right.log().mean()
        losses["consistency"] = sum(apart) / 4
        total = total + losses["classification"]  # before its ramp
    return {**losses, "total": total}


def plain_u2pl(
    method: Any, x_l: Tensor, y: Tensor, x_u: Tensor, valid: Tensor, g: torch.Generator
) -> dict[str, Any]:
    classes, bank = max(method.net.classes, 2), method.bank
    pasted = method.cutmix(x_u, g)
    assert pasted.box.any()
    teacher = followed(method)
    labels, _ = best(full(teacher(x_u)))
    labels, inside = paste(labels, pasted), paste(valid, pasted)
    x = torch.cat([x_l, paste(x_u, pasted)])
    with torch.no_grad():
        project = method.projector_teacher.net
        for p, new in zip(project.parameters(), method.projector.parameters(), strict=True):
            p.copy_(new)
        method.projector_teacher.step += 1
        keys = project(teacher.encode(x)[-1])
        probs = full(teacher(x))
    doubt = -(probs * probs.log()).sum(1)[3:]
    share = 0.2 * 0.95
    bounds = np.percentile(doubt[inside].numpy(), [100 * share, 100 * (1 - share)])
    low, high = inside & (doubt <= bounds[0]), inside & (doubt >= bounds[1])
    reliable = inside & ~high
    features = method.net.encode(x)
    logits = method.net.decode(features, (32, 24))
    unsupervised = entropy(logits[3:], labels, reliable, reliable) * inside.sum() / reliable.sum()
    z, rows = method.projector(features[-1]), []
    for i, r, c in np.ndindex(7, 4, 3):  # the pixel at the corner of each cell
        at = (i % 3 if i < 3 else i - 3, 8 * r, 8 * c)
        label = int(y[at]) if i < 3 else int(labels[at])
        usable = label != 255 if i < 3 else None
        sure = usable if i < 3 else bool(low[at])
        unsure = usable if i < 3 else bool(high[at])
        values = probs[i, :, 8 * r, 8 * c].tolist()
        rows.append((z[i, :, r, c].double(), keys[i, :, r, c].double(), label, sure, unsure))
        rows[-1] = (*rows[-1], values, i < 3)
    first = 1 if classes < 4 else min(3, classes // 2)
    places = torch.rand(classes, len(rows), generator=g)
    picks = torch.rand(classes, 16, generator=g)
    draws = torch.rand(classes, 16 * 5, generator=g).view(classes, 16, 5)
    total: Any = 0
    seen, added = 0, []
    for k in range(classes):
        own = [row for row in rows if row[3] and row[2] == k]
        anchors = [row for row in own if row[5][k] > 0.3]
        fresh = []
        for j, (_, key, label, _, unsure, values, labeled) in enumerate(rows):
            rank = sum(value > values[k] for value in values)
            fits = (label != k and rank < first) if labeled else first <= rank < 20
            if unsure and fits:
                fresh.append((float(places[k, j]), key))
        new = [key for _, key in sorted(fresh, key=lambda pair: -pair[0])[: bank.size // 8]]
        added.append(new)
        start = int(bank.written[k])
        held = [
            bank.ring[k, row].double()
            for row in range(start - 1, max(start - bank.size, 0) - 1, -1)
        ]
        pool = held + new
        seen += bool(own)
        if not anchors or not pool:
            continue
        centre = sum(key / (key * key).sum().sqrt() for _, key, *_ in own)
        terms = []
        for q in range(16):
            anchor = anchors[int(picks[k, q] * len(anchors))][0]
            others = [pool[int(u * len(pool))] for u in draws[k, q]]
            cosines = [F.cosine_similarity(anchor, other, 0) for other in (centre, *others)]
            powers = [(cosine / 0.5).exp() for cosine in cosines]
            terms.append(-(powers[0] / sum(powers)).log())
        total = total + sum(terms) / 16
    assert seen > 1 and sum(map(len, added)) > 2
    for k, new in enumerate(added):
        for key in new:
            bank.ring[k, bank.written[k]] = key / (key * key).sum().sqrt()
            bank.written[k] += 1
    bank.begun.copy_(bank.written - torch.tensor([len(new) for new in added]))
    supervised, contrastive = labeled_entropy(logits[:3], y), total / seen
    losses = {"supervised": supervised, "unsupervised": unsupervised, "contrastive": contrastive}
    return {**losses, "total": supervised + 0.7 * unsupervised + 0.3 * contrastive}


def plain_corrmatch(
    method: Any, x_l: Tensor, y: Tensor, x_u: Tensor, valid: Tensor, g: torch.Generator
) -> dict[str, Any]:
    net, part, classes = method.net, method.correlation, max(method.net.classes, 2)
    view, pasted = method.strong(x_u, g)
    assert pasted.box.any()
    features = net.encode(torch.cat([x_l, x_u]))
    logits = net.decode(features, (32, 24))
    dropped = []
    for f in features:
        draw = torch.rand(4, f.shape[1], generator=g)
        dropped.append(f[3:] * (2.0 * (draw >= 0.5))[:, :, None, None])
    disturbed = net.decode(dropped, (32, 24))

    def correlate(z: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        z = F.relu(part.norm(part.reduce(z)))
        draw = torch.rand(z.shape[:2], generator=g)
        z = z * ((draw >= 0.1) / 0.9)[:, :, None, None]
        one, other = part.one(z).double().flatten(2), part.other(z).double().flatten(2)
        rows = []
        for i in range(12):
            powers = ((one[:, :, i, None] * other).sum(1) / math.sqrt(classes)).exp()
            rows.append(powers / powers.sum(1, keepdim=True))
        maps = torch.stack(rows, 1)
        coarse = F.interpolate(values.detach(), size=(4, 3), mode="bilinear").double()
        out = sum(coarse.flatten(2)[:, :, i, None] * maps[:, None, i] for i in range(12))
        cells = out.view(len(z), -1, 4, 3)  # type: ignore[union-attr]
        return maps, F.interpolate(cells, size=(32, 24), mode="bilinear")

    maps, spread = correlate(features[-1], logits)
    seen = net.encode(view)
    strong = net.decode(seen, (32, 24))
    _, spread_strong = correlate(seen[-1], strong)
    probs = full(logits[3:]).detach()
    labels, confidence = best(probs)
    highest = [
        confidence[valid & (labels == k)].max()
        for k in range(classes)
        if (valid & (labels == k)).any()
    ]
    bound = 0.999 * method.threshold + 0.001 * float(sum(highest)) / len(highest)
    method.moving.level.fill_(bound)
    target, sure, inside = (paste(v, pasted) for v in (labels, confidence >= bound, valid))
    share_of(sure, inside)
    drawn = torch.randint(12, (128,), generator=g).tolist()
    learnt, spread_labels, taken = sure.clone(), target.clone(), 0
    for i, row in np.ndindex(4, 128):
        grey = F.interpolate(
            maps[3 + i, drawn[row]].float().view(1, 1, 4, 3), size=(32, 24), mode="bilinear"
        )[0, 0]
        region = (grey - grey.min()) / (grey.max() - grey.min()) > 0.5
        region &= ~pasted.box[i] & inside[i]
        voters = target[i][region & sure[i]].tolist()
        if not voters or len(voters) < bound * int(region.sum()):
            continue
        winner = max(range(classes), key=voters.count)
        if voters.count(winner) > bound * len(voters):
            spread_labels[i][region], taken = winner, taken + 1
            learnt[i] |= region
    assert 0 < taken < 4 * 128 and not torch.equal(learnt, sure)
    goal = paste(probs, pasted)
    apart: Any = (goal * (goal.log() - full(strong).log())).sum(1)
    weak_sure = confidence >= bound
    losses = {
        "supervised": labeled_entropy(logits[:3], y),
        "correlation": labeled_entropy(spread[:3], y),
        "strong": entropy(strong, spread_labels, inside, learnt),
        "divergence": apart[sure & inside].sum() / inside.sum(),
        "features": entropy(disturbed, labels, valid, weak_sure),
        "spread": entropy(spread_strong, spread_labels, inside, learnt) / 2
        + entropy(spread[3:], labels, valid, weak_sure) / 2,
    }
    total = losses["supervised"] + 0.3 * losses["correlation"]
    several = [losses[term] for term in ("strong", "divergence", "features", "spread")]
    return {**losses, "total": total + 0.7 * sum(several)}


CORRMATCH = {"unsupervised": 0.7, "correlation": 0.3}
U2PL = {"unsupervised": 0.7, "contrastive": 0.3, "queries": 16, "negatives": 5, "bank": 40}
S4GAN = {"matching": 0.3, "unsupervised": 0.7}
ADVSSL = {"adversarial": 0.3, "adversarial_unlabeled": 0.2, "unsupervised": 0.7, "start": 0.0}
PLAIN: dict[str, tuple[Callable[..., dict[str, Any]], dict[str, Any]]] = {
    "mean_teacher": (plain_mean_teacher, {"unsupervised": 0.7}),
    "cutmix": (plain_cutmix, {"unsupervised": 0.7}),
    "ict": (plain_ict, {"unsupervised": 0.7, "alpha": 0.6}),
    "vat": (plain_vat, {"unsupervised": 0.7, "epsilon": 7.5, "xi": 1.0}),
    "vat, features": (plain_vat, {"unsupervised": 0.7, "epsilon": 7.5, "xi": 1.0}),
    "classmix": (plain_classmix, {"unsupervised": 0.7}),
    "fixmatch": (plain_fixmatch, {"unsupervised": 0.7}),
    "unimatch": (plain_unimatch, {"strong": 0.7, "features": 0.3, "drop": 0.4}),
    "fixmatch, taught": (plain_fixmatch, {"unsupervised": 0.7}),
    "unimatch, taught": (plain_unimatch, {"strong": 0.7, "features": 0.3, "drop": 0.4}),
    "unimatch_v2": (plain_unimatch_v2, {"strong": 0.7}),
    "prevmatch": (plain_prevmatch, PREVIOUS),
    "prevmatch, taught": (plain_prevmatch, PREVIOUS),
    "cps": (plain_cps, {"cross": 0.7}),
    "cct": (plain_cct, {"unsupervised": 0.7}),
    "advssl": (plain_advssl, ADVSSL),
    "s4gan": (plain_s4gan, S4GAN),
    "s4gan, mlmt": (plain_s4gan, S4GAN),
    "u2pl": (plain_u2pl, U2PL),
    "corrmatch": (plain_corrmatch, CORRMATCH),
}
DIVIDES = {  # thresholds with something on both sides
    ("advssl", 3): {"threshold": 0.555},
    ("advssl", 1): {"threshold": 0.496},
    ("corrmatch", 3): {"threshold": 0.55},
    ("s4gan", 3): {"threshold": 0.8},
    ("s4gan", 1): {"threshold": 0.5},
    ("s4gan, mlmt", 3): {"threshold": 0.8},
    ("s4gan, mlmt", 1): {"threshold": 0.5},
}


@pytest.mark.parametrize(("classes", "padded"), [(3, False), (3, True), (1, True)])
@pytest.mark.parametrize("name", PLAIN)
def test_a_step_is_this_plain_code(name: str, classes: int, padded: bool) -> None:
    """Equal gradients also say: targets are constants, none reaches a teacher."""
    plain_step, options = PLAIN[name]
    options = {**options, **DIVIDES.get((name, classes), {})}
    batch = batch_of(classes)
    valid = some_valid() if padded else None
    method = moved(make(name, classes, **options))
    plain = copy.deepcopy(method)
    losses = method(*batch, progress=0.05, valid_unlabeled=valid, generator=seeded(7))
    losses["total"].backward()

    every = torch.ones(4, 32, 24, dtype=torch.bool)
    expected = plain_step(plain, *batch, every if valid is None else valid, seeded(7))
    expected["total"].backward()
    assert losses.keys() == expected.keys()
    for term, value in losses.items():
        assert value.dtype == torch.float32 and value > 1e-3, term
        torch.testing.assert_close(
            value.double(), expected[term], atol=1e-5, rtol=1e-4, msg=lambda m, t=term: f"{t}: {m}"
        )
    naive = {key: p.grad for key, p in plain.named_parameters()}
    for key, p in method.named_parameters():
        torch.testing.assert_close(
            p.grad, naive[key], atol=1e-5, rtol=2e-3, msg=lambda m, k=key: f"{k}: {m}"
        )
    after = plain.state_dict()
    for key, value in method.state_dict().items():  # BatchNorm statistics, the teacher
        torch.testing.assert_close(value, after[key], msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize(
    ("name", "option", "term"),
    [
        ("mean_teacher", "unsupervised", "unsupervised"),
        ("cutmix", "unsupervised", "unsupervised"),
        ("ict", "unsupervised", "unsupervised"),
        ("vat", "unsupervised", "unsupervised"),
        ("classmix", "unsupervised", "unsupervised"),
        ("fixmatch", "unsupervised", "unsupervised"),
        ("unimatch", "strong", "strong"),
        ("unimatch", "features", "features"),
        ("unimatch_v2", "strong", "strong"),
        ("prevmatch", "strong", "strong"),
        ("prevmatch", "features", "features"),
        ("cps", "cross", "cross"),
        ("cct", "unsupervised", "unsupervised"),
        ("advssl", "adversarial", "adversarial"),
        ("advssl", "adversarial_unlabeled", "adversarial_unlabeled"),
        ("advssl", "unsupervised", "unsupervised"),
        ("s4gan", "matching", "matching"),
        ("s4gan", "unsupervised", "unsupervised"),
        ("u2pl", "unsupervised", "unsupervised"),
        ("u2pl", "contrastive", "contrastive"),
        ("corrmatch", "correlation", "correlation"),
    ],
)
def test_every_weight_weighs_its_own_term(name: str, option: str, term: str) -> None:
    light, heavy = (
        make(name, **{option: weight})(*batch_of(), progress=1.0, generator=seeded(1))
        for weight in (0.5, 2.0)
    )
    for key in light.keys() - {"total"}:
        assert light[key] == heavy[key]  # terms come unweighted
    assert light[term] > 0
    torch.testing.assert_close(heavy["total"] - light["total"], 1.5 * light[term])


@pytest.mark.parametrize(("name", "length"), [("mean_teacher", 0.08), ("ict", 0.25), ("cct", 0.1)])
def test_ramps_rise_to_1(name: str, length: float) -> None:
    begun, halfway, ramped, done = (
        make(name)(*batch_of(), progress=told, generator=seeded(1))
        for told in (0.0, length / 2, length, 1.0)
    )
    weight = {"mean_teacher": 1.0, "ict": 0.01, "cct": 30.0}[name]
    for losses, omega in ((begun, math.exp(-5)), (halfway, math.exp(-1.25)), (ramped, 1.0)):
        torch.testing.assert_close(
            losses["total"], losses["supervised"] + weight * omega * losses["unsupervised"]
        )
    assert done["total"] == ramped["total"]


def test_cct_takes_the_mean_over_any_number_of_decoders() -> None:
    method: Any = moved(make("cct", decoders={"objects": 2, "context": 1}))
    assert method.kinds == ["objects", "objects", "context"]
    x_l, y, x_u = batch_of()
    with torch.no_grad():
        losses = copy.deepcopy(method)(x_l, y, x_u, progress=1.0)
        features = method.net.encode(torch.cat([x_l, x_u]))
        target = full(method.net.decode(features, (32, 24))[3:])
        objects = (best(target)[0][:, None, ::8, ::8] > 0).float()
        every, z = torch.ones(4, 32, 24, dtype=torch.bool), features[-1][3:]
        views = [z * (1 - objects), z * (1 - objects), z * objects]
        errors = [
            error(decoder(view), target, every)
            for decoder, view in zip(method.decoders, views, strict=True)
        ]
    torch.testing.assert_close(losses["unsupervised"].double(), sum(errors) / 9)


def test_a_method_has_as_many_decoders_as_the_paper() -> None:
    method: Any = CCT(tiny_net())
    assert len(method.decoders) == 30 and method.kinds.count("adversarial") == 2


# --- gradients ----------------------------------------------------------------------------------


def main_net(key: str) -> bool:
    return key.startswith("net.model")


def both_students(key: str) -> bool:
    return key.startswith(("net.model", "other.model"))


def not_the_main_decoder(key: str) -> bool:
    return key.startswith(("net.model.encoder", "decoders"))


def encoder_and_projector(key: str) -> bool:
    return key.startswith(("net.model.encoder", "projector."))


def encoder_and_correlation(key: str) -> bool:
    return key.startswith(("net.model.encoder", "correlation."))


LEARNS: dict[tuple[str, str], Callable[[str], bool]] = {
    ("official", "unsupervised"): lambda key: True,
    ("gct", "supervised"): both_students,
    ("gct", "consistency"): both_students,
    ("gct", "correction"): both_students,
    ("gct", "detector"): lambda key: key.startswith("detector."),
    ("s4l", "rotation"): lambda key: key.startswith(("net.model.encoder", "head.")),
    ("cps, cutmix", "supervised"): both_students,
    ("cps, cutmix", "cross"): both_students,
    ("cps", "supervised"): both_students,
    ("cps", "cross"): both_students,
    ("cct", "unsupervised"): not_the_main_decoder,
    ("u2pl", "contrastive"): encoder_and_projector,
    ("corrmatch", "correlation"): encoder_and_correlation,
    ("corrmatch", "spread"): encoder_and_correlation,
    ("advssl", "discriminator"): lambda key: key.startswith("discriminator"),
    ("s4gan", "discriminator"): lambda key: key.startswith("discriminator"),
    ("s4gan, mlmt", "discriminator"): lambda key: key.startswith("discriminator"),
    ("s4gan, mlmt", "classification"): lambda key: key.startswith("branch."),
    ("s4gan, mlmt", "consistency"): lambda key: key.startswith("branch."),
}


@pytest.mark.parametrize("autocast", [False, True])
@EACH
def test_every_trained_parameter_gets_a_gradient(name: str, autocast: bool) -> None:
    method = make(name)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = method(*batch_of(), progress=1.0, generator=seeded(0))
    trained = {key: p for key, p in method.named_parameters() if p.requires_grad}
    assert not any(key.startswith("teacher.") for key in trained)
    assert {f"net.{key}" for key, _ in method.net.named_parameters()} <= trained.keys()
    for term in losses.keys() - {"total"}:
        value = losses[term]
        assert value.dtype == torch.float32 and value > 0
        found = torch.autograd.grad(
            value, list(trained.values()), retain_graph=True, allow_unused=True
        )
        learns = LEARNS.get((name, term), main_net)
        for key, gradient in zip(trained, found, strict=True):
            assert (gradient is not None) == learns(key), f"{term}: {key}"
            if gradient is not None:
                assert gradient.isfinite().all(), f"{term}: {key}"
                # a bias before a BatchNorm or inside a softmax may truly get zero
                assert gradient.dim() == 1 or gradient.any(), f"{term}: {key}"
    losses["total"].backward()
    for key, p in method.named_parameters():
        assert (p.grad is not None) == (key in trained), key


# --- randomness, inputs, state ------------------------------------------------------------------


@EACH
def test_the_method_draws_from_its_generator_only_and_leaves_its_inputs_alone(name: str) -> None:
    batch, valid = batch_of(), some_valid()
    before = [value.clone() for value in (*batch, valid)]

    def step(seed: int | None) -> Tensor:
        generator = None if seed is None else seeded(seed)
        losses = make(name)(*batch, valid_unlabeled=valid, progress=1.0, generator=generator)
        return torch.stack([losses[term] for term in sorted(losses)])

    method = make(name)
    state = torch.get_rng_state()
    method(*batch, valid_unlabeled=valid, progress=1.0, generator=seeded(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(step(1), step(1))
    assert torch.equal(step(1), step(2)) == (name in ("cps", "gct", "advssl"))  # which draw nothing
    # without one, torch's own is used (each `make` seeds it alike)
    assert torch.equal(step(None), step(None))
    assert all(torch.equal(a, b) for a, b in zip(before, (*batch, valid), strict=True))


OWN = {
    **dict.fromkeys(TEACHERS, "teacher.net."),
    **dict.fromkeys(("cps", "cps, cutmix"), "other."),
    "cct": "decoders.",
    **dict.fromkeys(("advssl", "s4gan", "s4gan, mlmt"), "discriminator."),
    "corrmatch": "correlation.",
    "gct": "detector.",
    "s4l": "head.",
}


@EACH
def test_what_a_method_brings_along_is_saved_with_it_and_not_with_its_net(name: str) -> None:
    alone = tiny_net()
    method = make(name)
    assert method.net.state_dict().keys() == alone.state_dict().keys()
    assert method.net.model.state_dict().keys() == alone.model.state_dict().keys()
    assert {type(m) for m in method.net.modules()} == {type(m) for m in alone.modules()}
    for key, value in alone.state_dict().items():  # nor does it change the net it is given
        assert torch.equal(method.net.state_dict()[key], value)
    own = {key for key in method.state_dict() if not key.startswith("net.")}
    if name in OWN:
        assert any(key.startswith(OWN[name]) for key in own)
    assert bool(own) == (name not in ("fixmatch", "unimatch", "vat", "vat, features"))


@EACH
def test_state_dict_brings_everything_back(name: str) -> None:
    method = make(name)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for seed in range(2):
        optimizer.zero_grad()
        method(*tiny_batch(seed=seed), progress=1.0, generator=seeded(seed))["total"].backward()
        optimizer.step()
    other = make(name)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0)
    other.load_state_dict(method.state_dict())
    expected, again = (m(*batch_of(), progress=1.0, generator=seeded(5)) for m in (method, other))
    for term, value in expected.items():
        assert torch.equal(value, again[term]), term
    after = other.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in method.state_dict().items())


@pytest.mark.parametrize("name", TEACHERS)
def test_a_teacher_follows_in_training_only_and_is_always_in_eval_mode(name: str) -> None:
    taught = "taught" in name
    method: Any = make(name, **({"teacher": {"decay": 0.9}} if taught else {"decay": 0.9}))
    method.eval()(*batch_of(), progress=1.0)
    assert method.teacher.step == 0 and method.teacher.decay == 0.9
    method.train()(*batch_of(), progress=1.0)
    assert method.teacher.step == 1 and not any(m.training for m in method.teacher.modules())


@pytest.mark.parametrize("name", ["fixmatch", "unimatch", "prevmatch"])
def test_a_teacher_is_asked_for_by_a_mapping(name: str) -> None:
    assert made_from_flags(name, {}).teacher is None
    assert made_from_flags(name, {"teacher": {"decay": 0.9}}).teacher.decay == 0.9
    with pytest.raises(ValueError, match=r"teacher must be a mapping of its options, .* got 0\.9"):
        made_from_flags(name, {"teacher": 0.9})


def made_from_flags(name: str, given: dict[str, Any]) -> Any:
    return build_method(TrainConfig(method=name, method_args=given), tiny_net())


# --- another loss of the labeled images ---------------------------------------------------------


class Counted(nn.Module):
    """Sums up what it is called with; has a weight of its own, to be moved and learned with the method's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        self.calls.append((logits, y))
        return self.weight * logits.square().mean()


@pytest.mark.parametrize("name", EVERY)
def test_the_supervised_loss_can_be_exchanged_in_every_method(name: str) -> None:
    loss, batch = Counted(), batch_of()
    method = EVERY[name](3, supervised=loss)
    losses = method(*batch, progress=0.5, generator=seeded(0))
    usual = EVERY[name](3)(*batch, progress=0.5, generator=seeded(0))
    assert len(loss.calls) == (2 if name.startswith(("cps", "gct")) else 1)
    assert all(y is batch.y_labeled for _, y in loss.calls)
    expected = sum(2.0 * logits.square().mean() for logits, _ in loss.calls)
    torch.testing.assert_close(losses["supervised"], expected)
    assert losses.keys() == usual.keys()
    for term in losses.keys() - {"supervised", "total"}:  # which are as they were
        assert torch.equal(losses[term], usual[term]), term
    change = losses["supervised"] - usual["supervised"]
    torch.testing.assert_close(losses["total"] - usual["total"], change, atol=1e-4, rtol=1e-4)
    losses["total"].backward()
    assert loss.weight.grad is not None and "supervised_loss.weight" in method.state_dict()


@pytest.mark.parametrize("name", EVERY)
def test_a_dice_loss_of_smp_trains(name: str) -> None:
    dice = smp.losses.DiceLoss("multiclass", ignore_index=255)
    method, (x_l, y, x_u) = EVERY[name](3, supervised=dice), batch_of()
    with torch.autocast("cpu", torch.bfloat16):
        losses = method(x_l, y, x_u, progress=1.0, generator=seeded(0))
    assert losses["supervised"].dtype == torch.float32 and 0 < losses["supervised"] < 2
    losses["total"].backward()
    assert method.net.model.segmentation_head[0].weight.grad.any()


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ("dice", "`supervised` must be a loss to call with logits and masks, None for"),
        (nn.CrossEntropyLoss, "`supervised` must be a loss to call"),
        (lambda logits, y: logits.mean((1, 2, 3)), "must return a scalar of floating point, the"),
        (lambda logits, y: (logits > 0).sum(), "must return a scalar of floating point"),
        (lambda logits, y: 0.5, "got 0.5"),
    ],
)
@pytest.mark.parametrize("name", ["supervised", "guidedmix", "cct"])
def test_what_is_no_supervised_loss_is_refused(name: str, loss: Any, words: str) -> None:
    with pytest.raises(TypeError) as error:
        EVERY[name](3, supervised=loss)(*batch_of(), progress=1.0)
    assert words in str(error.value) and "\n" not in str(error.value)


# --- pseudo masks -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_what_is_learned_after_pseudo_masks_under_autocast_has_gradients(name: str) -> None:
    method = EVERY[name](3)
    with torch.autocast("cpu", torch.bfloat16):
        method.pseudo_masks(*batch_of(), generator=seeded(0))
        losses = method(*batch_of(), progress=1.0, generator=seeded(0))
    losses["total"].backward()
    assert all(p.grad is not None for p in method.net.model.encoder.parameters())


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", EVERY)
def test_pseudo_masks_are_probabilities_and_change_nothing(
    name: str, training: bool, classes: int
) -> None:
    method = EVERY[name](classes)
    if name != "guidedmix":
        moved(method)
    method.train(training)
    batch = batch_of(classes)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    modes = {key: module.training for key, module in method.named_modules()}
    state = torch.get_rng_state()
    probs = method.pseudo_masks(*batch, generator=seeded(0))
    assert probs.shape == (4, classes, 32, 24) and probs.dtype == torch.float32
    assert not probs.requires_grad and probs.min() >= 0 and probs.max() <= 1 + 1e-6
    if classes > 1:
        torch.testing.assert_close(probs.sum(1), torch.ones(4, 32, 24))
    assert {key: module.training for key, module in method.named_modules()} == modes
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)

    still: Any = method.eval()
    if isinstance(method, GuidedMix):
        expected = still.guide(*batch, seeded(0)).pseudo
    else:
        net = still.teacher.net if name in TEACHERS else still.net
        expected = full(net(batch.x_unlabeled))[:, -classes:].float()
    torch.testing.assert_close(probs, expected)
    assert torch.equal(probs, method.pseudo_masks(*batch, generator=seeded(0)))


@pytest.mark.parametrize("name", EVERY)
def test_a_part_that_is_kept_in_eval_mode_stays_so_when_pseudo_masks_are_looked_at(
    name: str,
) -> None:
    method = EVERY[name](3)
    method.net.model.encoder.eval()  # how BatchNorm is frozen
    modes = {key: module.training for key, module in method.named_modules()}
    method.pseudo_masks(*batch_of(), generator=seeded(0))
    assert {key: module.training for key, module in method.named_modules()} == modes


# --- inputs of many kinds -----------------------------------------------------------------------


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize(("labeled", "unlabeled"), [(2, 5), (4, 2), (1, 2), (2, 1)])
@EACH
def test_batches_of_any_sizes(name: str, classes: int, labeled: int, unlabeled: int) -> None:
    method = make(name, classes)
    losses = method(*tiny_batch(labeled, unlabeled, classes), progress=1.0, generator=seeded(0))
    losses["total"].backward()
    assert all(value.isfinite() for value in losses.values())
    assert method.net.model.segmentation_head[0].weight.grad.any()


@EACH
def test_images_that_no_stride_divides(name: str) -> None:
    x_l, y, x_u = tiny_batch(size=40)
    valid = torch.ones(4, 35, 37, dtype=torch.bool)
    method = make(name)
    losses = method(
        x_l[..., :35, :37],
        y[..., :35, :37],
        x_u[..., :35, :37],
        valid_unlabeled=valid,
        progress=1.0,
        generator=seeded(0),
    )
    assert all(value.isfinite() for value in losses.values())


@EACH
def test_a_batch_without_any_label_still_gives_a_finite_step(name: str) -> None:
    x_l, y, x_u = batch_of()
    losses = make(name)(x_l, torch.full_like(y, 255), x_u, progress=1.0, generator=seeded(0))
    losses["total"].backward()
    assert losses["supervised"] == 0 and losses["total"] > 0 and losses["total"].isfinite()


LABELED_TOO = {  # what learns from labeled images as well
    ("cps", "cross"),
    ("gct", "consistency"),
    ("gct", "correction"),
    ("gct", "detector"),
    ("s4l", "rotated"),
    ("s4l", "rotation"),
    ("advssl", "adversarial"),
    ("advssl", "discriminator"),
    ("s4gan", "discriminator"),
    ("s4gan, mlmt", "discriminator"),
    ("s4gan, mlmt", "classification"),
    ("u2pl", "contrastive"),
    ("corrmatch", "correlation"),
}


@EACH
def test_only_padding_is_nothing_to_learn_from(name: str) -> None:
    nothing = torch.zeros(4, 32, 24, dtype=torch.bool)
    losses = make(name)(*batch_of(), valid_unlabeled=nothing, progress=1.0, generator=seeded(0))
    losses["total"].backward()
    for term, value in losses.items():
        if (name, term) in LABELED_TOO:
            continue
        assert (value > 0) == (term in ("supervised", "total")), term


@pytest.mark.parametrize("ignore_index", [77, -1])
@EACH
def test_the_ignore_index_reaches_every_part(name: str, ignore_index: int) -> None:
    x_l, y, x_u = batch_of()
    options: dict[str, Any] = {"valid_unlabeled": some_valid()}
    expected = make(name)(x_l, y, x_u, **options, progress=1.0, generator=seeded(0))
    y = torch.where(y == 255, ignore_index, y)
    method = make(name, ignore_index=ignore_index)
    losses = method(x_l, y, x_u, **options, progress=1.0, generator=seeded(0))
    for term, value in losses.items():
        assert torch.equal(value, expected[term]), term


class Told(nn.Module):
    """A teacher that says what it is told."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[: len(x)]


@pytest.mark.parametrize("name", ["cutmix", "ict", "classmix"])
def test_how_sure_the_teacher_is_of_padding_does_not_matter(name: str) -> None:
    """The share of sure pixels is a share of those that are not padding."""
    inside = torch.zeros(2, 32, 32, dtype=torch.bool)
    inside[:, :, :16] = True
    found = {}
    for sure_inside in (True, False):
        sure = torch.where(inside == sure_inside, 9.0, 0.1)
        logits = torch.stack([torch.zeros_like(sure), sure, torch.zeros_like(sure)], 1)
        method: Any = make(name, threshold=0.9).eval()
        method.teacher.net = Told(logits)
        x_l, y, x_u = tiny_batch(2, 2)
        one, all_sure = (
            m(x_l, y, x_u, valid_unlabeled=inside, progress=1.0, generator=seeded(0))[
                "unsupervised"
            ]
            for m in (method, same_with(method, threshold=0.0))
        )
        found[sure_inside] = (one / all_sure).item()
    assert found == {True: pytest.approx(1.0), False: pytest.approx(0.0)}


def same_with(method: Any, **attributes: Any) -> Any:
    other = copy.deepcopy(method)
    for key, value in attributes.items():
        setattr(other, key, value)
    return other


@EACH
def test_labeled_images_only_are_refused_by_name(name: str) -> None:
    x_l, y, x_u = batch_of()
    method = make(name)
    for unlabeled in (None, x_u[:0]):
        with pytest.raises(ValueError, match=f"^{type(method).__name__} needs `x_unlabeled`"):
            method(x_l, y, unlabeled)


@EACH
def test_shapes_that_do_not_fit_are_refused_in_one_sentence(name: str) -> None:
    x_l, y, x_u = batch_of()
    for images in (x_u[..., :16], x_u[:, :2]):
        with pytest.raises(ValueError, match="same shape but for their number") as refused:
            make(name)(x_l, y, images)
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match=r"\(3, 16, 24\)"):
        make(name)(x_l, y[:, :16], x_u)


@pytest.mark.parametrize("shape", [(1, 32, 24), (4, 1, 32, 24), (4, 32, 1)])
@EACH
def test_validity_of_another_shape_is_refused_in_one_sentence(
    name: str, shape: tuple[int, ...]
) -> None:
    valid = torch.ones(shape, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"valid.*shape") as refused:
        make(name)(*batch_of(), valid_unlabeled=valid, generator=seeded(0))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", BUILDERS)
def test_masks_that_cannot_be_learned_are_refused_before_anything_has_changed(name: str) -> None:
    x_l, y, x_u = batch_of()
    counting = {"adjustment": {}} if name in takers("adjustment") else {}
    method = BUILDERS[name](tiny_net(), **counting)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    for bad, words in (
        (y.float(), r"type torch.int64.* got \(3, 32, 24\) and torch.float32: pass y.long\(\)$"),
        (y[:, None].expand(-1, 3, -1, -1), r"got \(3, 3, 32, 24\) .*as y.argmax\(1\)$"),
        (y[..., None].expand(-1, -1, -1, 3), r"got \(3, 32, 24, 3\) .*as y.argmax\(-1\)$"),
        (y[:2], r"shape \(3, 32, 24\).* got \(2, 32, 24\)"),
        (torch.where(y == 2, 3, y), r"classes 0 to 2, or 255 .* got 3"),
        (torch.where(y == 2, -1, y), "got -1"),
    ):
        with pytest.raises(ValueError, match=f"^`y_labeled` must .*{words}") as refused:
            method(x_l, bad, x_u)
        assert "\n" not in str(refused.value)
        with pytest.raises(ValueError, match=r"^`y_labeled` must"):
            method.on_step_start(x_l, bad)
    for images in (x_l[:0], x_l[0]):
        with pytest.raises(ValueError, match=r"^`x_labeled` must be one image or more, shape"):
            method(images, y[:0], x_u)
    if name != "supervised":
        with pytest.raises(ValueError, match=r"type torch.bool, .* and torch.uint8"):
            method(x_l, y, x_u, valid_unlabeled=torch.ones(4, 32, 24, dtype=torch.uint8))
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())
    assert method(x_l, y, x_u, progress=1.0)["total"].isfinite()


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


@pytest.mark.parametrize("name", BUILDERS)
def test_a_model_that_is_not_wrapped_is_refused_by_name(name: str) -> None:
    with pytest.raises(TypeError, match=r"got Unet: wrap the model, GuidedMixNet\(model\)$"):
        BUILDERS[name](tiny_net().model)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (name, option)
        for option in ("threshold", "ramp_length", "whole", "previous_threshold")
        for name in takers(option)
    ],
)
def test_shares_out_of_range_are_refused(name: str, option: str) -> None:
    for value in (-0.1, 2.0):
        with pytest.raises(ValueError, match=rf"`{option}` must be in \[0, 1\], got {value}"):
            BUILDERS[name](tiny_net(), **{option: value})


# --- it learns ----------------------------------------------------------------------------------


def squares(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """A bright and a striped square on dark: classes 1 and 2 on 0, whatever the colours."""
    x = 0.3 * torch.randn(n, 3, 32, 32, generator=g) - 1.5
    y = torch.zeros(n, 32, 32, dtype=torch.int64)
    stripes = torch.arange(12) // 3 % 2
    for image, mask in zip(x, y, strict=True):
        for k, rise in ((1, torch.full((12,), 3.5)), (2, 4.0 * stripes)):
            top, left = torch.randint(0, 20, (2,), generator=g).tolist()
            place = slice(top, top + 12), slice(left, left + 12)
            mask[place] = k
            noise = 0.3 * torch.randn(3, 12, 12, generator=g)
            image[:, place[0], place[1]] = noise - 1.5 + rise
    return x, y


@EACH
def test_a_few_steps_lower_the_total(name: str) -> None:
    g = seeded(2)
    (x_l, y_l), (x_u, _) = squares(4, g), squares(4, g)
    options: dict[str, dict[str, float]] = {
        "cct": {"unsupervised": 3.0},
        "u2pl": {"contrastive": 0.1},
    }
    # The statistics of earlier networks are not those of the squares yet: of what they say only the surest is learned.
    options["prevmatch, taught"] = {"previous": 0.2, "previous_threshold": 0.9}
    method = make(name, **options.get(name, {}))
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-2)
    totals, steps = [], 24
    for step in range(steps):
        if not 4 <= step < steps - 4:  # the same views and full weights, whatever the step
            with torch.no_grad():
                probe = copy.deepcopy(method)(x_l, y_l, x_u, progress=1.0, generator=seeded(99))
            totals.append(probe["total"].item())
        optimizer.zero_grad()
        method(x_l, y_l, x_u, progress=step / steps, generator=seeded(step))["total"].backward()
        optimizer.step()
    assert sum(totals[4:]) < 0.6 * sum(totals[:4])


# --- ICT ----------------------------------------------------------------------------------------


def test_an_image_is_mixed_with_no_more_than_its_own_weight_of_another() -> None:
    """And without another one, not at all: the student then sees and learns the image as it is."""
    method: Any = make("ict", alpha=5.0, threshold=0.0).eval()
    method.color.p = 0.0
    seen: list[Tensor] = []
    method.net.model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x_l, y, x_u = batch_of()
    method(x_l, y, x_u, progress=1.0, generator=seeded(0))
    for i, view in enumerate(seen[0][3:, :, :32, :24]):
        own, other = x_u[i], x_u[i - 1]
        lam = ((view - own) * (other - own)).sum() / (other - own).square().sum()
        torch.testing.assert_close(view, torch.lerp(own, other, lam))
        assert 0.1 < lam <= 0.5
    alone = method(x_l, y, x_u[:1], progress=1.0)
    assert torch.equal(seen[1][3:, :, :32, :24], x_u[:1])
    assert alone["unsupervised"] < 1e-10  # the teacher is the student, still


@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan])
def test_what_is_no_parameter_of_a_beta_distribution_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=rf"`alpha` must be above 0, got {alpha}"):
        make("ict", alpha=alpha)


# --- VAT ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [1, 3, 7])
@pytest.mark.parametrize("at", ["images", "features"])
def test_an_adversarial_step_changes_predictions_and_no_statistics(at: str, classes: int) -> None:
    """More than a random step of its length; and BatchNorm has seen each image as often as it learned from it."""
    method: Any = moved(make("vat", classes, at=at, epsilon=2.0))
    batch, passes = batch_of(classes), []
    for layer in method.net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.register_forward_hook(lambda m, i, o: passes.append(m.training))
    before = next(m for m in method.net.modules() if isinstance(m, nn.BatchNorm2d))
    count = int(before.num_batches_tracked)
    found = method(*batch, generator=seeded(0))["unsupervised"]
    assert int(before.num_batches_tracked) == count + 1 and 0 < sum(passes) < len(passes)
    assert all(m.training for m in method.modules())
    random = []
    for seed in range(5):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vat_file, "adversarial", partial(random_step, seeded(seed)))
            random.append(copy.deepcopy(method)(*batch)["unsupervised"].item())
    assert found > 1.5 * sum(random) / 5


def random_step(g: torch.Generator, z: Tensor, _: Any, *, length: float, **rest: Any) -> Tensor:
    step = torch.randn(z.shape, generator=g)
    return length * step / step.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def test_a_step_is_found_in_float32_under_autocast() -> None:
    steps = []
    for enabled in (False, True):
        method = moved(make("vat"))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            steps.append(
                adversarial(batch_of().x_unlabeled, method.net.eval(), generator=seeded(0))
            )
    assert torch.equal(*steps)


def test_padding_has_no_say_in_an_adversarial_step() -> None:
    net, x = moved(make("vat")).net.eval(), batch_of().x_unlabeled
    nothing = torch.zeros(4, 32, 24)
    assert not adversarial(x, net, weight=nothing, generator=seeded(0)).any()
    left = nothing.clone()
    left[..., :4] = 1
    step = adversarial(x, net, weight=left, generator=seeded(0))
    assert step[..., :8].square().sum() > 0.5 * step.square().sum()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"at": "logits"}, "`at` must be 'images' or 'features', got 'logits'"),
        ({"epsilon": 0.0}, "`epsilon` must be above 0, got 0.0"),
        ({"xi": -1.0}, "`xi` must be above 0, got -1.0"),
    ],
)
def test_steps_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make("vat", **options)


# --- CPS ----------------------------------------------------------------------------------------


def test_the_second_student_starts_elsewhere_from_the_same_encoder() -> None:
    net = moved(Supervised(tiny_net())).net
    before = {key: value.clone() for key, value in net.state_dict().items()}
    method = CPS(net)
    assert method.net is net
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    other = method.other.state_dict()
    assert other.keys() == before.keys()
    for key, value in before.items():
        drawn = key.startswith(("model.decoder", "model.segmentation_head")) and value.dim() == 4
        if drawn or key.startswith("model.encoder"):
            assert torch.equal(other[key], value) != drawn, key
    mine = {p.data_ptr() for p in net.parameters()}
    assert mine.isdisjoint(p.data_ptr() for p in method.other.parameters())


def test_a_decoder_drawn_anew_is_as_smp_draws_it() -> None:
    net = moved(Supervised(tiny_net())).net
    encoder = {key: value.clone() for key, value in net.model.encoder.state_dict().items()}
    torch.manual_seed(0)
    net.reset_decoder()
    first = {key: value.clone() for key, value in net.state_dict().items()}
    net.reset_decoder()
    assert all(torch.equal(encoder[k], v) for k, v in net.model.encoder.state_dict().items())
    for key, p in net.model.named_parameters():
        if key.startswith("encoder"):
            continue
        fan_in, fan_out = p[0].numel(), p.shape[0] * p[0, 0].numel() if p.dim() == 4 else 0
        if p.dim() == 4:  # uniform, in the bounds of Kaiming (decoder) or Xavier (head)
            assert not torch.equal(first["model." + key], p)
            head = key.startswith("segmentation_head")
            bound = math.sqrt(6 / (fan_in + fan_out)) if head else math.sqrt(6 / fan_in)
            assert 0.8 * bound < p.abs().max() <= bound, key
        else:
            assert torch.equal(p, torch.full_like(p, float(key.endswith("weight")))), key


def test_attention_and_pixel_shuffles_drawn_anew_start_as_they_are_built() -> None:
    torch.manual_seed(0)
    net = GuidedMixNet(
        GuidedMixUnet("resnet18", 3, None, decoder_channels=(8, 8, 8), pyramid_channels=16)
    )
    for p in net.parameters():
        nn.init.normal_(p)
    first = CPS(net).other.model.decoder
    (attention,) = (m for m in first.modules() if isinstance(m, NonLocalBlock))
    assert not attention.out.weight.any() and not attention.out.bias.any()
    assert attention.query.weight.any()
    blocks = [m for m in first.modules() if isinstance(m, PixelShuffleBlock)]
    assert len(blocks) == 3
    for block in blocks:
        x = torch.randn(1, block.expand.in_channels, 4, 4)
        up = block.shuffle(block.expand(x))
        assert up.any() and torch.equal(up, F.interpolate(up[..., ::2, ::2], scale_factor=2))


# --- ClassMix -----------------------------------------------------------------------------------


@given(seeds, st.integers(2, 7), st.integers(1, 4), st.integers(1, 6), st.integers(1, 6))
def test_half_of_the_classes_with_all_their_pixels(
    seed: int, classes: int, n: int, h: int, w: int
) -> None:
    g = seeded(seed)
    labels = torch.randint(classes, (n, h, w), generator=g)
    outside = torch.tensor([classes, 254, 255])[torch.randint(3, (n, h, w), generator=g)]
    labels = torch.where(torch.rand(n, h, w, generator=g) < 0.2, outside, labels)
    before = labels.clone()
    chosen = half_of_classes(labels, classes, g)
    assert chosen.shape == labels.shape and chosen.dtype == torch.bool
    assert torch.equal(labels, before)
    for mask, marked in zip(labels.tolist(), chosen.tolist(), strict=True):
        present: set[int] = set()
        picked: set[int] = set()
        left: set[int] = set()
        for row, marks in zip(mask, marked, strict=True):
            for label, mark in zip(row, marks, strict=True):
                if label < classes:
                    present.add(label)
                    (picked if mark else left).add(label)
                else:
                    assert not mark
        assert picked.isdisjoint(left) and len(picked) == len(present) // 2


def test_every_class_has_the_same_chance_to_be_cut_out() -> None:
    labels = torch.tensor([[0, 0, 0, 0, 2, 3, 3, 255]]).expand(6000, 1, 8)
    chosen = half_of_classes(labels, 4, seeded(0))
    assert (chosen.float().mean(0)[0, [0, 4, 5]] - 1 / 3).abs().max() < 0.03


# --- CCT ----------------------------------------------------------------------------------------


def naive_disturb(
    kind: str, z: Tensor, objects: Tensor, decoder: nn.Module, g: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What the features are multiplied with and what is added: one number at a time."""
    n, channels, h, w = z.shape
    factor, added = np.ones(z.shape), np.zeros(z.shape)
    values, there = z.double().numpy(), objects.numpy()
    if kind == "adversarial":
        draw = torch.rand(z.shape, generator=g).double() - 0.5
        added = naive_adversarial(z, decoder, draw).numpy()
    elif kind == "dropout":
        u = torch.rand(n, channels, generator=g).numpy()
        for i, k in np.ndindex(n, channels):
            factor[i, k] = 0 if u[i, k] < 0.5 else 2
    elif kind == "noise":
        u = torch.rand(channels, h, w, generator=g).double().numpy()
        for i in range(n):
            for k, r, c in np.ndindex(channels, h, w):
                factor[i, k, r, c] = 0.7 + 0.6 * u[k, r, c]
    elif kind == "feature_drop":
        share = 0.7 + 0.2 * float(torch.rand((), generator=g))
        for i in range(n):
            means = [values[i, :, r, c].sum() / channels for r, c in np.ndindex(h, w)]
            for (r, c), mean in zip(np.ndindex(h, w), means, strict=True):
                factor[i, :, r, c] = mean < share * max(means)
    elif kind == "cutout":
        u = [torch.rand(n, generator=g).double().tolist() for _ in range(2)]
        for i in range(n):
            rows = [r for r in range(h) if there[i, 0, r].any()]
            cols = [c for c in range(w) if there[i, 0, :, c].any()]
            if rows:
                (top, height), (left, width) = (
                    (
                        min(line) + math.floor(0.6 * draw[i] * (max(line) + 1 - min(line))),
                        math.ceil(4 * (max(line) + 1 - min(line)) / 10),
                    )
                    for line, draw in zip((rows, cols), u, strict=True)
                )
                factor[i, :, top : top + height, left : left + width] = 0
    else:
        for i, k, r, c in np.ndindex(*z.shape):
            factor[i, k, r, c] = there[i, 0, r, c] == (kind == "context")
    return torch.from_numpy(factor).float(), torch.from_numpy(added).float()


def naive_adversarial(
    z: Tensor,
    decoder: nn.Module,
    draw: Tensor,
    valid: Tensor | slice = slice(None),
    xi: float = 0.1,
) -> Tensor:
    """Image by image, in double precision: the gradient of the divergence after a trial step."""
    decoder, steps = copy.deepcopy(decoder).double(), []
    for image, direction in zip(z.double(), draw, strict=True):
        trial = (xi * direction / (direction**2).sum().sqrt()).requires_grad_()
        (gradient,) = torch.autograd.grad(divergence(decoder, image, trial, valid), trial)
        steps.append(2 * gradient / (gradient**2).sum().sqrt())
    return torch.stack(steps)


def divergence(
    decoder: nn.Module, image: Tensor, step: Tensor, valid: Tensor | slice = slice(None)
) -> Tensor:
    """Kullback-Leibler, of the prediction on one image's features from that after a step."""
    before, after = full(decoder(image[None]).detach()), full(decoder((image + step)[None]))
    return (before * (before.log() - after.log())).sum(1)[valid].mean()


def features_and_objects(seed: int = 0) -> tuple[Tensor, Tensor]:
    g = seeded(seed)
    z = torch.randn(5, 12, 7, 9, generator=g).relu()
    objects = (torch.rand(5, 1, 7, 9, generator=g) < 0.1).float()
    objects[0] = 0
    objects[1] = 1
    return z, objects


def a_decoder(channels: int = 12, classes: int = 3, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return auxiliary_decoder(channels, classes)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", DECODERS)
def test_every_disturbance_is_this_loop(kind: str, seed: int) -> None:
    z, objects = features_and_objects(seed)
    before = z.clone(), objects.clone()
    decoder = a_decoder()
    out = disturb(kind, z, objects, decoder, seeded(seed))
    factor, added = naive_disturb(kind, z, objects, decoder, seeded(seed))
    torch.testing.assert_close(out, z * factor + added, atol=1e-4, rtol=1e-4)
    assert not torch.equal(out, z)
    assert torch.equal(before[0], z) and torch.equal(before[1], objects)
    assert all(p.grad is None for p in decoder.parameters())


def test_noise_is_in_its_range_and_features_drop_only_where_they_are_strong() -> None:
    z, objects = features_and_objects()
    decoder = a_decoder()
    noise = disturb("noise", torch.ones(2, 12, 50, 50), objects, decoder, seeded(0))
    assert 0.7 <= noise.min() < 0.71 and 1.29 < noise.max() <= 1.3
    for seed in range(20):
        kept = disturb("feature_drop", z, objects, decoder, seeded(seed)).any(1)
        activation = z.mean(1)
        highest = activation.amax((1, 2), keepdim=True)
        assert not kept[activation >= 0.9 * highest].any()
        assert kept[(activation < 0.7 * highest) & (activation > 0)].all()


@given(seeds, st.sampled_from([0.25, 0.4, 0.5]), st.integers(1, 12), st.integers(1, 12))
def test_boxes_lie_in_the_objects_bounding_box(seed: int, share: float, h: int, w: int) -> None:
    g = seeded(seed)
    objects = (torch.rand(6, 1, h, w, generator=g) < 3 * torch.rand(1, generator=g) / h / w).float()
    boxes = box_in(objects, share, g)
    assert boxes.shape == objects.shape and set(boxes.unique().tolist()) <= {0.0, 1.0}
    for there, box in zip(objects[:, 0] > 0, boxes[:, 0] > 0, strict=True):
        if not there.any():
            assert not box.any()
            continue
        rows, cols = box.any(1), box.any(0)
        assert torch.equal(box, rows[:, None] & cols[None])
        for line, place in ((rows, there.any(1)), (cols, there.any(0))):
            inside, allowed = line.nonzero().flatten(), place.nonzero().flatten()
            low, high = int(allowed[0]), int(allowed[-1])
            assert low <= inside[0] and inside[-1] <= high
            assert len(inside) == inside[-1] - inside[0] + 1  # without a gap
            assert len(inside) == math.ceil(round(share * (high + 1 - low), 6))


def test_boxes_are_anywhere_in_the_bounding_box() -> None:
    objects = torch.zeros(3000, 1, 12, 20)
    objects[:, :, 2, 15] = objects[:, :, 8, 4] = 1  # corners of a box of 7 x 12
    boxes = box_in(objects, 0.4, seeded(0))[:, 0]
    first_row, first_col = boxes.any(2).float().argmax(1), boxes.any(1).float().argmax(1)
    assert set(first_row.tolist()) == set(range(2, 2 + 5))  # floor of a number below 0.6 * 7
    assert set(first_col.tolist()) == set(range(4, 4 + 8))  # and 0.6 * 12
    together = torch.stack([first_row, first_col]).double()
    assert torch.corrcoef(together)[0, 1].abs() < 0.06  # drawn apart


def test_adversarial_steps_mislead_more_than_random_ones_of_their_length() -> None:
    for seed in range(5):
        z, _ = features_and_objects(seed)
        decoder = a_decoder(seed=seed)
        step = adversarial(z, decoder, generator=seeded(seed))
        assert step.shape == z.shape and not step.requires_grad
        torch.testing.assert_close(step.flatten(1).norm(dim=1), torch.full((5,), 2.0))
        with torch.no_grad():
            for image, direction in zip(z, step, strict=True):
                random = torch.randn(20, *image.shape, generator=seeded(seed))
                random = 2 * random / random.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                usual = [divergence(decoder, image, r).item() for r in random]
                assert divergence(decoder, image, direction) > 1.5 * sum(usual) / 20
    short = adversarial(z, decoder, length=0.3, generator=seeded(seed))
    torch.testing.assert_close(short, 0.15 * step)


def test_adversarial_steps_of_images_do_not_depend_on_each_other() -> None:
    z, _ = features_and_objects()
    decoder = a_decoder()
    step = adversarial(z, decoder, generator=seeded(0))
    z[1:] += 1
    torch.testing.assert_close(adversarial(z, decoder, generator=seeded(0))[:1], step[:1])


def test_objects_are_where_the_images_have_them_when_no_stride_divides(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Features lie on a grid over the padded image."""
    seen = []

    def spy(kind: str, z: Tensor, objects: Tensor, *rest: Any) -> Tensor:
        seen.append(objects)
        return disturb(kind, z, objects, *rest)

    monkeypatch.setattr(cct_file, "disturb", spy)
    method = make("cct", decoders={"context": 1})
    x_l, y, x_u = (v[..., :33] for v in tiny_batch(size=40))  # padded to 40 x 40: 5 x 5 features
    with torch.no_grad():
        method(x_l, y, x_u, progress=1.0)
        labels = best(full(method.net(torch.cat([x_l, x_u]))[3:]))[0]
    assert seen[0].shape == (4, 1, 5, 5)
    for i, r, c in np.ndindex(4, 5, 5):
        assert seen[0][i, 0, r, c] == (labels[i, 8 * r, 8 * c] > 0), (i, r, c)


def test_an_auxiliary_decoder_starts_without_a_checkerboard() -> None:
    for seed in range(5):
        out = a_decoder(6, 3, seed)(torch.randn(2, 6, 4, 5, generator=seeded(seed)))
        assert out.shape == (2, 3, 32, 40)
        blocks = out.view(2, 3, 4, 8, 5, 8)  # what comes of one position of the features
        torch.testing.assert_close(blocks, blocks[:, :, :, :1, :, :1].expand_as(blocks))


def test_an_auxiliary_decoder_can_learn_the_background_of_a_binary_task() -> None:
    method: Any = make("cct", 1)
    with torch.no_grad():
        method.net.model.segmentation_head[0].bias.fill_(-20)  # background everywhere
    optimizer = torch.optim.Adam(method.decoders.parameters(), lr=0.03)
    for step in range(60):
        optimizer.zero_grad()
        unsupervised = method(*batch_of(1), progress=1.0, generator=seeded(step))["unsupervised"]
        unsupervised.backward()
        optimizer.step()
    assert unsupervised < 0.1  # a coin's error is 0.25


@pytest.mark.parametrize(
    ("decoders", "words"),
    [
        ({"noise": 1, "nonsense": 2}, "CCT has no decoder 'nonsense': choose from ['adversarial',"),
        ({}, "at least one auxiliary decoder"),
        ({"noise": 0, "dropout": 0}, "at least one auxiliary decoder"),
    ],
)
def test_decoders_that_cannot_be_are_refused_in_one_sentence(
    decoders: dict[str, int], words: str
) -> None:
    with pytest.raises(ValueError) as refused:
        CCT(tiny_net(), decoders=decoders)
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("drop", [0.0, 1.0])
def test_unimatch_drops_none_or_all_of_its_channels(drop: float) -> None:
    losses = make("unimatch", drop=drop)(*batch_of(), generator=seeded(0))
    losses["total"].backward()
    assert losses["features"].isfinite() and losses["features"] > 0


def test_of_unimatch_v2s_views_each_sees_what_the_other_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the labeled images, which share their pass through the encoder, see everything."""
    method: Any = make("unimatch_v2", whole=0.0)
    seen: list[list[Tensor]] = []
    decode = method.net.decode
    monkeypatch.setattr(method.net, "decode", lambda f, size: seen.append(f) or decode(f, size))
    encoded = method.net.encode(batch_of().x_labeled)
    method(*batch_of(), generator=seeded(0))
    labeled, dropped = seen
    assert [f.shape for f in labeled] == [f.shape for f in encoded]
    assert all(bool(f.flatten(2).any(2).all()) for f in labeled[:1])
    for f in dropped:
        one, two = f.flatten(2).any(2).chunk(2)
        assert len(one) == 4 and not (one & two).any() and one.any() and two.any()


def test_earlier_networks_have_most_to_say_halfway_and_nothing_before_there_is_one() -> None:
    usual = make("unimatch")(*batch_of(), generator=seeded(0))
    for progress, weight in ((0.0, 0.0), (0.02, 0.04), (0.25, 0.5), (0.5, 1.0), (0.9, 0.2), (1, 0)):
        method: Any = make("prevmatch", previous=3.0)
        losses = method(*batch_of(), progress=progress, generator=seeded(0))
        assert int(method.snapshots.taken) == (progress > 0.02)
        assert (losses["previous"] > 0) == (progress > 0.02)
        for term in usual.keys() - {"total"}:
            assert torch.equal(losses[term], usual[term])
        torch.testing.assert_close(
            losses["total"], usual["total"] + 3 * weight * losses["previous"]
        )


def test_a_network_is_kept_once_a_step_and_while_training_only() -> None:
    method: Any = make("prevmatch", every=0.1)
    start = [p.clone() for p in method.net.parameters()]
    method.eval()(*batch_of(), progress=0.5)
    assert method.snapshots.taken == 0
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    for progress in (0.15, 0.15, 0.19, 0.2):  # the first two are micro-batches of a step
        method.train()(*batch_of(), progress=progress)["total"].backward()
        if progress != 0.15:
            optimizer.step()
    assert method.snapshots.taken == 2
    first, second, *rest = method.snapshots.weights
    count = sum(p.numel() for p in start)
    assert torch.equal(first[:count], torch.cat([p.flatten() for p in start]))
    assert not torch.equal(first[:count], second[:count]) and not torch.stack(rest).any()


@pytest.mark.parametrize("name", ["prevmatch", "unimatch_v2", "ict", "vat"])
@pytest.mark.parametrize("classes", [1, 7])
def test_few_and_many_classes_train_under_autocast(name: str, classes: int) -> None:
    method = moved(make(name, classes))
    with torch.autocast("cpu", torch.bfloat16):
        losses = method(*batch_of(classes), progress=0.5, generator=seeded(0))
    losses["total"].backward()
    for term, value in losses.items():
        assert value.dtype == torch.float32 and value.isfinite() and value > 0, term
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.requires_grad)
