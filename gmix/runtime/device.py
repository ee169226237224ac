"""The device of a training, and the memory it took."""

from __future__ import annotations

import sys

import torch


def prepare_device(name: str, threads: int | None = None) -> torch.device:
    """The device of that name ("auto": a GPU if there is one), and the number of CPU threads.

    Raises:
        ValueError: If there is no such device.

    Examples:
        >>> prepare_device("cpu")
        device(type='cpu')
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise ValueError(f"--device {name} cannot be used here: {reason}") from None
    return device


def peak_memory(device: torch.device) -> int | None:
    """The most bytes this process has had so far: of a GPU, what tensors took; else all memory.

    None where the system does not tell (Windows). On Linux the memory of a process counts from
    that of the one that started it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux kB
