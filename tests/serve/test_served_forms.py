"""Answers of a form that was asked for: every spelling, what is refused, thinking first, clients that leave meanwhile.

The models are scripted: they say their words as far as the grammar allows them. Oracles are jsonschema and `re`.
"""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import jsonschema
import ollama
import openai
import pydantic
import pytest
from agents import says
from scripted import TEMPLATE, ScriptedLLM, saying
from serving import CHAT, COMPLETIONS, HELLO, Running, joined, serving, told

from stretto.core.sampling import Sampling

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "number": {"type": "integer"}},
    "required": ["name", "number"],
    "additionalProperties": False,
}
VALUE = {"name": "Zürich", "number": 12}
ANSWER = f"Sure! {json.dumps(VALUE, ensure_ascii=False)} Anything else?"
THINKS = TEMPLATE + "{% if enable_thinking is false %}<think></think>{% endif %}"
OPENS = TEMPLATE + "{% if enable_thinking %}<think>\n{% endif %}{# </think> #}"


class City(pydantic.BaseModel):
    name: str
    number: int


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A model that means to answer with an object, and talks around it."""
    with serving(saying(tmp_path_factory.mktemp("forms"), ANSWER, context=4096)) as one:
        yield one


def fulfils(text: str) -> None:
    jsonschema.validate(json.loads(text), SCHEMA)


def is_object(text: str) -> None:
    assert isinstance(json.loads(text), dict)


def is_number(text: str) -> None:
    assert re.fullmatch("[0-9]{2}", text)


def is_choice(text: str) -> None:
    assert text in ("Zug", "Basel")


LARK = 'start: "(" NUMBER ")"\nNUMBER: /[0-9]+/'
FORMS: list[tuple[dict[str, Any], Callable[[str], None]]] = [
    ({"structured_outputs": {"json": SCHEMA}}, fulfils),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, fulfils),
    ({"structured_outputs": {"json_object": True, "disable_fallback": True}}, is_object),
    ({"structured_outputs": {"regex": "[0-9]{2}", "json": None}}, is_number),
    ({"structured_outputs": {"choice": ["Zug", "Basel"]}}, is_choice),
    ({"structured_outputs": {"grammar": LARK}}, lambda text: is_number(text[1:-1])),
    ({"guided_json": SCHEMA}, fulfils),
    ({"guided_regex": "[0-9]{2}"}, is_number),
    ({"guided_choice": ["Zug", "Basel"]}, is_choice),
    ({"guided_grammar": LARK}, lambda text: is_number(text[1:-1])),
    ({"json_schema": SCHEMA}, fulfils),
    ({"grammar": LARK}, lambda text: is_number(text[1:-1])),
]
OF_CHAT: list[tuple[dict[str, Any], Callable[[str], None]]] = [
    ({"response_format": {"type": "json_object"}}, is_object),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, fulfils),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}, fulfils),
    ({"response_format": {"type": "json_schema", "json_schema": {"strict": True, "schema": SCHEMA}}}, fulfils),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "fields", "check"),
    [(path, *form) for path in (CHAT, COMPLETIONS) for form in FORMS] + [(CHAT, *form) for form in OF_CHAT],
)
def test_every_spelling(scripted: Running, path: str, fields: dict[str, Any], check: Callable[[str], None]) -> None:
    body: dict[str, Any] = {"messages": HELLO} if path == CHAT else {"prompt": "x"}
    reply = scripted.post(path, {**body, "max_tokens": 400, **fields})
    assert reply.status_code == 200, reply.text
    choice = reply.json()["choices"][0]
    check(choice["message"]["content"] if path == CHAT else choice["text"])
    assert choice["finish_reason"] == "stop"
    events = scripted.events(path, **{**body, "max_tokens": 400, **fields})
    check(joined(events))


def test_the_real_client_reads_objects(scripted: Running) -> None:
    with openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="none", max_retries=0) as client:
        how: dict[str, Any] = {"model": "toy", "messages": HELLO}
        parsed = client.chat.completions.parse(**how, response_format=City).choices[0].message.parsed
        assert parsed == City(**VALUE)
        with client.chat.completions.stream(**how, response_format=City) as stream:
            last = stream.get_final_completion()
        assert last.choices[0].message.parsed == City(**VALUE)
        assert client.responses.parse(model="toy", input="Hello", text_format=City).output_parsed == City(**VALUE)
    cut = scripted.chat(**OF_CHAT[2][0], max_tokens=10)["choices"][0]
    assert cut["finish_reason"] == "length" and json.dumps(VALUE).startswith(cut["message"]["content"])


def test_the_other_apis(scripted: Running) -> None:
    with anthropic.Anthropic(base_url=scripted.url, api_key="none", max_retries=0) as client:
        form = {"format": {"type": "json_schema", "schema": SCHEMA}}
        message = client.messages.create(
            model="toy", max_tokens=400, messages=[{"role": "user", "content": "Hello"}],
            extra_body={"output_config": form},
        )  # fmt: skip
        assert json.loads(message.content[0].text) == VALUE
    server = ollama.Client(host=scripted.url)
    try:
        assert json.loads(server.chat("toy", HELLO, format=SCHEMA).message.content or "") == VALUE
        parts = server.chat("toy", HELLO, format=SCHEMA, stream=True)
        assert json.loads("".join(one.message.content or "" for one in parts)) == VALUE
        for raw in (False, True):
            assert json.loads(server.generate("toy", "Hello", format=SCHEMA, raw=raw).response) == VALUE
            is_object(server.generate("toy", "Hello", format="json", raw=raw).response)
    finally:
        server._client.close()


def test_each_answer_and_each_prompt_has_a_matcher_of_its_own(scripted: Running, llm: ScriptedLLM) -> None:
    ids = [llm.ids(f"{i}{i}{i}") for i in range(6)]
    llm.scripted.say = lambda request: ids[request.noise.child]
    try:
        reply = scripted.chat(n=5, guided_regex="[0-9]{3}")
        texts = [choice["message"]["content"] for choice in reply["choices"]]
        assert texts == ["000", "111", "222", "333", "444"]
        body = {"prompt": ["x", "y"], "n": 2, "guided_regex": "[0-9]{3}"}
        texts = [choice["text"] for choice in scripted.post(COMPLETIONS, body).json()["choices"]]
        assert texts == ["000", "111"] * 2
    finally:
        says(llm, ANSWER)


def test_the_resolved_sampling_can_be_asked_for(scripted: Running) -> None:
    params = scripted.chat(guided_regex="ab", echo_params=True)["params"]
    assert params["grammar"]["kind"] == "regex" and params["grammar"]["text"] == "ab"


# -- refusals ----------------------------------------------------------------------------------------------------------


def of_schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}}


DEEP: Any = {}
for _ in range(70):
    DEEP = {"items": DEEP}
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (of_schema({"type": "array", "uniqueItems": True}), "response_format", "uniqueItems"),
    (of_schema({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "response_format", "oneOf"),
    (of_schema({"contains": {"type": "null"}}), "response_format", "contains"),
    (of_schema({"type": "string", "format": "colour"}), "response_format", "format"),
    (of_schema({"type": "string", "pattern": "(?=a)b"}), "response_format", "pattern"),
    (of_schema(DEEP), "response_format", "levels"),
    (of_schema({"enum": ["x" * 70_000]}), "response_format", "bytes"),
    (of_schema(7), "response_format.json_schema.schema", "JSON schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema", "missing"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "missing"),
    ({"response_format": {"type": "structural_tag"}}, "response_format.type", "json_object"),
    ({"response_format": {}}, "response_format.type", "json_object"),
    ({"json_schema": "{"}, "json_schema", "JSON"),
    ({"json_schema": {"type": "array", "uniqueItems": True}}, "json_schema", "uniqueItems"),
    ({"guided_json": {"not": {}}}, "guided_json", "not"),
    ({"guided_regex": "(?<!a)b"}, "guided_regex", "look-around"),
    ({"guided_choice": []}, "guided_choice", "choices"),
    ({"guided_choice": ["a", ""]}, "guided_choice", "empty"),
    ({"grammar": 'root ::= "a" | "b"'}, "grammar", "GBNF"),
    ({"structured_outputs": {"grammar": "# a\n  root ::= [0-9]+"}}, "structured_outputs.grammar", "GBNF"),
    ({"guided_grammar": "start: nothing"}, "guided_grammar", "nothing"),
    ({"structured_outputs": {}}, "structured_outputs", "exactly one"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs", "exactly one"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag", "supported"),
    ({"structured_outputs": {"regex": "a", "whitespace_pattern": " "}}, "structured_outputs.whitespace_pattern", "not"),
    ({"structured_outputs": {"choice": "ab"}}, "structured_outputs.choice", "list"),
    ({"guided_regex": "a", "grammar": LARK}, "grammar", "one form"),
    ({**OF_CHAT[0][0], "guided_choice": ["a"]}, "guided_choice", "one form"),
    ({"thinking_budget": -1}, "thinking_budget", "0"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "param", "word"), REFUSED)
@pytest.mark.parametrize("stream", [True, False])
def test_what_cannot_be_enforced_is_refused_by_name(
    scripted: Running, fields: dict[str, Any], param: str, word: str, stream: bool
) -> None:
    response = scripted.post(CHAT, {"messages": HELLO, "stream": stream, **fields})
    assert response.status_code == 400 and response.headers["x-should-retry"] == "false", response.text
    error = response.json()["error"]
    assert error["param"] == param and word in error["message"] and len(error["message"]) < 700, error


def test_branches_that_can_be_told_apart_are_taken(scripted: Running, llm: ScriptedLLM) -> None:
    schema = {"oneOf": [{"type": "integer"}, {"type": "string"}]}
    for text in ("1", '"a"'):
        says(llm, text)
        assert scripted.chat(**of_schema(schema))["choices"][0]["message"]["content"] == text
    says(llm, ANSWER)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/responses", {"input": "x", "text": {"format": {"type": "json_schema", "name": "n",
                                                              "schema": {"uniqueItems": True}}}}, "text.format"),
        ("/v1/messages", {"model": "toy", "max_tokens": 9, "messages": HELLO, "output_config": {
            "format": {"type": "json_schema", "schema": {"uniqueItems": True}}}}, "output_config.format"),
        ("/api/chat", {"model": "toy", "messages": HELLO, "format": {"uniqueItems": True}}, "format"),
        ("/api/generate", {"model": "toy", "prompt": "x", "raw": True, "format": {"uniqueItems": True}}, "format"),
        (COMPLETIONS, {"prompt": "x", "guided_json": {"uniqueItems": True}}, "guided_json"),
    ],
)  # fmt: skip
def test_a_refusal_says_it_in_the_words_of_its_api(scripted: Running, path: str, body: Any, param: str) -> None:
    response = scripted.post(path, body)
    assert response.status_code == 400, response.text
    message = told(path, response)[1]
    assert message.startswith(f"{param}: ") and "uniqueItems" in message


def test_more_answers_than_there_are_places_get_no_matchers(scripted: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Sampling] = []
    monkeypatch.setattr(scripted.llm, "matcher", made.append)
    response = scripted.post(CHAT, {"messages": HELLO, "n": 65, "guided_regex": "a"})
    assert response.status_code == 400 and "max_waiting is 64" in response.text and not made


# -- thinking first ----------------------------------------------------------------------------------------------------

THOUGHT = "it is {a city}"


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A model that thinks unless it is told not to."""
    text = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
    with serving(saying(tmp_path_factory.mktemp("thinks"), text, context=4096, template=THINKS)) as one:
        yield one


