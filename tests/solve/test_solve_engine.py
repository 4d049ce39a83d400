"""Searches on a real engine: shared pages, forks and joins that are ordinary requests, nothing left behind."""

import asyncio
import contextlib
import math
import random
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest

from stretto import LLM, AsyncLLM, Sampling
from stretto.core.card import SCORERS, SEARCHES, Card
from stretto.core.errors import UserError
from stretto.core.pages import PAGE_SIZE
from stretto.engine.request import Request
from stretto.solve import SearchOptions, run_search, solve
from stretto.solve.budget import Budget
from stretto.solve.group import Group
from stretto.solve.model import Hosted
from stretto.solve.outcome import Outcome

pytestmark = pytest.mark.timeout(120)
CARDS = SEARCHES.cards()
QUESTION = "What is 17 + 25, and how is it worked out?"
SAMPLING = Sampling(seed=3, max_tokens=40)
LETTER = "regex:[a-z]"


def grouped(serving: AsyncLLM, *, raw: bool = True, **budget: Any) -> Group:
    return Group(
        [Hosted(serving, raw=raw)], QUESTION, budget=Budget(**budget), sampling=SAMPLING,
        extract=lambda text: text[-1:] or None, scorer=SCORERS.card("logprob").make(),
    )  # fmt: skip


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def recorded(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Every request that comes into the engine from here on."""
    found: list[Request] = []
    add = llm.engine.add

    def noted(*args: Any, **named: Any) -> Request:
        found.append(add(*args, **named))
        return found[-1]

    monkeypatch.setattr(llm.engine, "add", noted)
    return found


def check_idle(llm: LLM) -> None:
    cache = llm.engine.runner.cache
    assert llm.engine.is_idle and not llm.engine.scheduler.running and not llm.engine.scheduler.waiting
    assert cache.free_blocks == cache.pools.num_pages
    cache.check()


def test_forks_share_the_pages_of_what_they_stand_on(llm: LLM) -> None:
    """Of two levels of forks: all full pages of the text before are known, whoever wrote it."""

    async def main() -> None:
        async with AsyncLLM(llm) as serving:
            group = grouped(serving)
            first = group.fork(await group.ask(), 5)
            await group.grow(first)
            second = [child for node in first for child in group.fork(node, 3)]
            await group.grow(second)
            for node in second:
                assert node.prompt == node.parent.ids  # type: ignore[union-attr]
                assert node.cached >= (len(node.prompt) - 1) // PAGE_SIZE * PAGE_SIZE
            spent = group.requests.spent()
            assert spent.requests == 20 and spent.tokens == sum(len(node.token_ids) for node in (*first, *second))
            # the first one to be admitted computes the question; of every other request only what is its own is
            computed = spent.prompt_tokens - spent.cached_tokens
            assert computed <= len(group.roots[0].prompt) + 19 * PAGE_SIZE

    run(main())
    check_idle(llm)


def test_forks_are_ordinary_requests(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same prompt and seed, alone and without a search, give the same tokens."""
    requests = recorded(llm, monkeypatch)
    outcome = solve(llm, QUESTION, sampling=SAMPLING, search="ets:width=5,steps=3,step_tokens=12", extract=LETTER)
    seeds = {(request.prompt, request.noise.seed) for request in requests}
    nodes = [node for node in outcome.nodes if node.token_ids]
    assert len(nodes) == len(requests) == len(seeds) > 10
    cold = {(request.prompt, tuple(request.output)): request for request in list(requests)}
    for node in nodes:
        request = cold[node.prompt, node.token_ids]
        sampling = replace(request.sampling, seed=request.noise.seed)
        assert llm.generate([list(node.prompt)], sampling)[0].token_ids == node.token_ids
        assert node.solution == llm.tokenizer.decode(node.written)


def test_a_join_is_the_concatenated_prompt(llm: LLM) -> None:
    async def main() -> None:
        async with AsyncLLM(llm) as serving:
            group = grouped(serving)
            texts = group.fork(await group.ask(), 3)
            await group.grow(texts)
            joined = await group.join(texts[::-1], " So:")
            wanted = [*llm.encode(QUESTION), *(t for one in texts[::-1] for t in one.token_ids), *llm.encode(" So:")]
            assert list(joined.prompt) == wanted and joined.sources == tuple(texts[::-1])
            (child,) = group.fork(joined)
            await group.grow([child])
            short = await group.join(texts, " So:", quote=5)
            tails = [token for one in texts for token in one.token_ids[-5:]]
            assert list(short.prompt) == [*llm.encode(QUESTION), *tails, *llm.encode(" So:")]
            chat = grouped(serving, raw=False)
            (text,) = chat.fork(await chat.ask())
            await chat.grow([text])
            assert (await chat.join([text], "Again?")).prompt == tuple(
                llm.encode_chat(
                    [
                        {"role": "user", "content": QUESTION},
                        {"role": "assistant", "content": text.solution.strip()},
                        {"role": "user", "content": "Again?"},
                    ]
                )
            )

    run(main())


def test_a_score_is_what_generation_says(llm: LLM) -> None:
    """One pass over a text gives the log-probabilities that its tokens were drawn with."""

    async def main() -> None:
        async with AsyncLLM(llm) as serving:
            group = grouped(serving)
            (node,) = group.fork(await group.ask())
            await group.grow([node], logprobs=2)
            (read,) = await group.read([node], top=2)
            assert len(read) == len(node.logprobs) == len(node.token_ids)
            for one, other in zip(read, node.logprobs, strict=True):
                assert one.logprob == pytest.approx(other.logprob, abs=1e-4) and len(one.top) == 2
            await group.score([node])
            assert node.score == pytest.approx(math.exp(sum(one.logprob for one in read) / len(read)), rel=1e-3)

    run(main())


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_what_is_sampled_fits_the_budget(card: Card, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in the engine, whatever the search says of itself."""
    requests = recorded(llm, monkeypatch)
    for tokens in (1, 7, 60, 150):
        requests.clear()
        options = {"search": card.make(**card.tiny), "scorer": "self", "extract": LETTER, "budget_tokens": tokens}
        outcome = solve(llm, QUESTION, sampling=SAMPLING, **options)
        assert outcome.spent.tokens <= sum(len(request.output) for request in requests) <= tokens
        assert outcome.spent.requests == len(requests)
        check_idle(llm)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_the_same_alone_and_among_others(card: Card, llm: LLM) -> None:
    changes = {"whole": True} if card.name == "vote" else {}
    options = SearchOptions(search=card.make(**card.tiny, **changes), scorer="self", extract=LETTER)

    def told(outcome: Outcome) -> list[Any]:
        return [(n.path, n.token_ids, n.score, n.answer, n.ending) for n in outcome.nodes] + [outcome.answer]

    alone = told(solve(llm, QUESTION, options, SAMPLING))

    async def main() -> None:
        async with AsyncLLM(llm) as serving:
            others = [
                asyncio.ensure_future(serving.generate([f"{i} others"] * 3, Sampling(max_tokens=50 + i)))
                for i in range(4)
            ]
            searches = [run_search([Hosted(serving)], QUESTION, options, SAMPLING) for _ in range(2)]
            for outcome in await asyncio.gather(*searches):
                assert told(outcome) == alone
            await asyncio.gather(*others)

    run(main())


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_search_that_is_left_leaves_nothing_in_the_engine(card: Card, llm: LLM) -> None:
    """Cancelled, out of time, or with a watcher that fails, at any moment."""
    noise = random.Random(1)

    async def leave(serving: AsyncLLM) -> None:
        how = noise.choice(["cancel", "seconds", "watch"])
        after = noise.randrange(60)
        seen = 0

        def watch(group: Group) -> None:
            nonlocal seen
            seen += 1
            if how == "watch" and seen > after:
                raise BrokenPipeError

        seconds = after / 1000 + 1e-3 if how == "seconds" else None
        options = SearchOptions(search=card.make(**card.tiny), scorer="self", extract=LETTER, budget_seconds=seconds)
        task = asyncio.ensure_future(run_search([Hosted(serving)], QUESTION, options, SAMPLING, watch=watch))
        if how == "cancel":
            await asyncio.sleep(after / 1000)
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError, BrokenPipeError):
            await task
        while serving.num_requests:
            await asyncio.sleep(0)

    async def main() -> None:
        async with AsyncLLM(llm) as serving:
            for _ in range(12):
                await leave(serving)
                assert len(asyncio.all_tasks()) == 1

    run(main())
    check_idle(llm)


def test_a_question_that_does_not_fit_is_refused(llm: LLM) -> None:
    with pytest.raises(UserError, match="the context is 1,024"):
        solve(llm, "far too long " * 100)
    check_idle(llm)


def test_a_text_that_fills_the_context_ends_there(llm: LLM) -> None:
    """Its children have no room; the search goes on and says what it has."""
    long = "x" * 980
    search = "ets:width=3,steps=6,step_tokens=20"
    outcome = solve(llm, long, sampling=SAMPLING, search=search, extract=LETTER, raw=True)
    assert outcome.stopped == "done"
    assert max(len(node.ids) for node in outcome.nodes) <= 1024
