"""Cross-consistency training: auxiliary decoders agree with the main one on disturbed features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmix import functional as G
from gmix.functional.shapes import within
from gmix.methods.method import Method, Step
from gmix.nn.losses import check_unit_interval, check_weight
from gmix.nn.mitrans import icnr_
from gmix.nn.network import GuidedMixNet
from gmix.nn.views import drop_channels
from gmix.protocols import SupervisedLoss

__all__ = ["CCT"]

DECODERS = {
    "noise": 6,
    "feature_drop": 6,
    "dropout": 6,
    "cutout": 6,
    "context": 2,
    "objects": 2,
    "adversarial": 2,
}


class CCT(Method):
    r"""Train auxiliary decoders, on features disturbed in seven ways, to agree with the main decoder.

    $$L = L_{sup} + w\,\omega(t)\,\frac{1}{K |A|} \sum_{a \in A} \lVert\hat y_a(d_a(z)) - \hat y\rVert^2$$

    $z$ is the deepest feature map and $d_a$ a disturbance. The auxiliary decoders, a 1x1 convolution to K channels and
    PixelShuffles, get no other input. The target is detached: the encoder learns, the main decoder does not. The main
    decoder is an ordinary SMP decoder (with skips).

    | decoder | input |
    |---|---|
    | `noise` | every activation times a factor in [0.7, 1.3] |
    | `feature_drop` | without the positions whose mean activation is above 70% to 90% of the maximum |
    | `dropout` | without half of the channels |
    | `cutout` | without a box of 40% of the height and width of all predicted objects (the authors: of each object) |
    | `context` | without everything but the objects |
    | `objects` | without the objects |
    | `adversarial` | moved by a step of length 2 in the direction of the largest change (VAT) |

    Class 0 is the background, all others are objects.

    Args:
        net: The network to train.
        unsupervised: $w$, 30 with the mean over K classes, as the authors use it.
        ramp_length: Share of the training during which $\omega$ rises to 1.
        decoders: Number of auxiliary decoders of each kind, by the names above.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method].
        ignore_index: Mask value without a class.

    Returns:
        `supervised`, `unsupervised` and `total`.

    Raises:
        ValueError: If a kind of decoder is unknown, there is no decoder, or `ramp_length` is outside [0, 1].

    Reference:
        Ouali, Hudelot, Tami, "Semi-Supervised Semantic Segmentation with Cross-Consistency Training", CVPR 2020.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> method = CCT(GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3)))
        >>> x_l, y_l, x_u = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)), torch.randn(4, 3, 64, 64)
        >>> sorted(method(x_l, y_l, x_u, progress=0.5))
        ['supervised', 'total', 'unsupervised']
    """

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        unsupervised: float = 30.0,
        ramp_length: float = 0.1,
        decoders: Mapping[str, int] = DECODERS,
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(net, supervised=supervised, ignore_index=ignore_index)
        self.require("embedding_dim", "padded")
        if not isinstance(decoders, Mapping):
            raise TypeError(f"`decoders` must say how many of each kind, got {decoders!r}")
        if unknown := sorted(decoders.keys() - DECODERS.keys()):
            raise ValueError(f"CCT has no decoder {unknown[0]!r}: choose from {sorted(DECODERS)}")
        if not all(within(number, 0, kind=Integral) for number in decoders.values()):
            raise ValueError(f"`decoders` must say how many of each kind, got {dict(decoders)}")
        self.kinds = [kind for kind, number in decoders.items() for _ in range(number)]
        if not self.kinds:
            raise ValueError("`decoders` must ask for at least one auxiliary decoder")
        self.decoders = nn.ModuleList(
            auxiliary_decoder(net.embedding_dim, net.classes) for _ in self.kinds
        )
        check_weight("unsupervised", unsupervised)
        self.weight = unsupervised
        check_unit_interval("ramp_length", ramp_length)
        self.ramp_length = ramp_length

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the supervised loss, and the squared errors of the auxiliary decoders."""
        x_labeled, y_labeled, x_unlabeled, progress, valid, generator = step
        n, size = len(x_labeled), (x_labeled.shape[2], x_labeled.shape[3])
        features = self.net.encode(torch.cat([x_labeled, x_unlabeled]))
        logits = self.net.decode(features, size)
        target = G.probabilities(logits[n:]).detach()
        z = features[-1][n:]
        padded = self.net.padded(*size)
        objects = object_map(target, padded, (z.shape[2], z.shape[3]))
        errors = []
        for kind, decoder in zip(self.kinds, self.decoders, strict=True):
            disturbed = disturb(kind, z, objects, decoder, generator)
            auxiliary = F.interpolate(decoder(disturbed), size=padded, mode="bilinear")
            auxiliary = auxiliary[..., : size[0], : size[1]]
            errors.append(G.squared_error(G.probabilities(auxiliary), target, valid=valid))
        supervised = self.supervised(logits[:n], y_labeled)
        unsupervised = torch.stack(errors).mean() / max(self.net.classes, 2)
        omega = G.ramp_up(progress, self.ramp_length)
        total = supervised + self.weight * omega * unsupervised
        return {"supervised": supervised, "unsupervised": unsupervised, "total": total}


