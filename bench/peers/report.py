"""From samples to a record (bench/records/) and to what the chart shows."""

import os
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from peers.client import without_folders
from peers.runner import Model, Plan, Runner
from peers.svg import Bar, Group
from peers.systems import DECODE

from stretto.planner.measure import describe_machine
from stretto.planner.record import as_record, result

CLOSE = 0.8  # below this share of agreement the chart says it
_SAID = ("version", "settings", "next_tokens_agree", "first_tokens_of_streams_agree", "leading_tokens_agree")


def report(
    runners: Sequence[Runner],
    plan: Plan,
    model: Model,
    kind: str,
    bandwidth: list[float],
    absent: Mapping[str, str],
    every_system: set[str],
) -> tuple[dict[str, Any], list[Group]]:
    """The record and what the chart shows. Of a system with variants, each quantity is that of its best variant.

    every_system: the names of all peers there are; a record of fewer names them.
    """
    results, groups = [], []
    bounds = {DECODE: statistics.median(bandwidth) / model.matrix_bytes}
    for quantity, unit in plan.units().items():
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
            notes = [runner.variant.label] * bool(runner.variant.label) + [runner.outside] * bool(runner.outside)
            share = runner.about["next_tokens_agree"]
            notes += [f"{share:.0%} of next tokens agree"] * (share < CLOSE)
            bars.append(Bar(name=system, value=value, spread=spread, ours=runner.ours, note=", ".join(notes)))
        bars.sort(key=lambda bar: -sign * bar.value)
        better = "more is better" if sign > 0 else "less is better"
        groups.append(Group(title=f"{quantity}, {unit} ({better})", bars=bars, bound=bounds.get(quantity)))
    about = {runner.variant.name: _about(runner) for runner in runners}
    every = {f"{q}: {r.variant.name}": runs for r in runners for q, runs in r.samples.items()}
    machine = describe_machine() | {
        "kind": kind, "threads": plan.threads, "load_average": os.getloadavg(),
        "bandwidth": statistics.median(bandwidth), "model_bytes": model.matrix_bytes, "systems": about,
        "absent": {name: without_folders(reason) for name, reason in absent.items()},
    }  # fmt: skip
    some = sorted(every_system & {runner.variant.system for runner in runners})
    missing = every_system - set(some) - {name.rpartition(" ")[0] for name in absent} - set(absent)
    name = f"{model.title} on a CPU, " + ("peers" if not missing else " and ".join(some))
    command = shlex.join(["python", "bench/cpu_peers.py", *sys.argv[1:]])
    return as_record(name, command, machine, results, every | {"bandwidth, bytes/s": bandwidth}), groups


def _about(runner: Runner) -> dict[str, Any]:
    outside = {"not_in_ratio": without_folders(runner.outside)} if runner.outside else {}
    return {key: runner.about[key] for key in _SAID} | outside
