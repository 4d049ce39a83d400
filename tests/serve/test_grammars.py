"""Answers of a form, through every API, from a model that would otherwise write noise."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest
from serving import CHAT, Running, serving, tiny

from stretto.serve.grammars import thinking_end
from stretto.serve.reasoning import Tags

TEMPLATE = (
    "{% if tools %}[{{ tools | length }}]{% endif %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)
SCHEMA: dict[str, Any] = {
    "type": "object", "properties": {"a": {"type": "boolean"}, "b": {"enum": ["x", "yy"]}}, "required": ["a", "b"],
    "additionalProperties": False,
}  # fmt: skip
HELLO: Any = [{"role": "user", "content": "Hi"}]
FUNCTIONS: Any = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in ("f", "g")]


@pytest.fixture(scope="module")
def formed(folder: Path) -> Iterator[Running]:
    """A random model whose template writes calls as Hermes does."""
    with serving(tiny(folder, chat_template=TEMPLATE)) as one:
        yield one
        one.settled()


def holds(text: str) -> bool:
    """Whether a text is a document of `SCHEMA`."""
    value = json.loads(text)
    return set(value) == {"a", "b"} and isinstance(value["a"], bool) and value["b"] in ("x", "yy")


def test_formats_in_every_api(formed: Running) -> None:
    wanted = {"type": "json_schema", "name": "n", "schema": SCHEMA}
    with openai.OpenAI(base_url=f"{formed.url}/v1", api_key="x", max_retries=0) as client:
        how: Any = {
            "model": "toy",
            "messages": HELLO,
            "response_format": {"type": "json_schema", "json_schema": wanted},
        }
        whole = client.chat.completions.create(**how, n=3, seed=3)
        assert all(c.finish_reason == "stop" and holds(c.message.content or "") for c in whole.choices)
        pieces = [c.choices[0].delta.content or "" for c in client.chat.completions.create(**how, stream=True, seed=3)]
        assert "".join(pieces) == whole.choices[0].message.content
        found = client.responses.create(model="toy", input="Hi", text={"format": wanted})  # type: ignore[arg-type, misc, list-item]
        assert holds(found.output_text) and found.status == "completed"
        limited: Any = {**how, "response_format": {"type": "json_object"}, "max_tokens": 6}
        assert (client.chat.completions.create(**limited).choices[0].message.content or "").startswith("{")
    with anthropic.Anthropic(base_url=formed.url, api_key="x", max_retries=0) as other:
        config: Any = {"format": {"type": "json_schema", "schema": SCHEMA}}
        message = other.messages.create(model="toy", max_tokens=99, messages=HELLO, output_config=config)
        assert holds(message.content[0].text) and message.stop_reason == "end_turn"  # type: ignore[union-attr]
    answer = formed.post("/api/chat", {"model": "toy", "messages": HELLO, "format": SCHEMA, "stream": False}).json()
    assert holds(answer["message"]["content"]) and answer["done_reason"] == "stop"


def test_calls_in_every_api(formed: Running) -> None:
    with openai.OpenAI(base_url=f"{formed.url}/v1", api_key="x", max_retries=0) as client:
        named: Any = {"type": "function", "function": {"name": "g"}}
        how: Any = {"model": "toy", "messages": HELLO, "tools": FUNCTIONS, "seed": 5}
        for choice in (named, "required"):
            parallel = {} if choice == named else {"parallel_tool_calls": False}
            one = client.chat.completions.create(**how, tool_choice=choice, **parallel).choices[0]
            (call,) = one.message.tool_calls or ()
            assert one.finish_reason == "tool_calls" and one.message.content is None
            assert holds(call.function.arguments) and call.function.name in (("g",) if choice == named else ("f", "g"))  # type: ignore[union-attr]
        streamed = list(client.chat.completions.create(**how, tool_choice=named, stream=True))
        deltas = [d for c in streamed for d in c.choices[0].delta.tool_calls or ()]
        assert holds("".join(d.function.arguments for d in deltas)) and deltas[0].function.name == "g"
        tools: Any = [{"type": "function", **tool["function"]} for tool in FUNCTIONS]
        found = client.responses.create(
            model="toy", input="Hi", tools=tools, tool_choice={"type": "function", "name": "f"}
        )
        (item,) = found.output
        assert item.type == "function_call" and item.name == "f" and holds(item.arguments)
    with anthropic.Anthropic(base_url=formed.url, api_key="x", max_retries=0) as other:
        blocks: Any = [{"name": name, "input_schema": SCHEMA} for name in ("f", "g")]
        choice = {"type": "tool", "name": "g"}
        with other.messages.stream(
            model="toy", max_tokens=99, messages=HELLO, tools=blocks, tool_choice=choice
        ) as stream:  # type: ignore[arg-type]
            final = stream.get_final_message()
        assert final.stop_reason == "tool_use" and final.content[0].name == "g"  # type: ignore[union-attr]
        assert holds(json.dumps(final.content[0].input))  # type: ignore[union-attr]
    assert ollama.Client(host=formed.url).show("toy").capabilities == ["completion", "chat", "tools"]


BAD: dict[str, dict[str, Any]] = {
    "response_format": {"response_format": {"type": "json_schema", "json_schema": {}}},
    "response_format ": {"response_format": {}},
    "response_format  ": {"response_format": {"type": "json_schema", "json_schema": {"schema": {"uniqueItems": True}}}},
    "response_format   ": {"response_format": {"type": "json_object"}, "tools": FUNCTIONS},
    "tool_choice": {"tool_choice": "required"},
    "tool_choice ": {"tools": FUNCTIONS, "tool_choice": {"type": "function", "function": {"name": "h"}}},
    "tool_choice  ": {"tools": FUNCTIONS, "tool_choice": "any"},
    "tools": {"tools": [FUNCTIONS[0], FUNCTIONS[0]]},
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_enforced_is_refused_by_its_name(formed: Running, name: str) -> None:
    response = formed.post(CHAT, {"messages": HELLO, **BAD[name]})
    assert response.status_code == 400 and response.json()["error"]["param"] == name.strip(), response.text


@pytest.mark.parametrize("path, body, name", [
    ("/v1/responses", {"input": "x", "text": {"format": {"type": "json_schema", "schema": {"uniqueItems": True}}}},
     "text.format"),
    ("/v1/messages", {"model": "toy", "max_tokens": 9, "messages": HELLO,
                      "output_config": {"format": {"type": "json_schema", "schema": {"uniqueItems": True}}}},
     "output_config.format"),
    ("/api/chat", {"model": "toy", "messages": HELLO, "format": {"uniqueItems": True}}, "format"),
])  # fmt: skip
def test_every_api_has_its_own_name_for_it(formed: Running, path: str, body: dict[str, Any], name: str) -> None:
    response = formed.post(path, body)
    assert response.status_code == 400 and f"{name}: " in response.text and "uniqueItems" in response.text


def test_a_grammar_begins_after_the_thinking_if_there_will_be_any() -> None:
    tags, plain, switch = Tags("<think>", "</think>"), "{{ '</think>' }}", "{% if enable_thinking %}</think>{% endif %}"
    assert thinking_end("<a><think>\n", tags, plain) == "</think>", "the prompt has opened it"
    assert thinking_end("<a><think>\n\n</think>\n\n", tags, switch) is None, "and closed it"
    assert thinking_end("<think>x</think>y<a>", tags, switch) == "</think>", "the model will open it"
    assert thinking_end("<think>x</think>y<a>", tags, plain) is None, "a template that only shows earlier thinking"
    assert thinking_end("<a>", None, switch) is None
