"""stretto and other systems on this CPU, with the same model and prompts: bench/records/cpu_peers.json and a chart.

    python bench/cpu_peers.py --setup [PEER ...]          install them, each into an environment of its own (once)
    python bench/cpu_peers.py [--peers PEER ...] [--rounds 5]
    python bench/cpu_peers.py --quick                     one short round, printed only

Every system runs in a worker process that is stopped while another one is timed. In each round all take their turn, in
an order that changes, and before each turn a read-only pass over as many bytes as the model's matrices have measures
what memory gives at that moment: the bound of decoding. All are greedy, with the same number of threads. A system is
quoted only if it is running this model: what it says next after prefixes of a text must mostly be what stretto says.
Whoever is missing is listed with the reason.
"""

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import torch
from peers.client import Worker, WorkerError
from peers.install import SetupError, interpreter, model_file, set_up
from peers.svg import Bar, Group, chart
from peers.systems import OURS, Variant, peers

from stretto.convert.model_file import open_model
from stretto.core.env import read_env
from stretto.hub.models import resolve
from stretto.llm import open_tokenizer
from stretto.planner.measure import describe_machine, read_bandwidth
from stretto.planner.record import as_record, result

ROOT = Path(__file__).resolve().parent.parent
RECORD, CHART = ROOT / "bench" / "records" / "cpu_peers.json", ROOT / "docs" / "cpu_peers.svg"
WORKERS = Path(__file__).parent / "peers"
CONTEXT, MOST_STREAMS, KV_TOKENS = 2048, 32, 8192  # what everyone makes room for
SHORT, LONG = 32, 1024  # tokens of prompts
PREFIXES, PREFIX, AGREE = 24, 48, 0.5  # of the check: how many, how long, and the share that must agree
CLOSE = 0.8  # below this share the chart says it
LOAD, MEMORY_ONE, MEMORY_MANY = "load", "peak memory x1", f"peak memory x{MOST_STREAMS}"
DECODE, REPEATS = "decode x1", "decode x1, text that repeats"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much is measured. loads: fresh processes per system; turns: repetitions of a single stream in a round."""

    rounds: int
    loads: int
    turns: int
    new: int
    streams: Sequence[int]
    threads: int


@dataclass(slots=True)
class Runner:
    """A variant, its command and, once it has passed the check, its worker and samples."""

    variant: Variant
    command: list[str]
    model: Path
    worker: Worker | None = None
    about: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def wants(self, quantity: str) -> bool:
        return not self.variant.quantities or quantity in self.variant.quantities


def units(plan: Plan) -> dict[str, str]:
    """Every quantity and its unit, in the order of the record."""
    many = {f"total x{n}": "tokens/s" for n in plan.streams}
    return {
        DECODE: "tokens/s", REPEATS: "tokens/s", **many, f"first token after {SHORT}": "ms",
        f"first token after {LONG}": "ms", LOAD: "s", MEMORY_ONE: "MB", MEMORY_MANY: "MB",
    }  # fmt: skip


def main() -> None:
    """Set up, or measure, write and print."""
    home = read_env().cache_dir / "peers"
    known = peers(home / "files" / "vllm")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", nargs="*", choices=[*known], metavar="PEER", help="install these (default: all)")
    parser.add_argument("--torch-index", default="", help="package index with a CPU build of torch, for --setup")
    parser.add_argument("--peers", nargs="*", choices=[*known], default=[*known], metavar="PEER", help=", ".join(known))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loads", type=int, default=3, help="in how many of the rounds loading is measured")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="one short round; nothing is written")
    parser.add_argument("--record", type=Path, default=RECORD, help="where to write it; another file gets no chart")
    args = parser.parse_args()
    if args.setup is not None:
        raise SystemExit(install(args.setup or [*known], home, args.torch_index))
    if args.quick:
        plan = Plan(rounds=1, loads=1, turns=1, new=32, streams=(8, 32), threads=args.threads)
    else:
        plan = Plan(
            rounds=args.rounds, loads=args.loads, turns=2, new=128, streams=(8, 16, 32), threads=args.threads
        )  # fmt: skip
    source = resolve("smollm2", env=read_env())
    absent: dict[str, str] = {}
    with ExitStack() as stack:
        runners = start(find(args.peers, home, source, absent), plan, Text(source), stack, absent)
        bandwidth = measure(runners, plan, Text(source), stack, absent)
    record, groups = report(runners, plan, bandwidth, matrix_bytes(source), absent)
    for row in record["results"]:
        low, high = row["spread"]
        share = f"  {row['value'] / row['bound']:.0%} of {row['bound']:.4g}" if row["bound"] else ""
        print(f"{row['quantity']:58} {row['value']:>10.4g} {row['unit']:8} ({low:.4g} to {high:.4g}){share}")
    for name, reason in absent.items():
        print(f"absent: {name}: {reason}")
    if not args.quick:
        args.record.parent.mkdir(exist_ok=True)
        args.record.write_text(json.dumps(record, indent=1) + "\n")
        print(f"wrote {args.record}", file=sys.stderr)
        if args.record == RECORD:
            machine = f"{record['machine']['cpu']}, {record['machine']['cores']} cores"
            CHART.write_text(chart(record["name"], f"{machine}, {record['date']}; line: spread of the runs", groups))
            print(f"wrote {CHART}", file=sys.stderr)


# -- who runs ----------------------------------------------------------------------------------------------------------


def install(names: Sequence[str], home: Path, torch_index: str) -> int:
    """Set up every peer named; returns how many could not be."""
    failures = 0
    known = peers(home / "files" / "vllm")
    for name in names:
        try:
            print(f"{name}: {set_up(known[name], home, torch_index)}")
        except SetupError as error:
            failures += 1
            print(f"{name}: {error}", file=sys.stderr)
    return failures


def find(names: Sequence[str], home: Path, source: Path, absent: dict[str, str]) -> Iterator[Runner]:
    """stretto and every variant of the peers named; those that are not here go to `absent`."""
    for variant in OURS:
        try:
            model = model_file(variant.file, source, home)
            yield Runner(variant, [sys.executable, str(WORKERS / variant.script)], model)
        except SetupError as error:
            absent[variant.name] = str(error)
    for name, peer in peers(home / "files" / "vllm").items():
        if name not in names:
            absent[name] = "not asked for"
            continue
        for variant in peer.variants:
            try:
                python = interpreter(peer, home)
                model = model_file(variant.file, source, home)
                yield Runner(variant, [str(python), str(WORKERS / variant.script)], model)
            except SetupError as error:
                absent[variant.name] = str(error)


def launch(runner: Runner, plan: Plan) -> tuple[Worker, dict[str, Any], float]:
    """A fresh worker that has loaded its model, its answer, and the seconds from starting the process."""
    threads = {name: str(plan.threads) for name in ("OMP_NUM_THREADS", "STRETTO_THREADS")}
    environment = {**threads, **runner.variant.variables}
    worker = Worker(runner.command, environment, runner.variant.name)
    options = {
        "context": CONTEXT, "streams": MOST_STREAMS, "batch_tokens": KV_TOKENS, "kv_bytes": KV_TOKENS * 23040,
        **runner.variant.options,
    }  # fmt: skip
    try:
        about = worker.ask(op="load", model=str(runner.model), threads=plan.threads, options=options)
    except BaseException:
        worker.close()
        raise
    return worker, about, time.perf_counter() - worker.started


class Text:
    """Token ids of real text, the same for everyone: the license of this project."""

    def __init__(self, source: Path) -> None:
        tokenizer = open_tokenizer(open_model(source))
        words = " ".join((ROOT / "LICENSE").read_text(encoding="utf-8").split())
        self.ids = tokenizer.encode(words)
        self.again = tokenizer.encode("\n\nThe same text once more:\n\n")

    def part(self, length: int, offset: int) -> list[int]:
        """`length` ids from an offset that wraps around."""
        start = offset % (len(self.ids) - length)
        return self.ids[start : start + length]

    def repeated(self, offset: int) -> list[int]:
        """A passage, a request to repeat it, and its beginning."""
        passage = self.part(200, offset)
        return [*passage, *self.again, *passage[:24]]


# -- the check ---------------------------------------------------------------------------------------------------------


def start(
    found: Iterator[Runner], plan: Plan, text: Text, stack: ExitStack, absent: dict[str, str]
) -> list[Runner]:  # fmt: skip
    """Start and check everyone; who fails is closed and goes to `absent`. The others are warm, and stopped."""
    ready: list[Runner] = []
    ours: dict[str, Any] | None = None
    for runner in found:
        name = runner.variant.name
        note(f"start and check: {name}")
        try:
            runner.worker, runner.about, _ = launch(runner, plan)
            stack.callback(runner.worker.close)
            said = sayings(runner.worker, plan, text)
            ours = said if ours is None else ours
            runner.about |= agreement(said, ours)
            runner.worker.pause()
            share = min(runner.about["next_tokens_agree"], runner.about["first_tokens_of_streams_agree"])
            if share < AGREE:
                raise WorkerError(f"not quoted: only {share:.0%} of its tokens after a text are those of stretto")
            ready.append(runner)
            note(f"  {runner.about['version']}: {share:.0%} of next tokens agree")
        except WorkerError as error:
            if runner.variant in OURS:
                raise SystemExit(f"{name}: {error}") from error
            drop(runner, str(error), absent)
    return ready


def sayings(worker: Worker, plan: Plan, text: Text) -> dict[str, Any]:
    """What a system says after prefixes, alone and in a batch. Everything that will be timed has run once then."""
    prompts = [text.part(SHORT, 41 * i) for i in range(MOST_STREAMS)]
    worker.ask(op="decode", ids=text.part(LONG, 0), new=2)
    batches = [worker.ask(op="batch", prompts=prompts[:n], new=8)["tokens"] for n in plan.streams]
    return {
        "next": [worker.ask(op="next", ids=text.part(PREFIX, 61 * i + 7))["token"] for i in range(PREFIXES)],
        "text": [worker.ask(op="decode", ids=text.part(PREFIX, 301 * i), new=64)["tokens"] for i in range(3)],
        "streams": [tokens[0] for tokens in batches[-1]],
    }


def agreement(said: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """How far two systems say the same: shares of single tokens, and tokens until the first difference in a text."""

    def share(one: Sequence[int], other: Sequence[int]) -> float:
        return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)

    def leading(one: Sequence[int], other: Sequence[int]) -> int:
        return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))

    return {
        "next_tokens_agree": share(said["next"], ours["next"]),
        "first_tokens_of_streams_agree": share(said["streams"], ours["streams"]),
        "leading_tokens_agree": [leading(a, b) for a, b in zip(said["text"], ours["text"], strict=True)],
    }


def drop(runner: Runner, reason: str, absent: dict[str, str]) -> None:
    """End a runner and forget what it measured."""
    note(f"  absent: {runner.variant.name}: {reason}")
    absent[runner.variant.name] = reason
    if runner.worker is not None:
        runner.worker.close()


# -- the rounds --------------------------------------------------------------------------------------------------------


def measure(
    runners: list[Runner], plan: Plan, text: Text, stack: ExitStack, absent: dict[str, str]
) -> list[float]:  # fmt: skip
    """All rounds; samples go to the runners, who fails leaves `runners`. Returns the bandwidth before each turn."""
    torch.set_num_threads(plan.threads)
    num_bytes = matrix_bytes(resolve("smollm2", env=read_env()))
    bandwidth: list[float] = []
    began = time.monotonic()
    for turn in range(plan.rounds):
        order = runners[turn % len(runners) :] + runners[: turn % len(runners)]
        for place, runner in enumerate(order):
            elapsed = time.monotonic() - began
            done = turn + place / len(order)
            left = f", about {elapsed / done * (plan.rounds - done) / 60:.0f} min left" if turn else ""
            note(f"round {turn + 1}/{plan.rounds}: {runner.variant.name} ({elapsed / 60:.0f} min{left})")
            bandwidth.append(read_bandwidth(num_bytes, repeat=3).median)
            try:
                one_turn(runner, plan, text, turn)
            except WorkerError as error:
                if runner.variant in OURS:
                    raise SystemExit(f"{runner.variant.name}: {error}") from error
                drop(runner, f"failed in round {turn + 1}: {error}", absent)
                runners.remove(runner)
    for runner in runners:
        if runner.worker is not None and runner.wants(MEMORY_MANY):
            runner.samples[MEMORY_MANY].append(runner.worker.peak_bytes() / 1e6)
    return bandwidth


def one_turn(runner: Runner, plan: Plan, text: Text, turn: int) -> None:
    """One round of one runner. Prompts start elsewhere in each round, so that no cache of prefixes helps."""
    assert runner.worker is not None
    offset = 37 * turn
    rate: Callable[[dict[str, Any]], float] = lambda a: (plan.new - 1) / (a["total_s"] - a["first_s"])  # noqa: E731
    with runner.worker.turn() as worker:
        worker.ask(op="decode", ids=text.part(SHORT, offset + 500), new=8)  # caches and threads were someone else's
        for _ in range(plan.turns):
            for length in (SHORT, LONG):
                if runner.wants(f"first token after {length}"):
                    first = worker.ask(op="decode", ids=text.part(length, offset + 3), new=2)["first_s"]
                    runner.samples[f"first token after {length}"].append(first * 1e3)
            for quantity, ids in ((DECODE, text.part(SHORT, offset)), (REPEATS, text.repeated(offset))):
                if runner.wants(quantity):
                    runner.samples[quantity].append(rate(worker.ask(op="decode", ids=ids, new=plan.new)))
        for n in plan.streams:
            if runner.wants(f"total x{n}"):
                prompts = [text.part(SHORT, offset + 41 * i) for i in range(n)]
                seconds = worker.ask(op="batch", prompts=prompts, new=plan.new)["total_s"]
                runner.samples[f"total x{n}"].append(n * plan.new / seconds)
    if turn < plan.loads and runner.wants(LOAD):
        fresh, _, seconds = launch(runner, plan)
        try:
            fresh.ask(op="decode", ids=text.part(LONG, offset), new=plan.new)
            runner.samples[LOAD].append(seconds)
            runner.samples[MEMORY_ONE].append(fresh.peak_bytes() / 1e6)
        finally:
            fresh.close()


# -- the record --------------------------------------------------------------------------------------------------------


def report(
    runners: Sequence[Runner], plan: Plan, bandwidth: list[float], num_bytes: int, absent: dict[str, str]
) -> tuple[dict[str, Any], list[Group]]:
    """The record and what the chart shows. Of a system with variants, each quantity is that of its best variant."""
    results, groups = [], []
    bounds = {DECODE: statistics.median(bandwidth) / num_bytes}
    for quantity, unit in units(plan).items():
        sign = 1.0 if unit == "tokens/s" else -1.0
        best: dict[str, Runner] = {}
        for runner in runners:
            if quantity in runner.samples:
                system, value = runner.variant.system, statistics.median(runner.samples[quantity])
                if system not in best or sign * value > sign * statistics.median(best[system].samples[quantity]):
                    best[system] = runner
        bars = []
        for system, runner in best.items():
            samples = runner.samples[quantity]
            value, spread = statistics.median(samples), (min(samples), max(samples))
            results.append(result(f"{quantity}: {runner.variant.name}", unit, samples, bounds.get(quantity)))
            ours, share = any(system == variant.system for variant in OURS), runner.about["next_tokens_agree"]
            notes = [runner.variant.label] * bool(runner.variant.label)
            notes += [f"{share:.0%} of next tokens agree"] * (share < CLOSE)
            bars.append(Bar(name=system, value=value, spread=spread, ours=ours, note=", ".join(notes)))
        bars.sort(key=lambda bar: -sign * bar.value)
        better = "more is better" if sign > 0 else "less is better"
        groups.append(Group(title=f"{quantity}, {unit} ({better})", bars=bars, bound=bounds.get(quantity)))
    said = ("version", "settings", "next_tokens_agree", "first_tokens_of_streams_agree", "leading_tokens_agree")
    about = {runner.variant.name: {key: runner.about[key] for key in said} for runner in runners}
    every = {f"{q}: {r.variant.name}": runs for r in runners for q, runs in r.samples.items()}
    machine = describe_machine() | {
        "threads": plan.threads, "load_average": os.getloadavg(), "bandwidth": statistics.median(bandwidth),
        "model_bytes": num_bytes, "systems": about, "absent": absent,
    }  # fmt: skip
    command = shlex.join(["python", "bench/cpu_peers.py", *sys.argv[1:]])
    samples = every | {"bandwidth, bytes/s": bandwidth}
    every_peer = {variant.system for peer in peers(Path()).values() for variant in peer.variants}
    some = sorted(every_peer & {runner.variant.system for runner in runners})
    name = "SmolLM2-135M Q4_1 on a CPU, " + ("peers" if len(some) == len(every_peer) else " and ".join(some))
    record = as_record(name, command, machine, results, samples)
    return record, groups


def matrix_bytes(source: Path) -> int:
    """Bytes of the matrices in a GGUF file: what decoding one token has to read."""
    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(source).tensors if len(tensor.shape) > 1)


def note(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
