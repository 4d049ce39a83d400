"""The native kernels on this CPU, against what memory allows: writes bench/records/cpu_native.json.

    python bench/cpu_native.py [--rounds 9]

Every round measures everything once, and a read-only pass over as many bytes as a step streams right before and after
each kind of step: the bound at that moment. Steps are those of the engine, with real text. A verification holds a
pending token and fifteen drafts; it is also bound by what both threads multiply at that moment, which is what they
reach for 64 rows with weights in a cache (two processors of a shared machine can be one core). What 8-bit prompts
change is said in perplexity and divergence. Start-up and memory are those of processes of their own. Nothing here is a
test.
"""

import argparse
import ctypes
import json
import os
import shlex
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from foundation import ANSWER, ONE_TOKEN, one_process
from torch import Tensor

from stretto import LLM, Sampling
from stretto.cli.bench import prompt_of
from stretto.codecs.q4_1 import Q4_1
from stretto.core.costs import Machine, prefill_bound
from stretto.core.env import read_env
from stretto.core.plan import StepPlan
from stretto.core.seqs import Seqs
from stretto.kernels.linear import matmul
from stretto.kernels.linear.native import tile
from stretto.kernels.native.buffers import ALL_ROWS
from stretto.kernels.native.library import Team
from stretto.kernels.native.tape import Tape
from stretto.planner.measure import describe_machine, model_cost, native_bandwidth, prefill_cost
from stretto.planner.record import as_record, result

RECORD = Path(__file__).parent / "records" / "cpu_native.json"
NODES = 15
CACHED = (64, 576, 1536)  # rows, inputs, outputs
LONG_CHAT = ["run", "smollm2", "-n", "64", "--temp", "0", "--draft", "none", "--raw", "--ctx", "2048"]


