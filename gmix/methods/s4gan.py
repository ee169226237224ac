"""s4GAN: a critic of images with their class maps, feature matching and self-training; with or without MLMT."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmix import functional as G
from gmix.methods.method import Method, Step, inside_of
from gmix.nn.critic import SlowLinear, StridedLayers, call_constant, score_loss
from gmix.nn.ema import EMATeacher
from gmix.nn.late import LateCopy
from gmix.nn.losses import check_weight
from gmix.nn.modes import forget_casts
from gmix.nn.network import GuidedMixNet
from gmix.nn.pseudo import PseudoMask
from gmix.nn.views import GaussianBlur, StrongColor
from gmix.protocols import SupervisedLoss

__all__ = ["S4GAN"]


class S4GAN(Method):
    r"""Train the network against a critic of whole images, and on the labels of images that the critic trusts.

    $$L = L_{sup} + w_m \lVert \bar f(x_l, y_l) - \bar f(x_u, \hat y_u) \rVert_1
    + w\,\mathrm{CE}(\hat y_u, \arg\max \hat y_u)\,[D(x_u, \hat y_u) > \tau] + L_D$$

    $$L_D = \tfrac12 \mathrm{BCE}(D(x_l, y_l), 1) + \tfrac12 \mathrm{BCE}(D(x_u, \hat y_u), 0)$$

    $D$ sees the image (0..1) and its class map together and gives one score; $\bar f$ is the mean over the batch of its
    pooled features, whose distance is a mean over channels. The cross-entropy is a mean over the trusted images.

    One backward pass trains both: in the terms that train the network, the weights of $D$ are constants; in $L_D$, the
    maps are detached. $D$ learns at a tenth of the decoder's rate (`gmix.nn.critic`); theirs is 1e-4 with Adam.
    Ignored pixels and padding are 0 in class maps; an image of nothing but padding does not count.

    With `mlmt`, a second encoder with a linear layer learns which classes occur in an image, and on strongly coloured
    images to agree with its EMA teacher (cosine of the logits). Classes whose probability is below 0.2 for the teacher
    are removed from the labels of self-training and from `pseudo_masks`. The paper trains this branch by itself and
    removes classes at test time; here one network is deployed, so the branch acts on what it learns.

    Args:
        net: The network to train.
        threshold: $\tau$, 0.6; 0.7 on Cityscapes.
        matching: $w_m$.
        unsupervised: $w$.
        mlmt: Whether to train the classification branch.
        mean: Mean per channel that the images (in 0..1) were normalised with.
        std: Standard deviation per channel that they were normalised with.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method].
        ignore_index: Mask value without a class.

    Returns:
        `supervised`, `matching`, `unsupervised`, `discriminator` ($L_D$), with `mlmt` also `classification` and
        `consistency`, and `total`.

    Raises:
        ValueError: If `threshold` is outside [0, 1].

    Reference:
        Mittal, Tatarchenko, Brox, "Semi-Supervised Semantic Segmentation with High- and Low-level Consistency", 2019;
        https://github.com/sud0301/semisup-semseg, where images are scaled by their extremes, not `mean` and `std`.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> method = S4GAN(GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3)))
        >>> x_l, y_l, x_u = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)), torch.randn(4, 3, 64, 64)
        >>> sorted(method(x_l, y_l, x_u))
        ['discriminator', 'matching', 'supervised', 'total', 'unsupervised']
    """

    needs_progress = False

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        threshold: float = 0.6,
        matching: float = 0.1,
        unsupervised: float = 1.0,
        mlmt: bool = False,
        mean: Sequence[float] | float = (0.485, 0.456, 0.406),
        std: Sequence[float] | float = (0.229, 0.224, 0.225),
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(net, supervised=supervised, ignore_index=ignore_index, threshold=threshold)
        check_weight("matching", matching)
        check_weight("unsupervised", unsupervised)
        if not isinstance(mlmt, bool):
            raise ValueError(f"`mlmt` must be True or False, got {mlmt!r}")
        self.require(
            "in_channels", *(["adapter", "embed", "embedding_dim", "encoder"] if mlmt else [])
        )
        self.discriminator = Critic(net.classes + net.in_channels)
        self.color = StrongColor(strength=0.4, p=1.0, grey=0.0, hue=0.1, mean=mean, std=std)
        self.blur = GaussianBlur()
        self.branch = Branch(net) if mlmt else None
        self.branch_teacher = None if self.branch is None else EMATeacher(self.branch, 0.999)
        self._late = None if self.branch is None else LateCopy(self.branch.net.encoder)
        self.needs_progress = mlmt
        self.weights = (matching, unsupervised)

    def on_step_start(self, x_labeled: Tensor, y_labeled: Tensor) -> None:
        """Begin a step; the branch's teacher moves on."""
        super().on_step_start(x_labeled, y_labeled)
        if self.branch is not None and self.branch_teacher is not None:
            self.branch_teacher.update(self.branch)

    def on_first_step(self) -> None:
        """Copy the encoder to the branch again."""
        if self.branch is not None and self._late is not None:
            self._late.repeat(self.branch.net.encoder, self.net.encoder)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the losses of the network, of its critic, and of the branch."""
        x_labeled, y_labeled, x_unlabeled, progress, valid, generator = step
        n, x = len(x_labeled), torch.cat([x_labeled, x_unlabeled])
        logits = self.net(x)
        inside = inside_of(step)
        probs = G.probabilities(logits[n:]) * inside[:, None]
        truth = G.fill_in(torch.zeros_like(logits[:n]).float(), y_labeled, self.ignore_index)
        images = (x * self.color.std + self.color.mean).clamp(0, 1)
        maps = torch.cat([torch.cat([truth, probs]), images], 1)
        every, seen = inside.new_ones(n, 1, 1), inside.flatten(1).any(1)[:, None, None]

        features = call_constant(self.discriminator, maps, generator).float()
        fake = (features[n:] * seen[:, 0]).sum(0) / seen.sum().clamp(min=1)
        trusted = self.discriminator.score(features[n:].detach()).sigmoid()[:, 0] > self.threshold
        answers = self.discriminator.score(self.discriminator(maps.detach(), generator))
        occurs = None if self.branch_teacher is None else self.branch_teacher.net(x_unlabeled)
        pseudo = PseudoMask.of(present_only(logits[n:], occurs), valid, self.ignore_index)
        labels = pseudo.labels.masked_fill(~trusted, self.ignore_index)
        losses = {
            "supervised": self.supervised(logits[:n], y_labeled),
            "matching": (features[:n].mean(0) - fake).abs().mean() * seen.any(),
            "unsupervised": G.cross_entropy(logits[n:], labels, ignore_index=self.ignore_index),
            "discriminator": score_loss(answers[:n], 1, every) / 2
            + score_loss(answers[n:], 0, seen) / 2,
        }
        total = losses["supervised"] + losses["discriminator"]
        total = total + self.weights[0] * losses["matching"]
        total = total + self.weights[1] * losses["unsupervised"]
        if self.branch is not None and occurs is not None:
            view = self.blur(self.color(x_unlabeled, generator), generator)
            found = self.branch(torch.cat([x_labeled, view])).float()
            present = G.present_classes(y_labeled, found.shape[1], ignore_index=self.ignore_index)
            apart = 1 - F.cosine_similarity(found[n:], occurs.float())
            losses["classification"] = F.binary_cross_entropy_with_logits(found[:n], present)
            losses["consistency"] = (apart * seen[:, 0, 0]).sum() / seen.sum().clamp(min=1)
            # From a tenth of the training on, in the half after it.
            omega = torch.as_tensor(2 * (progress - 0.1)).clamp(0, 1)
            total = total + losses["classification"] + omega * losses["consistency"]
        return {**losses, "total": total}

    @torch.no_grad()
    def pseudo_masks(
        self,
        x_labeled: Tensor,
        y_labeled: Tensor,
        x_unlabeled: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Compute the network's prediction, of the classes that the branch sees."""
        probs = super().pseudo_masks(x_labeled, y_labeled, x_unlabeled, generator)
        if self.branch is None or self.branch_teacher is None:
            return probs
        self.branch_teacher.catch_up(self.branch)
        logits = probs.logit() if probs.shape[1] == 1 else probs.log()
        probs = G.probabilities(present_only(logits, self.branch_teacher.net(x_unlabeled)))
        forget_casts()
        return probs


