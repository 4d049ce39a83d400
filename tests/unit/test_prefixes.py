"""The prefix cache over integers: what is found of random texts, and in which order they are best run, against counting
by hand."""

import random

from stretto.cache.evict.lru import LRU
from stretto.cache.evict.marconi import Marconi
from stretto.cache.ledger import Room
from stretto.cache.prefix_cache import Reuse
from stretto.core.pages import PageGroup
from stretto.core.policy import OrderPolicy, Worth
from stretto.engine.policies.order.blend import Blend
from stretto.engine.policies.order.fcfs import FCFS
from stretto.engine.policies.order.prefix import Prefix
from stretto.engine.scheduler import Limits, Plan, Policies
from stretto.planner.prefixes import ALPHAS, Served, best_alpha, serve
from stretto.planner.simulator import Arrival, Life, World, simulate

WORTH = Worth(per_token=14e9, per_pair=65_536.0, page_bytes=1 << 18, slot_bytes=24 << 20)


def room(pages: int, slots: int) -> Room:
    return Room(groups=(PageGroup(),), num_blocks=(pages,), num_slots=slots, has_slots=True)


def words(rng: random.Random, n: int) -> list[int]:
    return [rng.randrange(1000) for _ in range(n)]


def conversations(rng: random.Random, num: int) -> list[Served]:
    """Turns of conversations, mixed; half of them are long, and nobody comes back to the short ones."""
    live = [[words(rng, 30 if i % 2 else 400), 1 if i % 2 else 6] for i in range(num)]
    found = []
    while live:
        one = rng.choice(live)
        text, left = one
        assert isinstance(text, list) and isinstance(left, int)
        answer = words(rng, 40)
        found.append(Served(list(text), answer))
        one[0], one[1] = [*text, *answer, *words(rng, 30)], left - 1
        if left == 1:
            live.remove(one)
    return found


def test_a_beginning_that_is_shared_is_found_from_the_third_request_on() -> None:
    rng = random.Random(1)
    shared = words(rng, 1500)
    texts = [Served([*shared, *words(rng, 700)], words(rng, 8)) for _ in range(64)]
    found = serve(texts, room(3000, 60), Reuse(policy=LRU()))
    assert found.cached[:2] == (0, 0) and all(n == 1488 for n in found.cached[2:])


def test_an_answer_that_goes_on_is_found_to_its_last_token() -> None:
    rng = random.Random(2)
    prompt, answer = words(rng, 70), words(rng, 25)
    texts = [Served(prompt, answer), Served([*prompt, *answer, 1], [2])]
    assert serve(texts, room(100, 8), Reuse(policy=LRU())).cached == (0, 94)


def test_weighing_what_a_state_saves_is_never_worse_where_it_was_tuned() -> None:
    texts = conversations(random.Random(3), 60)
    for slots in (16, 30, 60):
        alpha, saved = best_alpha(texts, room(2500, slots), WORTH)
        assert set(saved) == set(ALPHAS)
        lru = serve(texts, room(2500, slots), Reuse(policy=LRU()), WORTH)
        best = serve(texts, room(2500, slots), Reuse(policy=Marconi(alpha=alpha)), WORTH)
        assert best.saved == max(saved.values()) >= saved[0.0] and best.saved >= 0.99 * lru.saved
    tight = best_alpha(texts, room(2500, 16), WORTH)[1]
    assert max(tight.values()) > 1.05 * tight[0.0], "states were not short"


def step_seconds(plan: Plan, drafted: int) -> float:
    """What takes longer, to multiply rows or to read weights and keys."""
    rows, keys = sum(share.num_rows for share in plan.shares), plan.contexts + plan.pairs / 100
    return max(0.001 * rows, 0.06 + 2e-6 * keys)


def batch(arrivals: list[Arrival], order: OrderPolicy, pages: int) -> list[Life]:
    room = Room(groups=(PageGroup(),), num_blocks=(pages,), num_slots=1, has_slots=False)
    limits = Limits(max_rows=128, max_seqs=16)
    return simulate(arrivals, Policies(order=order), limits, room, World(seconds=step_seconds), Reuse(policy=LRU()))


def test_a_batch_in_the_order_of_its_beginnings_reads_them_once() -> None:
    """16 beginnings of 640 tokens, 256 requests in any order, memory for half of them beside what runs."""
    rng = random.Random(5)
    beginnings = [words(rng, 640) for _ in range(16)]
    texts = [[*rng.choice(beginnings), *words(rng, rng.randrange(20, 60))] for _ in range(256)]
    arrivals = [Arrival(at=0.0, prompt=len(t), output=20, limit=20, text=t) for t in texts]
    least, computed, ends = sum(len(t) - 640 for t in texts) + 16 * 640, list[int](), list[float]()
    for order in (FCFS(), Prefix()):
        lives = batch(arrivals, order, pages=400)
        computed.append(sum(life.job.prompt - (life.job.cached or 0) for life in lives))
        ends.append(max(life.finished or 0.0 for life in lives))
    assert least <= computed[1] <= 1.2 * least and computed[0] > 3 * least
    assert ends[1] < ends[0] / 2


def test_requests_that_read_run_beside_requests_that_write() -> None:
    """Half of a batch reads much, half writes much: side by side they take less time than in any other order."""
    rng = random.Random(6)
    kinds = [(900, 4)] * 60 + [(30, 200)] * 60
    arrivals = [Arrival(at=0.0, prompt=p, output=n, limit=n, text=words(rng, p)) for p, n in kinds]
    rng.shuffle(arrivals)
    ends = {}
    for order in (FCFS(), Prefix(), Blend()):
        lives = batch(arrivals, order, pages=3000)
        ends[order.__class__.__name__] = max(life.finished or 0.0 for life in lives)
    rows = sum(p + n for p, n in kinds)
    assert ends["Blend"] < 0.8 * ends["Prefix"] and ends["Blend"] < 0.9 * ends["FCFS"]
    assert 0.001 * rows < ends["Blend"] < 1.15 * 0.001 * rows, "little more than the arithmetic alone"
