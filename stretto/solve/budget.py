"""`Budget`: how many tokens a search may sample, and until when."""

import asyncio
from collections import deque


class Budget:
    """tokens: at most so many are sampled, over all requests (None = no limit). seconds: from now on (None = no limit).
    Made inside the event loop of the search.

    A request reserves what it may sample at most, and gives back what it did not. Reservations are granted in the order
    in which they were asked for; where less is left, the next one waits for those that are running, and gets the rest
    once none is. So the request that comes after some others gets the same number of tokens whichever of them ends
    first, and what is sampled never exceeds the budget.
    """

    def __init__(self, tokens: int | None = None, seconds: float | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._tokens, self.started = tokens, self._loop.time()
        self.deadline = None if seconds is None else self.started + seconds
        self.spent = 0
        self._taken = 0  # spent, reserved, or lost with requests that were cut
        self._running = 0  # requests that hold a reservation
        self._waiting: deque[tuple[int, asyncio.Future[int]]] = deque()

    @property
    def seconds(self) -> float:
        """Since the search began."""
        return self._loop.time() - self.started

    @property
    def has_tokens(self) -> bool:
        """Whether another request would get any."""
        return self._tokens is None or self._taken < self._tokens

    @property
    def has_time(self) -> bool:
        """Whether the deadline is still to come."""
        return self.deadline is None or self._loop.time() < self.deadline

    async def reserve(self, most: int) -> int:
        """How many tokens a request may sample: `most`, or the rest, or 0. Whoever gets any calls `settle`."""
        if not self.has_time:
            return 0
        place: asyncio.Future[int] = self._loop.create_future()
        self._waiting.append((most, place))
        self._grant()
        try:
            return await place
        except asyncio.CancelledError:
            if not place.cancelled():  # granted, but nobody is there to use it
                self.settle(place.result(), 0, is_whole=True)
            raise

    def settle(self, granted: int, used: int, *, is_whole: bool) -> None:
        """A request is over. is_whole: it ended by itself; of one that was cut, tokens may be on their way that nobody
        reads, so nothing is given back."""
        assert used <= granted
        self._running -= granted > 0
        self.spent += used
        if is_whole:
            self._taken -= granted - used
        self._grant()

    def _grant(self) -> None:
        while self._waiting:
            most, place = self._waiting[0]
            if not place.done():
                left = most if self._tokens is None else self._tokens - self._taken
                if left < most and self._running:
                    return
                granted = min(most, left)
                self._running += granted > 0
                self._taken += granted
                place.set_result(granted)
            self._waiting.popleft()
