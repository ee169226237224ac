"""Compilation of a method's call."""

from __future__ import annotations

import torch
from torch import nn

from gmix.errors import one_line

__all__ = ["compile_call"]


def compile_call(method: nn.Module, device: torch.device) -> None:
    """Compile a method's call into one graph with `torch.compile`; the call signature stays the same.

    The method is changed in place, which keeps the names of its weights; `torch.compile(method)` would change them.

    Args:
        method: A training method.
        device: Device on which it will run.

    Raises:
        ValueError: If no compiler works for that device.
    """
    try:  # try a tiny function: the first step takes long, and fails with a page of text
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except Exception as error:  # the exception types differ between torch versions
        raise ValueError(
            "--compile needs a compiler, g++ or clang for a CPU and Triton for a GPU: install it or leave the flag "
            f"out ({one_line(error)[:200]})"
        ) from error
    method.compile()
