"""`Watch`: what the owner of an engine can say of it between two steps, for monitors. No text is in it."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from stretto.core.pages import PAGE_SIZE
from stretto.core.policy import Record
from stretto.engine.engine import Engine
from stretto.engine.request import Event, Request
from stretto.llm.history import BOUNDS_MS, Bins, History, Phase, Span, Step, span
from stretto.llm.tally import Counts, Tally

MOST_CELLS = 1024  # of a map; a larger pool has several pages per cell
MOST_REQUESTS = 256  # that are listed
RATE_SECONDS = 5.0
SHARED, IDLE = -1, -2  # owners of a page that several requests read, and of one that only the prefix cache keeps


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolState:
    """A pool of pages or slots. idle: kept for a prefix alone. per_cell: places that a cell stands for;
    cells: number of the owner + 1, 0 = free, or `SHARED`, or `IDLE`."""

    kind: Literal["pages", "slots"]
    name: str
    total: int
    free: int
    used: int
    idle: int
    per_cell: int
    cells: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestState:
    """A request that waits or runs. Numbers count tokens. cached: of the prompt, from the prefix cache; held: in the
    cache; pages: that it holds; age_s: since it came."""

    id: int
    phase: Literal["waiting", "prefill", "decode"]
    prompt: int
    cached: int
    held: int
    output: int
    limit: int
    pages: int
    age_s: float
    drafted: int
    accepted: int
    preemptions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """An engine at one moment. now: on its clock; tokens_per_second: over the last `RATE_SECONDS`; num_steps: since it
    began; histogram: steps per phase by their milliseconds, bounds_ms the upper bounds, the last count beyond them."""

    now: float
    counts: Counts
    page_size: int
    max_seqs: int
    tokens_per_second: float
    pools: list[PoolState]
    requests: list[RequestState]
    num_steps: int
    steps: list[Step]
    bounds_ms: tuple[float, ...]
    histogram: dict[Phase, list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """counts: see there. milliseconds: of all steps, by phase; tokens: their rows."""

    counts: Counts
    milliseconds: dict[Phase, Bins]
    tokens: Bins


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Events behind a number, those that were forgotten counted. live: requests that are not over."""

    now: float
    number: int
    lost: int
    events: list[Step | Span]
    live: list[Span]


class Watch:
    """Hears what happens in an engine, in the thread that owns it, and answers questions there."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._tally, self._history = engine, Tally(), History()
        self._live: dict[int, Request] = {}
        engine.scheduler.listeners.append(self._step)

    def close(self) -> None:
        """Hear nothing more."""
        self._engine.scheduler.listeners.remove(self._step)

    def begin(self, request: Request) -> None:
        """A request is in the engine."""
        self._live[request.rid] = request

    def add(self, event: Event) -> None:
        """A step has done something for a request."""
        self._tally.add(event)

    def end(self, request: Request) -> None:
        """A request is over."""
        del self._live[request.rid]
        self._tally.end(request)
        self._history.end(request, self._engine.clock())

    def counts(self) -> Counts:
        """How much there is of everything."""
        return self._tally.counts(self._engine)

    def measures(self) -> Measures:
        """What there is to count, and what steps took."""
        history = self._history
        milliseconds = {phase: bins.copy() for phase, bins in history.milliseconds.items()}
        return Measures(counts=self.counts(), milliseconds=milliseconds, tokens=history.tokens.copy())

    def state(self, latest: int = 256) -> State:
        """All that a monitor shows, with so many of the last steps."""
        now, history = self._engine.clock(), self._history
        return State(
            now=now,
            counts=self.counts(),
            page_size=PAGE_SIZE,
            max_seqs=self._engine.runner.sizes.max_seqs,
            tokens_per_second=history.rate(now, RATE_SECONDS),
            pools=list(self._pools()),
            requests=[self._request(one, now) for one in list(self._live.values())[:MOST_REQUESTS]],
            num_steps=history.num_steps,
            steps=history.latest(latest),
            bounds_ms=BOUNDS_MS,
            histogram={phase: list(bins.counts) for phase, bins in history.milliseconds.items()},
        )

    def trace(self, after: int = 0) -> Trace:
        """What happened behind event number `after`."""
        now, history = self._engine.clock(), self._history
        return Trace(
            now=now,
            number=history.number,
            lost=history.lost(after),
            events=history.after(after),
            live=[span(one, now) for one in self._live.values()],
        )

    def _step(self, record: Record) -> None:
        self._history.step(record, self._engine.clock())

    def _pools(self) -> Iterator[PoolState]:
        ledger = self._engine.runner.cache.ledger
        for number, (group, pool) in enumerate(zip(ledger.room.groups, ledger.blocks, strict=True)):
            owned = {rid: holding.tables[number].owned for rid, holding in ledger.holdings.items()}
            name = "all" if group.window is None else f"window:{group.window}"
            yield _pool("pages", name, pool.num_blocks - 1, pool.num_free, owned, pool.idle)
        if ledger.room.has_slots:
            slots = {rid: [one.slot] for rid, one in ledger.holdings.items() if one.slot is not None}
            idle = ledger.slots.used.difference(*slots.values())
            yield _pool("slots", "states", ledger.slots.num_slots - 1, ledger.slots.num_free, slots, idle)

    def _request(self, request: Request, now: float) -> RequestState:
        job, line = request.job, request.timeline
        holding = self._engine.runner.cache.ledger.holdings.get(request.rid)
        phase: Literal["waiting", "prefill", "decode"] = "decode" if request.output else "prefill"
        if not job.is_running:
            phase = "waiting"
        return RequestState(
            id=request.rid,
            phase=phase,
            prompt=len(request.prompt),
            cached=job.cached or 0,
            held=holding.length if holding is not None else 0,
            output=len(request.output),
            limit=job.limit,
            pages=sum(len(table.owned) for table in holding.tables) if holding is not None else 0,
            age_s=now - line.arrived,
            drafted=line.drafted,
            accepted=line.accepted,
            preemptions=job.num_preemptions,
        )


def _pool(
    kind: Literal["pages", "slots"],
    name: str,
    total: int,
    free: int,
    owned: dict[int, list[int]],
    idle: Collection[int],
) -> PoolState:
    """owned: places by request, counted from 1 (place 0 is no one's); idle: those that only prefixes have. Where a cell
    stands for several places, it shows a request rather than a prefix."""
    per_cell = max(1, -(-total // MOST_CELLS))
    cells = [0] * -(-total // per_cell)
    for place in idle:
        cells[(place - 1) // per_cell] = IDLE
    uses = Counter(place for places in owned.values() for place in places)
    for rid, places in owned.items():
        for place in places:
            cells[(place - 1) // per_cell] = rid + 1 if uses[place] == 1 else SHARED
    return PoolState(
        kind=kind,
        name=name,
        total=total,
        free=free,
        used=total - free - len(idle),
        idle=len(idle),
        per_cell=per_cell,
        cells=cells,
    )
