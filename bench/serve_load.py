"""stretto and other servers under load on this CPU, with one model: bench/records/serve_load-KIND.json.

    python bench/serve_load.py --setup [PEER ...] [--torch-index URL]    install them (once)
    python bench/serve_load.py [--peers PEER ...] [--rounds 3]           at most 25 minutes
    python bench/serve_load.py --quick                                   one short round, printed only

Measured, by one client for all, which times every event of every stream:

- goodput: the highest rate of arrivals at which 90% of the requests have their first token within a second and their
  tokens 50 ms apart in the mean (Poisson arrivals, lengths of chats, seeded: bench/peers/load.py);
- conversations: users that begin alike and talk at once: requests per second, and the median time to the first token;
- texts beside prompts: 16 texts are written while prompts of 2,000 tokens come: the 99th percentile of the time between
  two events of a text, and tokens per second, read and written. stretto also without chunks: a prompt in one step;
- start to ready: a fresh process, all caches warm.

Every system is a server in processes of its own that are stopped while another one is timed; in each round all take
their turn, in an order that changes. Whoever answers otherwise than stretto, whose tokens are not as many as were asked
for, or who is missing, is listed with the reason. However this ends, the servers end with it.
"""

import argparse
import asyncio
import json
import os
import shlex
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.check import AGREE, note
from peers.client import Keeper, WorkerError, end_on_signals, without_folders
from peers.install import SetupError, interpreter, model_file, set_up
from peers.kinds import kind_of
from peers.load import Served, Size, conversations, goodput, middle_first_ms, writing_beside_prompts
from peers.runner import PREFIX, PREFIXES, ROOT, Model, Text
from peers.served import PACED, Server, System, others, settings_of, stretto
from peers.sse import ServerError, complete
from peers.systems import peers

from stretto.core.env import read_env
from stretto.hub.aliases import aliases
from stretto.hub.models import resolve
from stretto.planner.measure import describe_machine
from stretto.planner.record import as_record, result

RECORDS, HERE = ROOT / "bench" / "records", Path(__file__).parent
NAMES = ("llama.cpp", "openvino", "vllm")
GOODPUT, TALK, TALK_FIRST = "goodput", "conversations", "conversations, first token"
GAP, BESIDE, READY = "texts beside prompts, 99% of gaps within", "texts beside prompts", "start to ready"
UNITS = {GOODPUT: "requests/s", TALK: "requests/s", TALK_FIRST: "ms", GAP: "ms", BESIDE: "tokens/s", READY: "s"}
FULL = Size(fewest=12, seconds=10, probes=4, users=6, turns=4, streams=16, prompts=8, gap_s=2.0)
QUICK = Size(fewest=6, seconds=4, probes=2, users=3, turns=2, streams=4, prompts=3, gap_s=1.5)


@dataclass(slots=True)
class Runner:
    """A server with what was measured of it. quantities: those that it is measured in."""

    system: System
    model: Path
    quantities: Sequence[str] = tuple(UNITS)
    server: Server | None = None
    about: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


def main() -> None:
    """Set up, or measure, write and print."""
    home = read_env().cache_dir / "peers"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", nargs="*", choices=NAMES, metavar="PEER", help="install these (default: all)")
    parser.add_argument("--torch-index", default="", help="package index with a CPU build of torch, for --setup")
    parser.add_argument("--peers", nargs="*", choices=NAMES, default=NAMES, metavar="PEER", help=", ".join(NAMES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=25.0, help="no round begins that would not end within these")
    parser.add_argument("--starts", type=int, default=5, help="fresh processes of stretto that are timed")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="one short round; nothing is written")
    args = parser.parse_args()
    end_on_signals()
    kind = kind_of(describe_machine()["features"])
    with ExitStack() as stack:
        keeper = stack.enter_context(Keeper())
        if args.setup is not None:
            raise SystemExit(install(args.setup or NAMES, home, kind, args.torch_index, keeper))
        compare(args, home, kind, keeper, stack)


