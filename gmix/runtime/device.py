"""Device of a training, and its peak memory."""

from __future__ import annotations

import sys

import torch


def prepare_device(name: str, threads: int | None = None) -> torch.device:
    """Return the device of that name ("auto": a GPU if there is one), and set the number of CPU threads.

    Raises:
        ValueError: If the device does not exist.

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
    """Return the peak memory of this process in bytes: tensors on a GPU, else all memory.

    Returns None if the system does not report it (Windows). On Linux, the memory of a process includes that of its
    parent at the time it was started.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # macOS counts bytes, Linux kB
