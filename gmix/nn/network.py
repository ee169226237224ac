"""GuidedMixNet: a wrapper that prepares any segmentation-models-pytorch model for GuidedMix training.

This is the only file that depends on the internals of SMP models.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.base import SegmentationModel
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.base.modules import Activation
from torch import Tensor, nn
from torch.nn.functional import pad

from gmix.nn.mitrans import NonLocalBlock, PixelShuffleBlock
from gmix.nn.sizes import check_channels, refusal, windows
from gmix.nn.states import ChecksState
from gmix.runtime.collectives import check_unwrapped

__all__ = ["GuidedMixNet"]


class GuidedMixNet(ChecksState):
    """Wrap an SMP model: the same logits, plus the features and embeddings that guided mixing needs.

    - `forward` equals `model(x)` bit for bit at initialisation, also with `mitrans=True`.
    - Any image size works: images are padded with zeros at the bottom and right to a size that the
      model accepts, and logits are cropped: `net(x)` is `model(pad(x))[..., :H, :W]`. Zero is the
      mean of normalised images. The inputs of every model are padded to its encoder's stride, even
      those of `smp.Unet`, which does not need it, so that one rule holds for all.
    - `embed` gives a pooled embedding for pairing images.
    - `mitrans=True` puts a `NonLocalBlock` on the deepest feature map, just before the decoder, in
      training and inference. (The whole `MITransBlock`, with PixelShuffle and skip, needs a
      decoder built around it: that is `gmix.GuidedMixUnet`.)

    `net.model` stays the plain SMP model: without MITrans its weights load into SMP without gmix.

    Args:
        model: An SMP model of any architecture and encoder, built without `aux_params` and with
            `activation=None`. Its weights are shared, not copied.
        mitrans: Attend over the deepest feature map before decoding.

    Attributes:
        classes: K, channels of the logits (1: binary).
        embedding_dim: D, channels of the deepest feature map.
        stride: Heights and widths are padded to a multiple of this (with PAN to 8 times as much at least).

    Raises:
        TypeError: If `model` is not an SMP model.
        ValueError: If the model returns more than logits, or its encoder has unusual outputs.

    Examples:
        >>> import segmentation_models_pytorch as smp, torch
        >>> _ = torch.manual_seed(0)
        >>> net = GuidedMixNet(smp.Unet("resnet18", encoder_weights=None, classes=3)).eval()
        >>> x = torch.randn(2, 3, 50, 70)  # any size
        >>> features = net.encode(x)
        >>> net.decode(features, size=(50, 70)).shape
        torch.Size([2, 3, 50, 70])
        >>> net.pool(features).shape
        torch.Size([2, 512])
        >>> padded = torch.nn.functional.pad(x, (0, 26, 0, 14))  # to 64 x 96
        >>> torch.equal(net(x), net.model(padded)[..., :50, :70])
        True
    """

    __call__: Callable[..., Tensor]

    def __init__(self, model: SegmentationModel, mitrans: bool = False) -> None:
        super().__init__()
        _check(model)
        channels = model.encoder.out_channels
        self.model = model
        self.classes = self.last_layer.out_channels
        self.embedding_dim = int(channels[-1])
        self.stride = int(model.encoder.output_stride) * windows(model.encoder)
        self._smallest = self.stride
        if isinstance(model, smp.DPT):
            # Its decoder halves the grid of tokens down to a map of stride 4, 8, 16, ... and doubles
            # it again; SMP's own check covers the patch size only.
            self.stride = self._smallest = math.lcm(self.stride, 2 ** (len(channels) + 1))
        if isinstance(model, smp.PAN):
            self._smallest = 8 * self.stride  # its attention pyramid pools the deepest map 3 times
        self.mitrans = NonLocalBlock(self.embedding_dim) if mitrans else None

    @property
    def last_layer(self) -> nn.Conv2d:
        """Return the convolution whose outputs are the logits before upsampling."""
        layers = [m for m in self.model.segmentation_head.modules() if isinstance(m, nn.Conv2d)]
        return layers[-1]

    def encode(self, x: Tensor) -> list[Tensor]:
        """Pad the images and run the encoder.

        Args:
            x: `(N, C, H, W)` normalised images, any H and W.

        Returns:
            The encoder's feature maps, finest first, deepest last; MITrans is not applied yet.
            For a vision transformer (DPT), its prefix tokens come first.

        Raises:
            ValueError: If the images have another number of channels than the model accepts, if the encoder does not
                accept their size, if its deepest map differs from what it declares, or if a batch of 1 is too small to
                train the model's BatchNorm.
        """
        check_channels(self.model.encoder, x)
        height, width = x.shape[-2:]
        padded = self.padded(height, width)
        images = pad(x, (0, padded[1] - width, 0, padded[0] - height))
        try:
            features = self._run(self.model.encoder, images)
        except (
            AssertionError,
            RuntimeError,
        ) as error:  # raised by timm's encoders for sizes they do not accept
            reason = refusal(self.model.encoder, error, images)
            if reason is None:
                raise
            raise ValueError(
                f"the encoder cannot take images of {height} x {width} (padded to {padded[0]} x "
                f"{padded[1]}): {reason}"
            ) from error
        if isinstance(features, tuple):  # DPT: feature maps and, map by map, prefix tokens or None
            features = [*(tokens for tokens in features[1] if tokens is not None), *features[0]]
        features = list(features)
        if features[-1].dim() != 4 or features[-1].shape[1] != self.embedding_dim:
            raise ValueError(
                f"the encoder's deepest map must be (N, {self.embedding_dim}, h, w) as its "
                f"`out_channels` say, got {tuple(features[-1].shape)}: use one of SMP's encoders"
            )
        return features

    def pool(self, features: list[Tensor]) -> Tensor:
        """Average the deepest map of `encode(x)` over its positions: `(N, D)`."""
        return features[-1].mean(dim=(-2, -1))

    def decode(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Run MITrans (if enabled), SMP's decoder and head, then crop the logits to the image.

        Args:
            features: The result of `encode(x)`; not modified.
            size: `(H, W)` of the images given to `encode`.

        Returns:
            `(N, K, H, W)` logits.

        Raises:
            ValueError: If the model's logits do not have the (padded) images' size, or if a batch
                of 1 is too small to train the model's BatchNorm.
        """
        return self.crop(self.model.segmentation_head(self.decoder_map(features)), size)

    def decoder_map(self, features: list[Tensor]) -> Tensor:
        """Run MITrans (if enabled) and SMP's decoder: the map `(N, D', h, w)` that the head classifies."""
        maps: list[Tensor] = features
        extra: tuple[Any, ...] = ()
        if isinstance(self.model, smp.DPT):
            depth = len(self.model.encoder.out_channels)
            maps, extra = features[-depth:], (features[:-depth] or [None] * depth,)
        if self.mitrans is not None:
            maps = [*maps[:-1], self.mitrans(maps[-1])]
        decoded: Tensor = self._run(self.model.decoder, maps, *extra)
        return decoded

    def crop(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Crop the logits of padded images to those of the images, `size`.

        Raises:
            ValueError: If the logits do not have the padded images' size.
        """
        if logits.shape[-2:] != self.padded(*size):
            raise ValueError(
                f"the model's logits must have the size of its input, {self.padded(*size)}, got "
                f"{tuple(logits.shape[-2:])}: adjust its `upsampling` or `encoder_depth`"
            )
        return logits[..., : size[0], : size[1]]

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logits `(N, K, H, W)` of images `(N, C, H, W)`."""
        return self.decode(self.encode(x), (x.shape[-2], x.shape[-1]))

    def embed(self, x: Tensor) -> Tensor:
        """Compute the embeddings `(N, D)` of images `(N, C, H, W)`: `pool(encode(x))`."""
        return self.pool(self.encode(x))

    def reset_decoder(self) -> None:
        """Initialise the decoder and the head again, as SMP does; the encoder keeps its weights.

        Attention starts without effect and PixelShuffle as nearest upsampling, as in new blocks.
        """
        _reset(self.model.decoder)
        _reset(self.model.segmentation_head)
        initialize_decoder(self.model.decoder)
        initialize_head(self.model.segmentation_head)
        for module in self.model.decoder.modules():  # SMP does not know how these start
            if isinstance(module, NonLocalBlock | PixelShuffleBlock):
                module.reset_parameters()

    def new_head(self) -> nn.Module:
        """Copy the head, and initialise the copy again, as SMP does."""
        head: nn.Module = copy.deepcopy(self.model.segmentation_head)
        _reset(head)
        initialize_head(head)
        return head

    def export(self) -> nn.Module:
        """Copy the deployable model, in eval mode, without the gmix wrapper.

        Returns:
            Without MITrans, the plain SMP model (`save_pretrained` works). With MITrans, that
            model with the attention built into its decoder, as an ordinary module for
            `torch.export`, ONNX or `state_dict`. Like SMP models, both accept only multiples of
            `stride`.

        Examples:
            >>> import segmentation_models_pytorch as smp, torch
            >>> net = GuidedMixNet(smp.FPN("resnet18", encoder_weights=None), mitrans=True).eval()
            >>> x = torch.ones(1, 3, 64, 64)
            >>> torch.equal(net.export()(x), net(x))
            True
        """
        model: Any = copy.deepcopy(self.model)
        if self.mitrans is not None:
            model.decoder = _AttentiveDecoder(copy.deepcopy(self.mitrans), model.decoder)
            # Sequential, so that there is no `save_pretrained`: `smp.Unet.from_pretrained`
            # would silently skip the decoder's unknown names and leave it random.
            model = nn.Sequential(model)
        exported: nn.Module = model.eval()
        return exported

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that images of this size are padded to."""

        def up(n: int) -> int:
            return max(-(-n // self.stride) * self.stride, self._smallest)

        return up(height), up(width)

    def _run(self, part: nn.Module, *inputs: Any) -> Any:
        # Catch torch's error rather than list layers: encoders (ResNeSt) pool before BatchNorm as
        # well, and a map shrinks to 1 x 1 only for some image sizes.
        try:
            return part(*inputs)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"{type(self.model).__name__} cannot train on a batch of 1, because it has a "
                "BatchNorm on maps pooled to 1 x 1: use at least 2 images, or call .eval()"
            ) from error


def _reset(part: Any) -> None:
    for module in part.modules():  # some of which SMP leaves as torch initialised them
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


class _AttentiveDecoder(nn.Module):
    def __init__(self, attention: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.decoder = decoder

    def forward(self, features: list[Tensor], *tokens: Any) -> Any:
        return self.decoder([*features[:-1], self.attention(features[-1])], *tokens)


def _check(model: Any) -> None:
    if isinstance(model, nn.Module):
        check_unwrapped(model)
    if not isinstance(model, SegmentationModel):
        raise TypeError(
            f"`model` must be a segmentation_models_pytorch model, got {type(model).__name__}"
        )
    if model.classification_head is not None:
        raise ValueError(
            "`model` must return logits only, got one with a classification head: build it without "
            "`aux_params`"
        )
    if any(
        isinstance(m, Activation) and not isinstance(m.activation, nn.Identity)
        for m in model.segmentation_head.modules()
    ):
        raise ValueError("`model` must return raw logits: build it with `activation=None`")
    channels = getattr(model.encoder, "out_channels", None)
    if not (
        isinstance(channels, Sequence)
        and channels[-1] > 0
        and hasattr(model.encoder, "output_stride")
    ):
        raise ValueError(
            "`model.encoder` must declare `output_stride` and `out_channels` with a deepest map of "
            f"1 channel or more, got out_channels={channels}: use one of SMP's encoders"
        )
