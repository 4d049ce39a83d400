"""Policies against a simulated machine: no clock of their own, seconds are what the simulation says."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto.core.card import POLICIES
from stretto.core.policy import Candidate
from stretto.engine.policies.draft_gain import Always, DraftGain
from stretto.engine.policies.fcfs import FCFS

_candidates = st.lists(
    st.builds(
        Candidate,
        rid=st.integers(0, 99),
        arrival=st.integers(0, 99),
        need=st.integers(1, 50),
        num_computed=st.integers(0, 50),
        running=st.booleans(),
    ),
    min_size=1,
    unique_by=lambda c: c.arrival,
)


@given(_candidates)
def test_fcfs_serves_the_earliest_and_preempts_the_latest(candidates):
    policy = FCFS()
    assert [c.arrival for c in policy.order(candidates)] == sorted(c.arrival for c in candidates)
    assert policy.victim(candidates).arrival == max(c.arrival for c in candidates)
    assert policy.order([]) == []


def simulate(policy, drafter, *, steps=4000, running=lambda step: 1, noise=0.0, seed=0):
    """Seconds of a run, seconds of plain decoding for the same tokens, share of steps with drafts.

    drafter(step, nodes) -> (tokens emitted, seconds of the step relative to a plain one) for one request.
    """
    rng, spent, plain, drafting = random.Random(seed), 0.0, 0.0, 0
    for step in range(steps):
        n = running(step)
        base = 0.01 * (1 + 0.1 * n)
        nodes = policy.num_nodes(n)
        assert nodes == policy.num_nodes(n), "asking twice changes nothing"
        tokens, slowdown = drafter(step, nodes) if nodes else (1, 1.0)
        seconds = base * slowdown * (1 + noise * rng.random())
        policy.learn(drafted=n * nodes, emitted=n * tokens, num_running=n, seconds=seconds)
        spent, plain, drafting = spent + seconds, plain + base * tokens * (1 + noise / 2), drafting + (nodes > 0)
    return spent, plain, drafting / steps


@pytest.mark.parametrize("slowdown", [1.02, 1.1, 1.5, 3.0, 10.0])
@pytest.mark.parametrize(
    "running",
    [lambda step: 1, lambda step: 1 + step // 100 % 8, lambda step: random.Random(step).randint(1, 16)],
    ids=["one", "phases", "random"],
)
def test_a_drafter_that_is_always_wrong_costs_at_most_three_percent(slowdown, running):
    spent, plain, share = simulate(DraftGain(8), lambda step, nodes: (1, slowdown), running=running)
    assert spent <= 1.03 * plain
    assert 0 < share < 0.5 or slowdown < 1.05
    spent, plain, _ = simulate(Always(8), lambda step, nodes: (1, slowdown), running=running)
    assert spent == pytest.approx(slowdown * plain)  # the policy is what protects


def test_a_drafter_that_is_right_until_it_is_trusted_costs_at_most_three_percent():
    asked: list[int] = []  # the steps that asked it

    def adversary(step, nodes):
        asked.append(step)
        return (4, 1.1) if step - 8 not in asked[-9:] else (1, 3.0)  # eight good steps in a row, then bad ones

    spent, plain, _ = simulate(DraftGain(8), adversary, steps=20_000)
    assert len(asked) > 100
    assert spent <= 1.03 * plain


@pytest.mark.parametrize("seed", range(4))
def test_random_drafters_and_noisy_clocks_cost_at_most_three_percent(seed):
    rng = random.Random(seed)
    drafter = lambda step, nodes: (1 + (rng.random() < 0.2), 1.3)  # noqa: E731  # gain 1.2 / 1.3
    spent, plain, _ = simulate(DraftGain(8), drafter, steps=8000, noise=0.2, seed=seed)
    assert spent <= 1.03 * plain


@pytest.mark.parametrize(("tokens", "slowdown"), [(2, 1.2), (5, 1.5), (9, 1.05)])
def test_a_drafter_that_pays_is_used(tokens, slowdown):
    spent, plain, share = simulate(DraftGain(8), lambda step, nodes: (tokens, slowdown))
    assert share > 0.97
    assert plain / spent > 0.97 * tokens / slowdown


def test_drafting_comes_back_when_it_pays_again_and_leaves_when_it_does_not():
    good = lambda step: 2000 <= step < 4000  # noqa: E731
    when: list[int] = []

    def drafter(step, nodes):
        when.append(step)
        return (4, 1.2) if good(step) else (1, 1.2)

    spent, plain, _ = simulate(DraftGain(8), drafter, steps=6000)
    assert spent < plain / 1.5
    inside = sum(map(good, when))
    assert inside > 1000
    assert len(when) - inside < 500


def test_trials_become_rare():
    steps: list[int] = []

    def useless(step, nodes):
        steps.append(step)
        return 1, 1.05

    simulate(DraftGain(8), useless, steps=6000)
    starts = [s for s, before in zip(steps, [-9, *steps], strict=False) if s != before + 1]
    gaps = [b - a for a, b in pairwise(starts)]
    assert gaps == sorted(gaps) and gaps[0] >= 32 and gaps[-1] > 1000


def test_asking_in_vain_counts_as_drafting():
    """A drafter that takes long to propose nothing must be noticed, though no node was verified."""
    policy, spent = DraftGain(8), 0.0
    for _ in range(4000):
        seconds = 0.02 if policy.num_nodes(1) else 0.01
        policy.learn(drafted=0, emitted=1, num_running=1, seconds=seconds)
        spent += seconds
    assert spent <= 1.03 * 40


@pytest.mark.parametrize("seed", range(5))
def test_a_pause_lasts_as_long_as_it_says(seed):
    """After a plain step, `plain_steps` of them may follow one another: none of them would have asked for drafts."""
    choose, policy, pauses = random.Random(seed), DraftGain(8), []
    for _ in range(3000):
        nodes = policy.num_nodes(2)
        if nodes:
            policy.learn(drafted=nodes, emitted=choose.choice((2, 9)), num_running=2, seconds=1.5)
            continue
        pauses.append(policy.plain_steps(2))
        for left in reversed(range(pauses[-1])):
            policy.learn(drafted=0, emitted=2, num_running=2, seconds=1.0)
            assert not left or policy.num_nodes(2) == 0
    assert min(pauses) == 1 < max(pauses)


def test_a_clock_that_stands_still_is_survived():
    policy = DraftGain(8)
    for _ in range(300):
        policy.num_nodes(2)
        policy.learn(drafted=8, emitted=2, num_running=2, seconds=0.0)


def test_always_asks_for_the_same_number():
    policy = POLICIES.card("draft_gain").make(num_nodes=5, guarded=False)
    for n in (1, 7):
        policy.learn(drafted=5, emitted=1, num_running=n, seconds=9.0)
        assert policy.num_nodes(n) == 5
