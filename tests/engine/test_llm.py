"""`LLM`: several iterators over one engine, read in turn."""

from pathlib import Path

import pytest
from clients import GREEDY, natively, through_torch

from stretto import LLM


@pytest.mark.parametrize("make", [through_torch, natively])
def test_streams_may_be_read_in_turn(make: "type[LLM]", folder: Path) -> None:
    llm = make(folder)
    prompts = [[1, 2, 3], [9, 8], [40, 41, 42, 43]]
    alone = [llm.generate(prompt, GREEDY)[0].token_ids for prompt in prompts]
    open_streams = [llm.stream(prompt, GREEDY) for prompt in prompts]
    found: dict[int, tuple[int, ...]] = {}
    while len(found) < len(prompts):
        for i, stream in enumerate(open_streams):
            chunk = next(stream, None)
            if chunk is not None and chunk.result is not None:
                found[i] = chunk.result.token_ids
    assert [found[i] for i in range(len(prompts))] == alone
    assert llm.engine.is_idle


def test_a_call_between_two_chunks_loses_none(folder: Path) -> None:
    llm = natively(folder)
    want = llm.generate([1, 2, 3], GREEDY)[0]
    stream = llm.stream([1, 2, 3], GREEDY)
    text = next(stream).text
    other = llm.generate([7, 7], GREEDY)[0]
    chunks = list(stream)
    assert text + "".join(chunk.text for chunk in chunks) == want.text
    assert chunks[-1].result is not None and chunks[-1].result.token_ids == want.token_ids
    assert other.token_ids == llm.generate([7, 7], GREEDY)[0].token_ids


def test_a_stream_that_is_closed_leaves_nothing(folder: Path) -> None:
    llm = natively(folder)
    stream = llm.stream([1, 2, 3], GREEDY)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert llm.engine.is_idle and not llm._streams


def test_a_result_says_what_may_have_changed_it(folder: Path) -> None:
    prompt = [65, 66, 67]
    exact = LLM(folder, backend="native", draft="none")
    assert exact.generate([prompt], GREEDY)[0].approximate == ()
    coarse = LLM(folder, backend="native", draft="ngram", prefill="int8")
    assert coarse.generate([prompt], GREEDY)[0].approximate == ("prefill int8",)
