"""The real `openai` client against the server."""

from collections.abc import Iterator
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
