"""The adapter of any other model that returns logits, cut into encoder and decoder by a trial forward."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gmix.nn.adapters import Size, explain_batch_of_one
from gmix.nn.deepest import Trial, find_split, try_model
from gmix.nn.logits import check_shape, find_logits
from gmix.nn.modes import eval_mode
from gmix.nn.sizes import check_channels
from gmix.nn.split import Split

__all__ = ["ModelAdapter"]

SIZES = ((64, 96), (128, 192), (256, 384))
"""Sizes of the images of the trial. They are not square, so that maps pooled to a fixed size are told from others."""


class ModelAdapter:
    """Run any model that returns logits: torchvision, `transformers`, MONAI, your own.

    Args:
        model: The model, on any device and in any mode; it stays as it is.
        deepest: Name of the layer with the deepest map; None finds it.
        example: Images `(N, C, H, W)` for the trial; None draws some.

    Raises:
        TypeError: If the model returns no logits.
        ValueError: If it fails on the images, returns probabilities, or cannot be cut.
    """

    def __init__(
        self, model: nn.Module, deepest: str | None = None, example: Tensor | None = None
    ) -> None:
        self.model = model
        trial = _trial(model, example)
        _check_logits(trial, model)
        self.classes = int(trial.logits.shape[1])
        self.split: Split = find_split(model, trial, deepest)
        with torch.no_grad(), eval_mode(model):
            features = self.split.encode(trial.images)
        maps = self.maps(features)
        self._trial_size: Size = (trial.images.shape[2], trial.images.shape[3])
        self._sizes = {self._trial_size}  # that the model was called with
        self._in_channels = int(trial.images.shape[1])
        self.out_channels = tuple(int(f.shape[1]) for f in maps)
        self.embedding_dim = self.out_channels[-1]
        self.output_stride = int(trial.images.shape[2] // maps[-1].shape[2])
        self.stride = self.smallest = _stride(model, trial, self.output_stride)
        self._resizes = trial.logits.shape[2:] != trial.images.shape[2:]
        self._returns_tensor = isinstance(trial.calls.output, Tensor)
        self._last = _last_layer(model, trial)

    @property
    def in_channels(self) -> int:
        """Return the number of channels of the images."""
        return self._in_channels

    @property
    def encoder(self) -> nn.Module:
        """Return the layers before the cut, as a module from images to maps."""
        return SplitEncoder(self)

    @property
    def head(self) -> nn.Module:
        """Refuse.

        Raises:
            ValueError: Always: where the decoder of any model ends, and its head begins, is not known.
        """
        raise ValueError(
            f"the map between decoder and head is known in models of SMP only, not in {type(self.model).__name__}: "
            "leave out `mixed_head`, which variant='official' has, or use a model of SMP"
        )

    @property
    def last_layer(self) -> nn.Conv2d:
        """Return the last convolution to K channels, if the logits are its outputs.

        Raises:
            ValueError: If they are not.
        """
        layer = None if self._last is None else self.model.get_submodule(self._last)
        if not isinstance(layer, nn.Conv2d):
            raise ValueError(
                f"the logits of {type(self.model).__name__} are not the outputs of a last convolution, so no class "
                "bias can be added to it"
            )
        return layer

    def check_images(self, images: Tensor) -> None:
        """Refuse images of another number of channels."""
        check_channels(self, images)

    def encode(self, images: Tensor, size: Size) -> list[Tensor]:
        """Run the model up to the cut."""
        padded = (images.shape[-2], images.shape[-1])
        features: list[Tensor] = self._explained(padded, self.split.encode, images)
        return features

    def decode(
        self, features: Sequence[Tensor], padded: Size, attention: nn.Module | None
    ) -> Tensor:
        """Run the model on from the cut; coarse logits are upsampled bilinearly."""
        output = self._explained(padded, self.split.decode, features, padded)
        self._sizes.add(padded)
        logits = check_shape(find_logits(output), len(features[0]), self.classes)
        return _resized(logits, padded)

    def decoder_map(self, features: Sequence[Tensor], attention: nn.Module | None) -> Tensor:
        """Refuse, as `head` does."""
        decoded: Tensor = self.head(features)
        return decoded

    def new_head(self) -> nn.Module:
        """Refuse, as `head` does."""
        return self.head

    def forward(self, images: Tensor, size: Size, attention: nn.Module | None) -> Tensor:
        """Call the model, once and as a whole."""
        padded = (images.shape[-2], images.shape[-1])
        output = self._explained(padded, self.model, images)
        self._sizes.add(padded)
        logits = check_shape(find_logits(output), len(images), self.classes)
        return _resized(logits, padded)

    def maps(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps among the features."""
        return [f for f in features[int(self.split.image) :] if f.dim() == 4]

    def reset_decoder(self) -> None:
        """Initialise all modules outside of the encoder again, as torch does: by their `reset_parameters`.

        Raises:
            ValueError: If one with weights lacks it; then nothing has changed.
        """
        decoder = self._decoder()
        for name, module in decoder:
            if any(True for _ in module.parameters(recurse=False)) and not _resettable(module):
                raise ValueError(
                    f"{type(self.model).__name__} cannot be initialised again: its {name or 'root'} "
                    f"({type(module).__name__}) has weights and no `reset_parameters`"
                )
        for _, module in decoder:
            if _resettable(module):
                module.reset_parameters()  # type: ignore[operator]

    def drop_decoder(self) -> None:
        """Freeze the decoder, which stays part of the model."""
        for _, module in self._decoder():
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)

    def export(self, attention: nn.Module | None) -> nn.Module:
        """Copy the model; one that returns other than a tensor of the images' size gets a wrapper that does."""
        model = copy.deepcopy(self.model)
        plain = self._returns_tensor and not self._resizes
        return (model if plain else LogitsOnly(model, self._resizes)).eval()

    def save_pretrained(self, folder: Path) -> None:
        """Say how to save the model, which is not SMP's.

        Raises:
            ValueError: Always.
        """
        own = "torch.save(net.model.state_dict(), path)"
        if hasattr(self.model, "save_pretrained"):
            own = "net.model.save_pretrained(folder)"
        raise ValueError(
            f"gmix saves models of SMP only, not {type(self.model).__name__}: save it with {own}, "
            "or export it with gmix.deploy.export.export_model"
        )

    def _explained(self, padded: Size, run: Callable[..., Any], *inputs: Any) -> Any:
        """Call the model; if it fails on images of a size that it was never called with, blame the size."""
        try:
            return explain_batch_of_one(self.model, run, *inputs)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError) as error:
            if padded in self._sizes:
                raise
            height, width = self._trial_size
            raise ValueError(
                f"{type(self.model).__name__} cannot take images of {padded[0]} x {padded[1]} ({_first_line(error)}): "
                f"resize them, it takes {height} x {width}"
            ) from error

    def _decoder(self) -> list[tuple[str, nn.Module]]:
        inside = {id(module) for layer in self.split.layers for module in layer.modules()}
        return [(n, m) for n, m in self.model.named_modules() if id(m) not in inside]


