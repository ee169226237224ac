"""What `GuidedMixNet` asks of the code that runs a model: one adapter for each kind of model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

__all__ = ["Adapter", "explain_batch_of_one"]

Size = tuple[int, int]


class Adapter(Protocol):
    """Run a model in two parts, on images whose size it accepts.

    An adapter holds a model and is no module itself: weights are saved, moved and copied with the model.

    Attributes:
        classes: K, channels of the logits.
        embedding_dim: Channels of the deepest map.
        stride: Heights and widths are multiples of this.
        smallest: Least height and width.
    """

    classes: int
    embedding_dim: int
    stride: int
    smallest: int

    @property
    def in_channels(self) -> int:
        """Return the number of channels of the images."""
        ...

    @property
    def encoder(self) -> nn.Module:
        """Return the encoder: called with images, it returns their maps, deepest last.

        It has `out_channels` and `output_stride`, as the encoders of SMP.
        """
        ...

    @property
    def last_layer(self) -> nn.Conv2d:
        """Return the convolution whose outputs are the logits before upsampling."""
        ...

    @property
    def head(self) -> nn.Module:
        """Return what makes logits of `decoder_map`; SMP's models only."""
        ...

    def check_images(self, images: Tensor) -> None:
        """Refuse what is no batch of images of as many channels as the model takes."""

    def encode(self, images: Tensor, size: Size) -> list[Tensor]:
        """Return the features of padded images, the deepest map last; `size` is that of the images before padding."""
        ...

    def decode(
        self, features: Sequence[Tensor], padded: Size, attention: nn.Module | None
    ) -> Tensor:
        """Return the logits `(N, K, *padded)` of features, after `attention` over the deepest map."""
        ...

    def decoder_map(self, features: Sequence[Tensor], attention: nn.Module | None) -> Tensor:
        """Return the map that the head classifies; SMP's models only."""
        ...

    def new_head(self) -> nn.Module:
        """Copy the head, and initialise the copy again; SMP's models only."""
        ...

    def forward(self, images: Tensor, size: Size, attention: nn.Module | None) -> Tensor:
        """Return the logits of padded images."""
        ...

    def reset_decoder(self) -> None:
        """Initialise all that is not the encoder again."""

    def drop_decoder(self) -> None:
        """Free or freeze all that is not the encoder."""

    def export(self, attention: nn.Module | None) -> nn.Module:
        """Copy the model as a module from images to logits of their size, in eval mode."""
        ...

    def save_pretrained(self, folder: Path) -> None:
        """Write the model so that `gmix.SavedModel.from_pretrained` can read it.

        Raises:
            ValueError: If that cannot be; the message names what can.
        """


def explain_batch_of_one(model: nn.Module, run: Callable[..., Any], *inputs: Any) -> Any:
    """Call a part of a model; if BatchNorm refuses a batch of 1, say so in one sentence.

    Raises:
        ValueError: If the batch is too small to train the model's BatchNorm.
    """
    # Catch torch's error rather than list layers: encoders (ResNeSt) pool before BatchNorm as
    # well, and a map shrinks to 1 x 1 only for some image sizes.
    try:
        return run(*inputs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"{type(model).__name__} cannot train on a batch of 1, because it has a "
            "BatchNorm on maps pooled to 1 x 1: use at least 2 images, or call .eval()"
        ) from error
