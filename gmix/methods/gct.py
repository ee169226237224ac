"""GCT: two students, and a detector of the flaws of their predictions that says who teaches whom, and where."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmix import functional as G
from gmix.functional.masks import of_all_classes
from gmix.methods.method import Step, inside_of
from gmix.methods.students import TwoStudents
from gmix.nn.critic import SlowConv2d, call_constant
from gmix.nn.losses import check_unit_interval, check_weight
from gmix.nn.network import GuidedMixNet
from gmix.protocols import SupervisedLoss

__all__ = ["GCT"]


class GCT(TwoStudents):
    r"""Train two students: where a flaw detector finds one better, the other learns it; where both are bad, both mend.

    $$L = \sum_i L_{sup}(\hat y_i) + w_c\,\omega(t) \sum_{i \ne j} \frac{1}{K} \lVert \hat y_i - \hat y_j \rVert^2
    [\bar f_j < \bar f_i] + w_f \sum_i F(x, \hat y_i)^2 [\bar f_1 > \xi \wedge \bar f_2 > \xi] + w_F L_F$$

    $$L_F = \tfrac12 \sum_i \lVert F(x_l, \hat y_i) - f^*_i \rVert^2$$

    $F$ sees an image with its probabilities and predicts a map of flaws. The first sum after $L_{sup}$ is the dynamic
    consistency constraint, in which the better student is a constant, the second the flaw correction constraint. Both
    are means over all pixels of labeled and unlabeled images, padding left out.

    $\bar f_i$ is the detected map for deciding: cut at 0, blurred, 0 if nowhere above 0.1, scaled to 0..1 in each
    image; above $\xi$ it is 1, so two bad predictions do not teach each other. $f^*$ is the truth for labeled images:
    the error $1 - \hat y_{y}$, blurred, dilated by a pixel, blurred again, scaled to 0..1. The blurs are Gaussians
    over 1/8, then 1/4 of the image, and 1/16 for $\bar f$.

    One backward pass trains all: in the flaw correction, the weights of $F$ are constants; in $L_F$, the predictions
    are detached. So each gets the gradients of its own terms, as with the authors' three optimizers. The settings are
    those of the authors' code for VOC (`deeplabv2_pascalvoc_1-8_sslgct.py`). Chosen here:

    - convolutions of stride 1 in $F$ are 3x3, which keeps the size of maps (theirs: 4x4), and the last is one of them,
      so flaws have a stride of 16 (theirs: 32, on crops of 321 pixels). All convolutions learn at a tenth of the
      decoder's rate (`gmix.nn.critic`); theirs is 1e-4 with Adam;
    - an ignored pixel has no error and no part in $L_F$ (theirs: half an error);
    - blurs follow the shorter side of images that are not square.

    The second student is a copy whose decoder and head are initialised again. The first is deployed.

    Args:
        net: The network to train.
        correction: $w_f$.
        consistency: $w_c$.
        detector: $w_F$.
        flawed: $\xi$, in [0, 1].
        ramp_length: Share of the training during which $\omega$ rises to 1: 3 of 20 epochs.
        other: The second student, a network of other weights; None makes it. A model whose decoder cannot be
            initialised again needs it, and so does a network of your own.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method].
        ignore_index: Mask value without a class.

    Returns:
        `supervised`, `consistency` and `correction` (sums over both students), `detector` ($L_F$) and `total`.

    Raises:
        ValueError: If `flawed` or `ramp_length` is outside [0, 1], or a weight is negative.

    Reference:
        Ke, Qiu, Li, Yan, Lau, "Guided Collaborative Training for Pixel-wise Semi-Supervised Learning", ECCV 2020;
        https://github.com/ZHKKKe/PixelSSL, `ssl_gct.py`.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> method = GCT(GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3)))
        >>> x_l, y_l, x_u = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)), torch.randn(4, 3, 64, 64)
        >>> sorted(method(x_l, y_l, x_u, progress=0.5))
        ['consistency', 'correction', 'detector', 'supervised', 'total']
    """

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        correction: float = 1.0,
        consistency: float = 100.0,
        detector: float = 10.0,
        flawed: float = 0.6,
        ramp_length: float = 0.15,
        other: GuidedMixNet | None = None,
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(net, other=other, supervised=supervised, ignore_index=ignore_index)
        self.require("in_channels")
        check_weight("correction", correction)
        check_weight("consistency", consistency)
        check_weight("detector", detector)
        check_unit_interval("flawed", flawed)
        check_unit_interval("ramp_length", ramp_length)
        self.weights = (correction, consistency, detector)
        self.flawed, self.ramp_length = flawed, ramp_length
        channels = net.classes + net.in_channels
        self.detector = FlawDetector(channels)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the losses of both students, and that of the detector."""
        x_labeled, y_labeled, x_unlabeled, progress, _, _ = step
        n, x = len(x_labeled), torch.cat([x_labeled, x_unlabeled])
        inside = inside_of(step)
        counted = torch.cat([inside.new_ones(n, *x.shape[2:]), inside])

        def mean(pixels: Tensor) -> Tensor:
            return (pixels * counted).sum() / counted.sum()

        logits = self.net(x), self.other(x)
        probs = [G.probabilities(z) for z in logits]
        maps = [torch.cat([x, p], 1) for p in probs]
        seen = [call_constant(self.detector, m)[:, 0].float() for m in maps]
        one, other = (decidable(found.detach() * counted) for found in seen)
        both = (one > self.flawed) & (other > self.flawed)
        one, other = (torch.where(found > self.flawed, 1.0, found) for found in (one, other))
        supervised = [self.supervised(z[:n], y_labeled) for z in logits]
        apart = [
            (of_all_classes(p) - of_all_classes(q.detach())).square().mean(1)
            for p, q in (probs, probs[::-1])
        ]
        known = y_labeled != self.ignore_index
        errors = []
        for p, m in zip(probs, maps, strict=True):
            truth = flaws(p[:n].detach(), y_labeled, self.ignore_index)
            found = self.detector(m.detach())[:n, 0].float()
            errors.append(((found - truth).square() * known).sum() / known.sum().clamp(min=1))
        losses = {
            "supervised": supervised[0] + supervised[1],
            "consistency": mean(apart[0] * (other < one)) + mean(apart[1] * (one < other)),
            "correction": mean(seen[0].square() * both) + mean(seen[1].square() * both),
            "detector": (errors[0] + errors[1]) / 2,
        }
        correction, weight, detector = self.weights
        omega = G.ramp_up(progress, self.ramp_length)
        total = losses["supervised"] + weight * omega * losses["consistency"]
        total = total + correction * losses["correction"] + detector * losses["detector"]
        return {**losses, "total": total}


