"""Prefetching and writing behind, in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(function: Callable[[T], R], items: Iterable[T], workers: int = 2) -> Iterator[R]:
    """Apply `function` to `items` like `map`, computing the next results while the last one is used.

    Wrapped around a loop's source, it reads ahead. Wrapped around its result, it writes behind: `items` are then
    computed in the calling thread, and `function` writes them in the others.

    It uses threads, not processes: reading and writing images (Pillow, numpy, the system) mostly releases Python's
    lock, and threads start at once, take any function, and copy nothing. `Executor.map` alone would start on all items,
    and keep all results, before the first is used (its `buffersize` needs Python 3.14).

    Args:
        function: Called in other threads, `workers` of them at once.
        items: Iterated over in the thread that asks for results.
        workers: Number of threads, and of results kept besides the one in use.

    Yields:
        The results, in the order of the items. An exception of `function` is raised in place of its result, one of
        `items` when it occurs. A loop that ends early waits for calls already started, and starts no more.

    Examples:
        >>> list(ahead(len, ["one", "three"]))
        [3, 5]
        >>> from itertools import count
        >>> next(ahead(float, count()))
        0.0
    """
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[R]] = deque()
        for item in items:
            pending.append(pool.submit(function, item))
            del item  # the thread owns it, and it may be large
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
