"""The simulator runs the engine's own scheduler: recorded traces give the same schedule, step for step."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from drafters import Noise
from test_engine import Moody, drafter_named
from test_native import engine as native_engine
from test_native import tiled
from toy import VOCAB, Nodes, finish, plain_decode, toy_engine, toy_lm

from stretto.cache.ledger import Room
from stretto.core.card import EVICTS, ORDERS, Can
from stretto.core.pages import PageGroup
from stretto.core.policy import DraftPolicy
from stretto.core.sampling import Sampling
from stretto.engine.engine import Engine
from stretto.engine.judges.coupled import Coupled
from stretto.engine.policies.draft.gain import Gain
from stretto.engine.scheduler import Limits, Plan, Policies
from stretto.engine.trace import Event
from stretto.models.lm import LM
from stretto.planner.simulator import Arrival, World, replay, simulate

LENGTH = 40
HYBRID = ["gated_delta", "attention", "mamba2"]
Drafts = Callable[[], DraftPolicy | None]


def policies(order: str, drafts: Drafts) -> Policies:
    return Policies(order=ORDERS.card(order).make(), draft=drafts())


@pytest.fixture(scope="module")
def oracle() -> LM:
    return toy_lm(HYBRID, seed=6)


@pytest.fixture(scope="module")
def known(oracle: LM) -> dict[tuple[int, ...], list[int]]:
    rng = random.Random(4)
    prompts = [[rng.randrange(VOCAB) for _ in range(rng.choice((1, 3, 9, 40, 75)))] for _ in range(10)]
    return {tuple(p): plain_decode(oracle, p, LENGTH) for p in prompts}


def recorded(one: Engine, known: dict[tuple[int, ...], list[int]], count: int, patience: float) -> int:
    """Serve requests that come while others run, cancel some, and end in all ways. How often one was preempted."""
    rng, jobs, live = random.Random(9), [], set[int]()
    left = count
    while left or not one.is_idle:
        while left and len(live) < 12 and rng.random() < 0.6:
            sampling = Sampling(
                temperature=0,
                max_tokens=rng.randint(1, LENGTH),
                min_tokens=rng.choice((0, 0, 5)),
                stop_token_ids=rng.choice(((), (3,))),
                logprobs=rng.choice((None, None, None, 1)),
            )
            request = one.add(rng.choice(list(known)), sampling.resolve(), priority=rng.randint(0, 3))
            jobs.append(request.job)
            live.add(request.rid)
            left -= 1
        if live and rng.random() < 0.03:
            one.cancel(rng.choice(sorted(live)))
        live -= {event.rid for event in one.step(patience if rng.random() < 0.5 else 0.0) if event.finish_reason}
        live &= one._requests.keys()
    return sum(job.num_preemptions for job in jobs)


CASES: dict[str, tuple[str, Drafts]] = {
    "plain": ("fcfs", lambda: None),
    "drafts": ("fcfs", lambda: Nodes(6, 0, 12, 2)),
    "drafts while they pay": ("fcfs", lambda: Gain(5)),
    "by priority": ("priority", lambda: Nodes(3)),
    "shortest first": ("shortest", lambda: Nodes(4, 0)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("natively", [False, True], ids=["torch", "native"])
def test_a_trace_replayed_gives_the_same_schedule(
    oracle: LM, known: dict[tuple[int, ...], list[int]], case: str, natively: bool
) -> None:
    """500 requests, in 10 cases: with prompts in pieces, preemption, cancellation, drafts and steps in a row."""
    order, drafts = CASES[case]
    trace: list[Event] = []
    options: dict[str, Any] = {"policies": policies(order, drafts), "trace": lambda event: trace.append(event)}
    if options["policies"].draft is not None:
        options["drafter"] = Moody(known, 3)
    sizes = {"max_seqs": 6, "max_rows": 40}
    if natively:
        lm = tiled(oracle)
        one = native_engine(lm, **sizes, **options, memory_bytes=_little(lm))
    else:
        one = toy_engine(oracle, pages=15, **sizes, **options)
    preemptions = recorded(one, known, 50, 1e9)
    room = one.runner.cache.pools.room
    events = [json.loads(json.dumps(event)) for event in trace]  # as from a file
    plans = replay(events, policies(order, drafts), one.scheduler.limits, room)
    assert len(plans) > 100 and all(theirs == ours for theirs, ours in plans)
    assert preemptions > 0 and any(theirs["preempted"] for theirs, _ in plans)
    if natively and case == "plain":
        assert any(theirs["num_steps"] > 1 for theirs, _ in plans)
    if options.get("drafter") is not None:
        assert any(theirs["budgets"] for theirs, _ in plans)


@pytest.mark.parametrize("evict", [card.name for card in EVICTS.cards()])
def test_a_trace_with_reused_texts_gives_the_same_schedule(
    oracle: LM, known: dict[tuple[int, ...], list[int]], evict: str
) -> None:
    """What is cached, evicted and waited for follows from the tokens."""
    trace: list[Event] = []
    lm, policy = tiled(oracle), EVICTS.card(evict).make
    one = native_engine(
        lm, max_seqs=6, max_rows=40, memory_bytes=_little(lm), prefix_bytes=_little(lm) // 2, trace=trace.append,
        drafter=Moody(known, 3), policies=Policies(draft=Nodes(6, 0, 12), evict=policy()),
    )  # fmt: skip
    recorded(one, known, 60, 1e9)
    assert one.runner.cache.reuse is not None
    events, chosen = json.loads(json.dumps(trace)), replace(one.runner.cache.reuse, policy=policy())
    room, plain = one.runner.cache.pools.room, Policies(draft=Nodes(6, 0, 12))
    plans = replay(events, plain, one.scheduler.limits, room, chosen)
    assert len(plans) > 100 and all(theirs == ours for theirs, ours in plans)
    with pytest.raises((AssertionError, KeyError, ValueError)):  # without what was reused it is another schedule
        plans = replay(events, Policies(draft=Nodes(6, 0, 12)), one.scheduler.limits, room)
        assert all(theirs == ours for theirs, ours in plans)


class NoDrafts(Coupled):
    can = Can.SAMPLED


@pytest.mark.parametrize("judge", [NoDrafts(), Coupled()], ids=["none", "drafts"])
def test_a_trace_says_what_may_be_drafted(oracle: LM, judge: Coupled) -> None:
    """No budget for a judge that takes no drafts: the scheduler cannot know that, and is told so for every job."""
    trace: list[Event] = []
    drafts = policies("fcfs", lambda: Nodes(6))
    one = toy_engine(oracle, max_seqs=3, drafter=Noise(VOCAB), policies=drafts, judge=judge, trace=trace.append)
    for prompt in ([1, 2, 3], [4], [6, 7]):
        one.add(prompt, Sampling(temperature=0, max_tokens=9).resolve())
    finish(one)
    room = one.runner.cache.pools.room
    plans = replay(trace, policies("fcfs", lambda: Nodes(6)), one.scheduler.limits, room)
    assert plans and all(theirs == ours for theirs, ours in plans)
    assert any(theirs["budgets"] for theirs, _ in plans) == (Can.CHAIN in judge.can)


def test_a_trace_of_five_hundred_requests() -> None:
    lm = tiled(toy_lm(["attention"], seed=2))
    known = {tuple(p): [0] * LENGTH for p in ([1, 2, 3], [5] * 30, [7, 8], [9] * 70)}
    trace: list[Event] = []
    drafts = Policies(draft=Gain(4))
    one = native_engine(
        lm, max_seqs=12, max_rows=60, drafter=drafter_named("ngram", {}), policies=drafts, trace=trace.append,
        memory_bytes=_little(lm),
    )  # fmt: skip
    preemptions = recorded(one, known, 500, 0.05)
    plans = replay(trace, Policies(draft=Gain(4)), one.scheduler.limits, one.runner.cache.pools.room)
    assert sum(event["kind"] == "add" for event in trace) == 500 and preemptions > 0
    assert len(plans) > 500 and all(theirs == ours for theirs, ours in plans)


def _little(lm: LM) -> int:
    """Memory for one long request and a few short ones."""
    states = [(s.kind, s.nbytes(torch.float32)) for specs in lm.state_specs for s in specs]
    per_token, per_seq = (sum(size for kind, size in states if kind == wanted) for wanted in ("paged", "slot"))
    return 16 * 16 * per_token + 7 * per_seq


def test_another_policy_gives_another_schedule(oracle: LM, known: dict[tuple[int, ...], list[int]]) -> None:
    """The comparison can fail."""
    trace: list[Event] = []
    one = toy_engine(oracle, pages=15, max_seqs=4, trace=trace.append, policies=policies("shortest", lambda: None))
    recorded(one, known, 20, 0.0)
    room = one.runner.cache.pools.room
    plans = replay(trace, policies("shortest", lambda: None), one.scheduler.limits, room)
    assert all(theirs == ours for theirs, ours in plans)
    with pytest.raises((AssertionError, KeyError, ValueError)):
        plans = replay(trace, policies("fcfs", lambda: None), one.scheduler.limits, room)
        assert all(theirs == ours for theirs, ours in plans)


# -- invented worlds ---------------------------------------------------------------------------------------------------

ROOM = Room(groups=(PageGroup(),), num_blocks=(200,), num_slots=1, has_slots=False)
ARRIVALS = [Arrival(at=0.3 * (i // 4), prompt=20 + 37 * i % 200, output=10 + i % 30, limit=64) for i in range(40)]


def limits(**changes: Any) -> Limits:
    return Limits(**{"max_rows": 64, "max_seqs": 8, **changes})


def seconds(plan: Plan, drafted: int) -> float:
    rows = sum(share.num_rows for share in plan.shares) + drafted
    return plan.num_steps * (0.01 + 0.0005 * rows)


@pytest.mark.parametrize("order", ORDERS.names())
def test_every_request_gets_its_tokens_once(order: str) -> None:
    lives = simulate(ARRIVALS, policies(order, lambda: None), limits(), ROOM, World(seconds=seconds))
    assert len(lives) == len(ARRIVALS)
    for life in lives:
        times = life.token_times
        assert len(times) == life.output == life.job.output and times == sorted(times) and life.finished == times[-1]
        assert times[0] > life.job.arrived


def test_shortest_first_waits_less_in_the_mean() -> None:
    burst = [Arrival(at=0.0, prompt=400 if i % 2 else 10, output=60 if i % 2 else 5, limit=64) for i in range(20)]
    burst = [Arrival(at=0.0, prompt=a.prompt, output=a.output, limit=a.output) for a in burst]

    def mean(order: str) -> float:
        world = World(seconds=seconds)
        lives = simulate(burst, policies(order, lambda: None), limits(max_seqs=2), ROOM, world)
        return sum(life.finished or 0.0 for life in lives) / len(lives)

    assert mean("shortest") < 0.8 * mean("fcfs")


def test_drafts_that_are_accepted_need_fewer_steps() -> None:
    def steps(drafts: Drafts, accepted: int) -> int:
        count = [0]

        def counted(plan: Plan, drafted: int) -> float:
            count[0] += 1
            return seconds(plan, drafted)

        world = World(seconds=counted, accepted=lambda job, n: min(n, accepted))
        lives = simulate(ARRIVALS, policies("fcfs", drafts), limits(), ROOM, world)
        assert all(len(life.token_times) == life.output for life in lives)
        return count[0]

    plain, right, wrong = steps(lambda: None, 0), steps(lambda: Nodes(4), 3), steps(lambda: Nodes(4), 0)
    assert right < 0.75 * plain and wrong == pytest.approx(plain, rel=0.2)


@pytest.mark.parametrize(("row", "pays"), [(0.0005, True), (0.05, False)], ids=["cheap rows", "dear rows"])
def test_a_lookup_is_used_where_rows_are_cheap(row: float, pays: bool) -> None:
    """The draft policy in a whole schedule: prompts beside it, many texts at once, plain steps in a row."""

    def took(drafts: Drafts) -> tuple[float, int]:
        tried = [0]

        def cost(plan: Plan, drafted: int) -> float:
            tried[0] += drafted
            rows = sum(share.num_rows for share in plan.shares) + drafted
            return plan.num_steps * (0.01 + row * rows)

        ready = lambda job: (0.95,) * 6 if job.need == 1 else ()  # noqa: E731
        world = World(seconds=cost, accepted=lambda job, n: n, ready=ready, patience=0.3)
        few = [replace(one, at=0.0) for one in ARRIVALS[:12]]
        lives = simulate(few, policies("fcfs", drafts), limits(runs_ahead=True), ROOM, world)
        assert all(len(life.token_times) == life.output for life in lives)
        return max(life.finished or 0.0 for life in lives), tried[0]

    (plain, none), (gain, tried) = took(lambda: None), took(Gain)
    assert none == 0
    assert (tried > 50 and gain < 0.8 * plain) if pays else gain < 1.03 * plain


def test_steps_in_a_row_change_no_token() -> None:
    world = World(seconds=seconds, patience=0.2)
    lives = simulate(ARRIVALS, policies("fcfs", lambda: None), limits(runs_ahead=True), ROOM, world)
    assert all(len(life.token_times) == life.output for life in lives)


def test_the_simulator_needs_no_torch() -> None:
    code = "import sys, stretto.planner.simulator; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_requests_come_in_order_of_time_and_have_something_to_do() -> None:
    late, early = (Arrival(at=at, prompt=5, output=3, limit=9) for at in (2.0, 1.0))
    lives = simulate([late, early], policies("fcfs", lambda: None), limits(), ROOM, World(seconds=seconds))
    assert [life.job.arrived for life in lives] == [1.0, 2.0] and [life.job.rid for life in lives] == [0, 1]
    assert lives[0].token_times[0] > 1.0 and lives[0].output == 3
    with pytest.raises(AssertionError, match="nothing to do"):
        simulate([replace(early, output=0)], policies("fcfs", lambda: None), limits(), ROOM, World(seconds=seconds))
