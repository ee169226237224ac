"""What the processes of a training that runs in several have to tell each other."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

__all__ = ["check_unwrapped", "gather", "process_count", "warn_if_alone"]

WRAPPERS = (DistributedDataParallel, DataParallel)


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

    Raises:
        ValueError: In all processes, where the shapes differ.

    Examples:
        >>> gather(torch.tensor([1, 2]))
        tensor([1, 2])
    """
    if process_count() == 1:
        return x
    x = x.detach().contiguous()
    check_equal_shapes(x)
    found = [torch.empty_like(x) for _ in range(process_count())]
    distributed.all_gather(found, x)
    return torch.cat(found)


def check_equal_shapes(x: Tensor) -> None:
    """Refuse tensors of different shapes in all processes, where a backend would abort or wait for ever."""
    group = _hosts(distributed.group.WORLD)
    mine = torch.tensor(x.shape)
    shapes = [torch.empty_like(mine) for _ in range(process_count())]
    distributed.all_gather(shapes, mine, group=group)
    found = [tuple(shape.tolist()) for shape in shapes]
    if len(set(found)) > 1:
        raise ValueError(
            "processes that train together need labeled batches of equal size and shape in every step, got "
            f"{' and '.join(map(str, found))}: drop_last=True, or a DistributedSampler, makes them equal"
        )


@lru_cache(maxsize=1)
def _hosts(world: Any) -> Any:
    """The group in which hosts talk to each other without waiting for their devices."""
    return world if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")


def check_unwrapped(module: nn.Module) -> None:
    """Refuse a method with DDP inside: gradients are exchanged only where the wrapper itself is called.

    Raises:
        TypeError: It has such a part, or is one itself.
    """
    for name, part in module.named_modules():
        if isinstance(part, WRAPPERS):
            kind = type(part).__name__
            where = f"`{name}` is wrapped in {kind}" if name else f"got {kind}"
            raise TypeError(
                f"{where}, which never learns that a method calls its parts: wrap the method instead, "
                "DistributedDataParallel(method)"
            )


def warn_if_alone(method: nn.Module) -> None:
    """Warn where several processes run and nothing averages the gradients of this method."""
    sharded = hasattr(method, "set_requires_gradient_sync")  # torch's `fully_shard` has been there
    inside = getattr(DistributedDataParallel, "_active_ddp_module", method) is not None
    if process_count() > 1 and not sharded and not inside:
        warnings.warn(
            f"{process_count()} processes train together, but this method is called without a wrapper, so their "
            "weights drift apart unless you average the gradients: call DistributedDataParallel(method)",
            stacklevel=3,
        )
