"""UniMatch: FixMatch with two strong views and a view with disturbed features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gmix.methods.method import Method, Step
from gmix.nn.ema import EMATeacher
from gmix.nn.given import Options, optional_part
from gmix.nn.losses import check_unit_interval, check_weight
from gmix.nn.network import GuidedMixNet
from gmix.nn.pseudo import PseudoMask
from gmix.nn.views import Pasted, StrongView, disturb
from gmix.protocols import SupervisedLoss, Teacher

__all__ = ["UniMatch"]


class Seen(NamedTuple):
    """Logits of a step."""

    labeled: Tensor  # (N, K, H, W)
    weak: Tensor  # (M, K, H, W), which are not learned
    strong: Tensor  # (2M, K, H, W)
    boxes: list[Pasted]  # of either strong view
    features: Tensor  # (M, K, H, W), with disturbed features


class UniMatch(Method):
    r"""Learn the sure labels of the weak view on two strong views and a view with half of the channels dropped.

    $$L = L_{sup} + \tfrac{w}{2}(L_{s1} + L_{s2}) + w_{f} L_{features}$$

    with each $L$ as in [`FixMatch`][gmix.methods.FixMatch]. The authors divide the sum by 2, which does not change
    AdamW's steps.

    A `teacher` helps if there are few masks, as with [`FixMatch`][gmix.methods.FixMatch]; UniMatch V2 has one.

    Args:
        net: The network to train.
        threshold: Least confidence of a label that is learned.
        strong: $w$ of the two strong views together.
        features: $w_f$ of the view with disturbed features.
        drop: Share of the channels of the encoder's maps that are dropped.
        teacher: Labels the unlabeled images instead of the network itself; a teacher, or a mapping of its options.
        mean: Mean per channel that the images (in 0..1) were normalised with.
        std: Standard deviation per channel that they were normalised with. The strong view (`view`) uses both.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method].
        ignore_index: Mask value without a class.

    Returns:
        `supervised`, `strong` (mean of the two), `features` and `total`.

    Raises:
        ValueError: If `threshold` is outside [0, 1].

    Reference:
        Yang, Qi, Feng, Zhang, Shi, "Revisiting Weak-to-Strong Consistency in Semi-Supervised Semantic
        Segmentation", CVPR 2023; their VOC settings. With a teacher: Yang, Zhao, Zhao, "UniMatch V2", 2024.

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> method = UniMatch(GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3)))
        >>> x_l, y_l, x_u = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)), torch.randn(4, 3, 64, 64)
        >>> sorted(method(x_l, y_l, x_u))
        ['features', 'strong', 'supervised', 'total']
    """

    multilabel = True
    needs_progress = False

    def __init__(
        self,
        net: GuidedMixNet,
        *,
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
        super().__init__(net, supervised=supervised, ignore_index=ignore_index, threshold=threshold)
        check_weight("strong", strong)
        check_weight("features", features)
        check_unit_interval("drop", drop)
        self.teacher: Teacher | None = optional_part("teacher", partial(EMATeacher, net), teacher)
        self.view = StrongView(mean=mean, std=std)
        self.strong_weight = strong
        self.features_weight = features
        self.drop = drop

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the supervised loss, and the cross-entropies of the three views."""
        return self.learn(step, self.see(step))

    def see(self, step: Step) -> Seen:
        """Predict the labeled images, and the unlabeled ones in all views."""
        x_labeled, _, x_unlabeled, _, _, generator = step
        n, m, size = len(x_labeled), len(x_unlabeled), (x_labeled.shape[2], x_labeled.shape[3])
        views = [self.view(x_unlabeled, generator) for _ in range(2)]
        strong = torch.cat([view for view, _ in views])
        if self.teacher is None:
            features = self.net.encode(torch.cat([x_labeled, x_unlabeled]))
            labeled, weak = torch.split(self.net.decode(features, size), [n, m])
            strong = self.net(strong)
        else:
            weak = self.teacher.net(x_unlabeled)
            features = self.net.encode(torch.cat([x_labeled, x_unlabeled, strong]))
            learning = [torch.cat([f[:n], f[n + m :]]) for f in features]
            labeled, strong = torch.split(self.net.decode(learning, size), [n, 2 * m])
        disturbed = disturb([f[n : n + m] for f in features], self.drop, generator)
        boxes = [pasted for _, pasted in views]
        return Seen(labeled, weak, strong, boxes, self.net.decode(disturbed, size))

    def learn(self, step: Step, seen: Seen) -> dict[str, Tensor]:
        """Compute the losses of predictions."""
        pseudo = PseudoMask.of(seen.weak, step.valid, self.ignore_index)
        supervised = self.supervised(seen.labeled, step.y_labeled)
        strong, features = self.agree(seen, pseudo, self.threshold)
        total = supervised + self.strong_weight * strong + self.features_weight * features
        return {"supervised": supervised, "strong": strong, "features": features, "total": total}

    def agree(self, seen: Seen, pseudo: PseudoMask, threshold: float) -> tuple[Tensor, Tensor]:
        """Compute the losses with these labels: the mean of the strong views, and that of disturbed features."""
        each = [
            pseudo.paste(pasted).loss(out, threshold, self.ignore_index)
            for out, pasted in zip(seen.strong.chunk(2), seen.boxes, strict=True)
        ]
        return torch.stack(each).mean(), pseudo.loss(seen.features, threshold, self.ignore_index)
