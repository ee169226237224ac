"""Guidance across images: evidence from labeled pixels about a pixel of another image."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmix import functional as G
from gmix.functional.shapes import (
    check_classes,
    check_ignore_index,
    check_tensor,
    class_ids,
    within,
)
from gmix.nn.frozen import HoldsFrozenEncoder
from gmix.nn.given import remember_given
from gmix.nn.images import check_floats
from gmix.nn.sizes import check_channels, fixed_size, refusal, windows
from gmix.protocols import LabeledDataset

__all__ = ["LabeledReference"]


class LabeledReference(HoldsFrozenEncoder):
    r"""Weight predictions by the classes of labeled pixels with similar features.

    A memory keeps features $f_j$ of the labeled images with the classes $y_j$ of their **true** masks. For a
    feature $f$ of another image, attention over the memory gives the classes of similar labeled pixels, and
    dividing by the frequency of each class turns them into a likelihood. Bayes' rule, with the network as the prior,
    weights its prediction:

    $$a = \mathrm{softmax}_j(\cos(f, f_j) / T)\,y_j, \qquad r_k = a_k / \pi_k + \epsilon \propto p(f \mid k),
      \qquad P'_k \propto P_k \, r_k^{\,s}$$

    Dividing by $\pi$ keeps frequent classes from crowding out rare ones.

    **The strength $s$ is measured, not set** ([`measure`][gmix.LabeledReference.measure]): each labeled image queries
    the memory while its own features are masked, and $s$ is chosen to make the evidence about its known classes a
    calibrated likelihood. If the features carry no information, $s$ is 0 and the reference has no effect.

    Learn the guided mask as hard labels of sure pixels. A soft target would count the same evidence again at every
    step, because the network has already learned from it: after n steps only $r^{ns}$, as coarse as the features, is
    left of the prediction. A hard label changes nothing more once it is learned.

    The features come from a frozen copy of the encoder *as it is when this module is built*: a pretrained
    encoder knows how similar two animals are long before a network trained on a few masks does, and frozen features
    never go stale in the memory. A saved state holds a checksum in place of the encoder: build the module with the same
    encoder before loading it. The idea is that of the non-local block (Eq. 4), with keys and values from other images,
    and values that are known to be right.

    The encoder's maps are coarse, so small images are enlarged. An encoder that accepts a single image size gets images
    of that size if timm says which (`strict_img_size`), and unresized images if timm does not (`fixed_input_size`).
    Positions of rare classes are kept more often than by chance, with the weight $\sum_k v_k / \sqrt{n_k}$ ($v_k$: the
    share of the class in the position, $n_k$: in the image): the few positions of a sign carry more information than
    another piece of road.

    Args:
        encoder: The encoder of a network (`net.encoder`): images to feature maps, deepest last. Deep-copied and frozen.
            Its last two maps are used, at the resolution of the finer one, or its only one. Images are resized to a
            multiple of its stride and, if it has windows (MaxViT), to whole windows.
        classes: Number of logit channels K; 1 is binary.
        capacity: Number of labeled feature positions the memory holds.
        positions: Largest number of positions kept per labeled image.
        shorter_side: Images are enlarged to this many pixels on their shorter side, at most to twice their size;
            above 0. Larger images are not resized.
        temperature: $T$, above 0.
        strength: $s$, at least 0; None measures it.
        floor: $\epsilon$, above 0: no class is ever ruled out.

    Shape:
        - `remember` takes pairs of an image `(C, H, W)` and its mask `(H, W)`.
        - `forward(probs (N, K, H, W), x (N, C, H, W))`: `(N, K, H, W)` guided probabilities, float32; unchanged
          until something is remembered.

    Raises:
        ValueError: If an option is out of range, the encoder does not declare its maps, or shapes do not fit.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> _ = torch.manual_seed(0)
        >>> encoder = smp.Unet("resnet18", encoder_weights=None).encoder
        >>> reference = LabeledReference(encoder, classes=2)
        >>> x, y = torch.randn(3, 3, 64, 64), torch.randint(2, (3, 64, 64))
        >>> reference.remember(list(zip(x, y)))
        >>> guided = reference(torch.full((1, 2, 64, 64), 0.5), torch.randn(1, 3, 64, 64))
        >>> guided.shape, bool((guided.sum(1) - 1).abs().max() < 1e-6)
        (torch.Size([1, 2, 64, 64]), True)
        >>> reference.trust.item()  # noise carries no information
        0.0
    """

    __call__: Callable[..., Tensor]

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
        strength: float | None = None,
        floor: float = 0.01,
    ) -> None:
        super().__init__()
        counts, factors = (capacity, positions, shorter_side), (temperature, floor)
        if not (
            all(within(n, 1, kind=Integral) for n in counts)
            and all(within(factor, 0) and factor > 0 for factor in factors)
        ):
            raise ValueError(
                "`capacity`, `positions`, `shorter_side` (whole numbers), `temperature` and `floor` must be above 0, "
                f"got {capacity}, {positions}, {shorter_side}, {temperature} and {floor}"
            )
        if strength is not None and not within(strength, 0):
            raise ValueError(
                f"`strength` must be at least 0, or None to measure it, got {strength}"
            )
        channels = getattr(encoder, "out_channels", None)
        if not (isinstance(channels, Sequence) and len(channels)):
            raise ValueError(
                "`encoder` must declare the `out_channels` of its maps, as SMP's do "
                f"(`net.encoder`), got {type(encoder).__name__} with {channels}"
            )
        copied: Any = copy.deepcopy(encoder).requires_grad_(False)
        self.encoder = copied
        self.classes = classes
        self.capacity = capacity
        self.positions = positions
        self._only_size, fixed = fixed_size(encoder)
        self.shorter_side = 1 if fixed else shorter_side
        self.temperature = temperature
        self.strength = strength
        self.floor = floor
        self._stride = int(getattr(encoder, "output_stride", 1)) * windows(encoder)
        self._widths = [int(width) for width in channels[-2:]]
        self.keys: Tensor
        self.values: Tensor
        self.owners: Tensor
        self.trust: Tensor
        self.register_buffer("keys", torch.zeros(capacity, sum(self._widths)))
        # Per position, the share of each class; all zero marks an empty slot.
        self.register_buffer("values", torch.zeros(capacity, max(classes, 2)))
        self.register_buffer(
            "owners", torch.full((capacity,), -1)
        )  # index of the image of each position
        self.register_buffer("trust", torch.zeros(()))  # the strength in use
        self.eval()

    @torch.no_grad()
    def remember(self, labeled: LabeledDataset, *, ignore_index: int = 255) -> None:
        """Fill the memory with the labeled images, replacing its content, and measure how far to trust them.

        Call it once before training, with images as for testing: normalised, not augmented. If there are more images
        than the memory can hold, every n-th is taken. If several processes train together, each remembers all images.

        Args:
            labeled: A list or data set of pairs, a float image `(C, H, W)` and its mask `(H, W)` of any integer type.
            ignore_index: Mask value without a class.

        Raises:
            TypeError: If an image is no tensor of floating point, or a mask none of integers.
            ValueError: If there are no images, shapes do not fit, a mask has another value than classes and
                `ignore_index`, or images are not finite. Then the memory is as it was.

        Warns:
            UserWarning: If no mask has a pixel with a class: then the reference has no effect.
        """
        if not len(labeled):
            raise ValueError("the reference needs at least one labeled image, got none")
        each = max(min(self.positions, self.capacity // len(labeled)), min(16, self.capacity))
        keys, values, owners = [], [], []
        for owner in evenly(len(labeled), self.capacity // each):
            x, y = self._check_pair(labeled[owner], owner, ignore_index)
            features = self._features(x)
            if not features.isfinite().all():  # nothing would be learned from any pseudo mask
                raise ValueError(
                    f"the features of labeled image {owner} are nan or infinite: mend or leave out its file"
                )
            grid = (features.shape[2], features.shape[3])
            shares = class_shares(y, self.values.shape[1], grid, ignore_index)
            value = shares.flatten(2).transpose(1, 2)
            kept = torch.unique(spread(value, each)[0])
            kept = kept[value[0, kept].sum(1) > 0]
            keys.append(features.flatten(2)[0].T[kept])
            values.append(value[0, kept])
            owners.append(torch.full((len(kept),), owner, device=x.device))
        if not any(map(len, values)):
            warnings.warn(
                "no labeled image has a pixel with a class, so the reference has nothing to remember and no effect",
                stacklevel=2,
            )
        for memory, new, empty in (
            (self.keys, keys, 0),
            (self.values, values, 0),
            (self.owners, owners, -1),
        ):
            memory.fill_(empty)
            if new:
                memory[: sum(map(len, new))] = torch.cat(new)
        self.trust.fill_(self.measure() if self.strength is None else self.strength)

    @property
    def remembers(self) -> bool:
        """Return whether the memory holds anything."""
        return bool((self.owners >= 0).any())

    @torch.no_grad()
    def measure(self) -> float:
        r"""Measure how far the evidence can be trusted: the $s$ that makes known pixels most likely.

        Each remembered position queries all others except those of its own image. With the same weight for every
        class, whatever its size, $s$ maximises the mean of $\log(r_y^s / \sum_k r_k^s)$ over chance, less one standard
        error over the images: evidence that may be luck does not count.

        Returns:
            $s$ in [0, 2]; 0 with fewer than two images.
        """
        filled = self.owners >= 0
        owners, values = self.owners[filled], self.values[filled]
        known = values.sum(0) > 0
        images = torch.unique(owners)
        if len(images) < 2:
            return 0.0
        evidence = (self._ratio(self.keys[filled], owners) + self.floor).log()[:, known]
        # Every class has the same weight, whatever its size, shared among the images by their pixels of it.
        weight = values[:, known] / values[:, known].sum(0) / known.sum()
        chance = -math.log(int(known.sum()))
        best, strength = 0.0, 0.0
        for s in torch.arange(0.05, 2.05, 0.05).tolist():
            gain = (weight * ((s * evidence).log_softmax(1) - chance)).sum(1)
            by_image = gain.new_zeros(int(images.max()) + 1).index_add_(0, owners, gain)[images]
            error = by_image.std() * len(images) ** 0.5
            if float(by_image.sum() - error) > best:
                best, strength = float(by_image.sum() - error), s
        return strength

    @torch.no_grad()
    def likelihood(self, x: Tensor) -> Tensor:
        """Compute $r_k$ of images `(N, C, H, W)`: `(N, max(K, 2), h, w)` on the grid of the features."""
        features = self._features(x)
        n, _, h, w = features.shape
        ratio = self._ratio(features.flatten(2).transpose(1, 2).flatten(0, 1))
        return ratio.view(n, h, w, -1).permute(0, 3, 1, 2)

    def forward(self, probs: Tensor, x: Tensor) -> Tensor:
        """Weight the probabilities of images `x` by their likelihoods."""
        if probs.shape[0] != x.shape[0] or probs.shape[2:] != x.shape[2:]:
            raise ValueError(
                "`probs` (N, K, H, W) and `x` (N, C, H, W) must belong to the same images, "
                f"got {tuple(probs.shape)} and {tuple(x.shape)}"
            )
        ratio = F.interpolate(self.likelihood(x), size=x.shape[2:], mode="bilinear") + self.floor
        return G.reweigh(probs, (ratio / ratio.amax(1, keepdim=True)) ** self.trust)

    def train(self, mode: bool = True) -> LabeledReference:
        """Stay in eval mode, whatever mode the owner sets."""
        return super().train(False)

    def _check_pair(
        self, pair: Sequence[Tensor], owner: int, ignore_index: int
    ) -> tuple[Tensor, Tensor]:
        """Return an image and its mask as batches of one, on this module's device."""
        if len(pair) != 2:
            raise ValueError(
                f"`labeled[{owner}]` must be a pair, an image and its mask, got {len(pair)} values"
            )
        x, y = pair
        name, mask = f"labeled[{owner}][0]", f"labeled[{owner}][1]"
        check_floats(name, x)
        check_tensor(mask, y)
        if x.dim() != 3:
            raise ValueError(f"`{name}` must have shape (C, H, W), got {tuple(x.shape)}")
        x, y = x.to(self.keys)[None], y.to(self.keys.device)[None]
        y = class_ids(y, x, (mask, name))
        check_classes(mask, y, self.values.shape[1], ignore_index)
        return x, y

    def _ratio(self, queries: Tensor, owners: Tensor | None = None) -> Tensor:
        r"""Compute $a_k / \pi_k$ of features `(Q, D)`: `(Q, max(K, 2))`; keys with the same owner are masked."""
        with torch.autocast(queries.device.type, enabled=False):
            filled = self.owners >= 0
            share = filled.float() / filled.sum().clamp(min=1)
            centre = share @ self.keys
            split = self._normalise(queries, centre)
            keys = self._normalise(self.keys, centre)
            scale = 1 / (self.temperature * len(keys))
            # A large negative number rather than -inf: with nothing remembered the softmax stays finite.
            similarity = torch.where(filled, 0.0, -1e4)
            if owners is not None:
                similarity = torch.where(owners[:, None] == self.owners, -1e4, similarity)
            # Written out: fused attention is slower for a few long vectors.
            for query, key in zip(split, keys, strict=True):
                similarity = torch.addmm(similarity, query, key.T, alpha=scale)
            classes = similarity.softmax(1) @ self.values
            classes = classes / classes.sum(1, keepdim=True).clamp(min=1e-6)
            frequency = self.values.sum(0) / self.values.sum().clamp(min=1e-6)
            # A class never seen gives no evidence: ratio 1.
            return torch.where(frequency > 0, classes / frequency.clamp(min=1e-3), 1.0)

    def _features(self, x: Tensor) -> Tensor:
        check_channels(self.encoder, x)
        # Integer arithmetic: rounding must not cost a row of the grid.
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
        except (
            AssertionError,
            RuntimeError,
        ) as error:  # raised by timm's encoders for sizes they do not accept
            reason = refusal(self.encoder, error, x)
            if reason is None:
                raise
            raise ValueError(
                f"the reference's encoder cannot take images of {size[0]} x {size[1]}: {reason}, or the method with "
                "`reference=None`"
            ) from error
        if isinstance(maps, tuple):  # a vision transformer also returns its prefix tokens
            maps = maps[0]
        finer: Tensor = maps[-len(self._widths)]
        if len(self._widths) == 1:
            return finer.float()
        deepest = F.interpolate(maps[-1], size=finer.shape[-2:], mode="bilinear")
        return torch.cat([finer, deepest], 1).float()

    def _normalise(self, features: Tensor, centre: Tensor) -> list[Tensor]:
        """Centre the features, then normalise each map, so that all count equally."""
        parts: tuple[Tensor, ...] = torch.split(features - centre, self._widths, dim=-1)
        return [F.normalize(part, dim=-1) for part in parts]

    def extra_repr(self) -> str:
        """Return the options that `repr` shows."""
        return (
            f"capacity={self.capacity}, temperature={self.temperature}, "
            f"strength={self.strength}, floor={self.floor}"
        )


