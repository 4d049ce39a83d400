"""Prompt tokens that wait: the bound, and when to come back, against lists that are summed anew every time."""

import random

import pytest

from stretto.core.errors import BusyError
from stretto.llm.queued import Pace, QueuedTokens


@pytest.mark.parametrize("most", [1, 50, 200])
def test_tokens_are_refused_exactly_where_they_do_not_fit(most: int) -> None:
    rng, queued, waiting = random.Random(most), QueuedTokens(most), dict[tuple[int, int], int]()
    refused = 0
    for number in range(2000):
        sizes = [rng.randint(1, 60) for _ in range(rng.choice([1, 1, 3]))]
        fits = not waiting or sum(waiting.values()) + sum(sizes) <= most
        try:
            queued.check(sizes)
        except BusyError as problem:
            assert not fits and f"max_queued_tokens is {most}" in str(problem)
            refused += 1
        else:
            assert fits
            for i, size in enumerate(sizes):
                queued.add((number, i), size)
                waiting[(number, i)] = size
        for one in [one for one in waiting if rng.random() < 0.15]:
            rng.choice([queued.drop, lambda one: queued.start(one, 0.0)])(one)
            queued.drop(one)  # again is fine
            del waiting[one]
    assert 100 < refused < 1900


def test_without_a_bound_nothing_is_refused() -> None:
    queued = QueuedTokens(None)
    for i in range(100):
        queued.check([10**9])
        queued.add(i, 10**9)


def test_the_wait_is_what_the_pace_says() -> None:
    """100 tokens every 2 s: 70 tokens too many are read in 1.4 s."""
    queued = QueuedTokens(1000)
    for i in range(12):
        queued.add(i, 100 if i else 20)
    for i in range(6):
        queued.start(i, 50.0 + 2 * i)
    queued.check([400])
    with pytest.raises(BusyError) as caught:
        queued.check([470])
    assert caught.value.retry_after == pytest.approx(1.4)
    with pytest.raises(BusyError) as caught:  # never fits beside others: when nobody waits any more
        queued.check([5000])
    assert caught.value.retry_after == pytest.approx(12.0)
    for i in range(6, 12):
        queued.drop(i)
    queued.check([5000])


def test_a_pause_is_no_pace_and_a_wait_has_bounds() -> None:
    pace = Pace()
    assert pace.seconds() == 1.0 == pace.seconds(10**9), "nothing is known"
    pace.add(3.0)
    assert pace.seconds() == 1.0
    pace.add(3.001)
    assert pace.seconds() == 0.1 and pace.seconds(10**9) == 60.0
    pace.clear()
    assert pace.seconds() == 1.0
    for i in range(100):  # only the latest count
        pace.add(float(i) if i < 50 else 50.0 + 5 * (i - 50))
    assert pace.seconds() == 5.0
