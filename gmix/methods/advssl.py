"""Adversarial learning: a discriminator tells predictions from masks, pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmix import functional as G
from gmix.methods.method import Method, Step, inside_of
from gmix.nn.critic import SlowConv2d, StridedLayers, call_constant, score_loss
from gmix.nn.losses import check_unit_interval, check_weight
from gmix.nn.network import GuidedMixNet
from gmix.nn.pseudo import PseudoMask
from gmix.protocols import SupervisedLoss

__all__ = ["AdvSSL"]


class AdvSSL(Method):
    r"""Train the network against a discriminator of class maps, and on the labels that the discriminator trusts.

    $$L = L_{sup} + w_l\,\mathrm{BCE}(D(\hat y_l), 1) + w_u\,\mathrm{BCE}(D(\hat y_u), 1)
    + w_s\,\mathrm{CE}(\hat y_u, \arg\max \hat y_u)\,[D(\hat y_u) \ge \tau] + L_D$$

    $$L_D = \tfrac12 \mathrm{BCE}(D(y_l), 1) + \tfrac12 \mathrm{BCE}(D(\hat y_l, \hat y_u), 0)$$

    $D$ sees probabilities, or a one-hot mask that is 0 where there is no class, and answers for each pixel: five
    convolutions of stride 2, upsampled. Ignored pixels and padding do not count. The cross-entropy of trusted labels is
    the mean over the trusted pixels and begins at `start`.

    One backward pass trains both. In the terms that train the network, the weights of $D$ are constants; in $L_D$,
    the predictions are detached. So each gets the gradients of its own terms, as with the authors' two optimizers.
    $D$ learns at a tenth of the decoder's rate (`gmix.nn.critic`); theirs is 1e-4 with Adam.

    The settings are those of the paper for VOC and of the authors' command (their code's default for $w_l$ is 0.1).
    Their masks for $D$ are another draw of labeled images; here they are those of the batch.

    Args:
        net: The network to train.
        threshold: $\tau$, least score of a pixel whose label is learned.
        adversarial: $w_l$, of labeled images.
        adversarial_unlabeled: $w_u$.
        unsupervised: $w_s$.
        start: Share of the training after which trusted labels are learned: 5,000 of 20,000 steps.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method].
        ignore_index: Mask value without a class.

    Returns:
        `supervised`, `adversarial`, `adversarial_unlabeled`, `unsupervised` (0 before `start`), `discriminator`
        ($L_D$) and `total`.

    Raises:
        ValueError: If `threshold` or `start` is outside [0, 1].

    Reference:
        Hung, Tsai, Liou, Lin, Yang, "Adversarial Learning for Semi-Supervised Semantic Segmentation", BMVC 2018;
        https://github.com/hfslyc/AdvSemiSeg.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> method = AdvSSL(GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3)))
        >>> x_l, y_l, x_u = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)), torch.randn(4, 3, 64, 64)
        >>> sorted(method(x_l, y_l, x_u, progress=0.5))
        ['adversarial', 'adversarial_unlabeled', 'discriminator', 'supervised', 'total', 'unsupervised']
    """

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        threshold: float = 0.2,
        adversarial: float = 0.01,
        adversarial_unlabeled: float = 0.001,
        unsupervised: float = 0.1,
        start: float = 0.25,
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(net, supervised=supervised, ignore_index=ignore_index, threshold=threshold)
        self.discriminator = Discriminator(net.classes)
        check_weight("adversarial", adversarial)
        check_weight("adversarial_unlabeled", adversarial_unlabeled)
        check_weight("unsupervised", unsupervised)
        self.weights = (adversarial, adversarial_unlabeled, unsupervised)
        check_unit_interval("start", start)
        self.start = start

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the losses of the network, and that of the discriminator."""
        x_labeled, y_labeled, x_unlabeled, progress, valid, _ = step
        n = len(x_labeled)
        logits = self.net(torch.cat([x_labeled, x_unlabeled]))
        probs = G.probabilities(logits)
        known = y_labeled != self.ignore_index
        inside = inside_of(step)
        counted = torch.cat([known, inside])

        scores = call_constant(self.discriminator, probs)
        pseudo = PseudoMask.of(logits[n:], valid, self.ignore_index)
        doubted = scores[n:, 0].detach().sigmoid() < self.threshold
        labels = pseudo.labels.masked_fill(doubted, self.ignore_index)
        begun = 1.0 * (progress >= self.start)
        truth = G.fill_in(torch.zeros_like(probs[:n]), y_labeled, self.ignore_index)
        answers = self.discriminator(torch.cat([truth, probs.detach()]))
        losses = {
            "supervised": self.supervised(logits[:n], y_labeled),
            "adversarial": score_loss(scores[:n], 1, known),
            "adversarial_unlabeled": score_loss(scores[n:], 1, inside),
            "unsupervised": begun
            * G.cross_entropy(logits[n:], labels, ignore_index=self.ignore_index),
            "discriminator": score_loss(answers[:n], 1, known) / 2
            + score_loss(answers[n:], 0, counted) / 2,
        }
        weighted = zip((1.0, *self.weights, 1.0), losses.values(), strict=True)
        return {**losses, "total": torch.stack([w * loss for w, loss in weighted]).sum()}


class Discriminator(nn.Module):
    """Score each pixel of class maps `(N, K, H, W)`: `(N, 1, H, W)` logits, above 0 for a mask.

    Examples:
        >>> Discriminator(classes=3)(torch.ones(2, 3, 50, 40)).shape
        torch.Size([2, 1, 50, 40])
    """

    __call__: Callable[..., Tensor]

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layers = StridedLayers(classes, multiple=32)
        self.last = SlowConv2d(self.layers.out_channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """Score each pixel."""
        scores = F.interpolate(self.last(self.layers(maps)), scale_factor=32, mode="bilinear")
        return scores[..., : maps.shape[2], : maps.shape[3]]