class Bench:
    """Samples by quantity; bounds are of the same rounds. The models are loaded by the first round."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = defaultdict(list)
        self.units: dict[str, str] = {}
        self.bounds: dict[str, list[float]] = defaultdict(list)

    def load(self) -> None:
        """Three engines, and a product whose weights lie in a cache."""
        env = replace(read_env(), no_programs=True)  # the model itself says what it costs
        sizes = {"backend": "native", "max_seqs": 32, "prefix_cache": "none", "env": env}
        self.llm = LLM("smollm2", draft="none", **sizes)
        self.drafting = LLM("smollm2", draft=f"ngram:nodes={NODES}", **sizes)
        self.coarse = LLM("smollm2", draft="none", prefill="int8", **sizes)
        self.cost = model_cost(self.llm.engine.runner.lm, torch.bfloat16)
        self.prompt_cost = prefill_cost(self.llm.engine.runner.lm, torch.bfloat16)
        assert self.llm.backend_choice.threads is not None
        self.threads = self.llm.backend_choice.threads
        x, weight = torch.randn(CACHED[:2]), tile([Q4_1().encode(torch.randn(CACHED[2], CACHED[1]))], self.threads)
        self.products = {coarse: Product(x, weight, self.threads, coarse) for coarse in (False, True)}

    def add(self, quantity: str, unit: str, value: float, bound: float | None = None) -> None:
        self.samples[quantity].append(value)
        self.units[quantity] = unit
        if bound is not None:
            self.bounds[quantity].append(bound)

    def round(self, turn: int) -> None:
        """Everything once."""
        prompt = prompt_of(self.llm, 32, offset=turn)
        before = self.pass_seconds()
        plain, total = steps(self.llm, [prompt], 64)
        bound = (before + self.pass_seconds()) / 2
        self.add("decode x1", "tokens/s", len(plain) / total, 1 / bound)
        self.add("one row: native step", "ms", 1e3 * median(plain), 1e3 * bound)
        self.add("one row: Python and the rest", "us", 1e6 * (total - sum(plain)) / len(plain))
        before = self.pass_seconds()
        verify, _ = steps(self.drafting, [prompt * 3], 96, rows=1 + NODES)
        bound = (before + self.pass_seconds()) / 2
        rate = self.products[False].rate()
        self.add("products in a cache", "GFLOP/s", rate / 1e9)
        if verify:  # drafts were as long as they may be
            name, multiplied = f"verification of {1 + NODES} rows", 2 * (1 + NODES) * self.cost.params / rate
            self.add(f"{name}: native step", "ms", 1e3 * median(verify), 1e3 * max(bound, multiplied))
            self.add(f"{name}, in passes over the weights", "", median(verify) / bound, multiplied / bound)
        for sampling, name in (
            (greedy(32), ""),
            (Sampling(ignore_eos=True, max_tokens=32, temperature=1.0), ", drawn"),
        ):
            prompts = [prompt_of(self.llm, 32, offset=turn + 17 * i) for i in range(32)]
            started = time.perf_counter()
            self.llm.generate(prompts, sampling)
            self.add(f"total x32, 32 tokens each{name}", "tokens/s", 32 * 32 / (time.perf_counter() - started))
        for llm, name in ((self.llm, "prefill"), (self.coarse, "prefill, int8")):
            for n in (128, 1024):
                rate, bandwidth = self.products[llm is self.coarse].rate(), self.cost.weight_bytes / self.pass_seconds()
                found = llm.generate(prompt_of(llm, n, offset=turn), greedy(1))[0].timings.prompt_per_second
                bound = prefill_bound(Machine(bandwidth=bandwidth, flops=rate), self.prompt_cost, n)
                self.add(f"{name} {n}", "tokens/s", found, bound)
            for part, seconds in parts_of_prompt(llm, prompt_of(llm, 1024, offset=turn)).items():
                self.add(f"{name} 1024: {part}", "ms", 1e3 * seconds)
        with busy_process():
            plain, total = steps(self.llm, [prompt], 64)
        self.add("decode x1 beside a busy process", "tokens/s", len(plain) / total)
        # Nothing below is timed: for a while after the other process has ended, fewer threads take part.
        text = prompt_of(self.llm, 1024, offset=turn)
        exact, coarse = (scores(llm, text) for llm in (self.llm, self.coarse))
        for logprobs, name in ((exact, "prefill"), (coarse, "prefill, int8")):
            own = logprobs[:-1].gather(1, torch.tensor(text[1:])[:, None])
            self.add(f"{name} 1024: perplexity of the prompt", "", float((-own.mean()).exp()))
        kl = (exact.exp() * (exact - coarse)).sum(1).mean()
        self.add("prefill, int8 1024: divergence (KL) from exact, per token", "nats", float(kl))

    def pass_seconds(self) -> float:
        """Reading as many bytes as the weights have, once."""
        return self.cost.weight_bytes / native_bandwidth(self.threads, self.cost.weight_bytes, repeat=3).median


class Product:
    """The shipped product where memory does not matter. coarse: with 8-bit activations, as prompts may have them."""

    def __init__(self, x: Tensor, weight: Tensor, threads: Team, coarse: bool) -> None:
        self.tape = Tape(threads, max_rows=len(x), max_out=1, context=1, coarse_prompts=coarse)
        rows = self.tape.empty(ALL_ROWS, x.shape[1])
        rows.copy_(x)
        with self.tape.recording():
            self._kept = rows, matmul(rows, weight)
        self._starts = (ctypes.c_int32 * 2)(0, len(x))  # one sequence, which is a prompt
        self.tape.step.num_rows, self.tape.step.starts = len(x), ctypes.addressof(self._starts)

    def rate(self) -> float:
        """FLOP/s now."""
        seconds = []
        for _ in range(50):
            started = time.perf_counter()
            self.tape.run()
            seconds.append(time.perf_counter() - started)
        return 2 * CACHED[0] * CACHED[1] * CACHED[2] / median(seconds)


def greedy(num_tokens: int) -> Sampling:
    return Sampling(temperature=0.0, ignore_eos=True, max_tokens=num_tokens)


def steps(llm: LLM, prompts: list[list[int]], new: int, rows: int = 1) -> tuple[list[float], float]:
    """Seconds inside the tape for every step with `rows` rows, and from the first such step to the last, all told."""
    recording = llm.engine.runner.recording
    assert recording is not None
    tape, ahead = recording.operations, recording.ahead
    calls: list[tuple[float, float]] = []  # into the tape with so many rows: when they began and ended
    seconds: list[float] = []

    def timed(run: Callable[..., None]) -> Callable[..., None]:
        def call(*left: Any) -> None:
            started = time.perf_counter()
            run(*left)
            if tape.step.num_rows == rows:
                calls.append((started, time.perf_counter()))
                seconds.append(calls[-1][1] - started)

        return call

    def several(*args: Any) -> list[list[int]]:
        chosen = ahead(*args)
        if tape.step.num_rows == rows:
            seconds.extend([seconds.pop() / len(chosen)] * len(chosen))
        return chosen

    tape.run, tape.run_while, recording.ahead = timed(tape.run), timed(tape.run_while), several  # type: ignore[method-assign]
    try:
        llm.generate(prompts, greedy(new))
    finally:
        del tape.run, tape.run_while, recording.ahead
    return seconds, calls[-1][1] - calls[0][0] if calls else 0.0


def parts_of_prompt(llm: LLM, prompt: list[int]) -> dict[str, float]:
    """Seconds of a prompt by what they were for, every operation timed by itself."""
    recording, found = llm.engine.runner.recording, {"products": 0.0, "attention": 0.0, "everything else": 0.0}
    assert recording is not None
    run, profile = recording.operations.run, recording.operations.profile
    names = {"matmul": "products", "gated": "products", "attention": "attention"}

    def profiled() -> None:
        run()  # once plainly: the profile computes the same again
        for operation, seconds in profile(1).items():
            found[names.get(operation, "everything else")] += seconds

    recording.operations.run = profiled  # type: ignore[method-assign]
    try:
        llm.generate(prompt, greedy(1))
    finally:
        del recording.operations.run
    return found


def scores(llm: LLM, prompt: list[int]) -> Tensor:
    """Log-probabilities after every token of a prompt [T, vocabulary], computed as prompts are."""
    engine, found = llm.engine, []
    recording, cache = engine.runner.recording, engine.runner.cache
    assert recording is not None
    cache.admit(-1)
    for first in range(0, len(prompt), recording.operations.room):
        part = prompt[first : first + recording.operations.room]
        seqs = Seqs.of([len(part)], [first])
        assert cache.reserve(-1, len(part))
        caches = cache.pack([-1], seqs)
        scores = recording(StepPlan(part, seqs, range(len(part)), caches)).scores
        found.append(scores.logits.double().log_softmax(1))
        cache.commit([-1], seqs, [()])
    cache.release(-1)
    return torch.cat(found)


@contextmanager
def busy_process() -> Iterator[None]:
    """Another process that computes all the time, on one core."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        time.sleep(0.2)
        try:
            yield
        finally:
            process.kill()


