"""What the processes of a training that runs in several have to tell each other."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

__all__ = ["gather", "process_count"]


def process_count() -> int:
    """How many processes of `torch.distributed` train together; 1 without it.

    Examples:
        >>> process_count()
        1
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()


def gather(x: Tensor) -> Tensor:
    """The tensors of all processes, one after the other in the order of their ranks.

    Every process has to call it, each with a tensor of the same shape; no gradient flows. In one process it is
    `x` itself.

    Args:
        x: `(N, ...)`.

    Returns:
        `(processes * N, ...)`, the same in all of them.

    Examples:
        >>> gather(torch.tensor([1, 2]))
        tensor([1, 2])
    """
    if process_count() == 1:
        return x
    x = x.detach().contiguous()
    found = [torch.empty_like(x) for _ in range(process_count())]
    distributed.all_gather(found, x)
    return torch.cat(found)
