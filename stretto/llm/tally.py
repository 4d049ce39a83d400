"""`Tally`: what an engine has done and is doing, counted by the thread that owns it."""

from dataclasses import dataclass

from stretto.core.pages import PAGE_SIZE
from stretto.engine.engine import Engine
from stretto.engine.request import Event, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """running, waiting: requests; queued_tokens: rows that the waiting ones need before their next token. pages, slots:
    of the cache, how many there are and how many are free. The others have only ever grown: preemptions, and of drafts
    how many were verified, with how many tokens, and how many of those became output."""

    running: int
    waiting: int
    queued_tokens: int
    pages: int
    free_pages: int
    slots: int
    free_slots: int
    preemptions: int
    drafts: int
    draft_tokens: int
    accepted_tokens: int

    @property
    def cache_tokens(self) -> int:
        """Tokens that the pages hold."""
        return self.pages * PAGE_SIZE


class Tally:
    """Sums over the events and the ended requests of one engine."""

    def __init__(self) -> None:
        self._drafts = self._draft_tokens = self._accepted = self._preemptions = 0

    def add(self, event: Event) -> None:
        """A step has done something for a request."""
        self._drafts += event.drafted > 0
        self._draft_tokens += event.drafted
        self._accepted += event.accepted

    def end(self, request: Request) -> None:
        """A request is over."""
        self._preemptions += request.job.num_preemptions

    def counts(self, engine: Engine) -> Counts:
        """Now; called by the thread of `engine`."""
        scheduler, cache = engine.scheduler, engine.runner.cache
        room = cache.pools.room
        return Counts(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            queued_tokens=sum(job.need for job in scheduler.waiting),
            pages=sum(room.num_blocks) - len(room.num_blocks),  # page 0 of every group is no one's
            free_pages=cache.free_blocks,
            slots=room.num_slots - 1 if room.has_slots else 0,
            free_slots=cache.free_slots if room.has_slots else 0,
            preemptions=self._preemptions + sum(j.num_preemptions for j in (*scheduler.running, *scheduler.waiting)),
            drafts=self._drafts,
            draft_tokens=self._draft_tokens,
            accepted_tokens=self._accepted,
        )
