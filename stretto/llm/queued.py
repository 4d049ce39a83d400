"""`QueuedTokens`: prompt tokens of the requests that wait, with a bound, and how fast they are taken up."""

from collections import deque
from collections.abc import Hashable, Sequence

from stretto.core.errors import BusyError

_EVENTS = 32  # that tell a pace
_FIRST_WAIT, _LEAST_WAIT, _LONGEST_WAIT = 1.0, 0.1, 60.0  # seconds until a retry: before a pace is known, bounds


class Pace:
    """How fast something goes, over its latest events."""

    def __init__(self) -> None:
        self._events: deque[tuple[float, int]] = deque(maxlen=_EVENTS)  # when, how much

    def add(self, now: float, amount: int = 1) -> None:
        """So much has gone."""
        self._events.append((now, amount))

    def clear(self) -> None:
        """There was a pause: what went before it says nothing about what comes."""
        self._events.clear()

    def seconds(self, amount: int = 1) -> float:
        """Until so much more has gone, within the bounds of a wait."""
        gone = sum(one for _, one in list(self._events)[1:])
        seconds = amount * (self._events[-1][0] - self._events[0][0]) / gone if gone else _FIRST_WAIT
        return min(max(seconds, _LEAST_WAIT), _LONGEST_WAIT)


class QueuedTokens:
    """Who waits with how many tokens. most: tokens that may wait; None = any number. Not for several threads at once.

    A prompt waits until its first tokens are read. Tokens that are still to be generated do not count: how many they
    will be is not known, and most limits are far above it.
    """

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._waiting: dict[Hashable, int] = {}
        self._total, self._pace = 0, Pace()

    def check(self, sizes: Sequence[int]) -> None:
        """Raise BusyError if prompts of these sizes cannot wait, too. Where nobody waits, any prompt can."""
        total, wanted = self._total, sum(sizes)
        if self._most is None or not self._waiting or total + wanted <= self._most:
            return
        seconds = self._pace.seconds(min(total, total + wanted - self._most))
        raise BusyError(
            f"{total:,} tokens of prompts are queued, and {wanted:,} more do not fit",
            why=f"max_queued_tokens is {self._most:,}",
            try_=f"again in {seconds:.1f} s",
            retry_after=seconds,
        )

    def add(self, one: Hashable, size: int) -> None:
        """It waits."""
        self._waiting[one] = size
        self._total += size

    def start(self, one: Hashable, now: float) -> None:
        """Its prompt is being read."""
        if one in self._waiting:
            self._pace.add(now, self._waiting[one])
            self.drop(one)

    def drop(self, one: Hashable) -> None:
        """It does not wait, whether it did or not."""
        self._total -= self._waiting.pop(one, 0)
        if not self._waiting:
            self._pace.clear()
