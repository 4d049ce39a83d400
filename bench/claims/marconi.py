"""Marconi (arXiv 2411.19379): which prompts of a hybrid find their beginning, by where states are kept.

    python bench/claims/marconi.py

Writes bench/records/claim_marconi.json. Simulated: the engine's own prefix cache over tokens, without a model. A hybrid
of 24 layers with states and 4 with attention; a cache of three sizes; five mixes of requests: a system prompt shared by
many, chats of many turns, agents with tools between turns, retrieved documents in changing order, and a workload of one
shared beginning of 1,500 tokens (vLLM issue 45238). Rates are cached tokens of all prompt tokens.

Compared: a state at the end of every block (`every block`); one at the last block boundary of a prompt (`last block`);
where a second text parts, near the end of long prompts and where texts end (`ours`), evicted by `lru` or by `marconi`
with the weight that was best on the first fifth of the requests.
"""

import json
import random
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stretto.cache import prefix_cache
from stretto.cache.evict.lru import LRU
from stretto.cache.evict.marconi import Marconi
from stretto.cache.ledger import Room
from stretto.cache.prefix_cache import Reuse
from stretto.core.pages import PAGE_SIZE, PageGroup
from stretto.core.policy import Worth
from stretto.planner.measure import describe_machine
from stretto.planner.prefixes import Found, Served, best_alpha, serve
from stretto.planner.record import as_record, result

RECORD = Path(__file__).parents[1] / "records" / "claim_marconi.json"
SIZES = {"small": (3_000, 40), "medium": (9_000, 120), "large": (27_000, 360)}  # pages, slots
# Of a model of 7 billion weights, 24 of 28 layers with states; bytes of keys of 16 tokens and of a state, in 16 bits.
WORTH = Worth(per_token=14e9, per_pair=4 * 4 * 4096, page_bytes=16 * 4 * 2 * 2 * 1024, slot_bytes=24 * 2 * 4096 * 128)


def words(rng: random.Random, n: int) -> list[int]:
    return [rng.randrange(32_000) for _ in range(n)]


def shared_prompt(rng: random.Random) -> list[Served]:
    """12 system prompts of 200 to 3,000 tokens, some asked for often."""
    systems = [words(rng, rng.randrange(200, 3000)) for _ in range(12)]
    picked = rng.choices(systems, weights=[1 / (i + 1) for i in range(12)], k=400)
    return [Served([*one, *words(rng, rng.randrange(20, 400))], words(rng, rng.randrange(10, 200))) for one in picked]


def chats(rng: random.Random) -> list[Served]:
    """80 chats of 3 to 8 turns with one of 3 system prompts; turns of all mixed."""
    systems = [words(rng, 400) for _ in range(3)]
    live = [[list(rng.choice(systems)), rng.randrange(3, 9)] for _ in range(80)]
    found = []
    while live:
        chat: Any = rng.choice(live)
        chat[0] += words(rng, rng.randrange(15, 200))
        answer = words(rng, rng.randrange(20, 300))
        found.append(Served(list(chat[0]), answer))
        chat[0] += answer
        chat[1] -= 1
        if not chat[1]:
            live.remove(chat)
    return found


def agents(rng: random.Random) -> list[Served]:
    """25 agents of 12 steps behind the same 2,000 tokens; what tools say is long."""
    system = words(rng, 2000)
    live = [[[*system, *words(rng, 100)], 12] for _ in range(25)]
    found = []
    while live:
        agent: Any = rng.choice(live[:8])
        answer = words(rng, rng.randrange(20, 120))
        found.append(Served(list(agent[0]), answer))
        agent[0] += [*answer, *words(rng, rng.choice((30, 100, 600)))]
        agent[1] -= 1
        if not agent[1]:
            live.remove(agent)
    return found


def documents(rng: random.Random) -> list[Served]:
    """Questions about 2 of 40 documents of 256 tokens, in any order, behind a system prompt."""
    system, texts = words(rng, 300), [words(rng, 256) for _ in range(40)]
    picked = [rng.choices(texts, weights=[1 / (i + 1) for i in range(40)], k=2) for _ in range(300)]
    return [Served([*system, *a, *b, *words(rng, 30)], words(rng, 60)) for a, b in picked]


def one_beginning(rng: random.Random) -> list[Served]:
    """64 requests of 1,500 shared tokens and 700 of their own."""
    shared = words(rng, 1500)
    return [Served([*shared, *words(rng, 700)], words(rng, 16)) for _ in range(64)]


MIXES = (shared_prompt, chats, agents, documents, one_beginning)
Cuts = Callable[[Any, int, int, int], list[int]]


def every_block(cache: Any, start: int, reach: int, num_tokens: int) -> list[int]:
    return list(range(start // PAGE_SIZE * PAGE_SIZE + PAGE_SIZE, num_tokens, PAGE_SIZE))


def last_block(cache: Any, start: int, reach: int, num_tokens: int) -> list[int]:
    end = (num_tokens - 1) // PAGE_SIZE * PAGE_SIZE
    return [end] if end > start else []


def run(texts: list[Served], room: Room, policy: Any, cuts: Cuts | None = None) -> Found:
    ours = prefix_cache.PrefixCache._cuts
    prefix_cache.PrefixCache._cuts = cuts or ours  # type: ignore[method-assign, assignment]
    try:
        return serve(texts, room, Reuse(policy=policy, is_exact=cuts is None), WORTH)
    finally:
        prefix_cache.PrefixCache._cuts = ours  # type: ignore[method-assign]


def main() -> None:
    """All mixes, sizes and ways; a table on the terminal."""
    rows, samples, alphas = [], {}, {}
    for mix in MIXES:
        for size, (pages, slots) in SIZES.items():
            room = Room(groups=(PageGroup(),), num_blocks=(pages,), num_slots=slots, has_slots=True)
            texts = mix(random.Random(7))
            alpha, _ = best_alpha(texts[: len(texts) // 5], room, WORTH)
            alphas[f"{mix.__name__}, {size}"] = alpha
            ways = {
                "every block, lru": run(texts, room, LRU(), every_block),
                "last block, lru": run(texts, room, LRU(), last_block),
                "ours, lru": run(texts, room, LRU()),
                "ours, marconi": run(texts, room, Marconi(alpha=alpha)),
            }
            for way, found in ways.items():
                name = f"{mix.__name__}, {size} cache, {way}"
                samples[name] = [100 * found.rate]
                rows.append(result(name, "% of prompt tokens", samples[name]))
            line = "   ".join(f"{way} {100 * found.rate:5.1f}" for way, found in ways.items())
            hits = sum(n > 0 for n in ways["ours, marconi"].cached)
            print(f"{mix.__name__:14} {size:7} {line}   alpha {alpha}   {hits} of {len(texts)} found something")
    machine = describe_machine() | {"shown": "simulated", "alphas": alphas, "sizes": SIZES}
    command = shlex.join(["python", *sys.argv])
    RECORD.write_text(
        json.dumps(as_record("Marconi, a prefix cache for hybrids", command, machine, rows, samples), indent=1)
    )


if __name__ == "__main__":
    main()
