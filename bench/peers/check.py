"""Who is quoted: a system that runs this model, as what it says next shows, with no instructions but those allowed."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

from peers.client import Keeper, Worker, WorkerError
from peers.runner import MOST_STREAMS, PREFIX, PREFIXES, Model, Plan, Runner, Text, launch
from peers.systems import SHORT

AGREE = 0.5  # of the next tokens must be those of stretto


def note(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def start(
    found: Iterator[Runner],
    plan: Plan,
    model: Model,
    text: Text,
    keeper: Keeper,
    stack: ExitStack,
    absent: dict[str, str],
    *,
    avx2_only: bool,
) -> list[Runner]:
    """Start and check everyone; who fails is closed and goes to `absent`. The others are warm, and stopped.

    avx2_only: who does not run so is started as it is; that one, and who is seen with AVX-512 state all the same, is
    outside the ratio. Of ours both are errors.
    """
    ready: list[Runner] = []
    ours: dict[str, Any] | None = None
    for runner in found:
        name = runner.variant.name
        note(f"start and check: {name}")
        try:
            try:
                said, age, spent = first_sayings(runner, plan, model, text, keeper, stack)
            except WorkerError as error:
                if runner.ours or not avx2_only:
                    raise
                note(f"  without the level, since: {error}")
                runner.held, runner.outside = False, f"does not run when it is held to AVX2: {error}"
                said, age, spent = first_sayings(runner, plan, model, text, keeper, stack)
            ours = said if ours is None else ours
            runner.about |= agreement(said, ours)
            share = min(runner.about["next_tokens_agree"], runner.about["first_tokens_of_streams_agree"])
            if share < AGREE:
                raise WorkerError(f"not quoted: only {share:.0%} of its tokens after a text are those of stretto")
            if avx2_only and runner.held and age is not None and age < spent:
                if runner.ours:
                    raise WorkerError("AVX-512 is used though the level is avx2")
                runner.outside = "uses AVX-512 though it is held to AVX2"
            ready.append(runner)
            note(f"  {runner.about['version']}: {share:.0%} of next tokens agree {runner.outside or ''}")
        except WorkerError as error:
            if runner.ours:
                raise SystemExit(f"{name}: {error}") from error
            drop(runner, str(error), absent)
    return ready


def first_sayings(
    runner: Runner, plan: Plan, model: Model, text: Text, keeper: Keeper, stack: ExitStack
) -> tuple[dict[str, Any], float | None, float]:
    """Start its worker, stopped afterwards: what it says, seconds since AVX-512 was seen, and seconds that it took."""
    runner.worker, runner.about, _ = launch(runner, plan, model, keeper)
    stack.push(runner.worker.__exit__)
    began = time.monotonic()
    try:
        said = sayings(runner.worker, plan, text, batches=runner.variant.batches)
    except WorkerError:
        runner.worker.close(gently=False)
        raise
    age, spent = runner.worker.avx512_age(), time.monotonic() - began
    runner.worker.pause()
    return said, age, spent


def sayings(worker: Worker, plan: Plan, text: Text, *, batches: bool) -> dict[str, Any]:
    """What a system says after prefixes, alone and in a batch. Everything that will be timed has run once then.

    batches: whether it is asked for several at once; one that is not says the same prompts one by one.
    """
    prompts = [text.part(SHORT, 41 * i) for i in range(MOST_STREAMS)][: max(plan.streams or [PREFIXES])]
    worker.ask(op="decode", ids=text.part(max(plan.prompts), 0), new=2)
    if batches:
        several = [worker.ask(op="batch", prompts=prompts[:n], new=8)["tokens"] for n in plan.streams or [PREFIXES]]
        streams = [tokens[0] for tokens in max(several, key=len)]
    else:
        streams = [worker.ask(op="next", ids=prompt)["token"] for prompt in prompts]
    return {
        "next": [worker.ask(op="next", ids=text.part(PREFIX, 61 * i + 7))["token"] for i in range(PREFIXES)],
        "text": [worker.ask(op="decode", ids=text.part(PREFIX, 301 * i), new=64)["tokens"] for i in range(3)],
        "streams": streams,
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
        runner.worker.close(gently=False)
