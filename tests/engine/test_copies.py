"""Copies of one request among others that come and go: whatever runs beside them, they get one text."""

import asyncio
import contextlib
import random
from pathlib import Path

import pytest
from clients import MODELS, run, settled

from stretto import AsyncLLM, Sampling

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3]
MANY = [pytest.mark.full, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("temperature", [0.0, 0.9], ids=["greedy", "sampled"])
@pytest.mark.parametrize("copies", [40, pytest.param(1000, marks=MANY)])
@pytest.mark.parametrize("name", ["native", "native, hybrid"])
def test_copies_have_one_text(folder: Path, name: str, copies: int, temperature: float) -> None:
    """With drafts, a prefix cache, preemption (the hybrid has little memory) and clients that leave."""
    llm = MODELS[name](folder)
    sampling = Sampling(temperature=temperature, seed=5, max_tokens=24, ignore_eos=True)
    alone = llm.generate([PROMPT], sampling)[0].token_ids
    rng, found = random.Random(copies), list[tuple[int, ...]]()

    async def copy(several: AsyncLLM, delay: float) -> None:
        await asyncio.sleep(delay)
        found.append((await several.generate([PROMPT], sampling))[0].token_ids)

    async def other(several: AsyncLLM, seed: int, delay: float) -> None:
        own = random.Random(seed)
        prompt = [*PROMPT[: own.choice((0, 9, 18))], *(own.randrange(23) for _ in range(own.randint(1, 30)))]
        wanted = Sampling(temperature=own.choice((0.0, 1.0)), seed=seed, max_tokens=own.randint(1, 30), ignore_eos=True)
        await asyncio.sleep(delay)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(own.choice((1e-3, 5e-3, 60.0))):
                await several.generate([prompt], wanted)

    async def main() -> None:
        async with AsyncLLM(llm, max_waiting=4 * copies) as several:
            async with asyncio.TaskGroup() as group:
                for number in range(copies):
                    group.create_task(copy(several, rng.random() * copies * 2e-3))
                    group.create_task(other(several, number, rng.random() * copies * 2e-3))
            await settled(several, llm)

    run(main())
    assert len(found) == copies and set(found) == {alone}
