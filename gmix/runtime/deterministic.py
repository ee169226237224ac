"""Bit-identical results from the same seed, run after run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["deterministic"]


@contextmanager
def deterministic(enabled: bool = True) -> Iterator[None]:
    """Allow only deterministic algorithms within the context; the previous settings are restored afterwards.

    On a CPU, a training depends only on its flags and its number of threads anyway. CUDA sums in any order if that is
    faster, and cuDNN chooses its algorithms by timing them: neither is allowed here. Operations without a deterministic
    CUDA implementation raise an error; `docs/speed.md` lists them.

    Args:
        enabled: If False, change nothing.

    Raises:
        RuntimeError: Raised by torch within the context, at an operation without one.

    Examples:
        >>> with deterministic():
        ...     print(torch.are_deterministic_algorithms_enabled())
        True
        >>> torch.are_deterministic_algorithms_enabled()
        False
    """
    if not enabled:
        yield
        return
    cudnn, variable = torch.backends.cudnn, "CUBLAS_WORKSPACE_CONFIG"
    mode, benchmark = torch.get_deterministic_debug_mode(), cudnn.benchmark
    workspace = os.environ.get(variable)
    # cuBLAS reads it at its first matrix product; torch refuses products without it.
    os.environ.setdefault(variable, ":4096:8")
    torch.use_deterministic_algorithms(True)
    cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        cudnn.benchmark = benchmark
        if workspace is None:
            del os.environ[variable]
