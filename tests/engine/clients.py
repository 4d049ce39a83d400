"""What the tests of `AsyncLLM` share: models that load in milliseconds, gates, and how all must be left in the end."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import torch
from test_engine import drafter_named
from test_native import engine, tiled
from toy import nodes, toy_lm

from stretto import LLM, AsyncLLM, Sampling
from stretto.drafters.ngram import NGram
from stretto.engine.request import Request

GREEDY = Sampling(temperature=0, max_tokens=24, ignore_eos=True)


def through_torch(folder: Path) -> LLM:
    return LLM(folder, dtype="float32", draft="none", max_seqs=6)


def natively(folder: Path) -> LLM:
    return LLM(folder, backend="native", draft="ngram:nodes=4", max_seqs=6)


def hybrid(folder: Path) -> LLM:
    """States beside pages, and so little memory that requests push each other out. Its tokens are the bytes 0 to 22."""
    llm = LLM(folder, backend="native", draft="none")
    lm = tiled(toy_lm(["gated_delta", "attention", "mamba2"]))
    states = [(s.kind, s.nbytes(torch.float32)) for specs in lm.state_specs for s in specs]
    per_token, per_seq = (sum(size for kind, size in states if kind == wanted) for wanted in ("paged", "slot"))
    llm._streams.engine = engine(
        lm, memory_bytes=14 * 16 * per_token + 5 * per_seq, max_seqs=4, max_rows=40, 
        drafter=drafter_named("ngram", {}),
        policies=nodes(4),
    )  # fmt: skip
    return llm


MODELS: dict[str, Callable[[Path], LLM]] = {"torch": through_torch, "native": natively, "native, hybrid": hybrid}


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


async def settled(several: AsyncLLM, llm: LLM) -> None:
    """Nothing is left, and the thread answers: no request, no page, no state, nothing that a drafter remembers."""
    assert len((await several.generate([[1, 2]], Sampling(temperature=0, max_tokens=1)))[0].token_ids) == 1
    while several.num_requests or not llm.engine.is_idle:
        await asyncio.sleep(0)
    one = llm.engine
    assert not one.scheduler.running and not one.scheduler.waiting
    assert one.runner.cache.free_blocks == one.runner.cache.pools.num_pages
    assert one.runner.cache.free_slots == one.runner.cache.pools.num_slots - 1
    one.runner.cache.check()
    if isinstance(one.drafting.drafter, NGram):
        assert not one.drafting.drafter._texts


async def turns(n: int) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


class Gate:
    """A function that waits at a gate when it is called; `reached` says that somebody waits.

    only: for calls with this argument. free: so many calls pass first.
    """

    def __init__(self, wrapped: Callable[..., Any], only: object = None, free: int = 0) -> None:
        self.wrapped, self.only, self.free, self.gave_up = wrapped, only, free, False
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, *args: Any, **named: Any) -> Any:
        self.free -= 1
        if self.free < 0 and (self.only is None or self.only in args):
            self.reached.set()
            self.gave_up = not self.opened.wait(20)
            assert not self.gave_up
        return self.wrapped(*args, **named)


def recorded(llm: LLM) -> list[Request]:
    """Every request that comes into the engine from here on."""
    found: list[Request] = []
    add = llm.engine.add

    def noted(*args: Any, **named: Any) -> Request:
        found.append(add(*args, **named))
        return found[-1]

    llm.engine.add = noted  # type: ignore[method-assign]
    return found


async def reached(gate: Gate) -> None:
    while not gate.reached.is_set():
        await asyncio.sleep(0)
