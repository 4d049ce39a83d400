"""BatchLLM (arXiv 2412.03594) and BlendServe (2411.16102): in which order requests of a file are served.

    python bench/claims/offline_order.py

Writes bench/records/claim_offline_order.json. The papers: requests grouped by their prefixes compute what they share
once (token saving from 35.8% with vLLM to 58.1%, 1.1 to 2 times the throughput); requests that read much beside
requests that write much keep both arithmetic and memory busy (up to 1.44 times). The smallest honest test: 256
requests in a random order behind 16 prefixes of 512 tokens, 64 tokens of their own; those of half of the prefixes
write 8 to 32 tokens, of the others 128 to 256. The prefix cache may keep four prefixes that nobody uses. Three seeds.

Simulated on two machines. `this CPU`: recorded step times, a + b rows: nothing in a step runs beside anything else.
`an accelerator`: max(arithmetic, reading of weights and cache) of a model of 8 billion weights in 16 bits, from 600e12
operations/s and 3.35e12 bytes/s: arithmetic of prompts hides the reading of the cache, if both are in one step.

Predicted: `prefix` computes within 2% of the least there is to compute, every prefix once, and `fcfs` at least 1.2
times as much; on this CPU `prefix` is the fastest; on the accelerator `blend` is at least as fast as `prefix`.
"""

import random
from statistics import median

from simulated import Step, measured_step, num_rows, run, write

from stretto.cache.evict.lru import LRU
from stretto.cache.prefix_cache import Reuse
from stretto.core.card import ORDERS
from stretto.core.pages import PAGE_SIZE
from stretto.engine.scheduler import Plan, Policies
from stretto.planner.simulator import Arrival

SEEDS, COUNT, PREFIXES, SHARED, OWN, KEPT = range(3), 256, 16, 512, 64, 4
WEIGHTS, PER_ROW, PER_CONTEXT = 16e9 / 3.35e12, 2 * 8e9 / 600e12, 131_072 / 3.35e12  # seconds


def accelerator(plan: Plan, drafted: int) -> float:
    """Seconds of a step."""
    return plan.num_steps * max(PER_ROW * (num_rows(plan) + drafted), WEIGHTS + PER_CONTEXT * plan.contexts)


def asked(seed: int) -> list[Arrival]:
    """All at once."""
    rng = random.Random(seed)
    prefixes = [[rng.randrange(32_000) for _ in range(SHARED)] for _ in range(PREFIXES)]
    found = []
    for number in range(COUNT):
        branch = number % PREFIXES
        text = [*prefixes[branch], *(rng.randrange(32_000) for _ in range(OWN))]
        new = rng.randrange(8, 33) if branch < PREFIXES // 2 else rng.randrange(128, 257)
        found.append(Arrival(at=0.0, prompt=len(text), output=new, limit=new, text=text))
    rng.shuffle(found)
    return found


def main() -> None:
    """All orders, machines and seeds."""
    rows: dict[str, tuple[str, list[float]]] = {}
    cpu, about = measured_step()
    machines: dict[str, tuple[Step, int, int]] = {"this CPU": (cpu, 128, 16), "an accelerator": (accelerator, 512, 32)}
    least = PREFIXES * SHARED + COUNT * OWN
    for machine, (step, max_rows, max_seqs) in machines.items():
        for name in ("fcfs", "prefix", "blend"):
            for seed in SEEDS:
                reuse = Reuse(policy=LRU(), max_idle=(KEPT * SHARED // PAGE_SIZE,))
                policies = Policies(order=ORDERS.card(name).make())
                lives = run(asked(seed), step, policies, max_rows=max_rows, max_seqs=max_seqs, reuse=reuse)
                computed = sum(life.job.prompt - (life.job.cached or 0) for life in lives)
                span = max(life.finished or 0.0 for life in lives)
                rows.setdefault(f"{machine}: prompt tokens computed, {name}", ("of the least", []))[1].append(
                    computed / least
                )
                rows.setdefault(f"{machine}: makespan, {name}", ("s", []))[1].append(span)
    middle = {quantity: median(values) for quantity, (_, values) in rows.items()}
    tokens = {name: middle[f"this CPU: prompt tokens computed, {name}"] for name in ("fcfs", "prefix", "blend")}
    spans = {
        machine: {name: middle[f"{machine}: makespan, {name}"] for name in ("fcfs", "prefix", "blend")}
        for machine in machines
    }
    ratio = spans["an accelerator"]["prefix"] / spans["an accelerator"]["blend"]
    predictions = {
        f"prefix computes every prefix once ({tokens['prefix']:.3f})": tokens["prefix"] <= 1.02,
        f"fcfs computes 1.2 times the least ({tokens['fcfs']:.2f})": tokens["fcfs"] >= 1.2,
        "prefix is the fastest on this CPU": spans["this CPU"]["prefix"] <= min(spans["this CPU"].values()),
        f"blend is as fast as prefix on an accelerator ({ratio:.2f} times)": ratio >= 1.0,
    }
    write("The order of a file of requests: BatchLLM, BlendServe", "offline_order", rows, predictions,
          seeds=list(SEEDS), step=about)  # fmt: skip


if __name__ == "__main__":
    main()
