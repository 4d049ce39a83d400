"""`History`: what an engine did lately, in a bounded ring: its steps, and its requests when they end.

Times are seconds on the engine's clock. Everything here is integers, floats and one word per step: no text, no prompt.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

from stretto.core.policy import Record
from stretto.engine.request import Request

Phase = Literal["prefill", "decode", "verify"]
PHASES: tuple[Phase, ...] = ("prefill", "decode", "verify")
TOKEN_BOUNDS = tuple(float(2**i) for i in range(14))  # upper bounds: 1 to 8,192 rows of a step
MOST_EVENTS = 16_384  # steps and requests that are remembered; about 4 MB
BOUNDS_MS = tuple(0.25 * 2 ** (i / 2) for i in range(26))  # upper bounds of the histogram: 0.25 ms to 1.4 s


@dataclass(frozen=True, slots=True)
class Step:
    """A step that is over. seqs, rows: its size, drafts included; num_steps: plain steps that ran as one. phase:
    prefill if some prompt was read, verify if drafts were checked, else decode."""

    number: int
    started: float
    seconds: float
    phase: Phase
    seqs: int
    rows: int
    drafted: int
    accepted: int
    emitted: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class Span:
    """A request that is over, or (number 0) still there. first_token, started: None = it did not come so far. finished:
    its end, or the moment of the question."""

    number: int
    rid: int
    arrived: float
    started: float | None
    first_token: float | None
    finished: float
    prompt: int
    cached: int
    output: int
    drafted: int
    accepted: int
    preemptions: int


class Bins:
    """A histogram. bounds: upper ones, which belong to their bin; one bin more holds what is beyond the last."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def copy(self) -> "Bins":
        """As it is now."""
        made = Bins(self.bounds)
        made.counts, made.sum = list(self.counts), self.sum
        return made

    def add(self, value: float, times: int = 1) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


class History:
    """A ring of events, numbered from 1 on, and histograms of all steps there ever were: their milliseconds by phase,
    their rows."""

    def __init__(self, most: int = MOST_EVENTS) -> None:
        self._events: deque[Step | Span] = deque(maxlen=most)
        self.number = 0  # of the latest event
        self.num_steps = 0
        self.milliseconds: dict[Phase, Bins] = {phase: Bins(BOUNDS_MS) for phase in PHASES}
        self.tokens = Bins(TOKEN_BOUNDS)

    def step(self, record: Record, now: float) -> None:
        """A step has just ended."""
        self.number += 1
        self.num_steps += record.num_steps
        phase: Phase = "verify" if record.drafted else "decode"
        if not record.is_decode:
            phase = "prefill"
        self.milliseconds[phase].add(1e3 * record.seconds / record.num_steps, record.num_steps)
        self.tokens.add(record.num_rows, record.num_steps)
        accepted = sum(len(path) for _, _, path in record.rounds)
        self._events.append(
            Step(
                self.number,
                now - record.seconds,
                record.seconds,
                phase,
                record.num_seqs,
                record.num_rows,
                record.drafted,
                accepted,
                record.emitted,
                record.num_steps,
            )
        )

    def end(self, request: Request, now: float) -> None:
        """A request is over."""
        self.number += 1
        self._events.append(span(request, now, self.number))

    def after(self, number: int) -> list[Step | Span]:
        """The remembered events behind this number, in order."""
        found = list(takewhile(lambda event: event.number > number, reversed(self._events)))
        return found[::-1]

    def lost(self, number: int) -> int:
        """How many events behind this number are forgotten."""
        first = self._events[0].number if self._events else self.number + 1
        return max(0, first - 1 - number)

    def latest(self, most: int) -> list[Step]:
        """The last steps, in order."""
        found: list[Step] = []
        for event in reversed(self._events):
            if len(found) == most:
                break
            if isinstance(event, Step):
                found.append(event)
        return found[::-1]

    def rate(self, now: float, seconds: float) -> float:
        """Tokens per second that came out lately."""
        recent = takewhile(lambda event: not isinstance(event, Step) or event.started >= now - seconds,
                           reversed(self._events))  # fmt: skip
        return sum(event.emitted for event in recent if isinstance(event, Step)) / seconds


def span(request: Request, now: float, number: int = 0) -> Span:
    """What is known of a request."""
    line, job = request.timeline, request.job
    return Span(
        number,
        request.rid,
        line.arrived,
        line.started,
        line.first_token,
        now if line.finished is None else line.finished,
        len(request.prompt),
        job.cached or 0,
        len(request.output),
        line.drafted,
        line.accepted,
        job.num_preemptions,
    )
