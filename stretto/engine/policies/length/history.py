"""A text becomes as long as earlier ones of the same tenant with prompts of about the same length and the same limit.

Texts fall into classes: tenant, powers of two of prompt and limit. Of each class the latest `MEMORY` lengths are kept,
and a quantile of them is expected; with fewer than `FEW` of them, of all texts of the tenant, then of all; then the
limit. Source: arXiv 2306.06000 (S3: lengths in buckets, learned from what was wrong). Differs from it: lengths are
counted, not predicted from the words of a prompt.
"""

from collections import defaultdict, deque
from collections.abc import Hashable, Iterator

from stretto.core.card import Can, Card
from stretto.core.errors import UserError
from stretto.core.policy import Job, LengthPolicy

MEMORY, FEW = 64, 8
_MOST = 10_000  # classes


class History(LengthPolicy):
    """quantile: of earlier lengths, between 0 and 1."""

    def __init__(self, quantile: float = 0.75) -> None:
        if not 0 < quantile < 1:
            raise UserError(f"history: quantile is {quantile}", why="it lies between 0 and 1")
        self._quantile = quantile
        self._lengths: dict[Hashable, deque[int]] = defaultdict(lambda: deque(maxlen=MEMORY))

    def expect(self, job: Job) -> int:
        for one in _classes(job):
            if len(lengths := self._lengths.get(one, ())) >= FEW:
                return min(job.limit, sorted(lengths)[int(self._quantile * len(lengths))])
        return job.limit

    def ended(self, job: Job) -> None:
        if len(self._lengths) > _MOST:
            self._lengths.clear()
        for one in _classes(job):
            self._lengths[one].append(max(1, job.output))


def _classes(job: Job) -> Iterator[Hashable]:
    """From the narrowest to that of all."""
    yield job.tenant, job.prompt.bit_length(), job.limit.bit_length()
    yield job.tenant
    yield None


CARD = Card(
    name="history",
    make=History,
    idea="a text becomes as long as earlier ones like it",
    paper="2306.06000",
    can=Can(0),
    cost="O(n log n) per request, for 64 lengths",
)
