"""A method whose call is compiled."""

from __future__ import annotations

import torch
from torch import nn

from gmix.errors import one_line

__all__ = ["compile_call"]


def compile_call(method: nn.Module, device: torch.device) -> None:
    """Let `torch.compile` make one graph of a method's call; what it is called with stays the same.

    Done in place: the names of its weights do not change, as they would in what `torch.compile(method)` returns.

    Args:
        method: Any training method.
        device: Where it will run.

    Raises:
        ValueError: If there is no compiler for that device.
    """
    try:  # on something tiny: the first step is long, and ends in a page of text
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except Exception as error:  # torch's own kinds differ from version to version
        raise ValueError(
            "--compile needs a compiler, g++ or clang for a CPU and Triton for a GPU: install it or leave the flag "
            f"out ({one_line(error)[:200]})"
        ) from error
    method.compile()