def compare(args: argparse.Namespace, home: Path, kind: str, keeper: Keeper, stack: ExitStack) -> None:
    """Measure, print and write."""
    model = Model.read(resolve("smollm2", env=read_env()), aliases()["smollm2"].title)
    text, absent, began = Text(model), dict[str, str](), time.monotonic()
    found = find(args.peers, home, kind, model, keeper, absent)
    runners = start(found, text, args.threads, keeper, stack, absent)
    size, rounds = (QUICK, 1) if args.quick else (FULL, args.rounds)
    for turn in range(rounds):
        for place in range(len(runners)):
            runner = runners[(turn + place) % len(runners)]
            note(f"round {turn + 1}/{rounds}: {runner.system.name} ({(time.monotonic() - began) / 60:.0f} min)")
            one_turn(runner, text, size, turn)
        if (time.monotonic() - began) / (turn + 1) * (turn + 2) > 60 * args.minutes:
            note(f"no further round: {args.minutes:.0f} minutes would be over")
            break
    ready(runners[0], 1 if args.quick else args.starts, args.threads, keeper)
    record = report(runners, model, kind, args.threads, absent)
    show(record)
    if not args.quick:
        target = RECORDS / f"serve_load-{kind}.json"
        target.write_text(json.dumps(record, indent=1) + "\n")
        note(f"wrote {target}")


def install(names: Sequence[str], home: Path, kind: str, torch_index: str, keeper: Keeper) -> int:
    """Set up peers, with llama.cpp its server; returns how many could not be."""
    there, failures = peers(home / "files" / "vllm", shipped="", kind=kind), 0
    for name in names:
        try:
            python = set_up(there[name], home, torch_index, keeper)
            if name == "llama.cpp" and not (python.parent / "llama-server").exists():
                note("its server, from the source of the same version (minutes)")
                build = [sys.executable, str(HERE / "peers" / "llama_server_build.py"), str(python)]
                if keeper.run(["nice", "-n", "19", *build], stdout=sys.stderr):
                    raise SetupError("its server could not be built: what failed is said above")
            print(f"{name}: {python}")
        except SetupError as error:
            failures += 1
            print(f"{name}: {error}", file=sys.stderr)
    return failures


def find(
    names: Sequence[str], home: Path, kind: str, model: Model, keeper: Keeper, absent: dict[str, str]
) -> Iterator[Runner]:
    """Ours in its forms, then the peers named; others go to `absent`."""
    yield Runner(stretto("stretto", *PACED), model.path)
    whole = stretto("stretto, prompts in one step", "--max-rows", "2048")
    yield Runner(whole, model.path, quantities=(GAP, BESIDE))
    there = peers(home / "files" / "vllm", shipped=model.shipped, kind=kind)
    made = others({name: peer for name, peer in there.items() if name in NAMES}, lambda peer: interpreter(peer, home))
    for name in NAMES:
        try:
            if name not in names:
                raise SetupError("not asked for")
            system = made[name]()
            yield Runner(system, model_file(system.file, model.path, home, keeper))
        except SetupError as error:
            absent[name] = str(error)


def start(
    found: Iterator[Runner], text: Text, threads: int, keeper: Keeper, stack: ExitStack, absent: dict[str, str]
) -> list[Runner]:
    """Start and check everyone, stopped afterwards; who fails goes to `absent`. Ours must not fail."""
    ready: list[Runner] = []
    for runner in found:
        name = runner.system.name
        note(f"start and check: {name}")
        try:
            runner.server = Server(runner.system, runner.model, threads, keeper)
            stack.push(runner.server.__exit__)
            runner.samples["first start to ready"].append(runner.server.ready_s)
            runner.about["said"] = asyncio.run(sayings(runner.server.port, text))
            share = agreement(runner.about["said"], (ready[0] if ready else runner).about["said"])
            runner.about |= {"settings": settings_of(runner.system), "next_tokens_agree": share}
            if share < AGREE:
                raise WorkerError(f"not quoted: only {share:.0%} of its tokens after a text are those of stretto")
            runner.server.pause()
            ready.append(runner)
            note(f"  {share:.0%} of next tokens agree")
        except (WorkerError, ServerError) as error:
            if runner.system.ours:
                raise SystemExit(f"{name}: {error}") from error
            note(f"  absent: {name}: {error}")
            absent[name] = str(error)
            if runner.server is not None:
                runner.server.close(gently=False)
    return ready


