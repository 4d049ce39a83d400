"""The rounds: in each all systems take their turn, in an order that changes, with a reading of memory before each."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from peers.check import drop, note
from peers.client import Keeper, WorkerError, one_process
from peers.runner import (
    LOAD,
    MEMORY_MANY,
    MEMORY_ONE,
    START,
    START_MEMORY,
    Model,
    Plan,
    Runner,
    Text,
    environment_of,
    launch,
    matrix_bytes,
    one_token,
)
from peers.systems import DECODE, REPEATS, ROWS, SHORT, VERIFY

from stretto.planner.measure import read_bandwidth

VERIFIED = 24  # steps of many rows in a turn


def measure(
    runners: list[Runner], plan: Plan, model: Model, text: Text, keeper: Keeper, absent: dict[str, str]
) -> list[float]:
    """All rounds; samples go to the runners, who fails leaves `runners`. Returns the bandwidth before each turn."""
    torch.set_num_threads(plan.threads)
    bandwidth: list[float] = []
    began = time.monotonic()
    for turn in range(plan.rounds):
        order = runners[turn % len(runners) :] + runners[: turn % len(runners)]
        for place, runner in enumerate(order):
            elapsed = time.monotonic() - began
            done = turn + place / len(order)
            left = f", about {elapsed / done * (plan.rounds - done) / 60:.0f} min left" if turn else ""
            note(f"round {turn + 1}/{plan.rounds}: {runner.variant.name} ({elapsed / 60:.0f} min{left})")
            bandwidth.append(read_bandwidth(model.matrix_bytes, repeat=3).median)
            try:
                one_turn(runner, plan, text, turn)
                if turn < plan.loads:
                    fresh_processes(runner, plan, model, text, turn, keeper)
            except WorkerError as error:
                if runner.ours:
                    raise SystemExit(f"{runner.variant.name}: {error}") from error
                drop(runner, f"failed in round {turn + 1}: {error}", absent)
                runners.remove(runner)
    for runner in runners:
        if runner.worker is not None and runner.wants(MEMORY_MANY) and plan.streams:
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
            for length in plan.prompts:
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
        if runner.wants(VERIFY):
            num_bytes = matrix_bytes(runner.model)
            before = read_bandwidth(num_bytes, repeat=3).median
            steps = worker.ask(op="rows", ids=text.repeated(offset), rows=ROWS, repeat=VERIFIED)["seconds"]
            if not steps:
                raise WorkerError(f"no step of {ROWS} rows in {VERIFIED} answers")
            bandwidth = (before + read_bandwidth(num_bytes, repeat=3).median) / 2
            runner.samples[VERIFY].append(statistics.median(steps) * bandwidth / num_bytes)


def fresh_processes(runner: Runner, plan: Plan, model: Model, text: Text, turn: int, keeper: Keeper) -> None:
    """What a process of its own takes: to load and to answer once, and from start to exit for one token."""
    if runner.wants(LOAD):
        fresh, _, seconds = launch(runner, plan, model, keeper)
        with fresh:
            fresh.ask(op="decode", ids=text.part(max(plan.prompts), 37 * turn), new=plan.new)
            runner.samples[LOAD].append(seconds)
            runner.samples[MEMORY_ONE].append(fresh.peak_bytes() / 1e6)
    if runner.wants(START):
        command, environment = one_token(runner, plan, model, text), environment_of(runner, plan)
        if turn == 0:
            one_process(command, environment, keeper)  # warm from here on
        seconds, peak = one_process(command, environment, keeper)
        runner.samples[START].append(seconds)
        runner.samples[START_MEMORY].append(peak / 1e6)
