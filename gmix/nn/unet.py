"""GuidedMixUnet: the network of the paper, as an ordinary SMP model."""

from collections.abc import Callable, Sequence

from segmentation_models_pytorch.base import SegmentationHead, SegmentationModel
from segmentation_models_pytorch.base.initialization import initialize_head
from segmentation_models_pytorch.base.modules import Conv2dReLU
from segmentation_models_pytorch.decoders.pspnet.decoder import PSPModule
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

from gmix.nn.mitrans import MITransBlock, PixelShuffleBlock

__all__ = ["GuidedMixUnet", "MITransDecoder"]


class MITransDecoder(nn.Module):
    """Decode with pyramid pooling on the deepest map, then MITrans blocks up to the image's size (Fig. 4).

    Blocks whose input has stride 8 or more attend (`MITransBlock`); finer blocks only upsample and
    fuse (`PixelShuffleBlock`), because attention time grows with the square of the positions.

    Args:
        encoder_channels: Channels of the encoder's maps at strides 1, 2, 4, ...; the first, the
            image itself, is not used.
        decoder_channels: Output channels of the blocks, deepest first, one for each halving.
        pyramid_channels: Channels of the pooled deepest map.

    Raises:
        ValueError: If there is not one decoder block for each halving.

    Examples:
        >>> import torch
        >>> decoder = MITransDecoder((3, 8, 16), (8, 4), pyramid_channels=12)
        >>> features = [torch.zeros(2, c, s, s) for c, s in [(3, 32), (8, 16), (16, 8)]]
        >>> decoder(features).shape
        torch.Size([2, 4, 32, 32])
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        decoder_channels: Sequence[int],
        pyramid_channels: int = 512,
    ) -> None:
        super().__init__()
        depth = len(encoder_channels) - 1
        if len(decoder_channels) != depth:
            raise ValueError(
                f"`decoder_channels` must have one entry for each of the encoder's {depth} "
                f"halvings, got {tuple(decoder_channels)}"
            )
        deepest, sizes = encoder_channels[-1], (1, 2, 3, 6)
        self.pyramid = nn.Sequential(
            PSPModule(deepest, sizes),
            Conv2dReLU(deepest + len(sizes) * (deepest // len(sizes)), pyramid_channels, 1),
        )
        inputs = [pyramid_channels, *decoder_channels[:-1]]
        skips = [*reversed(encoder_channels[1:-1]), 0]
        strides = [2**level for level in range(depth, 0, -1)]
        self.blocks = nn.ModuleList(
            (MITransBlock if stride >= 8 else PixelShuffleBlock)(*channels)
            for stride, *channels in zip(strides, inputs, skips, decoder_channels, strict=True)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """Decode the encoder's maps, finest first: `(N, decoder_channels[-1], H, W)`."""
        *finer, deepest = features[1:]
        x: Tensor = self.pyramid(deepest)
        for block, skip in zip(self.blocks, [*reversed(finer), None], strict=True):
            x = block(x, skip)
        return x


class GuidedMixUnet(SegmentationModel):  # type: ignore[misc]
    """Build the paper's network: encoder, pyramid pooling, U-Net skips, MITrans with PixelShuffle.

    A full SMP model: `save_pretrained`, `freeze_encoder` and the rest work, and
    `gmix.GuidedMixNet(GuidedMixUnet(...))` makes it ready for GuidedMix training. Load it with
    `GuidedMixUnet.from_pretrained(directory)`; `smp.from_pretrained` finds SMP's own classes only.

    Args:
        encoder_name: Any SMP encoder; the paper uses a ResNet.
        encoder_depth: Number of halvings, 3 to 5.
        encoder_weights: "imagenet", another name SMP knows, or None for random weights.
        decoder_channels: Output channels of the decoder blocks, deepest first.
        pyramid_channels: Channels after pyramid pooling.
        in_channels: Channels of the images.
        classes: K, channels of the logits (1: binary).
        activation: SMP activation name applied to the logits; GuidedMix training needs None.

    Shape:
        - Input: `(N, in_channels, H, W)`; H and W are multiples of 2**encoder_depth
          (`gmix.GuidedMixNet` pads for you).
        - Output: `(N, K, H, W)`.

    Reference:
        Tu et al., "GuidedMix-Net: Learning to Improve Pseudo Masks Using Labeled Images as
        Reference", Sec. 3 and Fig. 4.

    Examples:
        >>> import torch
        >>> model = GuidedMixUnet("resnet18", encoder_weights=None, classes=21).eval()
        >>> model(torch.zeros(1, 3, 64, 96)).shape
        torch.Size([1, 21, 64, 96])
    """

    __call__: Callable[..., Tensor]

    def __init__(
        self,
        encoder_name: str = "resnet50",
        encoder_depth: int = 5,
        encoder_weights: str | None = "imagenet",
        decoder_channels: Sequence[int] = (256, 128, 64, 32, 16),
        pyramid_channels: int = 512,
        in_channels: int = 3,
        classes: int = 21,
        activation: str | Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.encoder = get_encoder(
            encoder_name, in_channels=in_channels, depth=encoder_depth, weights=encoder_weights
        )
        self.decoder = MITransDecoder(self.encoder.out_channels, decoder_channels, pyramid_channels)
        self.segmentation_head = SegmentationHead(decoder_channels[-1], classes, 3, activation)
        self.classification_head = None
        self.name = f"guidedmix-unet-{encoder_name}"
        # Not `self.initialize()`, which would overwrite the attention's zeros and the ICNR kernels.
        initialize_head(self.segmentation_head)
        # A saved model includes the encoder: loading it must not download ImageNet weights first.
        self.config["encoder_weights"] = None