class FlawDetector(nn.Module):
    """Find the flaws of predictions: `(N, C + K, H, W)`, images with their probabilities, to `(N, 1, H, W)`.

    Examples:
        >>> FlawDetector(6)(torch.ones(2, 6, 50, 40)).shape
        torch.Size([2, 1, 50, 40])
    """

    __call__: Callable[..., Tensor]

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number in range(4):
            wider = width * 2**number
            layers += [SlowConv2d(channels, wider), HalfNorm(wider), nn.LeakyReLU(0.2)]
            if number:
                layers += [SlowConv2d(wider, wider, 1), HalfNorm(wider), nn.LeakyReLU(0.2)]
            channels = wider
        self.layers = nn.Sequential(*layers, SlowConv2d(channels, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """Find the flaws."""
        height, width = maps.shape[2:]
        x = F.pad(maps, (0, -width % 32, 0, -height % 32))
        found = F.interpolate(self.layers(x), size=x.shape[2:], mode="bilinear", align_corners=True)
        return found[..., :height, :width]


class HalfNorm(nn.Module):
    """Normalise half of the channels over the batch, and the others in each image.

    Examples:
        >>> HalfNorm(4)(torch.randn(2, 4, 8, 8)).shape
        torch.Size([2, 4, 8, 8])
    """

    __call__: Callable[..., Tensor]

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.split = channels // 2
        self.batch = nn.BatchNorm2d(self.split)
        self.image = nn.InstanceNorm2d(channels - self.split)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise."""
        return torch.cat([self.batch(x[:, : self.split]), self.image(x[:, self.split :])], 1)


def flaws(probs: Tensor, y: Tensor, ignore_index: int = 255) -> Tensor:
    """Compute the map of flaws that the detector should find: 0..1 in each image.

    Args:
        probs: `(N, K, H, W)`, detached.
        y: `(N, H, W)` int64.
        ignore_index: Value of pixels without a class, which have no error.

    Returns:
        `(N, H, W)` float32.

    Examples:
        >>> probs = torch.full((1, 2, 8, 8), 0.5)
        >>> probs[0, :, 4, 4] = torch.tensor([0.0, 1.0])
        >>> found = flaws(probs, torch.zeros(1, 8, 8).long())
        >>> found.min(), found.max(), found.flatten().argmax().item() // 8
        (tensor(0.), tensor(1.), 4)
    """
    side = min(y.shape[1:])
    probs = of_all_classes(probs)
    truth = G.fill_in(probs, y, ignore_index)
    error = (truth - probs).abs().sum(1, keepdim=True) / 2
    error = blur(error, side // 8)
    error = F.max_pool2d(F.pad(error, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    return stretch(blur(error, side // 4))[:, 0]


def decidable(found: Tensor) -> Tensor:
    """Make detected flaws `(N, H, W)` comparable: without negative ones, blurred, 0..1 in each image.

    An image whose blurred flaws are nowhere above 0.1 has none.
    """
    smooth = blur(found[:, None].clamp(min=0), min(found.shape[1:]) // 16)
    clear = smooth.amax((1, 2, 3), keepdim=True) > 0.1
    return (stretch(smooth) * clear)[:, 0]


def stretch(maps: Tensor) -> Tensor:
    """Scale each map `(N, 1, H, W)` to 0..1; one that is everywhere the same becomes 0."""
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    return (maps - low) / (high - low + 1e-9)


def blur(maps: Tensor, size: int) -> Tensor:
    """Blur maps `(N, 1, H, W)` with a Gaussian over `size` pixels, one more if that is even; reflects at the borders.

    Its standard deviation is the authors' (and OpenCV's): `0.3 * ((size - 1) / 2 - 1) + 0.8`.

    Examples:
        >>> x = torch.zeros(1, 1, 5, 5)
        >>> x[0, 0, 2, 2] = 1
        >>> blur(x, 3)[0, 0, 2]
        tensor([0.0000, 0.1248, 0.2725, 0.1248, 0.0000])
    """
    radius = size // 2
    deviation = 0.3 * (radius - 1) + 0.8
    place = torch.arange(-radius, radius + 1, device=maps.device)
    kernel = torch.exp(-(place**2) / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)
    with torch.autocast(maps.device.type, enabled=False):
        padded = F.pad(maps.float(), (radius,) * 4, mode="reflect")
        return F.conv2d(F.conv2d(padded, kernel), kernel.mT)
