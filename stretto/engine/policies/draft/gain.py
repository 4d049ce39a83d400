"""Draft as many tokens as pay, and none where none do: "never slower than plain decoding".

How likely is every token that could be verified to be accepted? A lookup says so (`Job.acceptance`), less what it was
seen to promise too much; of other drafters the share is counted for the first, second, ... token of a draft. How long
does a step take? `core/pace.py` knows, from a measurement (`know`) and from every step. With those two, of all numbers
of tokens over all jobs, the one is taken for which

    goodput = expected tokens / seconds

is highest, if it beats plain decoding, whose steps may run several at once.

Both may be wrong. Therefore a job pays for its drafts out of a credit, counted in plain steps:

    credit = at first `_FIRST`, + 0.6% of a step per token, + what drafts gained - what they lost, at most `_MOST`

and a step may be no longer than the credit of its jobs allows if no token of it is accepted. However wrong a drafter
is, a text of n tokens is not later than plain decoding by more than `_FIRST` + 0.006 n steps where steps take what they
are expected to; a step that takes longer is charged for it by half at once and in full when it has become the rule.

Goodput: arXiv 2406.14066. Differs from it: probabilities per token in place of a mean acceptance rate, and the credit.
"""

import math
from collections.abc import Collection, Mapping, Sequence

from stretto.core.card import Can, Card
from stretto.core.pace import Pace
from stretto.core.policy import DraftPolicy, Job, Record

_MARGIN = 1.08  # a smaller gain than this is not worth the doubt
_FIRST, _MOST, _PER_TOKEN = 0.9, 8.0, 0.006  # credit, in plain steps
_REFRESH = 48  # steps with drafts that follow one another: then a plain one says what those take now
_SURPRISE = 1.4  # times as long as expected, or as short: such a step counts as a quarter of those
_OUTLIER = 5.0  # times as long as expected: what else the machine did then is not the drafter's fault
_OVERHEAD = 0.05  # of asking after every step, until it was seen
_LOST = 0.5  # of a plain step: what a token costs that could have been drafted
_LONGEST_PAUSE = 64  # plain steps
_WARM_UP = 4  # plain steps that come first
_PROBE = 300  # plain steps after which rows may cost less than is believed
_PROMISING = 1.8  # tokens that a probe must promise
_RESTED = 0.75  # credit for which a job waits that had none left


class Acceptance:
    """How likely the first, second, ... token of a draft is accepted, where the drafter does not say.

    Counts fade, by rounds and by plain steps, towards a guess that is worth another try.
    """

    _GUESS, _WEIGHT, _FADE, _FADE_PLAIN = 0.7, 2.0, 0.9, 0.998

    def __init__(self) -> None:
        self._counts: list[tuple[float, float]] = []  # per token: accepted, of so many

    def add(self, num_tokens: int, accepted: Collection[int]) -> None:
        """A verified draft. accepted: numbers of its tokens, from 1 on."""
        self._counts += [(0.0, 0.0)] * (num_tokens - len(self._counts))
        self._counts = [(self._FADE * hits, self._FADE * tries) for hits, tries in self._counts]
        for n in range(num_tokens):
            hits, tries = self._counts[n]
            self._counts[n] = hits + (n + 1 in accepted), tries + 1

    def forget(self, num_steps: int) -> None:
        """So many plain steps have passed."""
        fade = self._FADE_PLAIN**num_steps
        self._counts = [(fade * hits, fade * tries) for hits, tries in self._counts]

    def of(self, num_tokens: int) -> list[float]:
        """Of the first `num_tokens`. A token that was not tried is to the one before it as tokens are in the mean."""
        reached = [tries for _, tries in self._counts[:1]] + [hits for hits, _ in self._counts[:-1]]
        hits, tries = sum(hits for hits, _ in self._counts), sum(reached)
        rate = (hits + self._WEIGHT * self._GUESS) / (tries + self._WEIGHT)
        found, before = list[float](), 1.0
        for n in range(num_tokens):
            hits, tries = self._counts[n] if n < len(self._counts) else (0.0, 0.0)
            before = min(before, (hits + self._WEIGHT * before * rate) / (tries + self._WEIGHT))
            found.append(before)
        return found


