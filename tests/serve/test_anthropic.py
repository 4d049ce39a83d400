"""`/v1/messages` through the real `anthropic` client, and as bytes."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from agents import ANSWER, CALLS, FUNCTION, TEXT, THOUGHT, blocks, prompt, says, squeezed
from scripted import ScriptedLLM
from serving import Running

from stretto.serve import stream as stream_module

PATH, COUNT = "/v1/messages", "/v1/messages/count_tokens"
TOOLS: list[Any] = [
    {"name": FUNCTION["name"], "description": FUNCTION["description"], "input_schema": FUNCTION["parameters"]}
]
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
ORDER = [
    "message_start", "ping", "content_block_start", "content_block_delta", "content_block_stop", "content_block_start",
    "content_block_delta", "content_block_stop", "content_block_start", "content_block_delta", "content_block_stop",
    "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop",
]  # fmt: skip
"""As Anthropic documents it."""


@pytest.fixture
def client(agent: Running) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=agent.url, api_key="none", max_retries=0) as one:
        yield one


def create(client: anthropic.Anthropic, **fields: Any) -> Any:
    return client.messages.create(**{"model": "toy", "max_tokens": 500, "messages": HELLO, "tools": TOOLS, **fields})


def test_an_answer_is_blocks_of_thinking_text_and_calls(client: anthropic.Anthropic) -> None:
    found = create(client)
    assert (found.role, found.type, found.model, found.stop_reason) == ("assistant", "message", "toy", "tool_use")
    assert [block.type for block in found.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert found.content[0].thinking == THOUGHT and found.content[1].text == TEXT
    assert [(block.name, block.input) for block in found.content[2:]] == [(n, json.loads(given)) for n, given in CALLS]
    assert len({block.id for block in found.content[2:]}) == 2
    usage = found.usage
    assert usage.output_tokens == len(ANSWER.encode()) + 1
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (0, 0)
    assert usage.output_tokens_details.thinking_tokens == len(f"<think>{THOUGHT}</think>".encode())
    assert usage.input_tokens == client.messages.count_tokens(model="toy", messages=HELLO, tools=TOOLS).input_tokens
    assert found._request_id


def test_a_stream_tells_the_same_in_order(client: anthropic.Anthropic, agent: Running) -> None:
    whole = create(client)
    with client.messages.stream(model="toy", max_tokens=500, messages=HELLO, tools=TOOLS) as stream:
        texts = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert texts == TEXT and final.stop_reason == "tool_use"
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.usage.input_tokens == whole.usage.input_tokens
    dropped = {"id", "signature", "citations", "parsed_output"}
    assert [b.model_dump(exclude=dropped) for b in final.content] == [
        b.model_dump(exclude=dropped) for b in whole.content
    ]
    body = {"model": "toy", "max_tokens": 500, "messages": HELLO, "tools": TOOLS, "stream": True}
    found = blocks(agent.post(PATH, body))
    assert squeezed([name for name, _ in found]) == ORDER
    events = [json.loads(data) for _, data in found]
    assert [event["type"] for event in events] == [name for name, _ in found]
    starts = [event for event in events if event["type"] == "content_block_start"]
    assert [event["index"] for event in starts] == [0, 1, 2, 3]
    assert [event["content_block"] for event in starts[:2]] == [
        {"type": "thinking", "thinking": "", "signature": ""}, {"type": "text", "text": ""},
    ]  # fmt: skip
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta" and event["index"] == 0]
    assert deltas[-1] == {"type": "signature_delta", "signature": ""}
    given = [e["delta"]["partial_json"] for e in events if e["type"] == "content_block_delta" and e["index"] == 2]
    assert "".join(given) == CALLS[0][1]
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert events[0]["message"]["content"] == [] and events[0]["message"]["stop_reason"] is None


def test_fields_of_sampling_reach_the_engine(agent: Running, actor: ScriptedLLM) -> None:
    """The newest client has no arguments for some of them; older ones do."""
    fields = {"temperature": 0.5, "top_p": 0.25, "top_k": 7, "stop_sequences": ["a", "b"], "max_tokens": 9}
    assert agent.post(PATH, {"model": "toy", "messages": HELLO, **fields}).status_code == 200
    sampling = actor.scripted.added[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.25, 7)
    assert (sampling.stops, sampling.max_tokens) == (("a", "b"), 9)


def test_why_an_answer_ends(client: anthropic.Anthropic, actor: ScriptedLLM) -> None:
    says(actor, "one two three")

    def end(**fields: Any) -> tuple[str, str, str]:
        found = create(client, **fields)
        with client.messages.stream(**{"model": "toy", "max_tokens": 500, "messages": HELLO, **fields}) as stream:
            final = stream.get_final_message()
        assert (final.stop_reason, final.stop_sequence) == (found.stop_reason, found.stop_sequence)
        return found.content[0].text, found.stop_reason, found.stop_sequence

    assert end() == ("one two three", "end_turn", None)
    assert end(max_tokens=4) == ("one ", "max_tokens", None)
    assert end(stop_sequences=["zzz", "two"]) == ("one ", "stop_sequence", "two")
    says(actor, "x" * 9000)
    long = [{"role": "user", "content": "y" * 3900}]
    assert create(client, messages=long, max_tokens=5000).stop_reason == "model_context_window_exceeded"
    says(actor, "")
    assert create(client).content == []


def test_a_call_that_is_cut_is_no_call_with_half_an_input(client: anthropic.Anthropic, actor: ScriptedLLM) -> None:
    says(actor, 'Yes.<call>weather{"city": "Zü')
    found = create(client)
    assert [block.type for block in found.content] == ["text"]


def test_a_conversation_goes_on_with_what_tools_gave_back(client: anthropic.Anthropic, actor: ScriptedLLM) -> None:
    first = create(client)
    results = [
        {"type": "tool_result", "tool_use_id": first.content[2].id, "content": "sunny"},
        {"type": "tool_result", "tool_use_id": first.content[3].id,
         "content": [{"type": "text", "text": "12"}, {"type": "text", "text": "00"}]},
        {"type": "text", "text": "And?", "cache_control": {"type": "ephemeral"}},
    ]  # fmt: skip
    messages = [*HELLO, {"role": "assistant", "content": [b.model_dump(exclude_none=True) for b in first.content]},
                {"role": "user", "content": results}]  # fmt: skip
    system = [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Use tools."}]
    create(client, messages=messages, system=system)
    calls = "".join(f"<call>{name}{given}</call>" for name, given in CALLS)
    assert prompt(actor).partition("[system]")[2] == (
        f"Be brief.\n\nUse tools.[user]Hello[assistant]<think>{THOUGHT}</think>{TEXT}{calls}"
        "[tool]sunny[tool]12\n00[user]And?[assistant]"
    )


BILLING = "x-anthropic-billing-header: cc_version=2.1.328.{}; cc_entrypoint=cli; cch={};"


def test_the_changing_line_of_accounting_is_dropped(client: anthropic.Anthropic, actor: ScriptedLLM) -> None:
    prompts = []
    for i in range(2):
        line = BILLING.format(i, f"{i}" * 5)
        for system in (
            [{"type": "text", "text": line}, {"type": "text", "text": "Be brief."}],
            f"{line}\nBe brief.",
            [{"type": "text", "text": f"{line}\n\nBe brief."}],
            "Be brief.",
        ):
            create(client, system=system)
            prompts.append(actor.scripted.added[-1].prompt)
    assert len(set(prompts)) == 1 and "billing" not in prompt(actor)
    create(client, system="Explain x-anthropic-billing-header: a=1", messages=HELLO)
    assert "x-anthropic-billing-header" in prompt(actor), "only at the head"


def test_what_was_cached_is_counted_in_every_api(server: Running) -> None:
    """A real model. Behind another line of accounting the prompt is known; Anthropic counts what was cached beside the
    rest, OpenAI within the whole."""
    text = "Answer in one word, and answer quickly, whatever you are asked."
    usages = []
    for i in range(2):
        system = f"{BILLING.format(i, i)}\n{text}"
        body = {"model": "toy", "max_tokens": 3, "messages": HELLO, "system": system}
        usages.append(server.post(PATH, body).json()["usage"])
    first, second = usages
    assert first["cache_read_input_tokens"] == 0 and second["cache_read_input_tokens"] >= 48
    assert second["cache_read_input_tokens"] + second["input_tokens"] == first["input_tokens"]
    body = {"input": "Hello", "instructions": text, "max_output_tokens": 3}
    usage = server.post("/v1/responses", body).json()["usage"]
    assert usage["input_tokens"] == first["input_tokens"]
    assert usage["input_tokens_details"]["cached_tokens"] == second["cache_read_input_tokens"]


def test_what_the_prompt_is_told_of_thinking(agent: Running, actor: ScriptedLLM) -> None:
    """Both names under which templates look for the switch, and the budget; nothing where it is left to the model."""
    from stretto.serve import asking

    seen: list[Any] = []
    encode = asking.encode_chat

    async def noted(service: Any, llm: Any, one: Any) -> list[int]:
        seen.append(dict(one.kwargs))
        return await encode(service, llm, one)

    asking.encode_chat = noted
    try:
        for thinking in ({"type": "enabled", "budget_tokens": 2048}, {"type": "disabled"}, {"type": "adaptive"}, None):
            body = {"model": "toy", "max_tokens": 5, "messages": HELLO, "thinking": thinking}
            assert agent.post(PATH, body).status_code == 200
    finally:
        asking.encode_chat = encode
    assert seen == [
        {"enable_thinking": True, "thinking": True, "thinking_budget": 2048},
        {"enable_thinking": False, "thinking": False}, {}, {},
    ]  # fmt: skip


def test_types_that_nobody_knows_are_left_out_and_logged(
    client: anthropic.Anthropic, actor: ScriptedLLM, caplog: pytest.LogCaptureFixture
) -> None:
    content = [{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}, {"type": "text", "text": "T"},
               {"type": "redacted_thinking", "data": "x"}]  # fmt: skip
    tools = [{"type": "web_search_20250305", "name": "web_search"}, *TOOLS, {"type": "bash_20250124", "name": "bash"}]
    messages = [*HELLO, {"role": "assistant", "content": content}, {"role": "user", "content": "U"}]
    with caplog.at_level(logging.INFO, "stretto.serve"):
        create(client, messages=messages, tools=tools)
    facts = [record.facts["types"] for record in caplog.records if "left out" in record.message]  # type: ignore[attr-defined]
    assert sorted(facts) == [["server_tool_use", "redacted_thinking"], ["web_search_20250305", "bash_20250124"]]
    assert prompt(actor).endswith("[user]Hello[assistant]T[user]U[assistant]") and "bash" not in prompt(actor)


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x"}}
REFUSED: dict[str, dict[str, Any]] = {
    "messages[0].content[0]": {"messages": [{"role": "user", "content": [IMAGE]}]},
    "messages: the assistant": {"messages": [*HELLO, {"role": "assistant", "content": "Once"}]},
    "tool_choice": {"tool_choice": {"type": "any"}},
    "tool_choice.disable_parallel_tool_use": {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
    "output_config.format": {"output_config": {"format": {"type": "xml"}}},
    "max_tokens": {"max_tokens": 0},
    "temperature": {"extra_body": {"temperature": -1}},
    "stop_sequences": {"stop_sequences": ["x" * 300]},
    "mcp_servers": {"extra_body": {"mcp_servers": [{"type": "url"}]}},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("stream", [True, False])
def test_what_cannot_be_done_is_refused_by_name(client: anthropic.Anthropic, name: str, stream: bool) -> None:
    with pytest.raises(anthropic.BadRequestError) as problem:
        create(client, stream=stream, **REFUSED[name])
    body: Any = problem.value.body
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    assert body["error"]["message"].startswith(name) and body["request_id"] == problem.value.request_id
    assert problem.value.response.headers["x-should-retry"] == "false"


def test_a_prompt_that_is_too_long(client: anthropic.Anthropic) -> None:
    """Claude Code and its kin know it by these words."""
    for text, unit in (("x" * 5000, "tokens"), ("x" * 200_000, "characters")):
        for stream in (True, False):
            with pytest.raises(anthropic.BadRequestError, match=rf"prompt is too long: \d+ {unit} > \d+ maximum"):
                create(client, messages=[{"role": "user", "content": text}], stream=stream)


def test_errors_have_its_form_wherever_they_come_from(agent: Running) -> None:
    def error(response: Any) -> tuple[int, str]:
        body = response.json()
        assert set(body) == {"type", "error", "request_id"} and set(body["error"]) == {"type", "message"}
        assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
        return response.status_code, body["error"]["type"]

    good = {"model": "toy", "max_tokens": 5, "messages": HELLO}
    assert error(agent.post(PATH, "{")) == (400, "invalid_request_error")
    assert error(agent.post(PATH, {**good, "model": "claude"})) == (404, "not_found_error")
    assert error(agent.post(COUNT, {"model": "toy"})) == (400, "invalid_request_error")
    assert error(agent.http.get(PATH)) == (405, "invalid_request_error")
    agent.service.state = "draining"
    try:
        assert error(agent.post(PATH, good)) == (503, "overloaded_error")
    finally:
        agent.service.state = "ready"
    assert agent.post(PATH + "?beta=true", good, headers={"anthropic-version": "2023-06-01"}).status_code == 200


def test_models(client: anthropic.Anthropic, agent: Running) -> None:
    found = list(client.models.list())
    assert [(one.id, one.type, one.display_name) for one in found] == [("toy", "model", "toy")]
    assert client.models.retrieve("toy").created_at == found[0].created_at
    assert agent.http.get("/v1/models?client_version=1.0").json()["models"] == [], "Codex takes no other form"
    assert [one["model"] for one in agent.http.get("/v1/models").json()["models"]] == ["toy"]


def test_what_fails_on_the_way_is_an_error_of_the_client(client: anthropic.Anthropic, actor: ScriptedLLM) -> None:
    actor.scripted.failing = lambda request: len(request.output) == 20
    events = []
    with pytest.raises(anthropic.APIStatusError) as problem:
        for event in create(client, stream=True):
            events.append(event.type)
    assert events[0] == "message_start" and "message_stop" not in events
    body: Any = problem.value.body
    assert body["error"]["type"] == "api_error" and "0x7ffe" not in str(body)


def test_silence_is_filled_with_pings(
    agent: Running, actor: ScriptedLLM, client: anthropic.Anthropic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "QUIET_SECONDS", 0.02)
    body = {"model": "toy", "max_tokens": 3, "messages": HELLO, "stream": True}
    actor.scripted.gate.close()
    with agent.http.stream("POST", PATH, json=body) as response:
        lines = response.iter_lines()
        names = [next(line for line in lines if line.startswith("event: ")) for _ in range(4)]
        actor.scripted.gate.open()
        names += [line for line in lines if line.startswith("event: ")]
    assert names[:4] == ["event: message_start"] + ["event: ping"] * 3 and names[-1] == "event: message_stop"
    says(actor, "Once")
    actor.scripted.gate.close()
    stream = create(client, stream=True)
    actor.scripted.gate.open()
    assert "".join(e.delta.text for e in stream if e.type == "content_block_delta") == "Once"
