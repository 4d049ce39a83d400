"""Policies against a simulated machine: no clock of their own, seconds are what the simulation says."""

import math
import random
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto.core.card import CHUNKS, DRAFT_POLICIES, ORDERS, VICTIMS
from stretto.core.errors import UserError
from stretto.core.policy import Job, Record
from stretto.engine.policies.draft.always import Always
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
    """Draft tokens per request."""
    budgets = policy.budgets([Job(n, 0.0, 1, 99) for n in range(num_seqs)], 63)
    assert len(set(budgets)) == 1
    return budgets[0]


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


def simulate(policy, drafter, *, steps=4000, running=lambda step: 1, noise=0.0, seed=0):
    """Seconds of a run, seconds of plain decoding for the same tokens, share of steps with drafts.

    drafter(step, nodes) -> (tokens emitted, seconds of the step relative to a plain one) for one request.
    """
    rng, spent, plain, drafting = random.Random(seed), 0.0, 0.0, 0
    for step in range(steps):
        n = running(step)
        base = 0.01 * (1 + 0.1 * n)
        nodes = ask(policy, n)
        assert nodes == ask(policy, n), "asking twice changes nothing"
        tokens, slowdown = drafter(step, nodes) if nodes else (1, 1.0)
        seconds = base * slowdown * (1 + noise * rng.random())
        learn(policy, drafted=n * nodes, emitted=n * tokens, num_seqs=n, seconds=seconds)
        spent, plain, drafting = spent + seconds, plain + base * tokens * (1 + noise / 2), drafting + (nodes > 0)
    return spent, plain, drafting / steps


@pytest.mark.parametrize("slowdown", [1.02, 1.1, 1.5, 3.0, 10.0])
@pytest.mark.parametrize(
    "running",
    [lambda step: 1, lambda step: 1 + step // 100 % 8, lambda step: random.Random(step).randint(1, 16)],
    ids=["one", "phases", "random"],
)
def test_a_drafter_that_is_always_wrong_costs_at_most_three_percent(slowdown, running):
    spent, plain, share = simulate(Gain(8), lambda step, nodes: (1, slowdown), running=running)
    assert spent <= 1.03 * plain
    assert 0 < share < 0.5 or slowdown < 1.05
    spent, plain, _ = simulate(Always(8), lambda step, nodes: (1, slowdown), running=running)
    assert spent == pytest.approx(slowdown * plain)  # the policy is what protects


def test_a_drafter_that_is_right_until_it_is_trusted_costs_at_most_three_percent():
    asked: list[int] = []  # the steps that asked it

    def adversary(step, nodes):
        asked.append(step)
        return (4, 1.1) if step - 8 not in asked[-9:] else (1, 3.0)  # eight good steps in a row, then bad ones

    spent, plain, _ = simulate(Gain(8), adversary, steps=20_000)
    assert len(asked) > 100
    assert spent <= 1.03 * plain


@pytest.mark.parametrize("seed", range(4))
def test_random_drafters_and_noisy_clocks_cost_at_most_three_percent(seed):
    rng = random.Random(seed)
    drafter = lambda step, nodes: (1 + (rng.random() < 0.2), 1.3)  # noqa: E731  # gain 1.2 / 1.3
    spent, plain, _ = simulate(Gain(8), drafter, steps=8000, noise=0.2, seed=seed)
    assert spent <= 1.03 * plain


@pytest.mark.parametrize(("tokens", "slowdown"), [(2, 1.2), (5, 1.5), (9, 1.05)])
def test_a_drafter_that_pays_is_used(tokens, slowdown):
    spent, plain, share = simulate(Gain(8), lambda step, nodes: (tokens, slowdown))
    assert share > 0.97
    assert plain / spent > 0.97 * tokens / slowdown


def test_drafting_comes_back_when_it_pays_again_and_leaves_when_it_does_not():
    good = lambda step: 2000 <= step < 4000  # noqa: E731
    when: list[int] = []

    def drafter(step, nodes):
        when.append(step)
        return (4, 1.2) if good(step) else (1, 1.2)

    spent, plain, _ = simulate(Gain(8), drafter, steps=6000)
    assert spent < plain / 1.5
    inside = sum(map(good, when))
    assert inside > 1000
    assert len(when) - inside < 500


def test_trials_become_rare():
    steps: list[int] = []

    def useless(step, nodes):
        steps.append(step)
        return 1, 1.05

    simulate(Gain(8), useless, steps=6000)
    starts = [s for s, before in zip(steps, [-9, *steps], strict=False) if s != before + 1]
    gaps = [b - a for a, b in pairwise(starts)]
    assert gaps == sorted(gaps) and gaps[0] >= 32 and gaps[-1] > 1000


def test_asking_in_vain_counts_as_drafting():
    """A drafter that takes long to propose nothing must be noticed, though no node was verified."""
    policy, spent = Gain(8), 0.0
    for _ in range(4000):
        seconds = 0.02 if ask(policy, 1) else 0.01
        learn(policy, drafted=0, emitted=1, num_seqs=1, seconds=seconds)
        spent += seconds
    assert spent <= 1.03 * 40


@pytest.mark.parametrize("seed", range(5))
def test_a_pause_lasts_as_long_as_it_says(seed):
    """After a plain step, `plain_steps` of them may follow one another: none of them would have asked for drafts."""
    choose, policy, pauses = random.Random(seed), Gain(8), []
    for _ in range(3000):
        nodes = ask(policy, 2)
        if nodes:
            learn(policy, drafted=nodes, emitted=choose.choice((2, 9)), num_seqs=2, seconds=1.5)
            continue
        pauses.append(policy.plain_steps(2))
        for left in reversed(range(pauses[-1])):
            learn(policy, drafted=0, emitted=2, num_seqs=2, seconds=1.0)
            assert not left or ask(policy, 2) == 0
    assert min(pauses) == 1 < max(pauses)


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
