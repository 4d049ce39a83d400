"""The real `openai` client against the server."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from serving import HELLO, Running


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


HOW: dict[str, Any] = {"model": "toy", "temperature": 0, "max_tokens": 12}


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=HELLO, **HOW)  # type: ignore[call-overload]
    usage = {"stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(messages=HELLO, stream=True, **usage, **HOW))  # type: ignore[call-overload]
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content and text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason == "length"
    assert chunks[-1].usage == whole.usage and whole.usage.completion_tokens == 12
    assert {c.id for c in chunks} == {chunks[0].id} and whole.id.startswith("chatcmpl-")


def test_every_field_that_the_engine_has_reaches_it(client: openai.OpenAI) -> None:
    """Each of them changes the answer, or ends it where it must end."""

    def said(**fields: Any) -> Any:
        extra = {k: fields.pop(k) for k in list(fields) if k in EXTRA}
        how = {**HOW, **fields, "extra_body": extra}
        return client.chat.completions.create(messages=HELLO, **how).choices[0]  # type: ignore[call-overload]

    plain = said(return_token_ids=True)
    text, first = plain.message.content, plain.token_ids[0]
    assert said(logit_bias={str(first): -100}, return_token_ids=True).token_ids[0] != first
    assert said(stop=[text[2:4]]).message.content == text[: text.index(text[2:4])]
    assert said(max_completion_tokens=5).message.content == said(max_tokens=5).message.content != text
    sampled = [said(temperature=1.0, seed=seed).message.content for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    for field, value in list(EXTRA.items())[:4]:
        other = said(temperature=1.0, seed=1, **{field: value}).message.content
        assert (other == text) if field in GREEDY else (other != sampled[0]), field
    long = said(max_tokens=60, return_token_ids=True)
    assert len(set(long.token_ids)) < 60, "greedy texts of random models repeat themselves"
    for field in ("presence_penalty", "frequency_penalty"):
        assert said(max_tokens=60, **{field: 2.0}).message.content != long.message.content


EXTRA = {
    "top_k": 1, "min_p": 1.0, "repetition_penalty": 5.0, "stop_token_ids": list(range(128)), "return_token_ids": True,
}  # fmt: skip
GREEDY = {"top_k", "min_p"}


def test_several_answers_with_log_probabilities(client: openai.OpenAI) -> None:
    how = {**HOW, "temperature": 1.0, "n": 3, "seed": 4, "logprobs": True, "top_logprobs": 3}
    found = client.chat.completions.create(messages=HELLO, **how)  # type: ignore[call-overload]
    texts = [c.message.content for c in found.choices]
    assert [c.index for c in found.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert found.usage.completion_tokens == 36
    for choice in found.choices:
        assert [len(entry.top_logprobs) for entry in choice.logprobs.content] == [3] * 12
        best = [max(e.top_logprobs, key=lambda one: one.logprob).logprob for e in choice.logprobs.content]
        assert all(e.logprob <= most for e, most in zip(choice.logprobs.content, best, strict=True))
    again = client.chat.completions.create(messages=HELLO, stream=True, **how)  # type: ignore[call-overload]
    pieces = ["", "", ""]
    for chunk in again:
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert pieces == texts, "the seed and the number of an answer say what it is, beside whatever else runs"


def test_texts_are_continued_as_the_python_api_continues_them(client: openai.OpenAI, server: Running) -> None:
    prompts = ["one", "another one", "x"]
    found = client.completions.create(model="toy", prompt=prompts, max_tokens=9, temperature=0, echo=True)
    whole = client.completions.create(model="toy", prompt=prompts[1], max_tokens=9, temperature=0)
    assert found.choices[1].text == prompts[1] + whole.choices[0].text
    ids = [server.llm.encode(prompt) for prompt in prompts]
    by_ids = client.completions.create(model="toy", prompt=ids, max_tokens=9, temperature=0, echo=True)
    assert [c.text for c in by_ids.choices] == [c.text for c in found.choices]


def test_one_seed_gives_one_text_whatever_runs_beside_it(client: openai.OpenAI) -> None:
    how = {**HOW, "temperature": 1.0, "seed": 11}
    alone = client.chat.completions.create(messages=HELLO, **how).choices[0].message.content  # type: ignore[call-overload]
    from concurrent.futures import ThreadPoolExecutor

    def ask(i: int) -> str | None:
        messages = HELLO if i % 2 else [{"role": "user", "content": "z" * (i + 1)}]
        found = client.chat.completions.create(messages=messages, **{**how, "seed": 11 if i % 2 else i})  # type: ignore[call-overload]
        text: str | None = found.choices[0].message.content
        return text

    with ThreadPoolExecutor(8) as pool:
        assert set(list(pool.map(ask, range(16)))[1::2]) == {alone}


def test_models(client: openai.OpenAI) -> None:
    found = client.models.list().data
    assert [one.id for one in found] == ["toy"] == [client.models.retrieve("toy").id]
    assert found[0].max_model_len == 128  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


# -- how often a client asks again -------------------------------------------------------------------------------------

BAD: dict[str, tuple[dict[str, Any], type[openai.APIStatusError]]] = {
    "a bad value": ({"n": 1000}, openai.BadRequestError),
    "too long": ({"messages": [{"role": "user", "content": "x" * 5000}]}, openai.BadRequestError),
    "not there yet": ({"modalities": ["audio"]}, openai.BadRequestError),
    "another model": ({"model": "gpt-4"}, openai.NotFoundError),
    "out of time": ({"extra_body": {"timeout": 1e-3}, "n": 6}, openai.APIStatusError),
}


@pytest.mark.parametrize("name", BAD)
def test_a_refusal_that_stays_is_asked_for_once(server: Running, name: str) -> None:
    fields, kind = BAD[name]
    with counting(server) as (one, calls), pytest.raises(kind) as problem:
        one.chat.completions.create(**{"messages": HELLO, **HOW, **fields})  # type: ignore[call-overload]
    assert len(calls) == 1 and problem.value.request_id


def test_what_passes_is_asked_for_again(server: Running) -> None:
    """Busy, loading, draining: the real client tries three times in all, and waits as it is told."""
    service = server.service
    with counting(server) as (one, calls):
        places, service.llm._admission.max_waiting = service.llm._admission.max_waiting, 1
        try:
            held = service.llm._admission._readers
            held.add(None)  # type: ignore[arg-type]
            with pytest.raises(openai.RateLimitError) as problem:
                one.chat.completions.create(messages=HELLO, **HOW)  # type: ignore[call-overload]
            assert int(problem.value.response.headers["retry-after"]) >= 1
        finally:
            held.discard(None)  # type: ignore[arg-type]
            service.llm._admission.max_waiting = places
        assert len(calls) == 3
        service.state = "draining"
        try:
            with pytest.raises(openai.InternalServerError):
                one.chat.completions.create(messages=HELLO, **HOW)  # type: ignore[call-overload]
        finally:
            service.state = "ready"
        assert len(calls) == 6


@contextmanager
def counting(server: Running) -> Iterator[tuple[openai.OpenAI, list[str]]]:
    """The real client, which does not wait, and the paths that it asked."""
    calls: list[str] = []
    http = openai.DefaultHttpxClient(event_hooks={"request": [lambda request: calls.append(request.url.path)]})
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=http) as one:
        one._sleep_for_retry = lambda **_: None  # type: ignore[method-assign, assignment]
        yield one, calls
