"""What the labeled images say about a pixel of another image: guidance across images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmix import functional as G
from gmix.frozen import HoldsFrozenEncoder
from gmix.functional.shapes import refuse_ignored_class
from gmix.given import remember_given
from gmix.network import windows
from gmix.processes import gather, process_count

__all__ = ["LabeledReference"]


class LabeledReference(HoldsFrozenEncoder):
    r"""Weigh predictions by what labeled pixels with similar features are.

    A memory keeps features $f_j$ of recent labeled images with the classes $y_j$ of their **true** masks. For a
    feature $f$ of another image, attention over the memory gives the classes of similar labeled pixels, and
    dividing by how common each class is turns them into a likelihood:

    $$a = \mathrm{softmax}_j(\cos(f, f_j) / T)\,y_j, \qquad r_k = a_k / \pi_k + \epsilon \propto p(f \mid k),
      \qquad P'_k \propto P_k \min\Big(1, \frac{r_k}{\tau \max_j r_j}\Big)^s$$

    Dividing by $\pi$ keeps frequent classes from crowding out rare ones. A class whose likelihood is within
    $\tau$ of the likeliest is *plausible*: plausible classes keep their odds against each other, the others are
    weighed down. With $\tau = s = 1$ nothing is clipped and this is Bayes' rule, the network as prior and a kernel
    density estimate as likelihood. In self-training that counts the same evidence again at every step, since the
    network has already learned from it: after n times only $r^n$ is left of the prediction, coarse as the features
    are. What is clipped can be repeated, and where to draw the line among plausible classes stays the network's.

    The features come from a frozen copy of the encoder *as it is when this module is built*: a pretrained
    encoder knows how alike two animals are long before a network trained on a few masks does, and frozen features
    never go stale in the memory. A saved state has a checksum in its place: who loads it builds the same first. It is
    the non-local block's idea (Eq. 4) with keys and values from other images, and values that are known to be right.

    Its maps are coarse, so it sees small images enlarged; but one that takes images of a single size sees them at that
    size where timm says which (`strict_img_size`), and as they are where timm says only that (`fixed_input_size`).
    Of each labeled image it keeps rare classes more often than by chance, a position with the weight
    $\sum_k v_k / \sqrt{n_k}$ ($v_k$: the class's share of the position, $n_k$: of the image): the few positions a sign
    has say more than one more piece of road.

    Args:
        encoder: An SMP encoder (`net.model.encoder`): images to feature maps, deepest last. Deep-copied and frozen.
            Its last two maps are used, at the resolution of the finer one. Images are resized to its stride, and to
            whole windows where it has such (MaxViT).
        classes: Number of logit channels K; 1 is binary.
        capacity: Number of labeled feature positions the memory holds; the oldest are replaced.
        positions: At most this many positions per labeled image are kept.
        shorter_side: The encoder sees images enlarged to this many pixels on their shorter side, at most to twice
            their size; above 0. Larger ones stay as they are.
        temperature: $T$, above 0.
        tolerance: $\tau$, in (0, 1].
        strength: $s$, at least 0; 0 leaves predictions as they are.
        floor: $\epsilon$, above 0: no class is ever ruled out.

    Shape:
        - `add(x (N, C, H, W), y (N, H, W))`: remember labeled images
        - `forward(probs (N, K, H, W), x (N, C, H, W))`: `(N, K, H, W)` guided probabilities, float32

    Raises:
        ValueError: Options out of range, an encoder that does not say what its maps are, or shapes that do not fit.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> _ = torch.manual_seed(0)
        >>> encoder = smp.Unet("resnet18", encoder_weights=None).encoder
        >>> reference = LabeledReference(encoder, classes=2)
        >>> reference.add(torch.randn(2, 3, 64, 64), torch.randint(2, (2, 64, 64)))
        >>> guided = reference(torch.full((1, 2, 64, 64), 0.5), torch.randn(1, 3, 64, 64))
        >>> guided.shape, bool((guided.sum(1) - 1).abs().max() < 1e-6)
        (torch.Size([1, 2, 64, 64]), True)
    """

    @remember_given
    def __init__(
        self,
        encoder: nn.Module,
        classes: int,
        *,
        capacity: int = 4096,
        positions: int = 64,
        shorter_side: int = 160,
        temperature: float = 0.03,
        tolerance: float = 0.25,
        strength: float = 1.0,
        floor: float = 0.01,
    ) -> None:
        super().__init__()
        if min(capacity, positions, shorter_side) < 1 or min(temperature, floor) <= 0:
            raise ValueError(
                "`capacity`, `positions`, `shorter_side`, `temperature` and `floor` must be above 0, "
                f"got {capacity}, {positions}, {shorter_side}, {temperature} and {floor}"
            )
        if strength < 0:
            raise ValueError(f"`strength` must be at least 0, got {strength}")
        if not 0 < tolerance <= 1:
            raise ValueError(f"`tolerance` is a share in (0, 1], got {tolerance}")
        channels = getattr(encoder, "out_channels", None)
        if not (isinstance(channels, Sequence) and len(channels) > 1):
            raise ValueError(
                "`encoder` must declare the `out_channels` of two maps or more, as SMP's do "
                f"(`net.model.encoder`), got {type(encoder).__name__} with {channels}"
            )
        copied: Any = copy.deepcopy(encoder).requires_grad_(False)
        self.encoder = copied
        self.classes = classes
        self.capacity = capacity
        self.positions = positions
        self._only_size, fixed = fixed_size(encoder)
        self.shorter_side = 1 if fixed else shorter_side
        self.temperature = temperature
        self.tolerance = tolerance
        self.strength = strength
        self.floor = floor
        self._stride = int(getattr(encoder, "output_stride", 1)) * windows(encoder)
        self._widths = [int(width) for width in channels[-2:]]
        self.keys: Tensor
        self.values: Tensor
        self.written: Tensor
        self.register_buffer("keys", torch.zeros(capacity, sum(self._widths)))
        # Per position, the share of each class; all zero marks an empty slot.
        self.register_buffer("values", torch.zeros(capacity, max(classes, 2)))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))
        self.eval()

    @torch.no_grad()
    def add(self, x: Tensor, y: Tensor, *, ignore_index: int = 255) -> None:
        """Remember labeled images `x (N, C, H, W)` with their masks `y (N, H, W)`.

        Where several processes train together, each gives its own images and remembers those of all.
        """
        if y.shape != (len(x), *x.shape[2:]):
            raise ValueError(
                "`y` must have shape (N, H, W) for images `x` (N, C, H, W), "
                f"got {tuple(y.shape)} and {tuple(x.shape)}"
            )
        features = self._features(x)
        grid = (features.shape[2], features.shape[3])
        shares = class_shares(y, self.values.shape[1], grid, ignore_index)
        keys = features.flatten(2).transpose(1, 2)
        values = shares.flatten(2).transpose(1, 2)
        keep = min(self.positions, max(self.capacity // (len(x) * process_count()), 1))
        image, kept = torch.arange(len(x), device=x.device)[:, None], spread(values, keep)
        keys = gather(keys[image, kept]).flatten(0, 1)[: self.capacity]
        values = gather(values[image, kept]).flatten(0, 1)[: self.capacity]
        slots = (self.written + torch.arange(len(keys), device=x.device)) % self.capacity
        self.keys[slots] = keys
        self.values[slots] = values
        self.written += len(keys)

    @torch.no_grad()
    def likelihood(self, x: Tensor) -> Tensor:
        """$r_k$ of images `(N, C, H, W)`: `(N, max(K, 2), h, w)` on the grid of the features."""
        features = self._features(x)
        n, _, h, w = features.shape
        with torch.autocast(x.device.type, enabled=False):
            filled = self.values.sum(1) > 0
            share = filled.float() / filled.sum().clamp(min=1)
            centre = share @ self.keys
            queries = self._normalise(features.flatten(2).transpose(1, 2).flatten(0, 1), centre)
            keys = self._normalise(self.keys, centre)
            scale = 1 / (self.temperature * len(keys))
            # A large negative number rather than -inf: with nothing remembered the softmax stays finite.
            similarity = torch.where(filled, 0.0, -1e4)
            # Written out: with so few, so long vectors a fused attention takes longer.
            for query, key in zip(queries, keys, strict=True):
                similarity = torch.addmm(similarity, query, key.T, alpha=scale)
            classes = similarity.softmax(1) @ self.values
            classes = classes / classes.sum(1, keepdim=True).clamp(min=1e-6)
            frequency = self.values.sum(0) / self.values.sum().clamp(min=1e-6)
            # A class never seen says nothing: ratio 1.
            ratio = torch.where(frequency > 0, classes / frequency.clamp(min=1e-3), 1.0)
        return ratio.view(n, h, w, -1).permute(0, 3, 1, 2)

    def forward(self, probs: Tensor, x: Tensor) -> Tensor:
        if probs.shape[0] != x.shape[0] or probs.shape[2:] != x.shape[2:]:
            raise ValueError(
                "`probs` (N, K, H, W) and `x` (N, C, H, W) must belong to the same images, "
                f"got {tuple(probs.shape)} and {tuple(x.shape)}"
            )
        ratio = F.interpolate(self.likelihood(x), size=x.shape[2:], mode="bilinear")
        ratio = ratio + self.floor
        likeliest = ratio.amax(1, keepdim=True)
        return G.reweigh(
            probs, (ratio / (self.tolerance * likeliest)).clamp(max=1) ** self.strength
        )

    def train(self, mode: bool = True) -> LabeledReference:
        """A frozen encoder never trains, whatever its owner does."""
        return super().train(False)

    def _features(self, x: Tensor) -> Tensor:
        # In whole numbers: rounding must not cost a row of the grid.
        height, width, stride = x.shape[2], x.shape[3], self._stride
        shorter = min(height, width)
        side = max(shorter, min(self.shorter_side, 2 * shorter))
        size = self._only_size or tuple(
            -(-length * side // (shorter * stride)) * stride for length in (height, width)
        )
        if size != (height, width):
            x = F.interpolate(x, size=size, mode="bilinear")
        try:
            maps = self.encoder(x)
        except AssertionError as error:  # how timm's transformers refuse a size
            raise ValueError(
                f"the reference's encoder cannot take images of {size[0]} x {size[1]}: {error}; build the "
                "model with `img_size=...`, or the method with `reference=None`"
            ) from error
        if isinstance(maps, tuple):  # a vision transformer's comes with its prefix tokens
            maps = maps[0]
        finer, deepest = maps[-2:]
        deepest = F.interpolate(deepest, size=finer.shape[-2:], mode="bilinear")
        return torch.cat([finer, deepest], 1).float()

    def _normalise(self, features: Tensor, centre: Tensor) -> list[Tensor]:
        """Centre, then bring each of the two maps to the same length: both have a say."""
        parts: tuple[Tensor, ...] = torch.split(features - centre, self._widths, dim=-1)
        return [F.normalize(part, dim=-1) for part in parts]

    def extra_repr(self) -> str:
        return (
            f"capacity={self.capacity}, temperature={self.temperature}, "
            f"tolerance={self.tolerance}, strength={self.strength}, floor={self.floor}"
        )


def fixed_size(encoder: nn.Module) -> tuple[tuple[int, int] | None, bool]:
    """The one size of images that an encoder takes, if timm tells it, and whether there is one at all.

    Examples:
        >>> fixed_size(nn.Conv2d(3, 8, 3))
        (None, False)
    """
    strict = [module for module in encoder.modules() if hasattr(module, "strict_img_size")]
    if strict:
        sizes: list[Any] = [module.img_size for module in strict if module.strict_img_size]
        size = next(filter(None, sizes), None)
        return size, size is not None
    settings: Any = getattr(getattr(encoder, "model", None), "pretrained_cfg", None) or {}
    return None, bool(settings.get("fixed_input_size", False))


def class_shares(y: Tensor, classes: int, size: tuple[int, int], ignore_index: int = 255) -> Tensor:
    """The share of each class in each cell of a grid: `(N, H, W)` -> `(N, classes, *size)`.

    Values outside of the classes count for none.

    Examples:
        >>> class_shares(torch.tensor([[[0, 1], [255, 1]]]), classes=2, size=(1, 1)).flatten()
        tensor([0.2500, 0.5000])
    """
    refuse_ignored_class(classes, ignore_index)
    y = torch.where(y == ignore_index, -1, y)
    each = torch.arange(classes, device=y.device)[:, None, None]
    # Image by image: all at once would fill memory, and class by class makes a large graph to compile.
    return torch.stack([F.adaptive_avg_pool2d((mask == each).float(), size) for mask in y])


def spread(shares: Tensor, keep: int) -> Tensor:
    """Which positions of each image to keep: `(N, P, K)` class shares -> `(N, min(keep, P))` indices, rising.

    All of them if there are no more. Else systematic sampling, at even steps along the running sum of the weights
    $\\sum_k v_k / \\sqrt{n_k}$: a position that holds most of a rare class may come twice, one without a class comes
    where there is nothing else.

    Examples:
        >>> shares = torch.tensor([[[1.0, 0.0]] * 9 + [[0.0, 1.0]]])  # one of ten positions is class 1
        >>> spread(shares, 4)
        tensor([[1, 4, 7, 9]])
    """
    n, positions, _ = shares.shape
    if keep >= positions:
        return torch.arange(positions, device=shares.device).expand(n, positions)
    count = shares.sum(1, keepdim=True).clamp(min=1e-6)
    weight = (shares / count.sqrt()).sum(2) + 1e-6
    total = weight.cumsum(1)
    steps = (torch.arange(keep, device=shares.device) + 0.5) / keep
    return torch.searchsorted(total, steps * total[:, -1:]).clamp(max=positions - 1)
