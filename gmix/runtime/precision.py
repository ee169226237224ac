"""Autocast to bfloat16, except for the one operation it makes slower."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["computes_in_bfloat16", "mixed_precision"]


@contextmanager
def mixed_precision(device: torch.device, enabled: bool = True) -> Iterator[None]:
    """Autocast to bfloat16; on a CPU, depthwise convolutions stay in float32.

    In bfloat16 their backward pass takes eight to twenty times as long as in float32 with oneDNN (torch 2.14), and
    MobileNet- and EfficientNet-like encoders then spend most of a step there: see the last table of
    `benchmarks/step_cost.py --encoder tu-tf_efficientnet_lite0`.

    Args:
        device: Device of the tensors.
        enabled: False for plain float32.

    Examples:
        >>> conv, depthwise = torch.nn.Conv2d(4, 4, 3), torch.nn.Conv2d(4, 4, 3, groups=4)
        >>> with mixed_precision(torch.device("cpu")):
        ...     print(conv(torch.ones(1, 4, 8, 8)).dtype, depthwise(torch.ones(1, 4, 8, 8)).dtype)
        torch.bfloat16 torch.float32
    """
    depthwise = Float32Depthwise() if enabled and device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=enabled), depthwise:
        yield


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
