"""Autocast to 16 bits, except for the one operation it makes slower, and the loss scaling that float16 needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["LossScaler", "amp_dtype", "computes_in_bfloat16", "mixed_precision"]

LEAST_SCALE = 1e-4
"""Gradients that overflow even when the loss is this much smaller will not stop to."""


@contextmanager
def mixed_precision(
    device: torch.device, dtype: torch.dtype | None = torch.bfloat16
) -> Iterator[None]:
    """Autocast to bfloat16 or float16; on a CPU, depthwise convolutions stay in float32.

    In bfloat16 their backward pass takes eight to twenty times as long as in float32 with oneDNN (torch 2.14), and
    MobileNet- and EfficientNet-like encoders then spend most of a step there: see the last table of
    `benchmarks/step_cost.py --encoder tu-tf_efficientnet_lite0`.

    Args:
        device: Device of the tensors.
        dtype: `torch.bfloat16` or `torch.float16`; None for plain float32.

    Examples:
        >>> conv, depthwise = torch.nn.Conv2d(4, 4, 3), torch.nn.Conv2d(4, 4, 3, groups=4)
        >>> with mixed_precision(torch.device("cpu")):
        ...     print(conv(torch.ones(1, 4, 8, 8)).dtype, depthwise(torch.ones(1, 4, 8, 8)).dtype)
        torch.bfloat16 torch.float32
    """
    enabled = dtype is not None
    depthwise = Float32Depthwise() if enabled and device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, dtype, enabled=enabled), depthwise:
        yield


def amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """Choose the type that autocast computes in; None is float32.

    Args:
        amp: "bf16", "fp16", "none", or "auto": bfloat16 where the device computes in it, float16 on NVIDIA GPUs from
            Pascal to Turing (compute capability 6 and 7: P100, V100, T4, RTX 20), float32 elsewhere.
        device: Device to train on.

    Examples:
        >>> amp_dtype("fp16", torch.device("cpu")), amp_dtype("none", torch.device("cpu"))
        (torch.float16, None)
    """
    if amp != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "none": None}[amp]
    if computes_in_bfloat16(device):
        return torch.bfloat16
    if device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 6:
        return torch.float16
    return None


def computes_in_bfloat16(device: torch.device) -> bool:
    """Return whether a device has bfloat16 arithmetic, and is therefore faster with it than with float32.

    True for NVIDIA GPUs from Ampere on (compute capability 8), and for x86 CPUs with AVX512-BF16 or AMX. Others emulate
    bfloat16, or were not tested.

    Examples:
        >>> computes_in_bfloat16(torch.device("mps"))
        False
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type != "cpu":
        return False
    # Older versions of torch do not report it.
    able: Any = getattr(torch.cpu, "get_capabilities", dict)()
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16"))


class LossScaler(torch.amp.GradScaler):
    """Scale the loss so that small gradients survive float16; disabled, it does nothing.

    A step whose gradients overflow is left out and the scale halved: that is how the largest scale is found, and no
    failure. Bfloat16 and float32 need no scaling.

    Args:
        device: Type of the device, such as "cuda".
        enabled: Whether to scale, for float16.

    Examples:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer, scaler = torch.optim.SGD([weight], lr=0.1), LossScaler("cpu", enabled=True)
        >>> scaler.scale(2 * weight.sum()).backward()
        >>> scaler.step(optimizer); scaler.update()
        >>> weight.item()
        0.800000011920929
    """

    def check(self, step: int) -> None:
        """Refuse to go on if gradients overflow whatever the scale; waits for the device.

        Raises:
            FloatingPointError: If the scale has become too small.
        """
        if self.is_enabled() and self.get_scale() < LEAST_SCALE:
            raise FloatingPointError(
                f"gradients overflow float16 at every step up to {step}, and nothing is learned: try --amp bf16 or "
                "none, or a lower --lr"
            )

    def fitting(self, found: Any) -> dict[str, Any]:
        """Check a saved state; it is empty if this scaler or the saved one does nothing, which changes nothing here.

        Raises:
            ValueError: If it is no state of a scaler.
        """
        wanted = self.state_dict()
        if not isinstance(found, dict) or (found and found.keys() != _NAMES):
            raise ValueError("it holds no state of a loss scaler")
        for name, value in found.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} of the loss scaler must be a number, got {value!r}")
        if found and not 0 < found["scale"] < float("inf"):
            raise ValueError(f"scale of the loss scaler must be above 0, got {found['scale']}")
        # The rules of growth stay those of this scaler.
        return {**wanted, **{name: found[name] for name in _STATE}} if wanted and found else {}


_STATE = ("scale", "_growth_tracker")
_NAMES = {*_STATE, "growth_factor", "backoff_factor", "growth_interval"}


class Float32Depthwise(TorchFunctionMode):
    """Mode that runs depthwise convolutions outside autocast, wherever they are called."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not torch.conv2d or not _is_depthwise(*args, **kwargs):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            return _in_float32(*args, **kwargs)


# The parameters have torch's names: arguments may be passed by keyword.
def _is_depthwise(input: Tensor, weight: Tensor, *_: Any, **__: Any) -> bool:
    return weight.shape[1] == 1 and input.shape[-3] > 1


def _in_float32(input: Tensor, weight: Tensor, *rest: Any, **named: Any) -> Tensor:
    return torch.conv2d(input.float(), weight.float(), *rest, **named)
