"""U2PL: unreliable pixels are learned too, as what they are not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmix import functional as G
from gmix.functional.masks import of_all_classes
from gmix.methods.method import Method, Step
from gmix.nn.bank import FeatureBank
from gmix.nn.ema import EMATeacher
from gmix.nn.losses import check_count, check_positive, check_unit_interval, check_weight
from gmix.nn.network import GuidedMixNet
from gmix.nn.pseudo import PseudoMask
from gmix.nn.views import CutMix
from gmix.protocols import SupervisedLoss

__all__ = ["U2PL"]


class U2PL(Method):
    r"""Learn a teacher's reliable labels, and move features away from those of pixels that are not of their class.

    $$L = L_{sup} + w\,\frac{|\Omega|}{|R|}\,\mathrm{CE}_R(\hat y_u, \arg\max \hat y'_u) + w_c L_c$$

    $$L_c = -\operatorname{mean}_{k, a} \log \frac{e^{\cos(a, p_k) / \tau}}
    {e^{\cos(a, p_k) / \tau} + \sum_j e^{\cos(a, n_{kj}) / \tau}}$$

    $R$ leaves out the share $\alpha_t = \alpha (1 - t)$ of the pixels whose entropy is highest for the teacher. For
    each class k, `queries` anchors $a$ are drawn from labeled pixels and from the $\alpha_t$ of the lowest entropy,
    where the teacher gives k more than `least`; $p_k$ is the mean of the teacher's features of pixels of k; `negatives`
    features $n_{kj}$ are drawn from the bank of k and the new ones of this call. Into it go the teacher's features of

    - unlabeled pixels of the $\alpha_t$ of the highest entropy for which k is unlikely: from `low_rank` on in the order
      of probabilities, before place 20;
    - labeled pixels of other classes which the teacher may take for k: a place before `low_rank`.

    This is the paper's definition; the authors' code also asks that the label be k. Features come from a projection
    head on the deepest map of any encoder (theirs: beside the classifier of DeepLabv3+), labels from its grid. Their
    bank holds 30,000 features of a class from maps of stride 4; `bank` is for coarser maps. They are drawn as of the
    start of a step, so that micro-batches do not depend on each other. The teacher is in eval mode, training begins
    without the authors' supervised epoch, and the supervised loss is cross-entropy (theirs for VOC: OHEM).

    Args:
        net: The network to train.
        unreliable: $\alpha$, the share of unreliable pixels at the start.
        unsupervised: $w$.
        contrastive: $w_c$.
        queries: Number of anchors of a class.
        negatives: Number of negatives of an anchor.
        temperature: $\tau$.
        least: Least probability of an anchor.
        low_rank: Classes a pixel may be of; 3, or half of the classes if there are fewer than 6.
        bank: Features of a class to draw from. A call adds up to an eighth.
        decay: Decay of the teacher.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method].
        ignore_index: Mask value without a class.

    Returns:
        `supervised`, `unsupervised`, `contrastive` and `total`.

    Raises:
        ValueError: If `unreliable` is outside [0, 1] or `bank` is below 8.

    Reference:
        Wang et al., "Semi-Supervised Semantic Segmentation Using Unreliable Pseudo-Labels", CVPR 2022;
        https://github.com/Haochen-Wang409/U2PL, settings for VOC.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> method = U2PL(GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3)))
        >>> x_l, y_l, x_u = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)), torch.randn(4, 3, 64, 64)
        >>> sorted(method(x_l, y_l, x_u, progress=0.5))
        ['contrastive', 'supervised', 'total', 'unsupervised']
    """

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        unreliable: float = 0.2,
        unsupervised: float = 1.0,
        contrastive: float = 1.0,
        queries: int = 256,
        negatives: int = 50,
        temperature: float = 0.5,
        least: float = 0.3,
        low_rank: int | None = None,
        bank: int = 1000,
        decay: float = 0.99,
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(net, supervised=supervised, ignore_index=ignore_index)
        self.require("embedding_dim", "padded")
        check_unit_interval("unreliable", unreliable)
        check_unit_interval("least", least)
        check_weight("unsupervised", unsupervised)
        check_weight("contrastive", contrastive)
        check_positive("temperature", temperature)
        check_count("queries", queries)
        check_count("negatives", negatives)
        if low_rank is not None:
            check_count("low_rank", low_rank)
        width, classes = 256, max(net.classes, 2)
        self.projector = nn.Sequential(
            nn.Conv2d(net.embedding_dim, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 1),
        )
        self.bank = FeatureBank(classes, bank, width)
        self.teacher = EMATeacher(net, decay)
        self.projector_teacher = EMATeacher(self.projector, decay)
        self.cutmix = CutMix(p=0.5, area=(0.5, 0.5), aspect=2.0)
        self.unreliable, self.weights = unreliable, (unsupervised, contrastive)
        self.queries, self.negatives, self.temperature = queries, negatives, temperature
        self.least = least
        self.low_rank = min(3, classes // 2) if low_rank is None else low_rank

    def on_step_start(self, x_labeled: Tensor, y_labeled: Tensor) -> None:
        """Begin a step; the projection's teacher moves on, and the step will draw from what the bank holds now."""
        super().on_step_start(x_labeled, y_labeled)
        self.projector_teacher.update(self.projector)
        self.bank.start_step()

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the supervised, the unsupervised and the contrastive loss."""
        x_labeled, y_labeled, x_unlabeled, progress, valid, generator = step
        n, size = len(x_labeled), (x_labeled.shape[2], x_labeled.shape[3])
        pasted = self.cutmix(x_unlabeled, generator)
        weak = PseudoMask.of(self.teacher.net(x_unlabeled), valid, self.ignore_index)
        labels = weak.paste(pasted).labels
        x = torch.cat([x_labeled, pasted.apply(x_unlabeled)])
        features = self.net.encode(x)
        logits = self.net.decode(features, size)
        with torch.no_grad():
            taught = self.teacher.net.encode(x)
            keys = self.projector_teacher.net(taught[-1])
            probs = of_all_classes(G.probabilities(self.teacher.net.decode(taught, size)))
            doubt, inside = 1 - G.certainty(probs[n:]), labels != self.ignore_index
            share = self.unreliable * (1 - progress)
            high = doubt >= percentile(doubt, inside, 1 - share)
            low = inside & (doubt <= percentile(doubt, inside, share))
            reliable = labels.masked_fill(high, self.ignore_index)
            factor = inside.sum() / (reliable != self.ignore_index).sum().clamp(min=1)
            y, known = torch.cat([y_labeled, labels]), y_labeled != self.ignore_index
            more = (y, torch.cat([known, low]), torch.cat([known, inside & high]))
            maps = torch.cat([probs, *(v[:, None].float() for v in more)], 1)
            padded = self.net.padded(*size)
            maps = F.pad(maps, (0, padded[1] - size[1], 0, padded[0] - size[0]))
            cells = F.interpolate(maps, size=keys.shape[2:], mode="nearest")
        supervised = self.supervised(logits[:n], y_labeled)
        unsupervised = factor * G.cross_entropy(
            logits[n:], reliable, ignore_index=self.ignore_index
        )
        contrastive = self.contrast(self.projector(features[-1]), keys, cells, n, generator)
        total = supervised + self.weights[0] * unsupervised + self.weights[1] * contrastive
        losses = {"supervised": supervised, "unsupervised": unsupervised}
        return {**losses, "contrastive": contrastive, "total": total}

    def contrast(
        self, z: Tensor, keys: Tensor, cells: Tensor, n: int, generator: torch.Generator | None
    ) -> Tensor:
        """Compute $L_c$, and add the teacher's features `keys` of negatives to the bank.

        Args:
            z: `(N, D, h, w)` features of the network.
            keys: `(N, D, h, w)`, the teacher's.
            cells: `(N, K + 3, h, w)`: the teacher's probabilities, the label, and whether its entropy is low, high.
            n: Number of labeled images, which are the first.
            generator: Source of randomness.
        """
        table = cells.transpose(0, 1).flatten(1)
        probs, (label, low, high) = table[:-3], table[-3:]
        labeled = torch.arange(len(label), device=z.device) < n * z.shape[2] * z.shape[3]
        classes = torch.arange(len(probs), device=z.device)[:, None]
        own = label == classes
        rank = probs.argsort(0, descending=True).argsort(0)
        unlikely = (rank >= self.low_rank) & (rank < 20)
        other = torch.where(labeled, ~own & (rank < self.low_rank), unlikely) & (high > 0)
        own = own & (low > 0)
        anchors = own & (probs > self.least)
        with torch.autocast(z.device.type, enabled=False):
            z, keys = (F.normalize(v.float().transpose(0, 1).flatten(1).T) for v in (z, keys))
            score = torch.rand(other.shape, generator=generator, device=z.device)
            score = score.masked_fill(~other, -1.0)
            best, places = score.topk(min(self.bank.size // 8, len(z)))
            fresh, is_fresh = keys[places], best >= 0

            u = torch.rand(len(own), self.queries, generator=generator, device=z.device)
            place = one_of(anchors.sum(1, keepdim=True), u) + 1
            chosen = torch.searchsorted(anchors.long().cumsum(1), place).clamp(max=len(z) - 1)
            positive = F.normalize(own.float() @ keys)  # the sum has the direction of the mean
            number = self.bank.held[:, None] + is_fresh.sum(1, keepdim=True)
            count = self.queries * self.negatives
            u = torch.rand(len(own), count, generator=generator, device=z.device)
            column = self.bank.columns(one_of(number, u))
            a, against = z[chosen], torch.cat([self.bank.ring, fresh], 1)
            column = column.clamp(max=against.shape[1] - 1).view(*chosen.shape, -1)
            # One product with the whole bank is smaller than all the negatives side by side.
            negative = (a @ against.transpose(1, 2)).gather(2, column)
            ratio = torch.cat([(a * positive[:, None]).sum(2, keepdim=True), negative], 2)
            each = -(ratio / self.temperature).log_softmax(2)[..., 0].mean(1)
            there = own.any(1)
            counts = anchors.any(1) & (number[:, 0] > 0) & (there.sum() > 1)
            loss: Tensor = (each * counts).sum() / there.sum().clamp(min=1)
        if self.training:
            self.bank.add(fresh, is_fresh)
        return loss


def one_of(number: Tensor, u: Tensor) -> Tensor:
    """Turn draws `u` of [0, 1) into indices below `number`, even if the product is rounded up; 0 if it is 0.

    Examples:
        >>> one_of(torch.tensor([4, 0]), torch.tensor([0.5, 0.5])).tolist()
        [2, 0]
    """
    return torch.minimum((u * number).long(), number - 1).clamp(min=0)


def percentile(values: Tensor, counted: Tensor, share: float | Tensor) -> Tensor:
    """Compute the value below which a share of the counted values lies, between two of them if need be; else nan.

    Examples:
        >>> percentile(torch.tensor([3.0, 1.0, 2.0, 9.0]), torch.tensor([True, True, True, False]), 0.75)
        tensor(2.5000)
    """
    ordered = values.masked_fill(~counted, torch.inf).flatten().sort().values
    place = (share * (counted.sum() - 1).clamp(min=0)).clamp(min=0)
    around = torch.stack([place.floor(), place.ceil()]).long()
    low, high = ordered.gather(0, around)
    found: Tensor = low + (high - low) * (place - place.floor())
    return found
