"""The adapter of segmentation-models-pytorch: the only file that depends on the internals of its models."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.base import SegmentationModel
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.base.modules import Activation
from torch import Tensor, nn

from gmix.nn.adapters import Size, explain_batch_of_one
from gmix.nn.mitrans import NonLocalBlock, PixelShuffleBlock
from gmix.nn.sizes import check_channels, refusal, windows

__all__ = ["SMPAdapter"]


class SMPAdapter:
    """Run an SMP model: its `encoder`, `decoder` and `segmentation_head`.

    Args:
        model: Built without `aux_params` and with `activation=None`.

    Raises:
        ValueError: If the model returns more than logits, or its encoder has unusual outputs.
    """

    def __init__(self, model: SegmentationModel) -> None:
        _check(model)
        channels = model.encoder.out_channels
        self.model = model
        self.classes = int(self.last_layer.out_channels)
        self.embedding_dim = int(channels[-1])
        self.stride = int(model.encoder.output_stride) * windows(model.encoder)
        self.smallest = self.stride
        if isinstance(model, smp.DPT):
            # Its decoder halves the grid of tokens down to a map of stride 4, 8, 16, ... and doubles
            # it again; SMP's own check covers the patch size only.
            self.stride = self.smallest = math.lcm(self.stride, 2 ** (len(channels) + 1))
        if isinstance(model, smp.PAN):
            self.smallest = 8 * self.stride  # its attention pyramid pools the deepest map 3 times

    @property
    def in_channels(self) -> int:
        """Return the number of channels of the images."""
        return int(self.model.config["in_channels"])

    @property
    def encoder(self) -> nn.Module:
        """Return the model's encoder."""
        encoder: nn.Module = self.model.encoder
        return encoder

    @property
    def head(self) -> nn.Module:
        """Return the model's head."""
        head: nn.Module = self.model.segmentation_head
        return head

    @property
    def last_layer(self) -> nn.Conv2d:
        """Return the last convolution of the head."""
        layers = [m for m in self.head.modules() if isinstance(m, nn.Conv2d)]
        return layers[-1]

    def check_images(self, images: Tensor) -> None:
        """Refuse images of another number of channels."""
        check_channels(self.model.encoder, images)

    def encode(self, images: Tensor, size: Size) -> list[Tensor]:
        """Run the encoder; for a vision transformer (DPT), its prefix tokens come first."""
        try:
            features = explain_batch_of_one(self.model, self.model.encoder, images)
        except (
            AssertionError,
            RuntimeError,
        ) as error:  # raised by timm's encoders for sizes they do not accept
            reason = refusal(self.model.encoder, error, images)
            if reason is None:
                raise
            raise ValueError(
                f"the encoder cannot take images of {size[0]} x {size[1]} (padded to {images.shape[2]} x "
                f"{images.shape[3]}): {reason}"
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

    def decode(
        self, features: Sequence[Tensor], padded: Size, attention: nn.Module | None
    ) -> Tensor:
        """Run the decoder and the head."""
        logits: Tensor = self.head(self.decoder_map(features, attention))
        return logits

    def decoder_map(self, features: Sequence[Tensor], attention: nn.Module | None) -> Tensor:
        """Run the decoder."""
        extra: tuple[Any, ...] = ()
        maps = list(features)
        if isinstance(self.model, smp.DPT):
            depth = len(self.model.encoder.out_channels)
            extra = (maps[:-depth] or [None] * depth,)
            maps = maps[-depth:]
        if attention is not None:
            maps = [*maps[:-1], attention(maps[-1])]
        decoded: Tensor = explain_batch_of_one(self.model, self.model.decoder, maps, *extra)
        return decoded

    def forward(self, images: Tensor, size: Size, attention: nn.Module | None) -> Tensor:
        """Run all three."""
        padded = (images.shape[-2], images.shape[-1])
        return self.decode(self.encode(images, size), padded, attention)

    def reset_decoder(self) -> None:
        """Initialise the decoder and the head again, as SMP does."""
        _reset(self.model.decoder)
        _reset(self.model.segmentation_head)
        initialize_decoder(self.model.decoder)
        initialize_head(self.model.segmentation_head)
        for module in self.model.decoder.modules():  # SMP does not know how these start
            if isinstance(module, NonLocalBlock | PixelShuffleBlock):
                module.reset_parameters()

    def new_head(self) -> nn.Module:
        """Copy the head, and initialise the copy again, as SMP does."""
        head = copy.deepcopy(self.head)
        _reset(head)
        initialize_head(head)
        return head

    def drop_decoder(self) -> None:
        """Remove the decoder and the head."""
        self.model.decoder = self.model.segmentation_head = nn.Identity()

    def export(self, attention: nn.Module | None) -> nn.Module:
        """Copy the model, with the attention built into its decoder."""
        model: Any = copy.deepcopy(self.model)
        if attention is not None:
            model.decoder = _AttentiveDecoder(copy.deepcopy(attention), model.decoder)
            # Sequential, so that there is no `save_pretrained`: `smp.Unet.from_pretrained`
            # would silently skip the decoder's unknown names and leave it random.
            model = nn.Sequential(model)
        exported: nn.Module = model.eval()
        return exported

    def save_pretrained(self, folder: Path) -> None:
        """Write `config.json` and `model.safetensors`, as SMP does."""
        self.model.config["encoder_weights"] = None  # loading must download nothing
        self.model.save_pretrained(folder)


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