async def sayings(port: int, text: Text) -> list[str]:
    """The next token behind 24 pieces of text, as its text; half of them asked for at once."""
    prompts = [text.decode(text.part(PREFIX, 61 * i + 7)) for i in range(PREFIXES)]
    half = PREFIXES // 2
    one_by_one = [await complete(port, prompt, 1) for prompt in prompts[:half]]
    at_once = await asyncio.gather(*(complete(port, prompt, 1) for prompt in prompts[half:]))
    return [answer.text for answer in (*one_by_one, *at_once)]


def agreement(said: Sequence[str], ours: Sequence[str]) -> float:
    """The share of what is the same."""
    return sum(a == b for a, b in zip(said, ours, strict=True)) / len(ours)


def one_turn(runner: Runner, text: Text, size: Size, turn: int) -> None:
    """One round of one server. Texts of a round are those of no other round, so that no cache has them."""
    assert runner.server is not None
    port, seed, samples = runner.server.port, 100 * (turn + 1), runner.samples
    with runner.server.turn():
        asyncio.run(complete(port, f"{seed} " + text.decode(text.part(32, turn)), 8))  # threads and caches were others'
        if GOODPUT in runner.quantities:
            before = statistics.median(samples[GOODPUT]) if samples[GOODPUT] else 0.0
            rate, served = goodput(port, text.ids, text.decode, size, seed, before)
            samples[GOODPUT].append(rate)
            failed(runner, served)
        if TALK in runner.quantities:
            served = asyncio.run(conversations(port, text.ids, text.decode, size, seed + 1))
            failed(runner, served)
            samples[TALK].append(len(served.answers) / served.seconds)
            samples[TALK_FIRST].append(middle_first_ms(served))
        if GAP in runner.quantities:
            mixed = asyncio.run(writing_beside_prompts(port, text.ids, text.decode, size, seed + 2))
            failed(runner, mixed.served)
            samples[GAP].append(1e3 * mixed.gap(0.99))
            samples[BESIDE].append(mixed.tokens_per_s)


def failed(runner: Runner, served: Served) -> None:
    """Count what failed; ours must not fail."""
    if served.failures and runner.system.ours:
        raise SystemExit(f"{runner.system.name}: {served.failures[0]}")
    runner.about["failures"] = runner.about.get("failures", 0) + len(served.failures)
    runner.about["answers"] = runner.about.get("answers", 0) + len(served.answers)
    runner.about["output_tokens"] = runner.about.get("output_tokens", 0) + sum(one.output for one in served.answers)


def ready(runner: Runner, starts: int, threads: int, keeper: Keeper) -> None:
    """Fresh processes of the same server, one after the other."""
    for number in range(starts):
        note(f"start to ready: {number + 1} of {starts}")
        with Server(runner.system, runner.model, threads, keeper) as fresh:
            runner.samples[READY].append(fresh.ready_s)
            runner.about["torch_in_memory"] = fresh.maps("libtorch")


def report(
    runners: Sequence[Runner], model: Model, kind: str, threads: int, absent: Mapping[str, str]
) -> dict[str, Any]:
    """The record. A peer's one start stands beside our median."""
    results, every = [], dict[str, Sequence[float]]()
    for quantity, unit in UNITS.items():
        for runner in runners:
            samples = runner.samples
            runs = (
                samples["first start to ready"] if quantity == READY and not runner.system.ours else samples[quantity]
            )
            if runs:
                results.append(result(f"{quantity}: {runner.system.name}", unit, runs))
                every[f"{quantity}: {runner.system.name}"] = runs
    said: Callable[[Runner], dict[str, Any]] = lambda one: {k: v for k, v in one.about.items() if k != "said"}  # noqa: E731
    machine = describe_machine() | {
        "kind": kind, "threads": threads, "load_average": os.getloadavg(),
        "systems": {runner.system.name: said(runner) for runner in runners},
        "absent": {name: without_folders(reason) for name, reason in absent.items()},
    }  # fmt: skip
    command = shlex.join(["python", "bench/serve_load.py", *sys.argv[1:]])
    return as_record(f"{model.title} served on a CPU", command, machine, results, every)


def show(record: dict[str, Any]) -> None:
    """Print every result and who is absent."""
    for row in record["results"]:
        low, high = row["spread"]
        print(f"{row['quantity']:66} {row['value']:>10.4g} {row['unit']:10} ({low:.4g} to {high:.4g})")
    for name, reason in record["machine"]["absent"].items():
        print(f"absent: {name}: {reason}")


if __name__ == "__main__":
    main()
