"""Doing what comes next while something else runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(function: Callable[[T], R], items: Iterable[T], workers: int = 2) -> Iterator[R]:
    """`map(function, items)` whose next results are made while the last one is used.

    Around a loop's source it reads ahead; around its result it writes behind: `items` are then taken, and so made, by
    the thread that asks, and `function` puts them away.

    Threads, not processes: what reads and writes images (Pillow, numpy, the system) frees Python's lock most of
    the time; they start at once, take any function, and copy nothing. `Executor.map` alone would start on all items,
    and keep all results, before the first is used (its `buffersize` needs Python 3.14).

    Args:
        function: Called in other threads, from `workers` of them at once.
        items: Taken one by one, in the thread that asks for results.
        workers: Threads, and how many results there are besides the one in use.

    Yields:
        The results, in the order of the items. What `function` raises comes where its result would have come, what
        `items` raise comes when they do. A loop that ends earlier waits for what was begun, and begins no more.

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
            del item  # it is the thread's, and may be large
            if len(pending) > workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
