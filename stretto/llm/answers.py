"""`Answers`: requests that were queued together, read together."""

import asyncio
from collections.abc import Sequence

from stretto.llm.admission import Admission, Reader
from stretto.llm.results import Chunk, Result


class Answers:
    """Chunks of several requests as they come, until each has given its result. Whoever stops reading calls `drop`."""

    def __init__(
        self,
        admission: Admission,
        readers: Sequence[Reader],
        arrived: "asyncio.Queue[tuple[int, Chunk | BaseException]]",
    ) -> None:
        self._admission, self._readers, self._arrived = admission, readers, arrived
        self._left = len(readers)

    @property
    def is_over(self) -> bool:
        """Whether every request has given its result."""
        return self._left == 0

    async def next(self) -> tuple[int, Chunk]:
        """The number of a request and its next chunk; raises what goes wrong with one. Not to be called when all is
        over. A wait that is cancelled loses no chunk."""
        assert self._left, "nothing comes any more"
        number, item = await self._arrived.get()
        if isinstance(item, BaseException):
            raise item
        self._left -= item.result is not None
        return number, item

    async def results(self) -> list[Result]:
        """All results, in the order of the requests. The first problem, and whatever ends the wait, ends them all."""
        found: dict[int, Result] = {}
        try:
            while not self.is_over:
                number, chunk = await self.next()
                if chunk.result is not None:
                    found[number] = chunk.result
        finally:
            self.drop()
        return [found[number] for number in sorted(found)]

    def fail(self, problem: BaseException) -> None:
        """End all requests; their reader hears `problem`. In the reader's event loop."""
        self.drop()
        self._arrived.put_nowait((0, problem))

    def drop(self) -> None:
        """End what has not ended, within one step. Again is fine, and does nothing after the end."""
        for reader in self._readers:
            self._admission.drop(reader)