def evenly(length: int, most: int) -> list[int]:
    """Choose up to `most` of `length` positions, evenly spaced.

    Examples:
        >>> evenly(3, 5), evenly(10, 4)
        ([0, 1, 2], [0, 2, 5, 7])
    """
    number = min(length, most)
    return [i * length // number for i in range(number)]


def class_shares(y: Tensor, classes: int, size: tuple[int, int], ignore_index: int = 255) -> Tensor:
    """Compute the share of each class in each cell of a grid: `(N, H, W)` -> `(N, classes, *size)`.

    Values outside the classes count for none.

    Examples:
        >>> class_shares(torch.tensor([[[0, 1], [255, 1]]]), classes=2, size=(1, 1)).flatten()
        tensor([0.2500, 0.5000])
    """
    check_ignore_index(classes, ignore_index)
    y = torch.where(y == ignore_index, -1, y)
    each = torch.arange(classes, device=y.device)[:, None, None]
    # Image by image: all at once would fill memory, and class by class makes a large graph to compile.
    return torch.stack([F.adaptive_avg_pool2d((mask == each).float(), size) for mask in y])


def spread(shares: Tensor, keep: int) -> Tensor:
    r"""Choose the positions of each image to keep: `(N, P, K)` class shares -> `(N, min(keep, P))` indices, rising.

    Keeps all positions if there are no more than `keep`. Otherwise samples systematically, at even steps along the
    running sum of the weights $\sum_k v_k / \sqrt{n_k}$: a position that holds most of a rare class may be drawn twice,
    a position without a class only if there is nothing else.

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
