"""Calls of tools over HTTP: every choice, several calls, streams whose pieces are the whole, in each API.

The models are scripted, or random: where they would never call, the grammar makes them.
"""

import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import jsonschema
import ollama
import openai
import pytest
from agents import blocks, says, squeezed
from scripted import ScriptedLLM, saying
from serving import CHAT, HELLO, Running, joined, serving, tiny

TURNS = "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
CALLING = (
    "{% if tools %}{{ tools | length }}{% endif %}" + TURNS + "{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)
SILENT = "{% if tools %}{{ tools | tojson }}{% endif %}" + TURNS + "{% endfor %}[a]"
WEATHER: dict[str, Any] = {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"],
    "additionalProperties": False,
}  # fmt: skip
CLOCK: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
SCHEMAS = {"weather": WEATHER, "clock": CLOCK}


def function(name: str, parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


TOOLS = [function(name, schema) for name, schema in SCHEMAS.items()]


def written(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


TEXT = "Let me see."
CALLS = [("weather", '{"city": "Zürich \\"HB\\"", "days": 2}'), ("clock", "{}")]
ANSWER = TEXT + "\n" + "\n".join(itertools.starmap(written, CALLS))


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A model that says something and calls two tools."""
    with serving(saying(tmp_path_factory.mktemp("calling"), ANSWER, context=4096, template=CALLING)) as one:
        yield one


@pytest.fixture(autouse=True)
def _says_its_answer(scripted: Running) -> Iterator[None]:
    yield
    assert isinstance(scripted.llm, ScriptedLLM)
    says(scripted.llm, ANSWER)


@pytest.fixture
def client(scripted: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def called(one: Running, **fields: Any) -> tuple[str | None, list[tuple[str, str]], str]:
    """Content, calls and the reason of the end, which must be the same whole and streamed."""
    how = {"tools": TOOLS, "max_tokens": 400, **fields}
    choice = one.chat(**how)["choices"][0]
    message = choice["message"]
    calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls", ())]
    for call in message.get("tool_calls", ()):
        assert call["type"] == "function" and call["id"].startswith("call_") and set(call) == {"id", "type", "function"}
        jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMAS[call["function"]["name"]])
    events = one.events(**how)
    assert streamed(events) == calls and joined(events) == (message["content"] or "")
    assert events[-2]["choices"][0]["finish_reason"] == choice["finish_reason"]
    return message["content"], calls, choice["finish_reason"]


def streamed(events: list[Any]) -> list[tuple[str, str]]:
    """The calls of a stream. Each begins with its id, its type and its name, and then only its arguments grow."""
    found: list[list[str]] = []
    ids = set()
    for delta in (event["choices"][0]["delta"] for event in events if event != "[DONE]"):
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert (
                    call["index"] == len(found) and call["type"] == "function" and call["function"]["arguments"] == ""
                )
                ids.add(call["id"])
                found.append([call["function"]["name"], ""])
            else:
                assert call["index"] == len(found) - 1 and set(call["function"]) == {"arguments"}
                assert call["function"]["arguments"]
                found[-1][1] += call["function"]["arguments"]
    assert len(ids) == len(found)
    return [(name, arguments) for name, arguments in found]


# -- what may be called ------------------------------------------------------------------------------------------------

WEATHER_ONLY: dict[str, Any] = {"type": "function", "function": {"name": "weather"}}
CLOCK_ONLY: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}


def test_if_it_may_it_calls_and_says_something_too(scripted: Running) -> None:
    assert called(scripted) == called(scripted, tool_choice="auto") == (TEXT, CALLS, "tool_calls")


def test_if_it_may_it_need_not(scripted: Running, llm: ScriptedLLM) -> None:
    says(llm, "I know: <tool> it rains.")
    assert called(scripted) == ("I know: <tool> it rains.", [], "stop")


def test_if_it_may_not_the_tools_are_not_even_shown(scripted: Running, llm: ScriptedLLM) -> None:
    content, calls, reason = called(scripted, tool_choice="none")
    assert (content, calls, reason) == (ANSWER, [], "stop")
    assert scripted.chat(tools=TOOLS, tool_choice="none")["usage"] == scripted.chat()["usage"]


def test_if_it_must_it_calls_at_once(scripted: Running, llm: ScriptedLLM) -> None:
    assert called(scripted, tool_choice="required") == (None, CALLS, "tool_calls")
    says(llm, "No, I would rather not.")
    content, calls, reason = called(scripted, tool_choice="required")
    assert content is None and calls and reason == "tool_calls"


@pytest.mark.parametrize("choice", [WEATHER_ONLY, CLOCK_ONLY])
def test_the_tool_that_is_named_is_called_once(scripted: Running, llm: ScriptedLLM, choice: dict[str, Any]) -> None:
    for text in (ANSWER, "No, I would rather not."):
        says(llm, text)
        content, calls, reason = called(scripted, tool_choice=choice)
        assert content is None and reason == "tool_calls"
        assert [name for name, _ in calls] == [choice["function"]["name"]]


def test_a_tool_may_have_the_name_of_a_choice(scripted: Running) -> None:
    tools = [function(name, CLOCK) for name in ("required", "none", "auto")]
    for name in ("required", "none", "auto"):
        how = {"tools": tools, "tool_choice": {"type": "function", "function": {"name": name}}, "max_tokens": 400}
        message = scripted.chat(**how)["choices"][0]["message"]
        assert [call["function"]["name"] for call in message["tool_calls"]] == [name]


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_one_call_where_several_are_not_wanted(scripted: Running, choice: str) -> None:
    content, calls, reason = called(scripted, tool_choice=choice, parallel_tool_calls=False)
    assert calls == CALLS[:1] and reason == "tool_calls" and content == (TEXT if choice == "auto" else None)


def test_a_call_that_is_cut_says_so(scripted: Running) -> None:
    size = len(ANSWER.partition("HB")[0].encode())
    choice = scripted.chat(tools=TOOLS, max_tokens=size)["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "length" and CALLS[0][1].startswith(call["function"]["arguments"])


def test_several_answers_call_by_themselves(scripted: Running, llm: ScriptedLLM) -> None:
    ids = [llm.ids(written("weather", f'{{"city": "{i}"}}')) for i in range(3)]
    llm.scripted.say = lambda request: ids[request.noise.child]
    choices = scripted.chat(tools=TOOLS, n=3, max_tokens=400)["choices"]
    assert [json.loads(c["message"]["tool_calls"][0]["function"]["arguments"])["city"] for c in choices] == [
        "0",
        "1",
        "2",
    ]


# -- refusals ----------------------------------------------------------------------------------------------------------

UNIQUE: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
FORM = {"response_format": {"type": "json_object"}}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tool_choice": "any"}, "tool_choice", "required"),
    ({"tool_choice": {"type": "function"}}, "tool_choice", "required"),
    ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice", "required"),
    ({"tool_choice": "required", "tools": None}, "tool_choice", "no tools"),
    ({"tool_choice": {"type": "function", "function": {"name": "rain"}}}, "tool_choice", "rain"),
    ({"tools": [function("weather", UNIQUE, strict=True)]}, "tools", "uniqueItems"),
    ({"tools": [function("two words", CLOCK)]}, "tools", "two words"),
    ({"tools": [*TOOLS, TOOLS[0]]}, "tools", "weather"),
    ({"tools": [{"type": "web_search"}]}, "tools", "tools[0]"),
    ({"tools": [function("f", {"type": "array"})], "tool_choice": "required"}, "tools", "object"),
    (FORM, "response_format", "tools"),
]


@pytest.mark.parametrize(("fields", "param", "word"), REFUSED)
def test_what_cannot_be_is_refused_by_name(scripted: Running, fields: dict[str, Any], param: str, word: str) -> None:
    response = scripted.post(CHAT, {"messages": HELLO, "tools": TOOLS, **fields})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param and word in error["message"]


def test_a_form_goes_with_tools_that_must_be_called_or_must_not(scripted: Running) -> None:
    assert called(scripted, tool_choice="required", **FORM)[1] == CALLS
    content, calls, _ = called(scripted, tool_choice="none", **FORM)
    assert isinstance(json.loads(content or ""), dict) and not calls


def test_arguments_that_nobody_promised_are_left_to_the_model(
    scripted: Running, llm: ScriptedLLM, caplog: pytest.LogCaptureFixture
) -> None:
    """Keywords that cannot be enforced; and a schema that is too large as a whole, with a line in the log."""
    says(llm, written("f", '{"a": [1, 1]}'))
    message = scripted.chat(tools=[function("f", UNIQUE)], max_tokens=400)["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["arguments"] == '{"a": [1, 1]}'
    large = {"type": "object", "properties": {f"p{i}": {"enum": ["x" * 100 + str(i)]} for i in range(700)}}
    with caplog.at_level(logging.INFO, "stretto"):
        message = scripted.chat(tools=[function("f", large)], max_tokens=400)["choices"][0]["message"]
    assert message["tool_calls"][0]["function"]["arguments"] == '{"a": [1, 1]}'
    assert "arguments of calls are not enforced" in caplog.text
    response = scripted.post(CHAT, {"messages": HELLO, "tools": [function("f", large, strict=True)]})
    assert response.status_code == 400 and "bytes" in response.json()["error"]["message"]


def test_templates_of_no_known_format(tmp_path: Path) -> None:
    with serving(saying(tmp_path, ANSWER, context=4096, template=SILENT)) as one:
        assert called(one) == (ANSWER, [], "stop")
        for name, value in (
            ("tool_choice", "required"), ("tool_choice", CLOCK_ONLY), ("parallel_tool_calls", False),
        ):  # fmt: skip
            response = one.post(CHAT, {"messages": HELLO, "tools": TOOLS, name: value})
            assert response.status_code == 400
            error = response.json()["error"]
            assert error["param"] == name and "format" in error["message"]
        assert "tools" not in one.http.get("/v1/models").json()["data"][0]["capabilities"]


def test_models_that_call_say_so(scripted: Running) -> None:
    can = ["completion", "chat", "tools", "structured_output"]
    assert scripted.http.get("/v1/models").json()["data"][0]["capabilities"] == can
    assert scripted.post("/api/show", {"model": "toy"}).json()["capabilities"] == can


# -- thinking first ----------------------------------------------------------------------------------------------------


def test_calls_come_behind_the_thinking(tmp_path: Path) -> None:
    """Also those that must come; what looks like a call in the thinking is none."""
    thought = f"perhaps {written('clock', '{}')} will do"
    template = CALLING + "{% if enable_thinking is false %}<think></think>{% endif %}"
    with serving(saying(tmp_path, f"<think>{thought}</think>\n{ANSWER}", context=4096, template=template)) as one:
        for choice, content in (("auto", TEXT), ("required", None)):
            assert called(one, tool_choice=choice) == (content, CALLS, "tool_calls")
            how = {"tools": TOOLS, "tool_choice": choice, "max_tokens": 400}
            assert one.chat(**how)["choices"][0]["message"]["reasoning"] == thought
        how["thinking_budget"] = 20
        message = one.chat(**how)["choices"][0]["message"]
        assert message["reasoning"] == thought[:13].rstrip() and message["tool_calls"]
        how["chat_template_kwargs"] = {"enable_thinking": False}
        message = one.chat(**how)["choices"][0]["message"]
        assert "reasoning" not in message and message["tool_calls"]


# -- a real engine, drafts on ------------------------------------------------------------------------------------------

BRIEF = function("f", {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"],
                       "additionalProperties": False})  # fmt: skip


@pytest.mark.parametrize("draft", ["none", "ngram"])
def test_a_random_model_calls_if_it_must(folder: Path, draft: str) -> None:
    """What the grammar forces comes as drafts, several tokens in a chunk; the pieces are the whole all the same, and
    the tokens those of a server without a drafter."""
    with serving(tiny(folder, draft=draft, chat_template=CALLING)) as one:
        for choice in ("required", {"type": "function", "function": {"name": "f"}}):
            how = {"tools": [BRIEF], "tool_choice": choice, "max_tokens": 80, "parallel_tool_calls": False}
            reply = one.chat(**how)
            (call,) = reply["choices"][0]["message"]["tool_calls"]
            assert reply["choices"][0]["finish_reason"] == "tool_calls"
            assert call["function"]["name"] == "f" and list(json.loads(call["function"]["arguments"])) == ["on"]
            events = one.events(**how)
            assert streamed(events) == [("f", call["function"]["arguments"])]
            assert any("stretto" in event["choices"][0] for event in events[:-2]), "drafts were accepted on the way"
            assert len(events) < reply["usage"]["completion_tokens"]


# -- the other APIs ----------------------------------------------------------------------------------------------------


def test_responses(client: openai.OpenAI, llm: ScriptedLLM) -> None:
    tools: Any = [{"type": "function", "name": name, "parameters": schema} for name, schema in SCHEMAS.items()]
    how: dict[str, Any] = {"model": "toy", "input": "Hello", "tools": tools}
    whole = client.responses.create(**how)
    assert [item.type for item in whole.output] == ["message", "function_call", "function_call"]
    assert [(item.name, item.arguments) for item in whole.output[1:]] == CALLS
    assert all(item.call_id.startswith("call_") and item.status == "completed" for item in whole.output[1:])
    pieces = {1: "", 2: ""}
    names, done = [], []
    for event in client.responses.create(**how, stream=True):
        names.append(event.type)
        if event.type == "response.function_call_arguments.delta":
            pieces[event.output_index] += event.delta
        if event.type == "response.function_call_arguments.done":
            done.append(event.arguments)
    assert list(pieces.values()) == done == [arguments for _, arguments in CALLS]
    call = ["response.output_item.added", "response.function_call_arguments.delta",
            "response.function_call_arguments.done", "response.output_item.done"]  # fmt: skip
    assert squeezed(names)[-9:] == [*call, *call, "response.completed"]
    says(llm, "No, I would rather not.")
    for choice in ("required", {"type": "function", "name": "clock"}):
        found = client.responses.create(**how, tool_choice=choice)
        assert {item.type for item in found.output} == {"function_call"}
    assert found.output[0].name == "clock" and len(found.output) == 1
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(**how, tool_choice={"type": "function", "name": "rain"})
    assert error.value.param == "tool_choice"


def test_messages(scripted: Running, llm: ScriptedLLM) -> None:
    tools: Any = [{"name": name, "input_schema": schema} for name, schema in SCHEMAS.items()]
    how: dict[str, Any] = {
        "model": "toy", "max_tokens": 400, "messages": [{"role": "user", "content": "Hello"}], "tools": tools,
    }  # fmt: skip
    with anthropic.Anthropic(base_url=scripted.url, api_key="none", max_retries=0) as client:
        message = client.messages.create(**how)
        assert [block.type for block in message.content] == ["text", "tool_use", "tool_use"]
        assert [(block.name, block.input) for block in message.content[1:]] == [(n, json.loads(a)) for n, a in CALLS]
        assert message.stop_reason == "tool_use" and message.content[1].id.startswith("toolu_")
        with client.messages.stream(**how) as stream:
            found = stream.get_final_message()
        assert [block.model_dump(exclude={"id"}) for block in found.content] == [
            block.model_dump(exclude={"id"}) for block in message.content
        ]
        one = client.messages.create(**how, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
        assert [block.type for block in one.content] == ["text", "tool_use"]
        says(llm, "No, I would rather not.")
        assert client.messages.create(**how, tool_choice={"type": "none"}).content[0].type == "text"
        for choice, name in (({"type": "any"}, None), ({"type": "tool", "name": "clock"}, "clock")):
            calls = client.messages.create(**how, tool_choice=choice).content
            assert {block.type for block in calls} == {"tool_use"} and name in (None, calls[0].name)
        with pytest.raises(anthropic.BadRequestError, match="rain"):
            client.messages.create(**how, tool_choice={"type": "tool", "name": "rain"})
    says(llm, ANSWER)
    streamed = [json.loads(data) for _, data in blocks(scripted.post("/v1/messages", {**how, "stream": True}))]
    pieces = [e["delta"]["partial_json"] for e in streamed if e.get("delta", {}).get("type") == "input_json_delta"]
    assert "".join(pieces) == "".join(arguments for _, arguments in CALLS) and all(pieces)


def test_ollama(scripted: Running) -> None:
    server = ollama.Client(host=scripted.url)
    try:
        whole = server.chat("toy", HELLO, tools=TOOLS).message
        assert whole.content == TEXT
        wanted = [(name, json.loads(arguments)) for name, arguments in CALLS]
        assert [(call.function.name, call.function.arguments) for call in whole.tool_calls or ()] == wanted
        parts = list(server.chat("toy", HELLO, tools=TOOLS, stream=True))
        assert "".join(part.message.content or "" for part in parts) == TEXT
        found = [call.function for part in parts for call in part.message.tool_calls or ()]
        assert [(one.name, one.arguments) for one in found] == wanted
    finally:
        server._client.close()
