"""Plain code that the naive steps of several methods are written in: slow, in double precision, pixel by pixel."""

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor, nn

from gmix.nn.views import Pasted

Losses = dict[str, Any]


class Batch(NamedTuple):
    """The images of a step, and which unlabeled pixels are no padding."""

    x_labeled: Tensor
    y_labeled: Tensor
    x_unlabeled: Tensor
    valid: Tensor


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


def copied(ema: Any, weights: nn.Module) -> nn.Module:
    """An EMA's network after its first step, which copies."""
    with torch.no_grad():
        for p, new in zip(ema.net.parameters(), weights.parameters(), strict=True):
            p.copy_(new)
        for b, new in zip(ema.net.buffers(), weights.buffers(), strict=True):
            b.copy_(new)
    ema.step += 1
    net: nn.Module = ema.net
    return net


def true_maps(y: Tensor, classes: int) -> Tensor:
    """Masks as maps of a value per class, of the foreground alone if binary."""
    maps = torch.zeros(len(y), classes, *y.shape[1:])
    for i, r, c in np.ndindex(*y.shape):
        for k in range(classes):
            maps[i, k, r, c] = float(y[i, r, c] == k + (classes == 1))
    return maps


def adversarial(
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


def squares(n: int, g: Generator) -> tuple[Tensor, Tensor]:
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


def unimatch(method: Any, batch: Batch, g: Generator) -> Losses:
    x_l, y, x_u, valid = batch
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
