"""`AsyncLLM`: who leaves, whenever, leaves nothing; who stays gets what they get alone; nobody waits for ever."""

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from command import write_tiny
from test_native import engine as native_engine
from test_native import packed
from toy import toy_lm

from stretto import LLM, AsyncLLM, Sampling
from stretto.core.errors import BusyError, RunError, UserError
from stretto.drafters.ngram import NGram
from stretto.engine.policies.draft_gain import Always
from stretto.engine.request import Request

pytestmark = pytest.mark.timeout(120)  # a stream that waits for ever must not take long to be found
GREEDY = Sampling(temperature=0, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def through_torch(folder: Path) -> LLM:
    return LLM(folder, dtype="float32", draft="none", max_seqs=6)


def natively(folder: Path) -> LLM:
    return LLM(folder, backend="native", draft="ngram:nodes=4", max_seqs=6)


def hybrid(folder: Path) -> LLM:
    """States beside pages, and so little memory that requests push each other out. Its tokens are the bytes 0 to 22."""
    llm = LLM(folder, backend="native", draft="none")
    lm = packed(toy_lm(["gated_delta", "attention", "mamba2"]))
    states = [(s.kind, s.nbytes(torch.float32)) for specs in lm.state_specs for s in specs]
    per_token, per_seq = (sum(size for kind, size in states if kind == wanted) for wanted in ("paged", "slot"))
    llm.engine = native_engine(
        lm, memory_bytes=14 * 16 * per_token + 5 * per_seq, max_seqs=4, max_rows=40, drafter=NGram(),
        draft_policy=Always(4),
    )  # fmt: skip
    return llm


MODELS: dict[str, Callable[[Path], LLM]] = {"torch": through_torch, "native": natively, "native, hybrid": hybrid}


@pytest.fixture(params=["torch", "native"])
def llm(request: pytest.FixtureRequest, folder: Path) -> LLM:
    return MODELS[request.param](folder)


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


async def settled(several: AsyncLLM, llm: LLM) -> None:
    """Nothing is left, and the thread answers: no request, no page, no state, nothing that a drafter remembers."""
    assert len((await several.generate([[1, 2]], Sampling(temperature=0, max_tokens=1)))[0].token_ids) == 1
    while several.num_requests or not llm.engine.is_idle:
        await asyncio.sleep(0)
    one = llm.engine
    assert not one.scheduler.running and not one.scheduler.waiting
    assert one.cache.free_blocks == one.cache.pools.num_blocks - 1
    assert one.cache.free_slots == one.cache.pools.num_slots - 1
    one.cache.check()
    if isinstance(one.drafter, NGram):
        assert not one.drafter._texts


# -- the law -----------------------------------------------------------------------------------------------------------

Case = tuple[Any, Sampling, tuple[int, ...]]  # a prompt or messages; the tokens it has alone


def cases(llm: LLM, rng: random.Random) -> list[Case]:
    """Prompts of all kinds, greedy and sampled, each with what it gives alone."""
    found: list[Case] = []
    for i in range(24):
        ids = [rng.randrange(23) for _ in range(rng.randint(1, 30))]
        prompt: Any = ids
        if llm.engine.vocab_size > 23:  # the tokens of the tokenizer are those of the model
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


async def turns(n: int) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


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


@pytest.mark.parametrize("where", ["step", "add"])
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
    lookup = spoiled.engine.model.embed.lookup

    def damaged(tokens: torch.Tensor, scale: float) -> torch.Tensor:
        h = lookup(tokens, scale)
        return h.masked_fill((tokens == mark)[:, None], torch.nan)

    spoiled.engine.model.embed.lookup = damaged  # type: ignore[method-assign]

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
    forward, problem = llm.engine.forward, RuntimeError("out of luck")

    def broken(*_: object) -> Any:
        raise problem

    async def main() -> None:
        async with AsyncLLM(llm) as several:
            llm.engine.forward = broken
            found = await asyncio.gather(*(several.generate(f"{i}", GREEDY) for i in range(5)), return_exceptions=True)
            assert found == [problem] * 5
            llm.engine.forward = forward
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
    for wrong, why in (({"max_waiting": 0}, "max_waiting is 0"), ({"draft": "none"}, "options beside an LLM: draft")):
        with pytest.raises(UserError, match=why):
            AsyncLLM(llm, **wrong)  # type: ignore[arg-type]


def test_commands_without_end_do_not_keep_the_engine_from_running(llm: LLM) -> None:
    want = llm.generate("on and on", GREEDY)[0].token_ids

    async def main() -> None:
        async with AsyncLLM(llm) as several:
            inbox = several._thread._inbox

            def again() -> None:
                if flood:
                    inbox.put(again)

            flood = True
            inbox.put(again)
            assert (await several.generate("on and on", GREEDY))[0].token_ids == want
            flood = False

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
        llm.engine.cache.check()
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
