"""Communication between the processes of a distributed training."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["check_unwrapped", "gather", "process_count", "warn_if_alone"]

# Wrappers by name, since importing all of them takes a second, and what to wrap the method in instead.
WRAPPERS = {
    "DistributedDataParallel": "DistributedDataParallel",
    "DataParallel": "DistributedDataParallel",
    "FullyShardedDataParallel": "fully_shard",
    "fully_shard": "fully_shard",
}


def process_count() -> int:
    """Return how many processes of `torch.distributed` train together; 1 without it.

    Examples:
        >>> process_count()
        1
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()


def gather(x: Tensor) -> Tensor:
    """Concatenate the tensors of all processes, in the order of their ranks.

    Every process must call it with a tensor of the same shape. No gradient flows through it. With a single process it
    returns `x` itself.

    Args:
        x: `(N, ...)`.

    Returns:
        Tensor `(processes * N, ...)`, the same in all processes.

    Raises:
        ValueError: In all processes, if the shapes differ.

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
    """Raise in every process if tensor shapes differ, where a backend would abort or hang."""
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
    """Return the process group for CPU communication, which does not wait for the devices."""
    return world if distributed.get_backend() == "gloo" else distributed.new_group(backend="gloo")


def check_unwrapped(module: nn.Module) -> None:
    """Refuse a method with a part that is wrapped for several devices: only the wrapper's own call exchanges anything.

    Raises:
        TypeError: If it contains a wrapper or a part in shards, is wrapped itself, or is a replica of DataParallel.
    """
    if getattr(module, "_is_replica", False):
        raise TypeError(
            "DataParallel copies the method for each call and drops what the copies learn, such as the teacher: "
            "use DistributedDataParallel(method), one process per device"
        )
    for name, part in module.named_modules():
        kinds = [kind.__name__ for kind in type(part).__mro__ if kind.__name__ in WRAPPERS]
        if _is_sharded(part) and not _is_sharded(module):
            kinds.append("fully_shard")
        if kinds:
            kind, instead = kinds[0], WRAPPERS[kinds[0]]
            where = f"`{name}` is wrapped in {kind}" if name else f"got {kind}"
            raise TypeError(
                f"{where}, which never learns that a method calls its parts: wrap the method instead, "
                f"{instead}(method)"
            )


def _is_sharded(module: nn.Module) -> bool:
    """Return whether torch's `fully_shard` was applied to this very module."""
    return hasattr(module, "set_requires_gradient_sync")


def warn_if_alone(method: nn.Module) -> None:
    """Warn if several processes run and nothing averages the gradients of this method."""
    inside = getattr(DistributedDataParallel, "_active_ddp_module", method) is not None
    if process_count() > 1 and not _is_sharded(method) and not inside:
        warnings.warn(
            f"{process_count()} processes train together, but this method is called without a wrapper, so their "
            "weights drift apart unless you average the gradients: call DistributedDataParallel(method)",
            stacklevel=3,
        )