def start_up(bench: Bench, runs: int) -> None:
    """Processes of their own: start, memory, and how long loading takes inside."""
    words = [sys.executable, "-m", "stretto", *ONE_TOKEN, "--json"]
    text = " ".join(["The quick brown fox jumps over the lazy dog."] * 180)  # 1,800 tokens
    one_process(ONE_TOKEN)  # warms the page cache
    for turn in range(runs):
        print(f"process {turn + 1}/{runs}", file=sys.stderr)
        bench.add("process start to first token", "s", one_process(ONE_TOKEN)[0])
        quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        said = subprocess.run(words, check=True, stdout=subprocess.PIPE, **quiet).stdout
        bench.add("of it: reading and repacking the model", "s", json.loads(said)["timings"]["load_s"])
        bench.add("peak memory of a 128-token answer", "MB", one_process(ANSWER)[1])
        bench.add("peak memory, 1 stream, context 2,048 in use", "MB", one_process([*LONG_CHAT, text])[1])


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)  # nothing here computes with torch
    bench = Bench()
    start_up(bench, 5)  # first: a process begins with the peak memory of the one that starts it
    bench.load()
    for turn in range(rounds):
        print(f"round {turn + 1}/{rounds}", file=sys.stderr)
        bench.round(turn)
    machine = describe_machine() | {
        "load_average": os.getloadavg(), "native": bench.llm.backend_choice.name,
        "streamed_bytes": bench.cost.weight_bytes,
    }  # fmt: skip
    results = []
    for quantity, runs in bench.samples.items():
        bounds = bench.bounds.get(quantity)
        results.append(result(quantity, bench.units[quantity], runs, median(bounds) if bounds else None))
        low, high = results[-1]["spread"]
        bound = f"  bound {results[-1]['bound']:.4g}" if bounds else ""
        print(f"{quantity:50} {results[-1]['value']:>9.4g} {bench.units[quantity]:9} ({low:.4g} to {high:.4g}){bound}")
    command = shlex.join(["python", "bench/cpu_native.py", *sys.argv[1:]])
    samples = bench.samples | {f"bound of {quantity}": runs for quantity, runs in bench.bounds.items()}
    record = as_record("SmolLM2-135M, native kernels", command, machine, results, samples)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(f"wrote {RECORD}", file=sys.stderr)


if __name__ == "__main__":
    main()
