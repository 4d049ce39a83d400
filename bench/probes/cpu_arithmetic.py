"""The arithmetic of the native products beside what else it could have been, and what this CPU's instructions do.

    python bench/probes/cpu_arithmetic.py [--quick] [--json FILE]

Four forms multiply the same Q4_1 weights, in the tiles of kernels/linear/formats.h, with 1 to 64 rows of activations:

    fixed point   the shipped product: 16-bit block fixed point, two byte planes (operations `quantize` and `matmul`)
    int8          8-bit block fixed point, one plane: what prompts are multiplied in with `--prefill int8`
    bf16          bf16 dot products; a table widens the nibbles
    fp32          fp32 multiply-adds; shifts and conversions widen the nibbles

All apply scales and minima in fp32, group after group. The last two are in cpu_arithmetic.cpp; none uses AMX tiles.
Times include preparing the rows, that is, bringing them into the form. A form is bound by the larger of two times, both
measured in the same rounds: a read-only pass over the same bytes (where they do not lie in a cache), and its dot
products at the rate at which one core executes them, times the threads.

Errors are those of normal rows against fp64, relative to the size of the result; nothing is timed if one is larger than
rounding explains. Bits are compared between row counts and between instruction-set levels. Rounds take turns; medians
are printed, a record has spreads and samples too.
"""

import argparse
import ctypes
import json
import os
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cpu_forms import D_IN, D_OUT, FIXED, FORMS, GROUP, INSTRUCTIONS, SPINS, TILE, Form, Kernels, spin
from torch import Tensor

from stretto.codecs.q4_1 import Q4_1
from stretto.kernels.linear import native
from stretto.kernels.native.buffers import aligned
from stretto.kernels.native.build import supported_levels
from stretto.kernels.native.library import Op
from stretto.planner.measure import describe_machine
from stretto.planner.record import as_record, result

# SmolLM2: 30 layers of (q, k, v), output, (gate, up) and down in Q4_1, and a head of 49,152 rows in Q8_0
STREAMED_BYTES = (30 * 576 * (960 + 576 + 3 * 1536) * 20 + 49152 * 576 * 34) // 32
ROWS = (1, 2, 4, 8, 16, 64)
CHECKED_ROWS = (1, 2, 3, 4, 7, 8, 16, 63)  # whose bits are compared with those of the most rows
ONE_TILE = "shipped product with one tile in the nearest cache"


def main() -> None:
    """Check, measure, print, and write the record if one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write a record")
    args = parser.parse_args()
    levels = supported_levels()
    if "avx512" not in levels:
        raise SystemExit("this probe needs a CPU with AVX-512 and its dot products of bytes (VNNI)")
    torch.manual_seed(0)
    stored, x = Q4_1().encode(torch.randn(D_OUT, D_IN)), torch.randn(max(ROWS), D_IN)
    kernels = {level: Kernels(level, x, note) for level in levels}
    best = kernels["avx512"]
    forms = [form for form in FORMS if best.has(form)]
    tiles = native.tile([stored], best.team(1)).parts[0].data
    note("check")
    want = x.double() @ stored.decode(torch.float32).double().T
    findings = [checked(form, kernels, tiles, want) for form in forms]
    samples = measure(best, forms, copies(tiles), 3 if args.quick else args.rounds)
    print_all(samples, forms, findings)
    if args.json:
        args.json.write_text(json.dumps(record(samples, findings), indent=1) + "\n")
        note(f"wrote {args.json}")


def copies(tiles: Tensor) -> Tensor:
    """[matrices, bytes]: as many copies of a matrix as make the bytes that SmolLM2 streams for one token."""
    many = aligned((STREAMED_BYTES // tiles.nbytes, tiles.nbytes), torch.uint8)
    return many.copy_(tiles.expand_as(many))


# -- right, and equal --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What was found about a form before it is timed. error: of 64 rows, relative to the size of the result."""

    form: Form
    error: float
    same_at_any_rows: bool
    same_levels: tuple[str, ...]  # whose bits are those of the best level, and
    other_levels: tuple[str, ...]  # whose bits are not


