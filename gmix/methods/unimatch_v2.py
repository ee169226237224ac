"""UniMatch V2: a teacher's sure labels, on two strong views that lose complementary channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gmix.methods.method import Method, Step
from gmix.nn.ema import EMATeacher
from gmix.nn.losses import check_unit_interval, check_weight
from gmix.nn.network import GuidedMixNet
from gmix.nn.pseudo import PseudoMask
from gmix.nn.views import StrongView, drop_complements
from gmix.protocols import SupervisedLoss

__all__ = ["UniMatchV2"]


class UniMatchV2(Method):
    r"""Learn a teacher's sure labels on two strong views whose features lose complementary halves of the channels.

    $$L = L_{sup} + \tfrac{w}{2}(L_{s1} + L_{s2})$$

    with each $L_s$ as in [`FixMatch`][gmix.methods.FixMatch], with the labels of an EMA teacher. The third view of
    [`UniMatch`][gmix.methods.UniMatch] is gone. Instead, of half of the images, each channel of the encoder's maps is
    dropped in one strong view and doubled in the other. The authors divide the sum by 2, which does not change AdamW's
    steps.

    Channels are drawn for each map: the authors' four maps of DINOv2 have the same channels and share the draw. Their
    teacher also averages BatchNorm statistics; here they are copied, as always.

    Args:
        net: The network to train.
        threshold: Least confidence of a label that is learned.
        strong: $w$ of the two strong views together.
        whole: Share of the images whose views keep all channels.
        decay: Decay of the teacher.
        mean: Mean per channel that the images (in 0..1) were normalised with.
        std: Standard deviation per channel that they were normalised with. The strong view (`view`) uses both.
        supervised: Loss of the labeled images instead of cross-entropy, as in every [`Method`][gmix.methods.Method].
        ignore_index: Mask value without a class.

    Returns:
        `supervised`, `strong` (mean of the two) and `total`.

    Raises:
        ValueError: If `threshold` or `whole` is outside [0, 1].

    Reference:
        Yang, Zhao, Zhao, "UniMatch V2: Pushing the Limit of Semi-Supervised Semantic Segmentation", TPAMI 2025
        (github.com/LiheYoung/UniMatch-V2).

    Examples:
        >>> import segmentation_models_pytorch as smp
        >>> method = UniMatchV2(GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3)))
        >>> x_l, y_l, x_u = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64)), torch.randn(4, 3, 64, 64)
        >>> sorted(method(x_l, y_l, x_u))
        ['strong', 'supervised', 'total']
    """

    multilabel = True
    needs_progress = False

    def __init__(
        self,
        net: GuidedMixNet,
        *,
        threshold: float = 0.95,
        strong: float = 1.0,
        whole: float = 0.5,
        decay: float = 0.996,
        mean: Sequence[float] | float = (0.485, 0.456, 0.406),
        std: Sequence[float] | float = (0.229, 0.224, 0.225),
        supervised: SupervisedLoss | None = None,
        ignore_index: int = 255,
    ) -> None:
        super().__init__(net, supervised=supervised, ignore_index=ignore_index, threshold=threshold)
        check_weight("strong", strong)
        check_unit_interval("whole", whole)
        self.teacher = EMATeacher(net, decay)
        self.view = StrongView(mean=mean, std=std)
        self.weight = strong
        self.whole = whole

    def losses(self, step: Step) -> dict[str, Tensor]:
        """Compute the supervised loss, and the cross-entropies of the two views."""
        x_labeled, y_labeled, x_unlabeled, _, valid, generator = step
        n, size = len(x_labeled), (x_labeled.shape[2], x_labeled.shape[3])
        views = [self.view(x_unlabeled, generator) for _ in range(2)]
        pseudo = PseudoMask.of(self.teacher.net(x_unlabeled), valid, self.ignore_index)
        features = self.net.encode(torch.cat([x_labeled, *(view for view, _ in views)]))
        # Separately: in the same batch, the dropped channels would change the BatchNorm statistics of the others.
        labeled = self.net.decode([f[:n] for f in features], size)
        dropped = drop_complements([f[n:] for f in features], self.whole, generator)
        each = [
            pseudo.paste(pasted).loss(out, self.threshold, self.ignore_index)
            for out, (_, pasted) in zip(self.net.decode(dropped, size).chunk(2), views, strict=True)
        ]
        supervised, strong = self.supervised(labeled, y_labeled), torch.stack(each).mean()
        total = supervised + self.weight * strong
        return {"supervised": supervised, "strong": strong, "total": total}
