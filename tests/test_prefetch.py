"""Results made ahead, against `map`: the same, in order, few at a time, and no thread left behind."""

import threading
import weakref
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmix.data import ahead

LONG = 30.0  # seconds, after which something that should have happened never will


def threads() -> set[threading.Thread]:
    return set(threading.enumerate())


@given(items=st.lists(st.integers()), workers=st.integers(1, 4))
def test_it_is_map(items: list[int], workers: int) -> None:
    before = threads()
    assert list(ahead(str, iter(items), workers)) == list(map(str, items))
    assert threads() == before


@given(
    items=st.lists(st.integers(), max_size=9),
    bad=st.integers(0, 9),
    workers=st.integers(1, 4),
    where=st.sampled_from(["function", "items"]),
)
def test_an_error_comes_in_place_of_a_result(
    items: list[int], bad: int, workers: int, where: str
) -> None:
    class Bad(Exception):
        pass

    def source() -> Iterator[int | None]:
        yield from items[:bad]
        if where == "items":
            raise Bad
        yield None
        yield from items[bad:]

    def function(item: int | None) -> int:
        if item is None:
            raise Bad
        return item

    before, found = threads(), []
    with pytest.raises(Bad):
        for result in ahead(function, source(), workers):
            found.append(result)
    expected = items[:bad]
    # An error of the items themselves comes as soon as they are asked for.
    assert found == (
        expected if where == "function" else expected[: max(len(expected) - workers, 0)]
    )
    assert threads() == before


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_next_results_are_made_while_one_is_used(workers: int) -> None:
    made = [threading.Event() for _ in range(20)]
    for used in ahead(lambda number: (made[number].set(), number)[1], range(20), workers):
        for number in range(used, min(used + workers + 1, 20)):
            assert made[number].wait(LONG)
        assert not any(event.is_set() for event in made[used + workers + 1 :])


def test_workers_work_at_once() -> None:
    meet = threading.Barrier(3)
    assert len(list(ahead(lambda _: meet.wait(LONG), range(9), workers=3))) == 9


@pytest.mark.parametrize("workers", [1, 2])
def test_items_and_results_are_not_kept(workers: int) -> None:
    class Large:
        pass

    alive: weakref.WeakSet[Large] = weakref.WeakSet()

    def make(_: object = None) -> Large:
        large = Large()
        alive.add(large)
        return large

    most = 0
    for result in ahead(make, range(20), workers):
        most = max(most, len(alive))
        del result
    assert 1 <= most <= workers + 1 and not alive

    most = 0
    for _ in ahead(lambda item: None, map(make, range(20)), workers):
        most = max(most, len(alive))
    assert most <= workers + 1 and not alive


@pytest.mark.parametrize("how", ["close", "interrupt", "forget"])
def test_who_stops_early_leaves_no_thread(how: str) -> None:
    begun: list[int] = []
    before = threads()
    results = ahead(begun.append, range(1000))
    next(results)
    if how == "interrupt":
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt())  # type: ignore[attr-defined]
    elif how == "close":
        results.close()  # type: ignore[attr-defined]
    del results
    assert threads() == before
    assert begun == [0, 1, 2]
