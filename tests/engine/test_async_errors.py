"""`AsyncLLM` when something goes wrong: each hears of what is theirs, and nobody waits for ever."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from clients import GREEDY, MODELS, Gate, reached, run, settled, through_torch, turns

from stretto import LLM, AsyncLLM, Sampling
from stretto.core.errors import BusyError, RunError, UserError
from stretto.llm.admission import Drop, Reader
from stretto.llm.submission import Submission

pytestmark = pytest.mark.timeout(120)  # a stream that waits for ever must not take long to be found


@pytest.fixture(params=["torch", "native"])
def llm(request: pytest.FixtureRequest, folder: Path) -> LLM:
    return MODELS[request.param](folder)


# -- what goes wrong with one request ----------------------------------------------------------------------------------


def test_a_request_that_is_refused_is_refused_alone(llm: LLM) -> None:
    want = llm.generate("fine", GREEDY)[0].token_ids
    bad: list[tuple[Any, Sampling, str]] = [
        ([], GREEDY, "prompt is empty"),
        ([99999], GREEDY, "token id 99999 does not exist"),
        ("x" * 500, GREEDY, "the context is 128"),
        ("half a \ud800 pair", GREEDY, "not valid Unicode"),
        ("fine", Sampling(logit_bias={99999: 1.0}), "token id 99999 does not exist"),
        (None, GREEDY, "not iterable"),
    ]

    async def main() -> None:
        async with AsyncLLM(llm) as several:
            streams = [several.stream("fine", GREEDY) for _ in range(3)]
            firsts = await asyncio.gather(*(anext(stream) for stream in streams))
            for prompt, sampling, why in bad:
                with pytest.raises((UserError, TypeError), match=why):
                    await anext(several.stream(prompt, sampling))
            with pytest.raises(UserError, match="needs a role"):
                await several.chat([{"content": "who says so?"}])
            for stream, first in zip(streams, firsts, strict=True):
                ids = first.token_ids
                async for chunk in stream:
                    ids += chunk.token_ids
                assert ids == want
            await settled(several, llm)

    run(main())


def test_a_row_of_nan_ends_its_own_stream(folder: Path, tmp_path: Path) -> None:
    """After one byte every logit is NaN: who is about to read one fails, and nobody else does."""
    sound = through_torch(folder)
    prompts = [f"words that it has never seen {i}" for i in range(10)]
    sampling = Sampling(temperature=1.0, seed=5, max_tokens=40, ignore_eos=True)
    texts = [result.token_ids for result in sound.generate(prompts, sampling)]
    mark = next(
        t for t in range(256) if 0 < sum(t in ids[:-1] for ids in texts) < 5 and all(t != ids[0] for ids in texts)
    )
    spoiled = through_torch(folder)
    lookup = spoiled.engine.runner.model.embed.lookup

    def damaged(tokens: torch.Tensor, scale: float) -> torch.Tensor:
        h = lookup(tokens, scale)
        return h.masked_fill((tokens == mark)[:, None], torch.nan)

    spoiled.engine.runner.model.embed.lookup = damaged  # type: ignore[method-assign]

    async def read(several: AsyncLLM, prompt: str) -> tuple[tuple[int, ...], str]:
        ids: tuple[int, ...] = ()
        try:
            async for chunk in several.stream(prompt, sampling):
                ids += chunk.token_ids
        except RunError as problem:
            return ids, problem.error
        return ids, ""

    async def main() -> None:
        async with AsyncLLM(spoiled) as several:
            got = await asyncio.gather(*(read(several, prompt) for prompt in prompts))
            for (ids, error), text in zip(got, texts, strict=True):
                end = text.index(mark) + 1 if mark in text[:-1] else len(text)
                assert ids == text[:end] and error == ("a logit is NaN" if mark in text[:-1] else "")
            with pytest.raises(RunError, match="a logit is NaN"):
                await several.generate(prompts, sampling)
            await settled(several, spoiled)

    run(main())
    with pytest.raises(RunError, match="a logit is NaN"):
        spoiled.generate(prompts, sampling)
    at = next(i for i, text in enumerate(texts) if mark in text[:-1])
    ids: list[int] = []
    with pytest.raises(RunError, match="a logit is NaN"):
        for chunk in spoiled.stream(prompts[at], sampling):
            ids += chunk.token_ids
    assert tuple(ids) == texts[at][: texts[at].index(mark) + 1]
    assert spoiled.engine.is_idle


def test_a_step_that_raises_is_heard_by_everybody_in_it(llm: LLM) -> None:
    want = llm.generate("again", GREEDY)[0].token_ids
    forward, problem = llm.engine.runner.forward, RuntimeError("out of luck")

    def broken(*_: object) -> Any:
        raise problem

    async def main() -> None:
        async with AsyncLLM(llm) as several:
            llm.engine.runner.forward = broken
            found = await asyncio.gather(*(several.generate(f"{i}", GREEDY) for i in range(5)), return_exceptions=True)
            assert found == [problem] * 5
            llm.engine.runner.forward = forward
            assert (await several.generate("again", GREEDY))[0].token_ids == want
            await settled(several, llm)

    run(main())


def test_generate_takes_a_sampling_per_prompt_and_ends_all_if_one_fails(llm: LLM) -> None:
    prompts = ["a", "bb", [3, 4]]
    samplings = [Sampling(temperature=0, max_tokens=n) for n in (9, 3, 6)]
    want = [result.token_ids for result in llm.generate(prompts, samplings)]

    async def main() -> None:
        async with AsyncLLM(llm, max_waiting=4) as several:
            assert [result.token_ids for result in await several.generate(prompts, samplings)] == want
            assert [len(ids) for ids in want] == [9, 3, 6]
            assert (await several.generate("a", samplings[0]))[0].token_ids == want[0]
            with pytest.raises(UserError, match="3 prompts but 2 sampling settings"):
                await several.generate(prompts, samplings[:2])
            with pytest.raises(UserError, match="5 prompts"):
                await several.generate(["x"] * 5)
            with pytest.raises(UserError, match="does not exist"):
                await several.generate(["a", [99999], "b"], Sampling(max_tokens=100))
            await settled(several, llm)
            gate = Gate(llm.engine.step)
            llm.engine.step = gate  # type: ignore[method-assign]
            with pytest.raises(UserError, match="not valid Unicode"):
                await several.generate(["a", "half a \ud800 pair", "b"], Sampling(max_tokens=100))
            assert not gate.gave_up, "the others do not have to end by themselves"
            gate.opened.set()
            assert len(asyncio.all_tasks()) == 1
            await settled(several, llm)

    run(main())


def test_chat_hands_tools_and_options_to_the_template(folder: Path) -> None:
    template = "{% for t in tools or [] %}<{{ t.function.name }}>{% endfor %}{{ messages[0].content }}{{ thinking }}"
    llm = LLM(folder, dtype="float32", draft="none", chat_template=template)
    tools = [{"type": "function", "function": {"name": "clock", "parameters": {}}}]

    async def main() -> None:
        async with AsyncLLM(llm) as several:
            result = await several.chat([{"role": "user", "content": "hi"}], GREEDY, tools=tools, thinking=True)
            assert llm.tokenizer.decode(result.prompt_token_ids) == "<clock>hiTrue"
            chunks = [c async for c in several.chat_stream([{"role": "user", "content": "hi"}], GREEDY, tools=tools)]
            assert chunks[-1].result is not None
            assert llm.tokenizer.decode(chunks[-1].result.prompt_token_ids) == "<clock>hi"

    run(main())


# -- too many ----------------------------------------------------------------------------------------------------------


def test_one_request_too_many_is_told_when_to_come_back(llm: LLM) -> None:
    """The pace is what was measured: with a place that comes free every 3 s, in 3 s."""
    now = 0.0
    llm.engine.clock = lambda: now
    gate = Gate(llm.encode, only="slow")
    llm.encode = gate  # type: ignore[method-assign]

    async def main() -> None:
        nonlocal now
        async with AsyncLLM(llm, max_waiting=3) as several:
            held = [asyncio.ensure_future(several.generate("slow", GREEDY)) for _ in range(2)]
            await reached(gate)
            for _ in range(5):
                now += 3
                await several.generate("quick", GREEDY)
                assert several.num_requests == 2, "who has heard the end finds its place free"
            held.append(asyncio.ensure_future(several.generate("slow", GREEDY)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            with pytest.raises(BusyError, match="3 requests are queued or running") as caught:
                await several.generate("one more", GREEDY)
            assert caught.value.retry_after == 3.0 and caught.value.exit_code == 1
            held.pop().cancel()
            gate.opened.set()
            await asyncio.gather(*held)
            await settled(several, llm)
            assert len(await several.generate(["a", "b", "c"], GREEDY)) == 3

    run(main())
    bad: dict[str, dict[str, Any]] = {
        "max_waiting is 0": {"max_waiting": 0},
        "max_queued_tokens is 0": {"max_queued_tokens": 0},
        "options beside an LLM: draft": {"draft": "none"},
    }
    for why, wrong in bad.items():
        with pytest.raises(UserError, match=why):
            AsyncLLM(llm, **wrong)


def test_prompts_that_are_too_long_to_wait_are_refused_and_one_alone_never_is(llm: LLM) -> None:
    """40 tokens may wait. One prompt of 100 is served, and while it is in the queue, no other may come; those that run
    do not count, and those that are refused leave nothing."""
    gate = Gate(llm.engine.step)
    llm.engine.step = gate  # type: ignore[method-assign]
    one = Sampling(temperature=0, max_tokens=1)

    def submission(size: int) -> Submission:
        return Submission(ids=[1] * size, sampling=one)

    async def main() -> None:
        async with AsyncLLM(llm, max_queued_tokens=40) as several:
            held = [asyncio.ensure_future(several.generate([[1] * 100], one))]
            await reached(gate)
            for _ in range(2):
                with pytest.raises(BusyError, match="100 tokens of prompts are queued, and 1 more do not fit"):
                    await several.generate([[1]], one)
                with pytest.raises(BusyError, match="100 tokens of prompts are queued, and 2 more do not fit"):
                    several.submit([submission(1), submission(1)])
            assert several.num_requests == 1
            gate.opened.set()
            await held[0]
            gate.reached.clear()
            gate.opened.clear()
            gate.free = 1
            held = [asyncio.ensure_future(several.generate([[1] * 30], GREEDY))]
            await reached(gate)  # its prompt was read in the first step
            answers = several.submit([submission(20), submission(20)])
            with pytest.raises(BusyError, match="40 tokens of prompts are queued"):
                several.submit([submission(1)])
            answers.drop()
            gate.opened.set()
            await held[0]
            await settled(several, llm)
            assert len(await several.generate([[1]] * 40, one)) == 40

    run(main())


def test_commands_without_end_do_not_keep_the_engine_from_running(llm: LLM) -> None:
    want = llm.generate("on and on", GREEDY)[0].token_ids

    async def main() -> None:
        async with AsyncLLM(llm) as several:
            inbox, let_go, obeyed = several._admission.inbox, several.thread._let_go, 0

            def again(reader: Reader) -> None:
                nonlocal obeyed
                obeyed += 1
                let_go(reader)
                if flood:
                    inbox.put(Drop(reader))

            several.thread._let_go = again  # type: ignore[method-assign]
            flood = True
            inbox.put(Drop(Reader(asyncio.get_running_loop())))
            assert (await several.generate("on and on", GREEDY))[0].token_ids == want
            flood = False
            assert obeyed > 2

    run(main())


# -- ends --------------------------------------------------------------------------------------------------------------


def test_close_ends_streams_and_blocks_nobody(llm: LLM) -> None:
    async def main() -> None:
        before = set(threading.enumerate())
        several = AsyncLLM(llm)
        stream = several.stream("Once", Sampling(max_tokens=120, ignore_eos=True))
        await anext(stream)
        gate = Gate(llm.engine.step)
        llm.engine.step = gate  # type: ignore[method-assign]
        await reached(gate)
        impatient = asyncio.ensure_future(several.close())
        closing = [asyncio.ensure_future(several.close()), asyncio.ensure_future(several.aclose())]
        await turns(20)  # the loop goes on while the engine is in a step
        assert not any(task.done() for task in closing)
        impatient.cancel()
        with pytest.raises(UserError, match="is closed"):
            await several.generate("too late", GREEDY)
        gate.opened.set()
        await asyncio.gather(*closing)
        await several.close()
        with pytest.raises(UserError, match="is closed"):
            async for _ in stream:
                pass
        with pytest.raises(UserError, match="is closed"):
            await anext(several.stream("too late"))
        assert several.num_requests == 0 and llm.engine.is_idle
        llm.engine.runner.cache.check()
        assert {thread.name for thread in set(threading.enumerate()) - before} <= {"stretto-encode_0"}

    run(main())
    assert len(llm.generate("The model is free again", GREEDY)[0].token_ids) == 24


def test_close_ends_what_is_still_being_encoded(llm: LLM) -> None:
    gate = Gate(llm.encode)
    llm.encode = gate  # type: ignore[method-assign]

    async def main() -> None:
        several = AsyncLLM(llm)
        tasks = [asyncio.ensure_future(several.generate("slow", GREEDY)) for _ in range(9)]
        await reached(gate)
        await several.close()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert len(found) == 9 and all(isinstance(e, UserError) and "is closed" in str(e) for e in found)
        gate.opened.set()
        assert several.num_requests == 0 and llm.engine.is_idle

    run(main())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_is_heard_by_everybody(llm: LLM) -> None:
    """A fault of ours: whoever waits, whoever is being encoded, and whoever comes later gets an error."""
    read = llm.read

    def faulty(*args: Any) -> Any:
        if len(args[0].pieces) == 3:
            raise AssertionError("a fault of ours")
        return read(*args)

    async def main() -> None:
        async with AsyncLLM(llm) as several:
            llm.read = faulty  # type: ignore[method-assign]
            tasks = [several.generate(f"{i}", GREEDY) for i in range(9)]
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(e, RunError) and "a fault of ours" in str(e) for e in found)
            with pytest.raises(RunError, match="the engine thread has ended"):
                await several.generate("later", GREEDY)
        assert several.num_requests == 0 and llm.engine.is_idle

    run(main())
    llm.read = read  # type: ignore[method-assign]
    assert len(llm.generate("The model is free again", GREEDY)[0].token_ids) == 24
