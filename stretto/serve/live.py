"""Requests that are being answered, by their ids, so that their owner can cancel them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from stretto.llm.answers import Answers
from stretto.serve.errors import ApiError


class Live:
    """A tenant reaches its own requests only: those of others are as if they were not there."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], list[Answers]] = {}

    @contextmanager
    def entered(self, tenant: str, ids: Sequence[str], answers: Answers) -> Iterator[None]:
        """Inside, the request is known under each of `ids`; several may share one that a client chose."""
        keys = {(tenant, one) for one in ids}
        for key in keys:
            self._known.setdefault(key, []).append(answers)
        try:
            yield
        finally:
            for key in keys:
                self._known[key].remove(answers)
                if not self._known[key]:
                    del self._known[key]

    def cancel(self, tenant: str, one: str) -> int:
        """End the requests of this id; how many there were. Their readers hear that they were cancelled."""
        found = self._known.get((tenant, one), [])
        for answers in found:
            answers.fail(ApiError(409, "The request was cancelled", code="request_cancelled"))
        return len(found)