class SplitEncoder(nn.Module):
    """The layers of a model before the cut; its state and parameters are theirs.

    Args:
        adapter: The adapter of the model.

    Shape:
        - Input: `(N, C, H, W)`.
        - Output: a list of maps, deepest last.
    """

    def __init__(self, adapter: ModelAdapter) -> None:
        super().__init__()
        self.layers = nn.ModuleList(adapter.split.layers)
        self.adapter = adapter
        self.out_channels = adapter.out_channels
        self.output_stride = max(adapter.stride, adapter.output_stride)
        self._in_channels = adapter.in_channels

    def forward(self, images: Tensor) -> list[Tensor]:
        """Encode images."""
        return self.adapter.maps(self.adapter.encode(images, (images.shape[-2], images.shape[-1])))

    def _apply(self, fn: Any, recurse: bool = True) -> SplitEncoder:
        # The layers are parts of the model, and need its other tensors beside them.
        apply: Any = self.adapter.model._apply
        apply(fn, recurse)
        return self


class LogitsOnly(nn.Module):
    """A model that returns the logits alone, at the size of the images.

    Args:
        model: Any model with logits in its output.
        resizes: Whether its logits have another size.

    Examples:
        >>> class Coarse(nn.Module):
        ...     def forward(self, x):
        ...         return {"logits": x[..., ::4, ::4]}
        >>> LogitsOnly(Coarse(), resizes=True)(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 3, 8, 8])
    """

    def __init__(self, model: nn.Module, resizes: bool) -> None:
        super().__init__()
        self.model = model
        self.resizes = resizes

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of images."""
        logits = find_logits(self.model(images))
        if self.resizes:
            logits = F.interpolate(logits, images.shape[-2:], mode="bilinear")
        return logits


def _resized(logits: Tensor, size: Size) -> Tensor:
    return logits if logits.shape[-2:] == size else F.interpolate(logits, size, mode="bilinear")


def _first_line(error: Exception) -> str:
    lines = (" ".join(line.split()) for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def _resettable(module: nn.Module) -> bool:
    return callable(getattr(module, "reset_parameters", None))


def _trial(model: nn.Module, example: Tensor | None) -> Trial:
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        eval_mode(model),
        torch.random.fork_rng(range(torch.cuda.device_count())),
    ):
        torch.manual_seed(0)
        failed: list[tuple[Exception, Tensor]] = []
        for images in _images(model, example):
            try:
                calls = try_model(model, images)
            except Exception as error:  # of the model's code
                failed.append((error, images))
            else:
                return Trial(images, calls, find_logits(calls.output))
    reason, images = failed[0]
    raise ValueError(
        f"{type(model).__name__} fails on images {tuple(images.shape)} ({type(reason).__name__}: "
        f"{_first_line(reason)}): pass images that it takes, GuidedMixNet(model, example=images)"
    ) from reason


def _images(model: nn.Module, example: Tensor | None) -> Iterator[Tensor]:
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    if example is not None:
        if example.dim() != 4 or not len(example):
            raise ValueError(
                f"`example` must be images (N, C, H, W), got shape {tuple(example.shape)}"
            )
        yield torch.cat([example, example])[:2].to(like)
        return
    config = getattr(model, "config", None)
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    channels = getattr(config, "num_channels", None) or (first.in_channels if first else 3)
    sizes = [*SIZES]
    if isinstance(side := getattr(config, "image_size", None), int):
        sizes.append((side, side))
    for size in sizes:
        yield torch.randn(2, channels, *size).to(like)


def _check_logits(trial: Trial, model: nn.Module) -> None:
    logits = trial.logits
    raw = "return raw logits, without a last softmax or sigmoid"
    if len(logits) != len(trial.images):
        raise ValueError(
            f"the model must return logits (N, K, H, W) of {len(trial.images)} images, got {tuple(logits.shape)}"
        )
    if logits.dtype != trial.images.dtype:
        raise ValueError(
            f"{type(model).__name__} returns logits of {logits.dtype} for images of {trial.images.dtype}: return "
            "logits.to(images.dtype)"
        )
    if logits.isnan().any():
        raise ValueError(
            f"{type(model).__name__} returns NaN for images {tuple(trial.images.shape)}: load weights that are finite, "
            "or pass images as you train on, GuidedMixNet(model, example=images)"
        )
    height, width = trial.images.shape[2:]
    _, one, two, three = logits.shape
    if one * width == two * height and two * width != three * height:  # (h, w) stand first
        raise ValueError(
            f"{type(model).__name__} returns {tuple(logits.shape)} for images {tuple(trial.images.shape)}, classes "
            "last: return logits.permute(0, 3, 1, 2), of shape (N, K, H, W)"
        )
    total = logits.float().sum(1)
    if logits.shape[1] > 1 and bool((logits >= 0).all() and ((total - 1).abs() < 1e-3).all()):
        raise ValueError(f"{type(model).__name__} returns probabilities: {raw}")
    leaves = [call for _, call in trial.calls.depths() if not call.inside]
    last = max(leaves, key=lambda call: call.end, default=None)
    if last is not None and isinstance(model.get_submodule(last.name), nn.Sigmoid):
        raise ValueError(f"{type(model).__name__} ends in a sigmoid: {raw}")


def _stride(model: nn.Module, trial: Trial, deepest: int) -> int:
    """Find what heights and widths must be multiples of: 1 if the model takes any."""
    height, width = trial.images.shape[2:]
    ratio = height // trial.logits.shape[2]

    def takes(size: Size) -> bool:
        images = F.interpolate(trial.images, size=size)
        try:
            found = find_logits(model(images)).shape[2:]
        except Exception:  # of the model's code
            return False
        return tuple(found) == tuple(-(-length // max(ratio, 1)) for length in size)

    with torch.no_grad(), eval_mode(model):
        if takes((height - 1, width - 3)) and takes((height - 6, width - 7)):
            return 1
        for factor in (1, 2, 4):
            if takes((height + deepest * factor, width + deepest * factor)):
                return deepest * factor
    return deepest


def _last_layer(model: nn.Module, trial: Trial) -> str | None:
    """Find the convolution whose outputs are the logits, but for upsampling."""
    found = [
        call
        for _, call in trial.calls.depths()
        if isinstance(model.get_submodule(call.name), nn.Conv2d)
        and isinstance(call.output, Tensor)
        and call.output.shape[:2] == trial.logits.shape[:2]
    ]
    size = (trial.logits.shape[2], trial.logits.shape[3])
    same = (c.name for c in found if torch.allclose(_resized(c.output, size), trial.logits))
    return next(same, None)