def checked(form: Form, kernels: Mapping[str, Kernels], tiles: Tensor, want: Tensor) -> Finding:
    """The error against `want` (fp64), and where the bits of a row change. Ends the program if the form is wrong."""
    results = {level: k.result(form, tiles, len(want)) for level, k in kernels.items() if k.has(form)}
    best, whole = next(iter(results.items()))
    error = float((whole - want).norm() / want.norm())
    if not error <= form.error:  # NaN is wrong too
        raise SystemExit(f"{form.name}: error {error:.1e} against fp64, where rounding explains {form.error:.0e}")
    parts = [kernels[best].result(form, tiles, rows) for rows in CHECKED_ROWS]
    return Finding(
        form=form,
        error=error,
        same_at_any_rows=all(torch.equal(part, whole[: len(part)]) for part in parts),
        same_levels=tuple(level for level, y in results.items() if torch.equal(y, whole)),
        other_levels=tuple(level for level, y in results.items() if not torch.equal(y, whole)),
    )


# -- time --------------------------------------------------------------------------------------------------------------

Runs = list[float]


@dataclass(frozen=True, slots=True)
class Case:
    """A product that is timed. in_memory: the weights are streamed; else one matrix lies in a cache."""

    form: Form
    rows: int
    threads: int
    in_memory: bool

    def __str__(self) -> str:
        where = "memory" if self.in_memory else "cache"
        return f"{self.form.name}, weights in {where}, {plural(self.threads, 'thread')}, {plural(self.rows, 'row')}"


