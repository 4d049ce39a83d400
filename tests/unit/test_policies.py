"""Policies against a simulated machine: no clock of their own, seconds are what the simulation says."""

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto.core.card import CHUNKS, DRAFT_POLICIES, ORDERS, VICTIMS
from stretto.core.errors import UserError
from stretto.core.policy import Job, Record
from stretto.engine.policies.draft.gain import Gain
from stretto.engine.policies.order.priority import Priority
from stretto.engine.policies.order.shortest import Shortest

REGISTRIES = {"ORDERS": ORDERS, "VICTIMS": VICTIMS, "CHUNKS": CHUNKS, "DRAFT_POLICIES": DRAFT_POLICIES}
POLICIES = [(where, card.name) for where, registry in REGISTRIES.items() for card in registry.cards()]
_job = st.builds(
    Job,
    rid=st.integers(0, 99),
    arrived=st.integers(0, 1000).map(float),
    prompt=st.integers(1, 500),
    limit=st.integers(1, 100),
    priority=st.integers(-3, 3),
    held=st.just(0),
)
_jobs = st.lists(_job, min_size=1, unique_by=lambda job: job.rid)
_now = st.integers(1000, 2000).map(float)


def seen(jobs):
    """All that a policy may look at."""
    return [tuple(getattr(job, name) for name in Job.__slots__) for job in jobs]


@pytest.mark.parametrize("card", ORDERS.cards(), ids=lambda c: c.name)
@given(jobs=_jobs, now=_now)
def test_an_order_names_all_jobs_once_and_is_a_function(card, jobs, now):
    before, policy = seen(jobs), card.make()
    order = policy.order(jobs, now)
    assert sorted(job.rid for job in order) == sorted(job.rid for job in jobs)
    assert card.make().order(list(reversed(jobs)), now) == policy.order(jobs, now) == order
    assert seen(jobs) == before and policy.order([], now) == []


@pytest.mark.parametrize("card", ORDERS.cards(), ids=lambda c: c.name)
@given(jobs=_jobs, rest=_jobs)
def test_nobody_starves(card, jobs, rest):
    """Who has waited long enough is served before all that come new, whatever these are."""
    old = jobs[0]
    new = [Job(100 + n, 1e6, job.prompt, job.limit, job.priority) for n, job in enumerate(rest)]
    assert card.make().order([*new, old], 1e6)[0] is old


@pytest.mark.parametrize("card", VICTIMS.cards(), ids=lambda c: c.name)
@given(jobs=_jobs, now=_now)
def test_a_victim_is_one_of_those_who_run(card, jobs, now):
    before = seen(jobs)
    victim = card.make().victim(jobs, now)
    assert victim in jobs and card.make().victim(list(reversed(jobs)), now) is victim and seen(jobs) == before


@pytest.mark.parametrize("card", CHUNKS.cards(), ids=lambda c: c.name)
@given(job=_job, held=st.integers(0, 400), budget=st.integers(1, 600))
def test_chunks_fit_and_prompts_move(card, job, held, budget):
    job.held = min(held, job.prompt - 1)
    rows = card.make().rows(job, budget)
    assert 1 <= rows <= min(job.need, budget), "alone in a step, every prompt moves"
    while rows < job.need:  # pieces end at multiples of 64 wherever the budget reaches one
        end = job.held + rows
        assert end % 64 == 0 or job.held // 64 == end // 64
        job.held = end
        rows = card.make().rows(job, budget)


@pytest.mark.parametrize("card", DRAFT_POLICIES.cards(), ids=lambda c: c.name)
@given(jobs=_jobs, most=st.integers(0, 63))
def test_budgets_are_within_their_limit(card, jobs, most):
    policy = card.make()
    for _ in range(20):
        budgets = policy.budgets(jobs, most)
        assert len(budgets) == len(jobs) and all(0 <= n <= most for n in budgets)
        learn(policy, drafted=sum(budgets), emitted=len(jobs), num_seqs=len(jobs), seconds=1.0)
        assert policy.plain_steps(len(jobs)) >= 1


@pytest.mark.parametrize(("where", "name"), POLICIES)
def test_policies_need_no_torch(where, name):
    code = f"import sys; from stretto.core import card; card.{where}.card({name!r}).make()"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)


def test_what_orders_prefer():
    jobs = [Job(0, 0.0, 500, 9), Job(1, 0.0, 20, 9, priority=1), Job(2, 0.0, 20, 300), Job(3, 0.0, 9, 9)]

    def by(name, now=0.0):
        return [job.rid for job in ORDERS.card(name).make().order(jobs, now)]

    assert by("fcfs") == [0, 1, 2, 3] and by("priority") == [1, 0, 2, 3] and by("shortest") == [3, 1, 2, 0]
    late = Job(9, 100.0, 5, 5, priority=3)
    assert Priority(aging=30.0).order([jobs[0], late], 100.0)[0] is jobs[0], "100 s are worth more than 3"
    assert Priority(aging=60.0).order([jobs[0], late], 100.0)[0] is late
    assert Shortest(speed=10.0).order([jobs[0], late], 100.0)[0] is jobs[0]
    assert Shortest(speed=1.0).order([jobs[0], late], 100.0)[0] is late
    assert VICTIMS.card("youngest").make().victim(jobs, 0.0) is jobs[3]
    assert VICTIMS.card("youngest").make().victim([*jobs, Job(4, 1.0, 5, 5, priority=2)], 0.0) is jobs[3]


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan])
def test_orders_refuse_settings_out_of_range(wrong):
    for make in (lambda: Priority(aging=wrong), lambda: Shortest(speed=wrong)):
        with pytest.raises(UserError, match="above 0"):
            make()


def ask(policy, num_seqs):
    """Draft tokens of the first request."""
    return policy.budgets([Job(n, 0.0, 1, 99) for n in range(num_seqs)], 63)[0]


def learn(policy, *, drafted, emitted, num_seqs, seconds):
    policy.learn(
        Record(
            seconds=seconds,
            num_seqs=num_seqs,
            num_rows=num_seqs + drafted,
            is_decode=True,
            drafted=drafted,
            emitted=emitted,
        )
    )


def test_a_clock_that_stands_still_is_survived():
    policy = Gain(8)
    for _ in range(300):
        ask(policy, 2)
        learn(policy, drafted=8, emitted=2, num_seqs=2, seconds=0.0)


def test_always_asks_for_the_same_number():
    policy = DRAFT_POLICIES.card("always").make(num_tokens=5)
    for n in (1, 7):
        learn(policy, drafted=5, emitted=1, num_seqs=n, seconds=9.0)
        assert ask(policy, n) == 5
