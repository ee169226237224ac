"""GuidedMixNet: a wrapper that prepares any segmentation model for training with the methods of gmix."""

from collections.abc import Callable
from typing import Any

from segmentation_models_pytorch.base import SegmentationModel
from torch import Tensor, nn
from torch.nn.functional import pad

from gmix.nn.adapters import Adapter
from gmix.nn.mitrans import NonLocalBlock
from gmix.nn.model_adapter import ModelAdapter
from gmix.nn.smp_adapter import SMPAdapter
from gmix.nn.states import ChecksState
from gmix.runtime.collectives import check_unwrapped

__all__ = ["GuidedMixNet"]


class GuidedMixNet(ChecksState):
    """Wrap a model: the same logits, plus the features and embeddings that the methods need.

    - `forward` equals `model(x)` bit for bit at initialisation, also with `mitrans=True`.
    - Any image size works: images are padded with zeros at the bottom and right to a size that the
      model accepts, and logits are cropped: `net(x)` is `model(pad(x))[..., :H, :W]`. Zero is the
      mean of normalised images. The inputs of every SMP model are padded to its encoder's stride, even
      those of `smp.Unet`, which does not need it, so that one rule holds for all.
    - `embed` gives a pooled embedding for pairing images.
    - `mitrans=True` puts a `NonLocalBlock` on the deepest feature map, just before the decoder, in
      training and inference. (The whole `MITransBlock`, with PixelShuffle and skip, needs a
      decoder built around it: that is `gmix.GuidedMixUnet`.)

    `net.model` stays the plain model: without MITrans its weights load into SMP without gmix.

    **Models that are not SMP's**: torchvision, `transformers`, MONAI, or any module that returns logits
    (`docs/models.md`). A trial in eval mode finds the classes, the size that images must be padded to, and the layer
    with the deepest map, where `encode` ends and `decode` begins. Coarse logits are upsampled bilinearly to the images.

    Args:
        model: An SMP model of any architecture and encoder, built without `aux_params` and with
            `activation=None`, or any other module that maps images to logits. Its weights are shared, not copied.
        mitrans: Attend over the deepest feature map before decoding; SMP models only.
        deepest: Name of the layer with the deepest map, for a model that is not SMP's; None finds it.
        example: Images `(N, C, H, W)` for the trial, if the model does not take random ones of 64 x 96.

    Attributes:
        classes: K, channels of the logits (1: binary).
        embedding_dim: D, channels of the deepest feature map.
        stride: Heights and widths are padded to a multiple of this (with PAN to 8 times as much at least).

    Raises:
        TypeError: If `model` is no module, or returns no logits.
        ValueError: If the model returns more than logits, or probabilities; if its encoder has unusual outputs; if no
            layer is found where it can be cut; or if an option is not for this kind of model.

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

    def __init__(
        self,
        model: nn.Module,
        mitrans: bool = False,
        *,
        deepest: str | None = None,
        example: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.adapter = _adapter(model, mitrans, deepest, example)
        self.model: Any = model
        self.classes = self.adapter.classes
        self.embedding_dim = self.adapter.embedding_dim
        self.stride = self.adapter.stride
        # All images go through it once, whatever the model: hooks on it see what is encoded.
        self.entry = nn.Identity()
        self.mitrans = NonLocalBlock(self.embedding_dim) if mitrans else None

    @property
    def encoder(self) -> nn.Module:
        """Return the encoder: called with images, it returns their maps, deepest last; its weights are the model's."""
        return self.adapter.encoder

    @property
    def in_channels(self) -> int:
        """Return the number of channels of the images."""
        return self.adapter.in_channels

    @property
    def last_layer(self) -> nn.Conv2d:
        """Return the convolution whose outputs are the logits before upsampling."""
        return self.adapter.last_layer

    @property
    def head(self) -> nn.Module:
        """Return SMP's head, which makes logits of `decoder_map(features)`.

        Raises:
            ValueError: If the model is not SMP's.
        """
        return self.adapter.head

    def encode(self, x: Tensor) -> list[Tensor]:
        """Pad the images and run the encoder.

        Args:
            x: `(N, C, H, W)` normalised images, any H and W.

        Returns:
            The encoder's feature maps, finest first, deepest last; MITrans is not applied yet.
            What is no map, as the prefix tokens of a vision transformer, comes first.

        Raises:
            ValueError: If the images have another number of channels than the model accepts, if the encoder does not
                accept their size, if its deepest map differs from what it declares, or if a batch of 1 is too small to
                train the model's BatchNorm.
        """
        return self.adapter.encode(self._pad(x), (x.shape[-2], x.shape[-1]))

    def pool(self, features: list[Tensor]) -> Tensor:
        """Average the deepest map of `encode(x)` over its positions: `(N, D)`."""
        return features[-1].mean(dim=(-2, -1))

    def decode(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Run MITrans (if enabled), the decoder and the head, then crop the logits to the image.

        Args:
            features: The result of `encode(x)`; not modified.
            size: `(H, W)` of the images given to `encode`.

        Returns:
            `(N, K, H, W)` logits.

        Raises:
            ValueError: If the logits of an SMP model do not have the (padded) images' size, or if a batch
                of 1 is too small to train the model's BatchNorm.
        """
        return self.crop(self.adapter.decode(features, self.padded(*size), self.mitrans), size)

    def decoder_map(self, features: list[Tensor]) -> Tensor:
        """Run MITrans (if enabled) and SMP's decoder: the map `(N, D', h, w)` that the head classifies.

        Raises:
            ValueError: If the model is not SMP's.
        """
        return self.adapter.decoder_map(features, self.mitrans)

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
        size = (x.shape[-2], x.shape[-1])
        return self.crop(self.adapter.forward(self._pad(x), size, self.mitrans), size)

    def embed(self, x: Tensor) -> Tensor:
        """Compute the embeddings `(N, D)` of images `(N, C, H, W)`: `pool(encode(x))`."""
        return self.pool(self.encode(x))

    def reset_decoder(self) -> None:
        """Initialise the decoder and the head again, as SMP does; the encoder keeps its weights.

        Attention starts without effect and PixelShuffle as nearest upsampling, as in new blocks. What is
        not the encoder of another model starts as torch initialises its layers.

        Raises:
            ValueError: If a layer cannot be initialised again.
        """
        self.adapter.reset_decoder()

    def new_head(self) -> nn.Module:
        """Copy the head, and initialise the copy again, as SMP does.

        Raises:
            ValueError: If the model is not SMP's.
        """
        return self.adapter.new_head()

    def export(self) -> nn.Module:
        """Copy the deployable model, in eval mode, without the gmix wrapper.

        Returns:
            Without MITrans, the plain model (`save_pretrained` of SMP's works). With MITrans, that
            model with the attention built into its decoder, as an ordinary module for
            `torch.export`, ONNX or `state_dict`. A model that returns other than a tensor of the images' size gets a
            wrapper that does. Like SMP models, all accept only multiples of `stride`.

        Examples:
            >>> import segmentation_models_pytorch as smp, torch
            >>> net = GuidedMixNet(smp.FPN("resnet18", encoder_weights=None), mitrans=True).eval()
            >>> x = torch.ones(1, 3, 64, 64)
            >>> torch.equal(net.export()(x), net(x))
            True
        """
        return self.adapter.export(self.mitrans)

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that images of this size are padded to."""

        def up(n: int) -> int:
            return max(-(-n // self.stride) * self.stride, self.adapter.smallest)

        return up(height), up(width)

    def check_images(self, x: Tensor) -> None:
        """Refuse what is no batch of images `(N, C, H, W)` of as many channels as the model takes."""
        self.adapter.check_images(x)

    def _pad(self, x: Tensor) -> Tensor:
        self.check_images(x)
        height, width = x.shape[-2:]
        padded = self.padded(height, width)
        images: Tensor = self.entry(pad(x, (0, padded[1] - width, 0, padded[0] - height)))
        return images


def _adapter(model: Any, mitrans: bool, deepest: str | None, example: Tensor | None) -> Adapter:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"`model` must be an nn.Module that returns logits, got {type(model).__name__}: pass the built model, such "
            "as smp.Unet(...)"
        )
    check_unwrapped(model)
    if isinstance(model, SegmentationModel):
        if deepest is not None or example is not None:
            raise ValueError("`deepest` and `example` are for models that are not SMP's")
        return SMPAdapter(model)
    if mitrans:
        raise ValueError(
            f"`mitrans` is for models of SMP, got {type(model).__name__}: put a gmix.NonLocalBlock into its decoder"
        )
    return ModelAdapter(model, deepest, example)