class Trust:
    """What share of the tokens that a lookup promises is accepted, at most 1. Fades as `Acceptance` does."""

    _WEIGHT, _FADE, _FADE_PLAIN = 4.0, 0.97, 0.998

    def __init__(self) -> None:
        self._promised = self._accepted = 0.0

    def add(self, promised: float, accepted: int) -> None:
        """A verified draft."""
        self._promised = self._FADE * self._promised + promised
        self._accepted = self._FADE * self._accepted + accepted

    def forget(self, num_steps: int) -> None:
        """So many plain steps have passed."""
        fade = self._FADE_PLAIN**num_steps
        self._promised, self._accepted = fade * self._promised, fade * self._accepted

    @property
    def share(self) -> float:
        return min(1.0, (self._accepted + self._WEIGHT) / (self._promised + self._WEIGHT))


class Chances:
    """How often plain steps are followed by drafts: what a pause between two questions should be."""

    _FADE, _GUESS = 0.97, 200.0  # plain tokens per chance

    def __init__(self) -> None:
        self._begun, self._tokens = 1.0, self._GUESS

    def restart(self) -> None:
        """Another text comes, which may be like those before it or not."""
        rate = max(self._begun, 0.1) / max(self._tokens, 1.0)
        self._begun, self._tokens = math.sqrt(rate * self._GUESS), self._GUESS

    def add(self, num_steps: int, begun: bool) -> None:
        """So many plain steps, and whether the question after them was answered with drafts."""
        self._begun = self._FADE * self._begun + begun
        self._tokens = self._FADE * self._tokens + num_steps

    def pause(self, overhead: float) -> int:
        """The number n of steps for which overhead / n + chances that begin meanwhile * n / 2 * what they lose is
        least."""
        rate = max(self._begun, 0.1) / max(self._tokens, 1.0)
        return max(1, round(math.sqrt(2 * overhead / (rate * _LOST))))


