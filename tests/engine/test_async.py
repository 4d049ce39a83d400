"""`AsyncLLM`: who leaves, whenever, leaves nothing; who stays gets what they get alone."""

import asyncio
import contextlib
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from clients import GREEDY, MODELS, Gate, reached, recorded, run, settled, turns

from stretto import LLM, AsyncLLM, Sampling

pytestmark = pytest.mark.timeout(120)  # a stream that waits for ever must not take long to be found


@pytest.fixture(params=["torch", "native"])
def llm(request: pytest.FixtureRequest, folder: Path) -> LLM:
    return MODELS[request.param](folder)


# -- the law -----------------------------------------------------------------------------------------------------------

Case = tuple[Any, Sampling, tuple[int, ...]]  # a prompt or messages; the tokens it has alone


def cases(llm: LLM, rng: random.Random) -> list[Case]:
    """Prompts of all kinds, greedy and sampled, each with what it gives alone."""
    found: list[Case] = []
    for i in range(24):
        ids = [rng.randrange(23) for _ in range(rng.randint(1, 30))]
        prompt: Any = ids
        if llm.engine.runner.vocab_size > 23:  # the tokens of the tokenizer are those of the model
            text = "".join(rng.choice("abcdefgh \n") for _ in range(rng.randint(1, 40)))
            prompt = rng.choice([ids, text, [{"role": "user", "content": text}]])
        sampling = Sampling(
            temperature=rng.choice([0.0, 0.9]), seed=i, max_tokens=rng.randint(1, 16), ignore_eos=True,
            logprobs=rng.choice([None, None, None, 1]), repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
        )  # fmt: skip
        alone = llm.chat(prompt, sampling) if is_chat(prompt) else llm.generate([prompt], sampling)[0]
        found.append((prompt, sampling, alone.token_ids))
    return found


def is_chat(prompt: object) -> bool:
    return isinstance(prompt, list) and isinstance(prompt[0], dict)


async def leave(several: AsyncLLM, case: Case, rng: random.Random) -> bool:
    """One client with a fate of its own; whether it got its whole text. What it did get must be right."""
    prompt, sampling, want = case
    open_stream = several.chat_stream if is_chat(prompt) else several.stream

    async def read(limit: int = 1000) -> tuple[int, ...]:
        ids: tuple[int, ...] = ()
        stream = open_stream(prompt, sampling)
        async with contextlib.aclosing(stream):
            for _ in range(limit):
                chunk = await anext(stream)
                ids += chunk.token_ids
                if chunk.result is not None:
                    assert chunk.result.token_ids == ids == want
                    return ids
        assert ids == want[: len(ids)]
        return ids

    fate = rng.choice(["stays", "stays", "closes", "cancelled", "cancelled", "cancelled late", "times out", "twice"])
    if fate == "stays":
        return await read() == want
    if fate == "closes":
        return await read(rng.randint(0, 6)) == want
    if fate == "times out":
        with contextlib.suppress(TimeoutError):
            return await asyncio.wait_for(read(), rng.choice([0, 1e-6, 1e-4, 1e-3, 4e-3])) == want
        return False
    task = asyncio.ensure_future(read())
    await (asyncio.sleep(rng.random() * 5e-3) if fate == "cancelled late" else turns(rng.choice([0, 1, 2, 3, 9, 30])))
    task.cancel()
    if fate == "twice":
        await turns(rng.randint(0, 2))
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        return await task == want
    return False


MANY = [pytest.mark.full, pytest.mark.timeout(1200)]


@pytest.mark.parametrize(
    ("model", "rounds"),
    [("torch", 20), ("native", 100), ("native, hybrid", 100), *(pytest.param(m, 1000, marks=MANY) for m in MODELS)],
)
def test_64_clients_that_leave_at_any_moment_leave_nothing(folder: Path, model: str, rounds: int) -> None:
    llm, rng = MODELS[model](folder), random.Random(7)
    known = cases(llm, rng)
    whole = 0

    async def main() -> None:
        nonlocal whole
        async with AsyncLLM(llm, max_waiting=65) as several:
            for _ in range(rounds):
                clients = [leave(several, rng.choice(known), random.Random(rng.random())) for _ in range(64)]
                whole += sum(await asyncio.gather(*clients))
                await settled(several, llm)

    run(main())
    assert 16 * rounds * 0.9 < whole < 64 * rounds * 0.9, "some stay, and some leave early"


@pytest.mark.parametrize("model", ["torch", "native"])
def test_the_same_seed_alone_and_among_others(folder: Path, model: str) -> None:
    llm = MODELS[model](folder)
    samplings = [Sampling(temperature=1.0, top_p=0.95, seed=i, max_tokens=20, ignore_eos=True) for i in range(12)]
    alone = [llm.generate("The same words", sampling)[0] for sampling in samplings]
    assert len({result.text for result in alone}) == 12

    async def main() -> None:
        async with AsyncLLM(llm) as several:
            others = asyncio.ensure_future(several.generate([[i, i + 1] for i in range(9)], Sampling(max_tokens=60)))
            together = await several.generate(["The same words"] * 12, samplings)
            assert [(r.text, r.token_ids) for r in together] == [(r.text, r.token_ids) for r in alone]
            await others

    run(main())


