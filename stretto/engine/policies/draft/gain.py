"""Draft only while it is measured to pay: "never slower than plain decoding".

For every number of running requests two rates are learned, fading averages over the latest steps:

    plain  = tokens / seconds of steps without drafts        gain = drafts / plain
    drafts = tokens / seconds of steps that asked for drafts (also if none came: asking costs time)

Drafting goes on while gain >= 1, with a plain step now and then to keep that rate fresh. Below 1 it stops, and is
tried again after 32, 64, ... 1024 plain steps: a trial is a few steps that decide anew. What drafting has cost so far,

    loss = sum over drafting steps of (seconds - tokens / plain), at least 0,

may never exceed 2% of all time plus eight plain steps. That holds whatever the drafter does: a step that exceeds it
ends drafting at once, and the next trial waits until it fits. The idea of comparing measured times and backing off:
arXiv 2406.14066 (speculation length from goodput). Differs from it: no model of acceptance or of step time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from stretto.core.card import Can, Card
from stretto.core.policy import DraftPolicy, Job, Record

_WARM_UP = 4  # plain steps before the first trial
_TRIAL = 8  # drafting steps before the first judgement
_REFRESH = 64  # drafting steps between two plain ones
_FIRST_WAIT, _LONGEST_WAIT = 32, 1024  # plain steps between two trials
_LOSS_SHARE, _LOSS_STEPS = 0.02, 8.0
_FADE_PLAIN, _FADE_DRAFTS = 0.9, 0.95


class _Rate:
    """Tokens per second over the latest steps; older ones fade by a factor per step."""

    def __init__(self, fade: float) -> None:
        self._fade, self.steps, self._tokens, self._seconds = fade, 0, 0.0, 0.0

    def add(self, tokens: int, seconds: float) -> None:
        self.steps += 1
        self._tokens = self._fade * self._tokens + tokens
        self._seconds = self._fade * self._seconds + max(seconds, 1e-9)  # a clock may stand still

    @property
    def value(self) -> float:
        return self._tokens / self._seconds


@dataclass(slots=True)
class _Load:
    """What is known at one number of running requests."""

    plain: _Rate = field(default_factory=lambda: _Rate(_FADE_PLAIN))
    drafts: _Rate = field(default_factory=lambda: _Rate(_FADE_DRAFTS))  # since drafting last began
    on: bool = False  # a trial has succeeded
    wait: int = 0  # plain steps until the next trial
    plain_run: int = 0  # plain steps since the last drafting one
    draft_run: int = 0  # drafting steps since the last plain one
    loss_of_trial: float = 0.0  # seconds that the last failed trial cost


class Gain(DraftPolicy):
    """num_tokens: how many to draft per request, when it pays."""

    def __init__(self, num_tokens: int = 8) -> None:
        assert num_tokens > 0
        self._num_tokens = num_tokens
        self._loads: dict[int, _Load] = {}
        self._asked_at = 0  # the load of the last step that asked for drafts; 0 = the last step was plain
        self._seconds = self._loss = 0.0

    def budgets(self, jobs: Sequence[Job], most: int) -> list[int]:
        load = self._loads.setdefault(len(jobs), _Load())
        asks = self._wants(load, len(jobs))
        self._asked_at = len(jobs) if asks else 0
        return [min(self._num_tokens, most) if asks else 0] * len(jobs)

    def plain_steps(self, num_seqs: int) -> int:
        load = self._loads.setdefault(num_seqs, _Load())
        if load.plain.steps < _WARM_UP:
            return _WARM_UP - load.plain.steps
        return 1 if load.on or load.drafts.steps else max(1, load.wait - load.plain_run)

    def learn(self, record: Record) -> None:
        steps = record.num_steps
        for _ in range(steps if record.is_decode else 0):
            self._learn(record.num_seqs, record.drafted, record.emitted // steps, record.seconds / steps)

    def _learn(self, num_seqs: int, drafted: int, emitted: int, seconds: float) -> None:
        load = self._loads.setdefault(num_seqs, _Load())
        self._seconds += seconds
        if drafted == 0 and self._asked_at != num_seqs:
            load.plain.add(emitted, seconds)
            load.plain_run, load.draft_run = load.plain_run + 1, 0
            return
        load.drafts.add(emitted, seconds)
        load.plain_run, load.draft_run = 0, load.draft_run + 1
        if load.plain.steps:
            loss = seconds - emitted / load.plain.value
            self._loss = max(0.0, self._loss + loss)
            before = 0.0 if load.drafts.steps == 1 else load.loss_of_trial
            load.loss_of_trial = max(0.0, before + loss)
            self._judge(load, num_seqs)

    def _wants(self, load: _Load, num_seqs: int) -> bool:
        if load.plain.steps < _WARM_UP:
            return False
        if load.on:
            return load.draft_run < _REFRESH
        if load.drafts.steps:  # in the middle of a trial
            return True
        return load.plain_run >= load.wait and self._loss + load.loss_of_trial <= self._allowed(load, num_seqs)

    def _judge(self, load: _Load, num_seqs: int) -> None:
        too_costly = self._loss > self._allowed(load, num_seqs)
        if load.drafts.steps < _TRIAL and not too_costly:
            return
        if load.drafts.value >= load.plain.value and not too_costly:
            load.on, load.wait, load.loss_of_trial = True, 0, 0.0
            return
        load.on, load.wait = False, min(max(_FIRST_WAIT, 2 * load.wait), _LONGEST_WAIT)
        load.drafts = _Rate(_FADE_DRAFTS)

    def _allowed(self, load: _Load, num_seqs: int) -> float:
        return _LOSS_STEPS * num_seqs / load.plain.value + _LOSS_SHARE * self._seconds


CARD = Card(
    name="gain",
    make=Gain,
    idea="draft only while it is measured to pay",
    paper="2406.14066",
    can=Can(0),
    cost="O(1) per step",
)
