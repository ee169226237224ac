"""The same bits from the same seed, run after run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["deterministic"]


@contextmanager
def deterministic(enabled: bool = True) -> Iterator[None]:
    """Only algorithms that give the same result each time; afterwards all is as it was.

    On a CPU a training is a function of its flags and its number of threads anyway. CUDA adds up in any order where
    that is faster, and cuDNN chooses among its algorithms by the clock: neither is allowed here. An operation of
    which CUDA has no other kind raises an error; `docs/speed.md` lists those.

    Args:
        enabled: False changes nothing.

    Raises:
        RuntimeError: Inside, from torch, at an operation that cannot be repeated exactly.

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
    # cuBLAS reads it with its first product; torch refuses products without it.
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
