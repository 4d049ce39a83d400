"""Random arrivals, shared beginnings, drafts, cancellation and preemption over a model that compares what it reads
(`fake_model.py`): every request gets the answer that it gets alone, and nothing is lost."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from fake_model import END, VOCAB, continuation, fake_model
from test_prefix_cache import Guess
from toy import Nodes

from stretto.cache.evict.lru import LRU
from stretto.cache.evict.marconi import Marconi
from stretto.core.sampling import Sampling
from stretto.engine.engine import Engine
from stretto.engine.scheduler import Policies
from stretto.runner.sizes import Sizes

CONTEXT = 120


class Known(Guess):
    """Knows what comes next, and says it four times out of five."""

    def _draft(self, held: list[int], num_nodes: int) -> object:
        self._known = [[*held, *continuation(held, num_nodes + 1)]]
        return super()._draft(held, num_nodes)


class StopsAt:
    """A text that ends before one of its tokens, as at a stop string."""

    def __init__(self, token: int) -> None:
        self._token = token

    def push(self, token: int) -> tuple[str, bool]:
        return "", token == self._token

    def finish(self) -> str:
        return ""


def texts(rng: random.Random) -> list[int]:
    """One of a few beginnings, cut anywhere, and something else behind it, or nothing."""
    base = random.Random(rng.randrange(3)).choices(range(1, VOCAB), k=90)
    own = rng.choices(range(1, VOCAB), k=rng.choice((0, 1, 5, 16, 20)))
    return [*base[: rng.choice((1, 15, 16, 17, 32, 48, 64, rng.randrange(1, 90)))], *own]


def engine_of(
    rng: random.Random,
    num_blocks: int,
    *,
    states: bool,
    window: int | None,
    drafts: bool,
    max_seqs: int = 4,
    **options: Any,
) -> Engine:
    model = fake_model(num_blocks, max_seqs + 1 + rng.choice((1, 4, 20)), window=window, states=states)
    drafter = Known([], rng.randrange(1 << 20)) if drafts else None
    policies = Policies(
        draft=Nodes(rng.choice((1, 5, 12)), 0, 3) if drafts else None,
        evict=rng.choice((LRU(), Marconi(alpha=0.5))),
    )
    sizes = Sizes(
        context=CONTEXT,
        max_seqs=max_seqs,
        max_rows=rng.choice((7, 24, 64, 200)),
        prefix_bytes=rng.choice((640, 1 << 20)),
    )
    options["threads"] = object()
    return Engine(model, sizes, drafter=drafter, policies=policies, eos_ids=frozenset({END}), **options)


def serve(engine: Engine, rng: random.Random, num_requests: int) -> int:
    """All of them, each compared with what it gives alone. How many tokens were cached."""
    found: dict[int, list[int]] = {}
    want: dict[int, tuple[list[int], bool]] = {}
    spaces, cached, ended, past, stuck = ("", "", "other"), 0, set[int](), list[list[int]](), 0
    while num_requests or not engine.is_idle:
        while num_requests and rng.random() < 0.4:
            prompt = texts(rng) if not past or rng.random() < 0.6 else [*rng.choice(past), rng.randrange(1, VOCAB)]
            prompt = prompt[: CONTEXT - 2]
            limit, stop = rng.choice((1, 2, 17, 40)), rng.randrange(VOCAB)
            sampling = Sampling(temperature=0, max_tokens=limit).resolve()
            request = engine.add(prompt, sampling, StopsAt(stop), space=rng.choice(spaces))
            answer = continuation(prompt, min(limit, CONTEXT - len(prompt)))
            want[request.rid] = answer[: answer.index(stop) + 1] if stop in answer else answer, False
            found[request.rid] = []
            num_requests -= 1
        live = sorted(want.keys() - ended)
        if live and rng.random() < 0.05:
            rid = rng.choice(live)
            engine.cancel(rid)
            want[rid] = want[rid][0], True
            ended.add(rid)
        jobs = [request.job for request in engine._requests.values()]
        texts_of = {job.rid: job.tokens for job in jobs}
        for event in engine.step(rng.choice((0.0, 0.5))):
            assert event.error is None, event.error
            assert event.rid not in ended, "an event after the last one"
            found[event.rid] += event.token_ids
            if event.finish_reason is not None:
                ended.add(event.rid)
                past.append(list(texts_of[event.rid] or ()))
        stuck = 0 if engine.scheduler.running or engine.is_idle else stuck + 1
        assert stuck < 2, "nobody runs, and somebody waits"
        cached += sum(job.cached or 0 for job in jobs if job.rid in ended)
        engine.runner.cache.check()
    for rid, (answer, is_cancelled) in want.items():
        assert found[rid] == (answer[: len(found[rid])] if is_cancelled else answer)
    ledger = engine.runner.cache.ledger
    assert not ledger.holdings and not any(node.locks for node in ledger.prefixes.tree.nodes)  # type: ignore[union-attr]
    return cached


CASES = [(states, window, drafts) for states in (False, True) for window in (None, 24) for drafts in (False, True)]


@pytest.mark.parametrize(("states", "window", "drafts"), CASES)
def test_every_request_gets_what_it_gets_alone(states: bool, window: int | None, drafts: bool) -> None:
    cached = 0
    for seed in range(12):
        rng = random.Random(seed)
        engine = engine_of(rng, rng.randint(9, 40), states=states, window=window, drafts=drafts)
        cached += serve(engine, rng, 40)
    assert cached > 0


@pytest.mark.parametrize("states", [False, True])
def test_with_enough_memory_all_is_reused_that_can_be(states: bool) -> None:
    """Against a list of all texts so far: whole pages of any of them; with states, from where one ended or parted."""
    rng, past, stops, cached = random.Random(3), list[list[int]](), list[list[int]](), 0
    engine = Engine(
        fake_model(4000, 600, states=states), Sizes(context=CONTEXT, max_seqs=1, max_rows=64, prefix_bytes=1 << 30),
        threads=object(), policies=Policies(evict=LRU()),
    )  # type: ignore[arg-type]  # fmt: skip
    for _ in range(150):
        prompt = texts(rng) if not past or rng.random() < 0.7 else [*rng.choice(past), 1][: CONTEXT - 2]
        request = engine.add(prompt, Sampling(temperature=0, max_tokens=rng.choice((1, 9, 20))).resolve())
        while not engine.is_idle:
            engine.step()
        last = len(prompt) - 1
        reach = max((min(_common(prompt, one), last) // 16 * 16 for one in past), default=0)
        ends = [len(one) for one in stops if len(one) <= last and prompt[: len(one)] == one]
        best = max((0 if states else reach, *ends))
        assert request.job.cached == best
        for cut in (reach, last // 16 * 16):
            if states and cut - best >= 64:
                stops.append(prompt[:cut])
        held = list(request.tokens)[:-1]
        past.append(held)
        stops.append(held)
        cached += best
    assert cached > 0


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    return next(
        (i for i, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]),
        min(len(first), len(second)),
    )


def test_any_amount_of_memory_gives_the_same_answers() -> None:
    """From one request that barely fits to plenty: the same, in a bounded number of steps."""
    preempted = []
    for num_blocks in (9, 10, 12, 16, 24, 48, 200):
        events: list[dict[str, Any]] = []
        how = {"states": True, "window": None, "drafts": True, "max_seqs": 6, "trace": events.append}
        engine = engine_of(random.Random(5), num_blocks, **how)
        serve(engine, random.Random(6), 40)
        plans = [event for event in events if event["kind"] == "schedule"]
        assert len(plans) < 4000, "no progress"
        preempted.append(sum(len(plan["preempted"]) for plan in plans))
    assert preempted[0] > 0 == preempted[-1]