def test_the_form_begins_behind_the_thinking(thinker: Running, tmp_path: Path) -> None:
    def check(one: Running, **fields: Any) -> None:
        how = {"max_tokens": 400, **OF_CHAT[2][0], **fields}
        message = one.chat(**how)["choices"][0]["message"]
        assert (message["reasoning"], json.loads(message["content"])) == (THOUGHT, VALUE)
        events = one.events(**how)
        assert joined(events, "reasoning") == THOUGHT and json.loads(joined(events)) == VALUE

    check(thinker)
    opened = saying(tmp_path, f"{THOUGHT}\n</think>\n\n{ANSWER}", context=4096, template=OPENS)
    with serving(opened) as one:
        check(one, chat_template_kwargs={"enable_thinking": True})


def test_without_thinking_it_begins_at_once(thinker: Running) -> None:
    how = {"max_tokens": 400, **OF_CHAT[2][0], "chat_template_kwargs": {"enable_thinking": False}}
    message = thinker.chat(**how)["choices"][0]["message"]
    assert "reasoning" not in message and "city" not in message["content"] and json.loads(message["content"])
    with anthropic.Anthropic(base_url=thinker.url, api_key="none", max_retries=0) as client:
        found = client.messages.create(
            model="toy", max_tokens=400, messages=[{"role": "user", "content": "Hello"}], thinking={"type": "disabled"},
            extra_body={"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
        )  # fmt: skip
    assert [block.type for block in found.content] == ["text"]


@pytest.mark.parametrize("fields", [{"thinking_budget": 20}, {"chat_template_kwargs": {"thinking_budget": 20}}])
def test_a_budget_ends_the_thinking(thinker: Running, fields: dict[str, Any]) -> None:
    """With a form and without one: 20 tokens of one byte, of which the tag and a line end are 8."""
    message = thinker.chat(**fields, **OF_CHAT[2][0], max_tokens=400)["choices"][0]["message"]
    assert message["reasoning"] == THOUGHT[:12].rstrip() and json.loads(message["content"])
    message = thinker.chat(**fields, max_tokens=400)["choices"][0]["message"]
    assert message["reasoning"] == THOUGHT[:12].rstrip() and message["content"]
    whole = thinker.chat(thinking_budget=300, max_tokens=400)["choices"][0]["message"]
    assert (whole["reasoning"], whole["content"]) == (THOUGHT, ANSWER)


def test_what_comes_before_a_form_is_thinking_without_its_opening_tag(thinker: Running) -> None:
    assert isinstance(thinker.llm, ScriptedLLM)
    says(thinker.llm, f"{THOUGHT}</think>{ANSWER}")
    try:
        message = thinker.chat(**OF_CHAT[2][0], max_tokens=400)["choices"][0]["message"]
        assert (message["reasoning"], json.loads(message["content"])) == (THOUGHT, VALUE)
    finally:
        says(thinker.llm, f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}")


def test_tags_that_cannot_be_written_end_no_thinking(thinker: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stretto.serve.asking.in_text", lambda tokenizer, tags: False)
    response = thinker.post(CHAT, {"messages": HELLO, "thinking_budget": 20})
    assert response.status_code == 400 and response.json()["error"]["param"] == "thinking_budget"
    assert thinker.chat(thinking_budget=20, chat_template_kwargs={"enable_thinking": False})["choices"]


def test_a_budget_in_the_words_of_anthropic(thinker: Running) -> None:
    body = {"model": "toy", "max_tokens": 400, "messages": HELLO, "thinking": {"type": "enabled", "budget_tokens": 20}}
    content = thinker.post("/v1/messages", body).json()["content"]
    assert content[0]["thinking"] == THOUGHT[:12].rstrip()


def test_models_that_do_not_think_keep_every_budget(scripted: Running) -> None:
    assert scripted.chat(thinking_budget=0, max_tokens=400)["choices"][0]["message"]["content"] == ANSWER
    response = scripted.post(CHAT, {"messages": HELLO, "chat_template_kwargs": {"thinking_budget": "5"}})
    assert response.status_code == 200, "nobody reads it"


def test_a_budget_must_be_a_number(thinker: Running) -> None:
    response = thinker.post(CHAT, {"messages": HELLO, "chat_template_kwargs": {"thinking_budget": "5"}})
    assert response.status_code == 400 and "thinking_budget" in response.text


# -- leaving -----------------------------------------------------------------------------------------------------------


def test_who_leaves_while_a_grammar_is_compiled_leaves_nothing(
    scripted: Running, llm: ScriptedLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the server answers others meanwhile: compiling is nothing that its event loop waits for."""
    begun, let = threading.Event(), threading.Event()
    matcher = llm.matcher

    def slowly(sampling: Sampling) -> Any:
        begun.set()
        assert let.wait(30)
        return matcher(sampling)

    monkeypatch.setattr(llm, "matcher", slowly)
    count = len(llm.scripted.added)
    body = json.dumps({"messages": HELLO, "guided_regex": "a+"}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", scripted.port), timeout=30) as client:
        client.sendall(head + body)
        assert begun.wait(30)
        assert scripted.http.get("/health").status_code == 200 and scripted.service.num_calls == 1
    until = time.monotonic() + 20
    while scripted.service.num_calls:
        assert time.monotonic() < until, "it waits for the grammar"
        time.sleep(0.001)
    let.set()
    assert scripted.chat()["choices"][0]["message"]["content"]
    assert len(llm.scripted.added) == count + 1, "the second request alone"


def test_models_say_what_they_can(scripted: Running, thinker: Running) -> None:
    def can(one: Running) -> list[str]:
        found: list[str] = one.http.get("/v1/models").json()["data"][0]["capabilities"]
        return found

    assert can(scripted) == ["completion", "chat", "structured_output"]
    assert can(thinker) == ["completion", "chat", "thinking", "structured_output"]