# -- moments that matter, one by one -----------------------------------------------------------------------------------


def test_cancelled_while_its_prompt_is_encoded(llm: LLM) -> None:
    """The request never comes into the engine, and encoding one prompt keeps nobody else waiting."""
    requests, slow = recorded(llm), tuple(llm.encode("slow"))
    gate = Gate(llm.encode, only="slow")
    llm.encode = gate  # type: ignore[method-assign]

    async def main() -> None:
        async with AsyncLLM(llm) as several:
            task = asyncio.ensure_future(several.generate("slow", GREEDY))
            await reached(gate)
            assert len((await several.generate("quick", GREEDY))[0].token_ids) == 24
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.opened.set()
            await settled(several, llm)
            assert len(requests) == 2 and slow not in [request.prompt for request in requests]

    run(main())


@pytest.mark.parametrize("where", ["step", "submit"])
def test_cancelled_while_the_engine_is_busy(llm: LLM, where: str) -> None:
    """Before its command runs, and in the middle of it."""
    want = llm.generate(["one", "two"], GREEDY)
    requests = recorded(llm)

    async def main() -> None:
        async with AsyncLLM(llm) as several:
            owner: Any = llm.engine if where == "step" else llm
            gate = Gate(getattr(owner, where))
            setattr(owner, where, gate)
            stays = asyncio.ensure_future(several.generate(["one", "two"], GREEDY))
            await reached(gate)
            leaves = [asyncio.ensure_future(several.generate(f"gone {i}", GREEDY)) for i in range(8)]
            while several.num_requests < 10:
                await asyncio.sleep(0)
            for task in leaves:
                task.cancel()
            assert all(
                isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*leaves, return_exceptions=True)
            )
            gate.opened.set()
            assert [r.token_ids for r in await stays] == [r.token_ids for r in want]
            await settled(several, llm)
            assert len([request for request in requests if len(request.output) == 24]) == 2, "the others never ran"

    run(main())


def test_a_stream_that_is_left_without_being_closed(llm: LLM) -> None:
    requests = recorded(llm)
    gate = Gate(llm.engine.step, free=2)
    llm.engine.step = gate  # type: ignore[method-assign]

    async def main() -> None:
        async with AsyncLLM(llm) as several:
            async for _ in several.stream("Once", Sampling(max_tokens=100, ignore_eos=True)):
                await reached(gate)
                break
            await turns(9)  # the loop closes what is garbage
            gate.opened.set()
            await settled(several, llm)
            assert 0 < len(requests[0].output) < 60

    run(main())


# -- several event loops -----------------------------------------------------------------------------------------------


def test_several_event_loops_share_one_engine(llm: LLM) -> None:
    prompts = [f"loop {i}" for i in range(6)]
    want = [result.token_ids for result in llm.generate(prompts, GREEDY)]
    several = AsyncLLM(llm)

    def one(_: int) -> list[tuple[int, ...]]:
        async def main() -> list[tuple[int, ...]]:
            leaves = asyncio.ensure_future(several.generate("gone", Sampling(max_tokens=100)))
            results = await asyncio.gather(*(several.generate(prompt, GREEDY) for prompt in prompts))
            leaves.cancel()
            return [result[0].token_ids for result in results]

        return asyncio.run(main())

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(one, range(8))) == [want] * 8

    async def main() -> None:
        await settled(several, llm)
        await several.close()

    run(main())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_is_closed_under_a_stream(llm: LLM) -> None:
    """Nobody can be told: its request is dropped, and the thread lives on."""
    several = AsyncLLM(llm)
    gate = Gate(llm.engine.step)
    gate.opened.set()
    llm.engine.step = gate  # type: ignore[method-assign]
    loop = asyncio.new_event_loop()
    stream = several.stream("Once", Sampling(max_tokens=120, ignore_eos=True))
    loop.run_until_complete(anext(stream))
    gate.opened.clear()
    assert llm.engine.is_idle is False
    loop.close()
    gate.opened.set()

    async def main() -> None:
        await settled(several, llm)
        await several.close()

    run(main())
    del stream


def test_encoding_from_many_threads_gives_what_one_gives(llm: LLM) -> None:
    """The tokenizer and the template are shared without a lock."""
    rng = random.Random(3)
    texts = ["".join(rng.choice("abc xyz</s>\n") for _ in range(rng.randint(1, 60))) for _ in range(300)]

    def both(text: str) -> tuple[list[int], list[int], list[int]]:
        plain = llm.tokenizer.encode(text, parse_special=False)
        return llm.encode(text), plain, llm.encode_chat([{"role": "user", "content": text}] * 20)

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(both, texts))
    assert found == [both(text) for text in texts]
