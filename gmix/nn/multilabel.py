"""Classes that overlap: a pixel may have several of them, or none."""

from __future__ import annotations

from torch import Tensor, nn

from gmix.nn.network import GuidedMixNet

__all__ = ["MultiLabelNet"]


class MultiLabelNet(GuidedMixNet):
    r"""Wrap a model whose K classes may overlap; each channel is a binary prediction of its own.

    To a method it is one *binary* network whose images have K planes: the logits are `(N, 1, K, H, W)`, their sigmoid
    is the probability of each class at each pixel, and a mask holds 0, 1 or `ignore_index` for each class,
    `(N, K, H, W)`.
    All that a method does pixel by pixel (losses, thresholds, pasted boxes) it does plane by plane, and every mean is
    the mean over the classes. Methods that compare classes with each other, or look at a whole mask, refuse it.

    Args:
        model: As for [`GuidedMixNet`][gmix.GuidedMixNet], with a channel for each class; no channel for the background.
        mitrans: As for `GuidedMixNet`; so are `deepest` and `example`.

    Attributes:
        planes: K, the number of classes. `classes` is 1: binary.

    Examples:
        >>> import segmentation_models_pytorch as smp, torch
        >>> from gmix.methods import FixMatch
        >>> net = MultiLabelNet(smp.Unet("resnet18", encoder_weights=None, classes=3))
        >>> x_l, x_u = torch.randn(2, 3, 64, 64), torch.randn(4, 3, 64, 64)
        >>> y_l = torch.randint(2, (2, 3, 64, 64))  # a mask of 0 and 1 for each class
        >>> sorted(FixMatch(net)(x_l, y_l, x_u))
        ['supervised', 'total', 'unsupervised']
        >>> net.eval().model(x_l).sigmoid().shape  # the model is as it was
        torch.Size([2, 3, 64, 64])
    """

    def __init__(
        self,
        model: nn.Module,
        mitrans: bool = False,
        *,
        deepest: str | None = None,
        example: Tensor | None = None,
    ) -> None:
        super().__init__(model, mitrans, deepest=deepest, example=example)
        self.planes = self.classes
        self.classes = 1

    def decode(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Decode as `GuidedMixNet` does, to logits `(N, 1, K, H, W)`."""
        return super().decode(features, size).unsqueeze(1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits `(N, 1, K, H, W)` of images `(N, C, H, W)`."""
        return super().forward(x).unsqueeze(1)