def present_only(logits: Tensor, occurs: Tensor | None) -> Tensor:
    """Remove the classes of logits `(N, K, H, W)` that do not occur; if none does, all remain.

    Args:
        logits: `(N, K, H, W)`.
        occurs: `(N, K)` logits of the branch: below a probability of 0.2 a class is absent. None removes nothing.

    Examples:
        >>> present_only(torch.ones(1, 2, 1, 1), torch.tensor([[-2.0, -1.0]])).flatten()
        tensor([-inf, 1.])
    """
    if occurs is None:
        return logits
    present = occurs.sigmoid() >= 0.2
    if logits.shape[1] > 1:
        present = present | ~present.any(1, keepdim=True)
    return logits.float().masked_fill(~present[:, :, None, None], -torch.inf)


class Critic(nn.Module):
    """Pool the features of images with their class maps, `(N, C + K, H, W)`: `(N, 8 * width)`; half drop in training.

    Examples:
        >>> critic = Critic(channels=6)
        >>> features = critic(torch.ones(2, 6, 32, 32))
        >>> features.shape, critic.score(features).shape
        (torch.Size([2, 512]), torch.Size([2, 1, 1, 1]))
    """

    __call__: Callable[..., Tensor]

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = StridedLayers(channels)
        self.last = SlowLinear(self.layers.out_channels, 1)

    def forward(self, maps: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pool the features."""
        return self.layers(maps, 0.5 if self.training else 0.0, generator).mean((2, 3))

    def score(self, features: Tensor) -> Tensor:
        """Score pooled features: logits `(N, 1, 1, 1)`, above 0 for a true mask."""
        return self.last(features)[:, :, None, None]


class Branch(nn.Module):
    """A copy of the network's encoder with a linear layer: logits `(N, K)` of the classes in an image."""

    __call__: Callable[..., Tensor]

    def __init__(self, net: GuidedMixNet) -> None:
        super().__init__()
        self.net = copy.deepcopy(net)
        self.net.mitrans = None
        self.net.adapter.drop_decoder()
        self.last = nn.Linear(net.embedding_dim, net.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Classify images."""
        logits: Tensor = self.last(self.net.embed(x))
        return logits
