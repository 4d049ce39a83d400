"""The parts of an answer, however it is cut, and on the oldest of the routes."""

import itertools
import json
from collections.abc import Sequence

import openai
import pytest
from agents import ANSWER, CALLS, TEXT, THOUGHT, Calls
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import CHAT, Running

from stretto.serve.parts import Argued, Called, Part, PartReader, Said, Thought, arguments_of
from stretto.serve.reasoning import Tags

TAGS = Tags("<think>", "</think>")


def joined(parts: Sequence[Part]) -> list[tuple[str, ...]]:
    """Neighbours of one kind as one."""
    found: list[tuple[str, ...]] = []
    for part in parts:
        if isinstance(part, Called):
            found.append(("call", part.name))
            continue
        kind = {Thought: "thought", Said: "said", Argued: "arguments"}[type(part)]
        if found and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1] + part.text)
        else:
            found.append((kind, part.text))
    return found


WANTED = [
    ("thought", THOUGHT), ("said", TEXT), ("call", "weather"), ("arguments", CALLS[0][1]), ("call", "clock"),
    ("arguments", "{}"),
]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(ANSWER)), max_size=12))
def test_the_parts_are_the_same_however_the_text_is_cut(cuts: list[int]) -> None:
    reader, at = PartReader(TAGS, calls=Calls()), [0, *sorted(cuts), len(ANSWER)]
    parts = [part for a, b in itertools.pairwise(at) for part in reader.push(ANSWER[a:b])] + reader.finish()
    assert joined(parts) == WANTED == joined(PartReader(TAGS, calls=Calls()).whole(ANSWER))
    assert reader.num_calls == 2


def test_without_tools_a_call_is_text_and_without_tags_so_is_thinking() -> None:
    calls = ANSWER.partition("</think>")[2]
    assert joined(PartReader(TAGS).whole(ANSWER)) == [("thought", THOUGHT), ("said", calls)]
    assert joined(PartReader(None).whole(ANSWER)) == [("said", ANSWER)]


def test_arguments_of_a_call_are_an_object_or_none() -> None:
    """A model may write anything, also more levels than Python reads: an answer, never a fault of the server."""
    deep = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"
    with pytest.raises(RecursionError):
        json.loads(deep)
    assert [arguments_of(text) for text in (deep, '{"a": 1', "[1]", "null")] == [None] * 4
    assert arguments_of("") == {} and arguments_of('{"a": [1]}') == {"a": [1]}


def test_calls_in_chat_completions(agent: Running) -> None:
    """Whole and streamed, put together as the real client's users do; without tools, the calls stay in the text."""
    how = {"model": "toy", "messages": [{"role": "user", "content": "Hello"}]}
    tools = [{"type": "function", "function": {"name": name, "parameters": {}}} for name, _ in CALLS]
    with openai.OpenAI(base_url=f"{agent.url}/v1", api_key="none", max_retries=0) as client:
        whole = client.chat.completions.create(**how, tools=tools).choices[0]  # type: ignore[call-overload]
        names, arguments, ids, text = ["", ""], ["", ""], ["", ""], ""
        for chunk in client.chat.completions.create(**how, tools=tools, stream=True):  # type: ignore[call-overload]
            text += chunk.choices[0].delta.content or ""
            for call in chunk.choices[0].delta.tool_calls or ():
                names[call.index] += call.function.name or ""
                arguments[call.index] += call.function.arguments or ""
                ids[call.index] += call.id or ""
            reason = chunk.choices[0].finish_reason
    assert whole.finish_reason == "tool_calls" == reason and whole.message.content == TEXT == text
    assert [(c.function.name, c.function.arguments) for c in whole.message.tool_calls] == CALLS
    assert list(zip(names, arguments, strict=True)) == CALLS and len(set(ids)) == 2 and all(ids)
    plain = agent.post(CHAT, how).json()["choices"][0]
    assert plain["finish_reason"] == "stop" and "<call>" in plain["message"]["content"]
    assert "tool_calls" not in plain["message"]
