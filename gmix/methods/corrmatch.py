"""CorrMatch: labels spread along correlation maps, above a threshold that follows the training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmix import functional as G
from gmix.functional.masks import of_all_classes
from gmix.methods.method import Method, Step
from gmix.nn.losses import check_count, check_unit_interval, check_weight
from gmix.nn.network import GuidedMixNet
from gmix.nn.pseudo import PseudoMask
from gmix.nn.views import StrongView, disturb, drop_channels
from gmix.protocols import SupervisedLoss

__all__ = ["CorrMatch"]


class CorrMatch(Method):
    r"""Learn sure labels on a strong view, spread to regions of similar features, and learn the similarity itself.

    $$L = L_{sup} + w_c\,\mathrm{CE}(z_l, y_l) + w (L_{strong} + L_{KL} + L_{features} + \tfrac12 (L_{cs} + L_{cw}))$$

    $A = \mathrm{softmax}(f_1^T f_2 / \sqrt K)$ says, for each pair of positions of the deepest map, how similar they
    are, and $z = \hat y A$ spreads the logits (constants here): a second prediction, by which $f_1$ and $f_2$ learn.

    - The threshold starts at `threshold` and moves towards the mean, over the predicted classes, of the highest
      confidence of each: $\tau \leftarrow 0.999\,\tau + 0.001\,\bar c$.
    - `regions` rows of A are drawn; each is scaled to 0..1 and cut at 0.5, without pasted boxes and padding. If the
      share of sure pixels in a region is at least $\tau$, and that of their most frequent class above $\tau$, the whole
      region gets that class. Where regions overlap, the last counts.
    - $L_{strong}$ and $L_{cs}$ (of $z$) learn these labels on the strong view, $L_{cw}$ (of $z$) and $L_{features}$
      (half of the channels dropped) the sure ones on the weak view. $L_{KL}$ is the divergence of the strong from
      the weak view, on sure pixels.

    The authors' loss is a quarter of this, which does not change AdamW's steps. Their regions are judged one after the
    other, with labels that earlier ones changed, and in $L_{KL}$ they do not paste what the weak view says; here each
    region is judged by the labels of the network, and the target is pasted as the image is.

    Args:
        net: The network to train.
        threshold: $\tau$ at the start.
        correlation: $w_c$.
        unsupervised: $w$ of each of the four unlabeled terms.
        regions: Number of rows.
        momentum: How much of $\tau$ a step keeps.
        mean: Mean per channel that the images (in 0..1) were normalised with.
        std: Standard deviation per channel that they were normalised with. The strong view (`strong`) uses both.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method];
            $z_l$ is always learned with cross-entropy.
        ignore_index: Mask value without a class.

    Returns:
        `supervised`, `correlation`, `strong`, `divergence`, `features`, `spread` ($\tfrac12 (L_{cs} + L_{cw})$) and
        `total`.

    Raises:
        ValueError: If `threshold` is outside [0, 1].

    Reference:
        Sun et al., "CorrMatch: Label Propagation via Correlation Matching for Semi-Supervised Semantic Segmentation",
        CVPR 2024; https://github.com/BBBBchan/CorrMatch, settings for VOC.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> method = CorrMatch(GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3)))
        >>> x_l, y_l, x_u = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)), torch.randn(4, 3, 64, 64)
        >>> sorted(method(x_l, y_l, x_u))
        ['correlation', 'divergence', 'features', 'spread', 'strong', 'supervised', 'total']
    """

    needs_progress = False

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        threshold: float = 0.85,
        correlation: float = 1.0,
        unsupervised: float = 0.5,
        regions: int = 128,
        momentum: float = 0.999,
        mean: Sequence[float] | float = (0.485, 0.456, 0.406),
        std: Sequence[float] | float = (0.229, 0.224, 0.225),
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(net, supervised=supervised, ignore_index=ignore_index, threshold=threshold)
        self.require("embedding_dim", "padded")
        check_weight("correlation", correlation)
        check_weight("unsupervised", unsupervised)
        check_count("regions", regions)
        check_unit_interval("momentum", momentum)
        self.correlation = Correlation(net.embedding_dim, max(net.classes, 2))
        self.moving = MovingThreshold(threshold, momentum)
        self.strong = StrongView(mean=mean, std=std)
        self.weights, self.regions = (correlation, unsupervised), regions

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the losses of both predictions, on labeled images, weak and strong views."""
        x_labeled, y_labeled, x_unlabeled, _, valid, generator = step
        n, size = len(x_labeled), (x_labeled.shape[2], x_labeled.shape[3])
        view, pasted = self.strong(x_unlabeled, generator)
        features = self.net.encode(torch.cat([x_labeled, x_unlabeled]))
        logits = self.net.decode(features, size)
        dropped = self.net.decode(disturb([f[n:] for f in features], 0.5, generator), size)
        maps, spread = self.correlate(features[-1], logits, generator)
        seen = self.net.encode(view)
        strong = self.net.decode(seen, size)
        _, spread_strong = self.correlate(seen[-1], strong, generator)

        weak = logits[n:].detach()
        pseudo = PseudoMask.of(weak, valid, self.ignore_index)
        target = pseudo.paste(pasted)
        counted = target.labels != self.ignore_index
        if self.training:
            self.moving.update(pseudo.confidence, pseudo.labels, max(self.net.classes, 2))
        bound = self.moving.level
        sure, sure_pasted = pseudo.confidence >= bound, target.confidence >= bound
        with torch.no_grad():
            drawn = torch.randint(
                maps.shape[1], (self.regions,), generator=generator, device=maps.device
            )
            rows = maps[n:, drawn].reshape(len(view), self.regions, *seen[-1].shape[2:])
            region = self.to_pixels(rows, size)
            low, high = region.amin((2, 3), keepdim=True), region.amax((2, 3), keepdim=True)
            # Within a pasted box the map of the weak view says nothing.
            region = ((region - low) / (high - low) > 0.5) & (counted & ~pasted.box)[:, None]
            labels, learned = propagate(region, target.labels, sure_pasted, bound, self.net.classes)

        def entropy(prediction: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
            return G.cross_entropy(
                prediction, labels, weight=weight, ignore_index=self.ignore_index
            )

        apart = divergence(strong, pasted.apply(G.probabilities(weak))) * sure_pasted * counted
        losses = {
            "supervised": self.supervised(logits[:n], y_labeled),
            "correlation": entropy(spread[:n], y_labeled),
            "strong": entropy(strong, labels, learned),
            "divergence": apart.sum() / counted.sum().clamp(min=1),
            "features": entropy(dropped, pseudo.labels, sure),
            "spread": entropy(spread_strong, labels, learned) / 2
            + entropy(spread[n:], pseudo.labels, sure) / 2,
        }
        several = losses["strong"] + losses["divergence"] + losses["features"] + losses["spread"]
        total = losses["supervised"] + self.weights[0] * losses["correlation"]
        return {**losses, "total": total + self.weights[1] * several}

    def correlate(
        self, z: Tensor, logits: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Correlate the positions of `z`, `(N, h * w, h * w)`, and spread the logits: `(N, K, H, W)`."""
        size = (logits.shape[2], logits.shape[3])
        padded = self.net.padded(*size)
        logits = F.pad(logits.detach(), (0, padded[1] - size[1], 0, padded[0] - size[0])).float()
        coarse = F.interpolate(logits, size=z.shape[2:], mode="bilinear")
        maps = self.correlation(z, generator)
        with torch.autocast(z.device.type, enabled=False):
            spread = (coarse.flatten(2) @ maps).view_as(coarse)
        return maps, self.to_pixels(spread, size)

    def to_pixels(self, cells: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize `(N, C, h, w)` from the grid of features to the pixels of images of this size."""
        pixels = F.interpolate(cells, size=self.net.padded(*size), mode="bilinear")
        return pixels[..., : size[0], : size[1]]


class Correlation(nn.Module):
    """Say how similar the positions of features `(N, D, h, w)` are: `(N, h * w, h * w)`, each row sums to 1."""

    __call__: Callable[..., Tensor]

    def __init__(self, channels: int, classes: int, width: int = 256) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.one, self.other = nn.Conv2d(width, classes, 1), nn.Conv2d(width, classes, 1)

    def forward(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Compute the correlation; in training a tenth of the channels is dropped."""
        z = F.relu(self.norm(self.reduce(z)))
        if self.training:
            z = drop_channels(z, 0.1, generator)
        one, other = self.one(z).float().flatten(2), self.other(z).float().flatten(2)
        with torch.autocast(z.device.type, enabled=False):
            found: Tensor = (one.transpose(1, 2) @ other / one.shape[1] ** 0.5).softmax(2)
        return found


class MovingThreshold(nn.Module):
    """A threshold that moves towards the highest confidence of each predicted class, in the mean over the classes.

    Examples:
        >>> moving = MovingThreshold(0.5, momentum=0.5)
        >>> moving.update(torch.tensor([0.6, 0.7, 0.9]), torch.tensor([0, 0, 2]), classes=3)
        >>> round(moving.level.item(), 3)
        0.65
    """

    step_means = ("level",)  # in a step of several micro-batches

    def __init__(self, start: float, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.level: Tensor
        self.register_buffer("level", torch.tensor(float(start)))

    @torch.no_grad()
    def update(self, confidence: Tensor, labels: Tensor, classes: int) -> None:
        """Move towards the confidence of these labels; labels that are no class do not count."""
        own = labels.flatten() == torch.arange(classes, device=labels.device)[:, None]
        highest = torch.where(own, confidence.flatten(), 0.0).amax(1)
        number = own.any(1).sum()
        new = torch.where(number > 0, highest.sum() / number.clamp(min=1), self.level)
        self.level.lerp_(new, 1 - self.momentum)


def propagate(
    region: Tensor, labels: Tensor, sure: Tensor, bound: Tensor, classes: int
) -> tuple[Tensor, Tensor]:
    """Give whole regions the class of their sure pixels, where these are many and agree.

    Args:
        region: `(N, R, H, W)` bool.
        labels: `(N, H, W)` int64.
        sure: `(N, H, W)` bool.
        bound: The share that is many: of a region's pixels that are sure, at least, and of these that agree, above.
        classes: K.

    Returns:
        The labels and whether they are learned, `(N, H, W)`.
    """
    each = torch.arange(max(classes, 2), device=labels.device)[:, None, None]
    voters = (labels[:, None] == each) & sure[:, None]
    votes = region.flatten(2).float() @ voters.flatten(2).float().transpose(1, 2)
    most, winner = votes.max(2)
    counted, area = votes.sum(2), region.sum((2, 3))
    taken = (counted > 0) & (counted >= bound * area) & (most > bound * counted)
    order = torch.arange(1, region.shape[1] + 1, device=labels.device)[:, None, None]
    last = torch.where(region & taken[..., None, None], order, 0).amax(1)
    spread = winner.gather(1, (last - 1).clamp(min=0).flatten(1)).view_as(labels)
    return torch.where(last > 0, spread, labels), sure | (last > 0)


def divergence(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the Kullback-Leibler divergence of `(N, K, H, W)` logits from probabilities, per pixel `(N, H, W)`."""
    logits = logits.float()
    binary = logits.shape[1] == 1
    log = F.logsigmoid(torch.cat([-logits, logits], 1)) if binary else logits.log_softmax(1)
    return F.kl_div(log, of_all_classes(target), reduction="none").sum(1)