@dataclass(slots=True)
class Samples:
    """What the rounds measured. Times are nanoseconds, rates are of that: GHz, GB/s."""

    weight_bytes: int
    clock: Runs = field(default_factory=list)
    time_stamps: Runs = field(default_factory=list)
    rates: dict[str, Runs] = field(default_factory=lambda: defaultdict(list))  # instructions on one thread
    per_cycle: dict[str, Runs] = field(default_factory=lambda: defaultdict(list))
    latency: dict[str, Runs] = field(default_factory=lambda: defaultdict(list))  # cycles until a sum can be used
    reading: dict[int, Runs] = field(default_factory=lambda: defaultdict(list))  # by threads
    products: dict[Case, Runs] = field(default_factory=lambda: defaultdict(list))  # of one row with one matrix
    preparing: dict[str, Runs] = field(default_factory=lambda: defaultdict(list))  # one row, on one thread, by form
    tile: dict[int, Runs] = field(default_factory=lambda: defaultdict(list))  # cycles of a row's 16 x 32, by rows

    def bounds(self, case: Case) -> tuple[float, float]:
        """Least times of one row with one matrix: for reading the weights, and for its dot products."""
        dots = case.form.dots * (D_OUT // 16) * (D_IN // GROUP)
        nbytes = D_OUT * D_IN // Q4_1.block * Q4_1.block_bytes
        reading = nbytes / median(self.reading[case.threads]) / case.rows if case.in_memory else 0.0
        return reading, dots / median(self.rates[case.form.instruction]) / case.threads


def measure(kernels: Kernels, forms: Sequence[Form], weights: Tensor, rounds: int) -> Samples:
    """All rounds. In each, everything takes its turn; the order of the forms changes."""
    samples = Samples(weights.nbytes)
    pools = {n: kernels.team(n) for n in sorted({1, len(os.sched_getaffinity(0))})}
    matrices = [weights.data_ptr() + i * weights.shape[1] for i in range(len(weights))]
    most = max(ROWS)
    tiles = {rows: kernels.tile_products(matrices[0], rows, 4096 // rows) for rows in ROWS}
    preparations = {form: kernels.preparations(form, most, 16) for form in forms}
    products: dict[tuple[Form, int, bool], tuple[ctypes.Array[Op], int]] = {}
    for case in cases(forms, [1]):
        chosen = matrices if case.in_memory else matrices[:1] * (2 * most // case.rows)
        products[case.form, case.rows, case.in_memory] = kernels.products(case.form, chosen, case.rows), len(chosen)
    for turn in range(rounds):
        note(f"round {turn + 1}/{rounds}")
        instructions(kernels.own, samples)
        for form, ops in preparations.items():
            samples.preparing[form.name].append(
                nanoseconds(pools[1].run, ops, kernels.step(most), warm=True) / len(ops) / most
            )
        kernels.result(FIXED, weights[0], most)  # leaves the rows as the tiles want them
        for rows, ops in tiles.items():
            blocks = len(ops) * rows * (TILE // 16) * (D_IN // GROUP)
            spent = nanoseconds(pools[1].run, ops, kernels.step(rows), warm=True)
            samples.tile[rows].append(spent / blocks * samples.clock[-1])
        for case in cases([*forms[turn % len(forms) :], *forms[: turn % len(forms)]], pools):
            team = pools[case.threads]
            if case.in_memory:
                spent = nanoseconds(native.read_bytes, weights, team)
                samples.reading[case.threads].append(weights.nbytes / spent)
            ops, count = products[case.form, case.rows, case.in_memory]
            spent = nanoseconds(team.run, ops, kernels.step(case.rows), warm=not case.in_memory)
            samples.products[case].append(spent / count / case.rows)
    return samples


def cases(forms: Sequence[Form], threads: Iterable[int]) -> Iterator[Case]:
    """Everything that is timed; the forms follow each other closely, so that all see the same machine."""
    for num_threads in threads:
        for in_memory in (True, False):
            for rows in ROWS:
                yield from (Case(form, rows, num_threads, in_memory) for form in forms)


def instructions(probe: ctypes.CDLL, samples: Samples, turns: int = 50_000) -> None:
    """One round of the clock, which a chain of additions shows, and of the instructions by themselves."""

    def rate(name: str) -> float | None:
        """Executed in a nanosecond: the best of five, since an interruption is no property of an instruction."""
        loop = spin(probe, name, turns)
        return None if loop is None else SPINS * turns / min(nanoseconds(loop) for _ in range(5))

    began, first_stamp = time.perf_counter_ns(), probe.time_stamp()
    clock = rate("add")
    assert clock is not None
    samples.clock.append(clock)
    for name in INSTRUCTIONS:
        if free := rate(name):
            samples.rates[name].append(free)
            samples.per_cycle[name].append(free / clock)
        if chained := rate(f"{name}_chain"):
            samples.latency[name].append(clock / chained)
    stamps = probe.time_stamp() - first_stamp
    samples.time_stamps.append(stamps / (time.perf_counter_ns() - began))


def nanoseconds(work: Callable[..., object], *args: object, warm: bool = False) -> float:
    """Wall time of one call; `warm`: of the second of two, which finds in the caches what it touches."""
    if warm:
        work(*args)
    started = time.perf_counter_ns()
    work(*args)
    return float(time.perf_counter_ns() - started)


# -- what is printed, and the record -----------------------------------------------------------------------------------


def print_all(samples: Samples, forms: Sequence[Form], findings: Sequence[Finding]) -> None:
    """Tables of everything, for readers."""
    machine = describe_machine()
    amx = "AMX, which is not measured" if "amx_tile" in machine["features"] else "no AMX on this CPU"
    print(f"{machine['cpu']}, {plural(machine['cores'], 'core')}, {amx}")
    for form in FORMS:
        if form not in forms:
            print(f"no {form.name}: this CPU has no {INSTRUCTIONS[form.instruction]}")
    print(f"{median(samples.clock):.2f} GHz; the time stamp counter {median(samples.time_stamps):.2f} GHz")
    print("\n512-bit instructions of one core: how many per cycle, and cycles until a sum can be used again")
    for name, runs in samples.per_cycle.items():
        latency = f"{median(samples.latency[name]):.1f}" if name in samples.latency else ""
        print(f"  {INSTRUCTIONS[name]:45} {median(runs):.2f}   {latency}")
    megabytes = f"{samples.weight_bytes / 1e6:.1f} MB"
    print(f"\nread-only pass over {megabytes}")
    for threads, runs in samples.reading.items():
        print(f"  {plural(threads, 'thread'):45} {median(runs):.1f} GB/s")
    head = f"  {'':11}" + "".join(f"{plural(rows, 'row'):>14}" for rows in ROWS)
    for threads in samples.reading:
        for in_memory, size in ((True, f"{megabytes} of weights"), (False, "one matrix in a cache")):
            print(f"\n{size}, {plural(threads, 'thread')}: ns of a row with {D_IN} x {D_OUT} weights, % of the bound")
            print(head)
            for form in forms:
                line = (cell(samples, Case(form, rows, threads, in_memory)) for rows in ROWS)
                print(f"  {form.name:11}" + "".join(line))
    print("  m: bound by memory, d: by dot products")
    print(f"\n{ONE_TILE}: cycles for 16 rows of weights, {GROUP} inputs and one row of activations")
    print(head)
    print(f"  {FIXED.name:11}" + "".join(f"{median(samples.tile[rows]):14.1f}" for rows in ROWS))
    print(f"\n  {'':11}error against fp64   ns to prepare a row   bits at any number of rows   bits on levels")
    for found in findings:
        name, equal = found.form.name, said(found.same_at_any_rows)
        print(f"  {name:11}{found.error:18.1e}{median(samples.preparing[name]):22.0f}   {equal:26}   {levels(found)}")


def cell(samples: Samples, case: Case) -> str:
    """The time of a product, its share of the bound, and which bound it is."""
    value, (memory, dots) = median(samples.products[case]), samples.bounds(case)
    return f"{value:9.0f} {max(memory, dots) / value:3.0%}" + ("m" if memory > dots else "d")


def levels(found: Finding) -> str:
    """On which levels a form has the same bits."""
    if found.other_levels:
        return f"differ on {', '.join(found.other_levels)}"
    return f"{'equal on' if len(found.same_levels) > 1 else 'only on'} {', '.join(found.same_levels)}"


def said(equal: bool) -> str:
    return "equal" if equal else "differ"


def record(samples: Samples, findings: Sequence[Finding]) -> dict[str, Any]:
    """The form of bench/records/, with what was found before anything was timed."""
    rows: list[tuple[str, str, Runs, float | None]] = [
        ("core clock", "GHz", samples.clock, None),
        ("time stamp counter", "GHz", samples.time_stamps, None),
    ]
    rows += [(INSTRUCTIONS[name], "per cycle", runs, None) for name, runs in samples.per_cycle.items()]
    rows += [(f"{INSTRUCTIONS[name]}, latency", "cycles", runs, None) for name, runs in samples.latency.items()]
    rows += [(f"read-only pass, {plural(n, 'thread')}", "GB/s", runs, None) for n, runs in samples.reading.items()]
    rows += [(str(case), "ns", runs, max(samples.bounds(case))) for case, runs in samples.products.items()]
    rows += [(f"{name}, to prepare a row", "ns", runs, None) for name, runs in samples.preparing.items()]
    least = FIXED.dots / median(samples.per_cycle[FIXED.instruction])
    rows += [(f"{ONE_TILE}, {plural(n, 'row')}", "cycles", runs, least) for n, runs in samples.tile.items()]
    found = {
        finding.form.name: {
            "error": finding.error,
            "bits at any number of rows": said(finding.same_at_any_rows),
            "bits on levels": levels(finding),
        }
        for finding in findings
    }
    return as_record(
        "arithmetic of products on this CPU",
        shlex.join(["python", "bench/probes/cpu_arithmetic.py", *sys.argv[1:]]),
        describe_machine() | {"load_average": os.getloadavg(), "weight_bytes": samples.weight_bytes, "findings": found},
        [result(quantity, unit, runs, bound) for quantity, unit, runs, bound in rows],
        {quantity: runs for quantity, _, runs, _ in rows},
    )


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + "s" * (count != 1)


def note(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