def auxiliary_decoder(channels: int, classes: int, doublings: int = 3) -> nn.Sequential:
    """Build a decoder: a 1x1 convolution to `classes` channels, then PixelShuffles that each double the map.

    It ends in a ReLU, as the authors' decoders do. A single channel could then never be negative, so the binary case
    has two channels, and the decoder returns their difference.
    """
    binary, classes = classes == 1, max(classes, 2)
    layers: list[nn.Module] = [nn.Conv2d(channels, classes, 1, bias=False)]
    for _ in range(doublings):
        wide = nn.Conv2d(classes, 4 * classes, 1)
        # The four pixels made from one pixel start equal, without a checkerboard pattern.
        icnr_(wide.weight)
        assert wide.bias is not None
        with torch.no_grad():
            wide.bias.copy_(wide.bias[::4].repeat_interleave(4))
        layers += [wide, nn.ReLU(), nn.PixelShuffle(2)]
    return nn.Sequential(*layers, _Difference()) if binary else nn.Sequential(*layers)


class _Difference(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 1:] - x[:, :1]


def object_map(probs: Tensor, padded: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Mark the cells of the feature grid whose most probable class is not the background.

    Args:
        probs: `(N, K, H, W)`.
        padded: Height and width of the padded images; there are no objects on padding.
        grid: Height and width of the features.

    Returns:
        `(N, 1, *grid)`, 0 or 1.
    """
    objects = (G.most_probable(probs)[1] > 0).float()[:, None]
    objects = F.pad(objects, (0, padded[1] - probs.shape[3], 0, padded[0] - probs.shape[2]))
    return F.interpolate(objects, size=grid, mode="nearest")


def disturb(
    kind: str,
    z: Tensor,
    objects: Tensor,
    decoder: nn.Module,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Disturb the features `z (N, C, h, w)` for a decoder of this kind."""
    if kind == "dropout":
        return drop_channels(z, 0.5, generator)
    if kind == "context":
        return z * objects
    if kind == "objects":
        return z * (1 - objects)
    if kind == "cutout":
        return z * (1 - box_in(objects, 0.4, generator))
    if kind == "adversarial":
        return z + adversarial(z.detach(), decoder, generator=generator)
    if kind == "noise":
        factor = torch.rand(z.shape[1:], generator=generator, device=z.device)
        return z * (1 + 0.3 * (2 * factor - 1))
    activation = z.mean(1, keepdim=True)
    draw = torch.rand((), generator=generator, device=z.device)
    highest = activation.amax((2, 3), keepdim=True)
    return z * (activation < highest * (0.7 + 0.2 * draw))


def box_in(objects: Tensor, share: float, generator: torch.Generator | None = None) -> Tensor:
    """Draw a random box of `share` of the height and width of the objects' bounding box; empty without objects."""
    box = torch.ones_like(objects)
    for dim in (2, 3):
        length = objects.shape[dim]
        there = objects.amax(5 - dim, keepdim=True) > 0
        place = torch.arange(length, device=objects.device).view(
            [-1 if d == dim else 1 for d in range(4)]
        )
        low = torch.where(there, place, length).amin(dim, keepdim=True)
        high = torch.where(there, place + 1, 0).amax(dim, keepdim=True)
        extent = (high - low).clamp(min=0)
        draw = torch.rand(len(objects), 1, 1, 1, generator=generator, device=objects.device)
        start = low + (draw * (1 - share) * extent).floor()
        box = box * ((place >= start) & (place < start + (share * extent).ceil()))
    return box


def adversarial(
    z: Tensor,
    decoder: Callable[[Tensor], Tensor],
    *,
    xi: float = 0.1,
    length: float = 2.0,
    weight: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Find the step from `z` that changes the decoder's prediction most, with one iteration of VAT.

    Args:
        z: Features, or images, detached.
        decoder: What predicts logits from them, and is to be misled; in eval mode.
        xi: Length of the trial step. The authors' configuration has 1e-6, which rounds to 0 in float32;
            this is the default of their function.
        length: Length of the step.
        weight: `(N, H, W)`, optional: the weight of each pixel of the prediction, for instance 0 on padding.
        generator: Source of randomness, on the device of `z`.
    """
    draw = torch.rand(z.shape, generator=generator, device=z.device) - 0.5
    z = z.float()

    def distance(direction: Tensor) -> Tensor:
        target = G.probabilities(decoder(z)).detach()
        return G.soft_cross_entropy(decoder(z + direction), target, weight=weight)

    # Not torch.autograd.grad, which torch.compile cannot compile.
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        gradient: Tensor = torch.func.grad(distance)(xi * unit(draw))
    return length * unit(gradient)


def unit(x: Tensor) -> Tensor:
    """Normalise each `(C, h, w)` of a batch to length 1."""
    length: Tensor = x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    return x / length.clamp(min=torch.finfo(x.dtype).tiny)
