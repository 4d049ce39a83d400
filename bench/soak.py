"""Half an hour of random service, a fifth of it for clients that leave: bench/records/soak.json.

    python bench/soak.py [--minutes 30]
    python bench/soak.py --minutes 1 --print        printed only; the slope is no verdict

Two real servers at once, SmolLM2 and a random hybrid (states beside pages), with drafts and a prefix cache that is too
small for what comes. Twelve clients each: prompts that begin alike or not, greedy and sampled, of up to 600 tokens. One
request in ten is left before its first event, one in ten in the middle.

Recorded of each server: the slope of its resident memory in MiB per minute (least squares, without the first fifth of
the time), pages and states that belong to nobody in the end (neither free nor kept by the prefix cache, with nothing
running), and requests that failed though their client stayed. The exit code is 1 if a slope is over 1, or anything is
lost or failed.
"""

import argparse
import asyncio
import json
import random
import shlex
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
from peers.client import Keeper, end_on_signals
from peers.served import Server, stretto
from peers.sse import ServerError, complete
from toy_hybrid import WORDS, write_hybrid

from stretto.core.env import read_env
from stretto.hub.models import resolve
from stretto.planner.measure import describe_machine
from stretto.planner.record import as_record, result

RECORD = Path(__file__).parent / "records" / "soak.json"
MOST_SLOPE = 1.0  # MiB per minute
CLIENTS, EVERY_S, LONGEST, SEED = 12, 2.0, 600, 11
FLAGS = ("--draft", "ngram:nodes=4", "--max-seqs", "8", "--ctx", "1024")
MEMORY = {  # little enough for preemption
    "SmolLM2": ("--prefix-cache", "24MiB", "--mem", "64MiB"),
    "hybrid": ("--prefix-cache", "512KiB", "--mem", "1MiB"),
}


@dataclass(slots=True)
class Soaked:
    """A server and what was seen of it. memory: (minutes, MiB); counts: of requests, by what became of them."""

    name: str
    server: Server
    num_words: int
    memory: list[tuple[float, float]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("answered", "left", "failed"), 0))
    failures: list[str] = field(default_factory=list)
    lost: dict[str, int] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)

    @property
    def slope(self) -> float:
        """MiB per minute."""
        last = self.memory[-1][0]
        late = [point for point in self.memory if point[0] >= last / 5]
        return float(numpy.polyfit(*zip(*late, strict=True), 1)[0])


def main() -> None:
    """Serve, look, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=1, help="of each of the two servers")
    parser.add_argument("--print", action="store_true", help="write no record; the slope is no verdict")
    args = parser.parse_args()
    end_on_signals()
    with ExitStack() as stack:
        keeper = stack.enter_context(Keeper())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        models = {"SmolLM2": resolve("smollm2", env=read_env()), "hybrid": write_hybrid(folder / "hybrid")}
        soaked = []
        for name, model in models.items():
            server = Server(stretto(name, *FLAGS, *MEMORY[name]), model, args.threads, keeper)
            stack.push(server.__exit__)
            soaked.append(Soaked(name, server, WORDS if name == "hybrid" else 40_000))
        asyncio.run(serve(soaked, 60 * args.minutes))
        for one in soaked:
            settle(one)
    raise SystemExit(judge(soaked, args))


async def serve(soaked: Sequence[Soaked], seconds: float) -> None:
    """All clients of all servers, until the time is over."""
    until = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        for one in soaked:
            group.create_task(look(one, until))
            for number in range(CLIENTS):
                group.create_task(client(one, random.Random(SEED + number), until))


async def look(one: Soaked, until: float) -> None:
    """Read the resident memory now and then."""
    began = time.monotonic()
    while time.monotonic() < until:
        lines = Path(f"/proc/{one.server.pid}/status").read_text().splitlines()
        kib = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
        one.memory.append(((time.monotonic() - began) / 60, kib / 1024))
        await asyncio.sleep(EVERY_S)


async def client(one: Soaked, rng: random.Random, until: float) -> None:
    """One request after the other, each with a fate of its own."""
    shared = [[random.Random(i).randrange(one.num_words) for _ in range(LONGEST)] for i in range(4)]
    while time.monotonic() < until:
        own = [rng.randrange(one.num_words) for _ in range(rng.randint(1, 60))]
        prompt = shared[rng.randrange(4)][: rng.choice((0, 40, 200, LONGEST - 60))] + own
        sampled = {"temperature": 0.8, "seed": rng.randrange(100)} if rng.random() < 0.5 else {}
        new, fate = rng.randint(1, 120), rng.random()
        try:
            if fate < 0.1:
                async with asyncio.timeout(0.05 * rng.random()):
                    await complete(one.server.port, prompt, new, **sampled)
            else:
                after = rng.randint(1, 20) if fate < 0.2 else None
                answer = await complete(one.server.port, prompt, new, stop_after=after, **sampled)
                one.counts["answered" if answer.output else "left"] += 1
        except TimeoutError:
            one.counts["left"] += 1
        except ServerError as error:
            one.counts["failed"] += 1
            one.failures.append(str(error)[:300])
            await asyncio.sleep(1)
        await asyncio.sleep(0.1 * rng.random())


def settle(one: Soaked) -> None:
    """Wait until nothing runs, then count what belongs to nobody."""
    until = time.monotonic() + 20
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{one.server.port}/stretto/state", timeout=30) as response:
            one.final = json.load(response)
        if not one.final["running"] + one.final["waiting"] or time.monotonic() > until:
            break
        time.sleep(0.1)
    running = one.final["running"] + one.final["waiting"]
    one.lost = {f"{pool['kind']} {pool['name']}": pool["total"] - pool["free"] - pool["idle"]
                for pool in one.final["pools"]} | {"requests": running}  # fmt: skip


def judge(soaked: Sequence[Soaked], args: argparse.Namespace) -> int:
    """Print, write, and say whether it is as it should be."""
    results, samples, is_good = [], dict[str, Sequence[float]](), True
    for one in soaked:
        lost, slope = sum(one.lost.values()), one.slope
        print(f"{one.name}: {slope:+.3f} MiB/min, lost {one.lost}, {one.counts}, drafts {one.final['drafts']},"
              f" preemptions {one.final['preemptions']}")  # fmt: skip
        for text in sorted(set(one.failures))[:5]:
            print(f"  failed: {text}")
        is_good &= lost == 0 and not one.failures and (args.print or slope < MOST_SLOPE)
        results += [
            result(f"{one.name}: slope of memory", "MiB/min", [slope], MOST_SLOPE),
            result(f"{one.name}: pages and states lost", "", [lost]),
            *(result(f"{one.name}: requests {what}", "", [count]) for what, count in one.counts.items()),
        ]
        samples[f"{one.name}: memory, MiB"] = [size for _, size in one.memory]
    if not args.print:
        machine = describe_machine() | {"minutes": args.minutes, "seed": SEED, "flags": FLAGS, "memory": MEMORY}
        command = shlex.join(["python", "bench/soak.py", *sys.argv[1:]])
        RECORD.write_text(json.dumps(as_record("Random service", command, machine, results, samples), indent=1) + "\n")
    return 0 if is_good else 1


if __name__ == "__main__":
    main()
