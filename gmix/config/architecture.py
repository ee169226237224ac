"""Networks by name: flags, YAML and the `config.json` of a model reach SMP and timm only through this module.

timm builds whatever it is asked for: some names contact a hub, and some arguments name a file that old releases
unpickle. Only arguments that shape a network are passed on.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import segmentation_models_pytorch as smp
import timm

from gmix.config.options import lookup
from gmix.nn.unet import GuidedMixUnet

ARCHITECTURES = {**smp.MODEL_ARCHITECTURES_MAPPING, "guidedmixunet": GuidedMixUnet}

# Arguments that SMP and timm accept besides an architecture's own, and that only shape the network.
FURTHER = (
    *("img_size", "patch_size", "window_size", "dynamic_img_size", "dynamic_img_pad"),
    *("strict_img_size", "output_stride", "drop_rate", "drop_path_rate", "drop_block_rate"),
    *("proj_drop_rate", "attn_drop_rate", "pos_drop_rate", "patch_drop_rate", "init_values"),
    *("class_token", "reg_tokens", "no_embed_class", "qk_norm", "decoder_use_batchnorm"),
)
LARGEST = 16384  # upper limit of numeric arguments: channels, pixels


def find_architecture(name: str, what: str = "--arch") -> Any:
    """Return the architecture class of that name, ignoring case.

    Raises:
        ValueError: If it is unknown; the message calls the name `what`.
    """
    return lookup(name, ARCHITECTURES, what)


def build_architecture(architecture: Any, arguments: Mapping[str, Any]) -> Any:
    """Build an SMP model of an architecture class.

    Args:
        architecture: Class from `find_architecture`.
        arguments: Arguments of the class, and those in `FURTHER`.

    Raises:
        ValueError: If the encoder or an argument is unknown.
        Exception: Anything SMP and timm raise on invalid values.
    """
    check_encoder(arguments.get("encoder_name", "resnet34"))
    own = inspect.signature(architecture.__init__).parameters.values()
    known = [item.name for item in own if item.kind is item.POSITIONAL_OR_KEYWORD][1:]
    if any(item.kind is item.VAR_KEYWORD for item in own):
        known += FURTHER
    for key, value in arguments.items():
        if key not in known:
            raise ValueError(
                f"{key} is no argument that gmix hands on: choose among {', '.join(known)}"
            )
        _check_value(key, value)
    return architecture(**arguments)


def check_encoder(name: Any) -> None:
    """Refuse an encoder that is not built into SMP or timm.

    Raises:
        ValueError: If it is not; weights from elsewhere are given as a file.

    Examples:
        >>> check_encoder("tu-convnext_tiny.fb_in22k")
        >>> check_encoder("tu-hf-hub:someone/model")
        Traceback (most recent call last):
        ValueError: the encoder tu-hf-hub:someone/model is unknown: ...
    """
    known = isinstance(name, str) and name in smp.encoders.encoders
    if isinstance(name, str) and (match := re.fullmatch(r"(?:tu|timm)-([\w.]+)", name)):
        # SMP itself turns some `timm-` names into `tu-` and `tu-tf_` ones.
        known = known or timm.is_model(match[1]) or timm.is_model(f"tf_{match[1]}")
    if not known:
        raise ValueError(
            f"the encoder {str(name)[:100]} is unknown: choose one of segmentation-models-pytorch, or tu- "
            "and the name of a timm model (weights from elsewhere: --encoder-weights FILE)"
        )


def _check_value(key: str, value: Any) -> None:
    """Refuse anything but plain values of a reasonable size."""
    if isinstance(value, Mapping):
        plain = len(value) <= 16 and all(isinstance(name, str) for name in value)
        inside = list(value.values())
    elif isinstance(value, list | tuple):
        plain, inside = len(value) <= 64, list(value)
    elif isinstance(value, int | float):
        plain, inside = abs(value) <= LARGEST, []  # NaN fails this test
    else:
        plain, inside = value is None or (isinstance(value, str) and len(value) <= 200), []
    if not plain:
        raise ValueError(
            f"{key} must be words, or numbers of at most {LARGEST}, or short lists of them, "
            f"got {str(value)[:60]}"
        )
    for part in inside:
        _check_value(key, part)