class Gain(DraftPolicy):
    """num_tokens: the longest draft of a request."""

    wants_costs = True

    def __init__(self, num_tokens: int = 31) -> None:
        assert num_tokens > 0
        self._num_tokens = num_tokens
        self._pace, self._acceptance, self._trust, self._chances = Pace(), Acceptance(), Trust(), Chances()
        self._credit: dict[int, float] = {}  # of the jobs that were last asked for
        self._resting: set[int] = set()  # those of them that had none left
        self._offers: dict[int, tuple[float, ...] | None] = {}  # what their drafters had ready
        self._is_asking = False  # the coming step asks for drafts
        self._plain_steps = self._draft_steps = 0  # since the last step of the other kind
        self._pause = 0  # a limit of the coming plain steps that is there for the sake of drafts

    def know(self, seconds: Mapping[int, float]) -> None:
        self._pace.know(seconds)

    def budgets(self, jobs: Sequence[Job], most: int) -> list[int]:
        if any(job.rid not in self._credit for job in jobs):
            self._chances.restart()
        self._credit = {job.rid: self._credit.get(job.rid, _FIRST) for job in jobs}
        self._offers = {job.rid: job.acceptance for job in jobs}
        self._resting &= self._credit.keys()
        is_fresh = self._pace.has_seen_plain and self._draft_steps < _REFRESH
        found = self._best(jobs, min(most, self._num_tokens)) if is_fresh else [0] * len(jobs)
        self._is_asking = any(found)
        return found

    def plain_steps(self, num_seqs: int) -> int:
        if not self._pace.has_seen_plain:
            return _WARM_UP
        if self._draft_steps >= _REFRESH:
            return 1
        if self._resting and len(self._resting) == len(self._credit):  # nobody drafts before one of them has enough
            wait = (self._least(num_seqs, rested=True) - max(map(self._credit.__getitem__, self._resting))) / _PER_TOKEN
            return max(1, min(_LONGEST_PAUSE, math.ceil(wait)))
        if all(offer is None for offer in self._offers.values()):
            return _LONGEST_PAUSE // 4  # what is known of the drafter changes slowly
        self._pause = self._chances.pause(self._overhead(num_seqs))
        return self._pause

    def learn(self, record: Record) -> None:
        for rid, drafted, accepted in record.rounds:
            if (offer := self._offers.get(rid)) is None:
                self._acceptance.add(drafted, accepted)
            else:
                self._trust.add(sum(offer[:drafted]), len(accepted))
        if record.is_decode and self._is_asking:
            self._learn_drafting(record)
        elif record.is_decode:
            self._learn_plain(record)
        self._is_asking, self._pause = False, 0

    def _learn_plain(self, record: Record) -> None:
        steps = record.num_steps
        self._pace.observe_plain(record.num_seqs, steps, record.seconds / steps)
        self._acceptance.forget(steps)
        self._trust.forget(steps)
        self._plain_steps, self._draft_steps = self._plain_steps + steps, 0
        self._chances.add(steps, begun=False)
        lost = self._overhead(record.num_seqs) if steps == self._pause else 0.0
        self._pay(steps * _PER_TOKEN - lost, record.num_seqs)

    def _learn_drafting(self, record: Record) -> None:
        n, rows = record.num_seqs, record.num_seqs + record.drafted
        expected = self._pace.drafting(rows)
        self._pace.observe_drafting(rows, record.seconds)
        if self._plain_steps:
            self._chances.add(0, begun=True)
        self._plain_steps, self._draft_steps = 0, self._draft_steps + 1
        if record.seconds > _SURPRISE * expected or expected > _SURPRISE * record.seconds:
            self._draft_steps += _REFRESH // 4  # does that concern plain steps, too?
        # What rows take as a rule: a clock that errs would otherwise be believed when it is in favour of drafts.
        rule = self._pace.drafting(rows)
        seconds = max(rule, (rule + min(record.seconds, _OUTLIER * expected)) / 2)
        gained = (record.emitted - n * seconds / self._pace.plain(n)) / max(1, len(self._credit))
        self._pay(gained + _PER_TOKEN, n)

    def _pay(self, amount: float, num_seqs: int) -> None:
        """To every job; who cannot afford the shortest draft rests until it can afford more."""
        least, enough = self._least(num_seqs), self._least(num_seqs, rested=True)
        for rid, credit in self._credit.items():
            self._credit[rid] = credit = min(_MOST, credit + amount)
            if credit < least:
                self._resting.add(rid)
            elif credit >= enough:
                self._resting.discard(rid)

    def _least(self, num_seqs: int, *, rested: bool = False) -> float:
        """Credit for the shortest draft; rested: for a job that had less."""
        need = self._pace.drafting(num_seqs + 1) / self._pace.plain(num_seqs) - 1
        return min(_MOST, max(_RESTED if rested else 0.0, need))

    def _best(self, jobs: Sequence[Job], most: int) -> list[int]:
        """Tokens per job with the highest goodput that the credit allows."""
        n, found = len(jobs), [0] * len(jobs)
        plain = self._pace.plain(n)
        able = [(b, job) for b, job in enumerate(jobs) if job.rid not in self._resting]
        offers = [(-w, i, b) for b, job in able for i, w in enumerate(self._likely(job, most))]
        allowed = sum(max(0.0, credit) for credit in self._credit.values())
        tokens, best, count = float(n), _MARGIN * n / plain, 0
        order = sorted(offers)
        for c, (minus_w, _, _) in enumerate(order, start=1):
            tokens -= minus_w
            seconds = max(plain, self._pace.drafting(n + c))
            if n * (seconds / plain - 1) > allowed or n + c > (self._pace.most_rows or n + c):
                break
            if tokens / seconds > best:
                best, count = tokens / seconds, c
        for _, _, b in order[: count or self._probe(order, n, allowed)]:
            found[b] += 1
        return found

    def _probe(self, order: Sequence[tuple[float, int, int]], num_seqs: int, allowed: float) -> int:
        """Tokens to draft although that is not believed to pay: what is believed of rows may be wrong, and nothing
        else would show it. No more of them than promise `_PROMISING` tokens, and none that the credit does not pay."""
        if self._plain_steps < _PROBE:
            return 0
        tokens, plain = 1.0, self._pace.plain(num_seqs)
        for c, (minus_w, _, _) in enumerate(order, start=1):
            tokens -= minus_w
            if num_seqs * (self._pace.drafting(num_seqs + c) / plain - 1) > allowed:
                break
            if tokens >= _PROMISING:
                return c
        return 0

    def _likely(self, job: Job, most: int) -> list[float]:
        """How likely each token of a draft for this job is accepted; never more likely than the one before it."""
        most = min(most, max(0, job.remaining - 1))
        if job.acceptance is None:
            return self._acceptance.of(most)
        found, before, share = list[float](), 1.0, self._trust.share
        for w in job.acceptance[:most]:
            before = min(before, w * share)
            found.append(before)
        return found

    def _overhead(self, num_seqs: int) -> float:
        seen = self._pace.overhead(num_seqs)
        return _OVERHEAD if seen is None else max(_OVERHEAD / 2, min(0.3, seen))


CARD = Card(
    name="gain",
    make=Gain,
    idea="draft as many tokens as pay, and none where none do",
    paper="2406.14066",
    can=Can(0),
    cost="O(N log N) per step, N tokens that could be drafted",
)
