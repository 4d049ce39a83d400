"""Bodies that are damaged in one place, at any depth: a client hears what is wrong with them, never of a fault.

`test_openapi.py` breaks the fields that have a type; here it is what is inside of them: messages and their parts,
items, blocks, tools, their schemas and choices, forms.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import saying
from serving import CHAT, Running, serving, told

WORDS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Bern"], "maxLength": 4}, "on": {"type": "boolean"}},
    "required": ["city"],
    "$defs": {"a": {"const": 1}},
}
FORM = {"type": "json_schema", "name": "f", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
FUNCTION = {"name": "weather", "description": "of a city", "parameters": WORDS, "strict": True}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
TEXT_PART = [{"type": "text", "text": "Hello"}]
BODIES: dict[str, list[dict[str, Any]]] = {
    CHAT: [
        {
            "messages": [
                {"role": "user", "content": TEXT_PART},
                {"role": "assistant", "content": None, "reasoning": "why", "tool_calls": [CALL]},
                {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
            ],
            "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
            "chat_template_kwargs": {"thinking_budget": 3},
            "logit_bias": {"3": 1.0},
            "max_tokens": 4,
        },
        {
            "messages": [{"role": "user", "content": "Hello"}],
            "response_format": {"type": "json_schema", "json_schema": FORM},
            "stop": ["x"],
            "max_tokens": 4,
        },
        {
            "messages": [{"role": "user", "content": "Hello"}],
            "structured_outputs": {"choice": ["yes", "no"]},
            "max_tokens": 4,
        },
    ],
    "/v1/responses": [
        {
            "input": [
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "why"}]},
                {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "12"}]},
            ],
            "tools": [{"type": "function", **FUNCTION}],
            "tool_choice": {"type": "function", "name": "weather"},
            "include": ["reasoning.encrypted_content"],
            "reasoning": {"effort": "low"},
            "max_output_tokens": 4,
        },
        {"input": "Hello", "text": {"format": FORM}, "max_output_tokens": 4},
    ],
    "/v1/messages": [
        {
            "model": "toy",
            "system": TEXT_PART,
            "messages": [
                {"role": "user", "content": TEXT_PART},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "why", "signature": ""},
                        {"type": "tool_use", "id": "t", "name": "weather", "input": {"city": "Bern"}},
                    ],
                },
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": TEXT_PART}]},
            ],
            "tools": [{"name": "weather", "description": "of a city", "input_schema": WORDS}],
            "tool_choice": {"type": "tool", "name": "weather"},
            "max_tokens": 4,
        },
        {
            "model": "toy",
            "messages": [{"role": "user", "content": "Hello"}],
            "output_config": {"effort": "low", "format": FORM},
            "max_tokens": 4,
        },
    ],
    "/api/chat": [
        {
            "model": "toy",
            "messages": [
                {"role": "user", "content": "Hello"},
                {
                    "role": "assistant",
                    "thinking": "why",
                    "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Bern"}}}],
                },
                {"role": "tool", "content": "sunny", "tool_name": "weather"},
            ],
            "tools": [{"type": "function", "function": FUNCTION}],
            "options": {"num_predict": 4, "stop": ["x"], "temperature": 0},
            "stream": False,
        },
        {
            "model": "toy",
            "messages": [{"role": "user", "content": "Hello"}],
            "format": FORM["schema"],
            "options": {"num_predict": 4},
            "stream": False,
        },
    ],
}
ODD: tuple[Any, ...] = (None, True, -1, 1.5, 10**30, "", "x", [], [None], ["x"], {}, {"a": None})
LFM2 = (
    "{% if tools %}<|tool_call_start|>{{ tools | tojson }}<|tool_call_end|>{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[a]"
)
TEMPLATES = {"json": LFM2.replace("<|tool_call_start|>", "<tool_call>"), "python": LFM2}


@pytest.fixture(scope="module", params=TEMPLATES)
def scripted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A model whose calls are JSON, and one whose calls are not: their grammars read schemas in other ways."""
    folder: Path = tmp_path_factory.mktemp("damaged")
    with serving(saying(folder, "Hello", context=4096, template=TEMPLATES[request.param])) as one:
        yield one


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all values inside of a body."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*path, key)
        yield from places(one, (*path, key))


def damaged(body: dict[str, Any], path: tuple[Any, ...], odd: Any) -> dict[str, Any]:
    made = copy.deepcopy(body)
    at: Any = made
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = odd
    return made


@pytest.mark.parametrize(("path", "number"), [(path, n) for path, bodies in BODIES.items() for n in range(len(bodies))])
def test_one_damaged_value_is_answered_or_refused(scripted: Running, path: str, number: int) -> None:
    body, refused = BODIES[path][number], 0
    assert scripted.post(path, body).status_code == 200, scripted.post(path, body).text
    for place in places(body):
        for odd in ODD:
            response = scripted.post(path, damaged(body, place, odd))
            case = f"{path}: {'.'.join(map(str, place))} = {json.dumps(odd)}: {response.text[:300]}"
            assert response.status_code in (200, 400, 404), case
            if response.status_code != 200:
                refused += 1
                assert told(path, response)[1], case
    assert refused > 50
