"""`/v1/completions` with `echo` and `logprobs`, as evaluation harnesses ask for it: what a model says of a text."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from serving import COMPLETIONS, Running, tiny

from stretto import Sampling

PROMPT = "once upon a time"


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def test_a_prompt_comes_with_its_log_probabilities(server: Running, client: openai.OpenAI) -> None:
    how = {"model": "toy", "max_tokens": 3, "temperature": 0}
    found = client.completions.create(prompt=PROMPT, echo=True, logprobs=2, **how).choices[0]  # type: ignore[call-overload]
    plain = client.completions.create(prompt=PROMPT, logprobs=2, **how).choices[0]  # type: ignore[call-overload]
    assert found.text == PROMPT + plain.text
    given, count = found.logprobs, len(server.llm.tokenizer.encode(PROMPT))
    assert len(given.tokens) == len(given.token_logprobs) == len(given.top_logprobs) == len(given.text_offset)
    assert len(given.tokens) == count + len(plain.logprobs.tokens)
    assert given.token_logprobs[0] is None and given.top_logprobs[0] is None
    assert "".join(given.tokens[:count]) == PROMPT
    assert given.text_offset[:count] == [len("".join(given.tokens[:i])) for i in range(count)]
    assert given.token_logprobs[count:] == pytest.approx(plain.logprobs.token_logprobs)
    assert all(one <= 0 and math.isfinite(one) for one in given.token_logprobs[1:])


def test_they_are_those_of_the_python_api(server: Running, folder: Path) -> None:
    body: dict[str, Any] = {"prompt": PROMPT, "echo": True, "logprobs": 3, "max_tokens": 1, "temperature": 0}
    first, *again = (server.post(COMPLETIONS, body).json() for _ in range(3))  # the prompt is cached from then on
    for one in again:
        assert one["choices"][0]["logprobs"] == first["choices"][0]["logprobs"]
        assert one["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    want = tiny(folder).generate([PROMPT], Sampling(temperature=0, max_tokens=1, prompt_logprobs=3))[0]
    found = first["choices"][0]["logprobs"]["token_logprobs"][1 : len(want.prompt_token_ids)]
    assert found == pytest.approx([one.logprob for one in want.prompt_logprobs])


def test_a_stream_of_them_is_refused_by_name(server: Running) -> None:
    reply = server.post(COMPLETIONS, {"prompt": "a", "echo": True, "logprobs": 1, "stream": True})
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "logprobs"
