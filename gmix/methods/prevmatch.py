"""PrevMatch: UniMatch that also learns the labels of networks from earlier in the training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gmix.methods.method import Step, inside_of
from gmix.methods.unimatch import UniMatch
from gmix.nn.given import Options
from gmix.nn.losses import check_unit_interval, check_weight
from gmix.nn.network import GuidedMixNet
from gmix.nn.pseudo import PseudoMask
from gmix.nn.snapshots import Snapshots
from gmix.protocols import SupervisedLoss, Teacher

__all__ = ["PrevMatch"]


class PrevMatch(UniMatch):
    r"""Learn, on the views of UniMatch, its sure labels and those of a random mean of earlier networks.

    $$L = L_{UniMatch} + w_p\,\lambda(t)\,\tfrac12\left(\tfrac12(L^p_{s1} + L^p_{s2}) + L^p_{features}\right)$$

    with each $L^p$ as in [`UniMatch`][gmix.methods.UniMatch], of the same predictions, but with the labels of one to
    `models` of the last `kept` networks of this training: their logits are averaged with random weights (Dirichlet),
    drawn anew in every step. $\lambda$ rises linearly from 0 to 1 until half of the training, and falls to 0 until its
    end.

    The authors keep a network after each epoch that was the best so far on validation images. A method sees none of
    these: it keeps one after each `every` of the training. The authors divide the sum by $2 + \lambda$, which hardly
    changes AdamW's steps. In their training no EMA teacher takes part; `teacher` replaces the network's own labels, as
    in UniMatch. On Cityscapes they weigh by the mean confidence instead of using `previous_threshold`, which is not
    implemented.

    Args:
        net: The network to train.
        previous: $w_p$ of the earlier networks' labels.
        previous_threshold: Least confidence of an earlier networks' label that is learned.
        kept: Number of earlier networks that are kept, each of the size of the network.
        models: Largest number of them whose mean labels an image.
        every: Share of the training after which the next is kept; the authors' epoch is 1/80.
        threshold: Least confidence of the network's own label that is learned.
        strong: $w$ of the two strong views together.
        features: $w_f$ of the view with disturbed features.
        drop: Share of the channels of the encoder's maps that are dropped.
        teacher: Labels the unlabeled images instead of the network itself; a teacher, or a mapping of its options.
        mean: Mean per channel that the images (in 0..1) were normalised with.
        std: Standard deviation per channel that they were normalised with. The strong view (`view`) uses both.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method].
        ignore_index: Mask value without a class.

    Returns:
        `supervised`, `strong` (mean of the two), `features`, `previous` (mean of both with the earlier networks'
        labels) and `total`.

    Raises:
        ValueError: If a threshold is outside [0, 1], or `kept`, `models` or `every` is out of range.

    Reference:
        Shin, Park, Kim, Han, "Revisiting and Maximizing Temporal Knowledge in Semi-supervised Semantic Segmentation",
        2024 (github.com/wooseok-shin/PrevMatch); their VOC settings.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> method = PrevMatch(GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3)), kept=2)
        >>> x_l, y_l, x_u = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)), torch.randn(4, 3, 64, 64)
        >>> sorted(method(x_l, y_l, x_u, progress=0.5))
        ['features', 'previous', 'strong', 'supervised', 'total']
    """

    needs_progress = True

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        previous: float = 1.0,
        previous_threshold: float = 0.9,
        kept: int = 8,
        models: int = 3,
        every: float = 0.025,
        threshold: float = 0.95,
        strong: float = 0.5,
        features: float = 0.5,
        drop: float = 0.5,
        teacher: Teacher | Options | None = None,
        mean: Sequence[float] | float = (0.485, 0.456, 0.406),
        std: Sequence[float] | float = (0.229, 0.224, 0.225),
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(
            net,
            threshold=threshold,
            strong=strong,
            features=features,
            drop=drop,
            teacher=teacher,
            mean=mean,
            std=std,
            supervised=supervised,
            ignore_index=ignore_index,
        )
        check_weight("previous", previous)
        check_unit_interval("previous_threshold", previous_threshold)
        self.previous_threshold = previous_threshold
        self.previous_weight = previous
        self.snapshots = Snapshots(net, kept, models, every)

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the losses of UniMatch, and those with the labels of earlier networks."""
        if self.training:
            self.snapshots.take(self.net, step.progress)
        seen = self.see(step)
        losses = self.learn(step, seen)
        total = losses.pop("total")
        logits = self.snapshots(self.net, step.x_unlabeled, step.generator)
        # Before the first snapshot there is nothing to learn.
        pseudo = PseudoMask.of(
            logits, inside_of(step) & (self.snapshots.taken > 0), self.ignore_index
        )
        strong, features = self.agree(seen, pseudo, self.previous_threshold)
        losses["previous"] = (strong + features) / 2
        rise_and_fall = 1 - (1 - 2 * torch.as_tensor(step.progress)).abs()
        losses["total"] = total + self.previous_weight * rise_and_fall * losses["previous"]
        return losses
