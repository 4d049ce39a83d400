"""`/v1/responses` through the real `openai` client, and as bytes."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from agents import ANSWER, CALLS, FUNCTION, TEXT, THOUGHT, blocks, prompt, says, squeezed
from scripted import ScriptedLLM
from serving import CHAT, Running

PATH = "/v1/responses"
TOOLS = [{"type": "function", **FUNCTION}]
ORDER = [
    "response.created", "response.in_progress",
    "response.output_item.added", "response.reasoning_summary_part.added", "response.reasoning_summary_text.delta",
    "response.reasoning_summary_text.done", "response.reasoning_summary_part.done", "response.output_item.done",
    "response.output_item.added", "response.content_part.added", "response.output_text.delta",
    "response.output_text.done", "response.content_part.done", "response.output_item.done",
    "response.output_item.added", "response.function_call_arguments.delta", "response.function_call_arguments.done",
    "response.output_item.done",
    "response.output_item.added", "response.function_call_arguments.delta", "response.function_call_arguments.done",
    "response.output_item.done",
    "response.completed",
]  # fmt: skip
"""As OpenAI documents it, and as Codex and the client's helpers read it."""


@pytest.fixture
def client(agent: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{agent.url}/v1", api_key="none", max_retries=0) as one:
        yield one


def create(client: openai.OpenAI, **fields: Any) -> Any:
    return client.responses.create(**{"model": "toy", "input": "Hello", "tools": TOOLS, **fields})


def without_ids(output: list[Any]) -> list[dict[str, Any]]:
    items = [item.model_dump(exclude={"id", "call_id"}) for item in output]
    return [{name: value for name, value in item.items() if value is not None} for item in items]


def test_an_answer_is_items_of_thinking_text_and_calls(client: openai.OpenAI) -> None:
    found = create(client, metadata={"run": "7"}, instructions="Be brief.", store=True)
    assert found.status == "completed" and found.store is False and found.metadata == {"run": "7"}
    assert found.instructions == "Be brief." and found.error is None and found.incomplete_details is None
    assert [item.type for item in found.output] == ["reasoning", "message", "function_call", "function_call"]
    assert found.output[0].summary[0].text == THOUGHT and found.output_text == TEXT
    assert [(item.name, item.arguments) for item in found.output[2:]] == CALLS
    assert len({item.call_id for item in found.output[2:]}) == 2
    size = len(ANSWER.encode()) + 1  # tokens are bytes, and one ends it
    assert found.usage.output_tokens == size and found.usage.total_tokens == size + found.usage.input_tokens
    assert found.usage.output_tokens_details.reasoning_tokens == len(f"<think>{THOUGHT}</think>".encode())
    assert found.usage.input_tokens_details.cached_tokens == 0


def test_a_stream_tells_the_same_in_order(client: openai.OpenAI) -> None:
    whole, events = create(client), list(create(client, stream=True))
    assert squeezed([event.type for event in events]) == ORDER
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert without_ids(events[-1].response.output) == without_ids(whole.output)
    assert events[-1].response.usage == whole.usage and events[0].response.usage is None
    assert events[0].response.status == "in_progress" and events[0].response.output == []
    for kind, want in (("reasoning_summary_text", [THOUGHT]), ("output_text", [TEXT]),
                       ("function_call_arguments", [given for _, given in CALLS])):  # fmt: skip
        deltas: dict[int, str] = {}
        for event in events:
            if event.type == f"response.{kind}.delta":
                deltas[event.output_index] = deltas.get(event.output_index, "") + event.delta
        assert list(deltas.values()) == want
    added = [event.item for event in events if event.type == "response.output_item.added"]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.id for item in added] == [item.id for item in done] == [i.id for i in events[-1].response.output]
    assert [item.status for item in added] == ["in_progress"] * 4 and {item.status for item in done} == {"completed"}


def test_the_bytes_of_a_stream(agent: Running) -> None:
    found = blocks(agent.post(PATH, {"input": "Hello", "stream": True}))
    assert all(json.loads(data)["type"] == name for name, data in found)
    assert found[-1][0] == "response.completed", "and no [DONE]"


def test_the_helper_of_the_client_follows(client: openai.OpenAI) -> None:
    with client.responses.stream(model="toy", input="Hello", tools=TOOLS) as stream:  # type: ignore[arg-type]
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == TEXT


def test_a_text_that_is_cut_is_incomplete(client: openai.OpenAI, actor: ScriptedLLM) -> None:
    says(actor, "a long text")
    found, events = create(client, max_output_tokens=6), list(create(client, max_output_tokens=6, stream=True))
    assert found.status == "incomplete" and found.incomplete_details.reason == "max_output_tokens"
    assert found.output_text == "a long" and found.output[0].status == "incomplete"
    assert events[-1].type == "response.incomplete" and events[-1].response.output_text == "a long"
    says(actor, "")
    assert [event.type for event in create(client, stream=True)] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip


def test_a_conversation_goes_on_with_what_tools_gave_back(client: openai.OpenAI, actor: ScriptedLLM) -> None:
    """The items of an answer are sent back as they are; the prompt is the one of the same conversation in messages."""
    first = create(client)
    results = [
        {"type": "function_call_output", "call_id": item.call_id, "output": f"result {n}"}
        for n, item in enumerate(first.output[2:])
    ]
    items = [
        {"role": "developer", "content": "Use tools."}, {"role": "user", "content": "Hello"},
        *[item.model_dump(exclude_none=True) for item in first.output], *results,
        {"role": "user", "content": [{"type": "input_text", "text": "And?"}, {"type": "input_text", "text": "Well?"}]},
    ]  # fmt: skip
    create(client, input=items, instructions="Be brief.")
    read = prompt(actor)
    calls = "".join(f"<call>{name}{given}</call>" for name, given in CALLS)
    assert read.partition("]")[2].endswith(
        f"[system]Be brief.\n\nUse tools.[user]Hello[assistant]<think>{THOUGHT}</think>{TEXT}{calls}"
        "[tool]result 0[tool]result 1[user]And?\nWell?[assistant]"
    )
    called = [{"id": f"c{n}", "type": "function", "function": {"name": name, "arguments": given}}
              for n, (name, given) in enumerate(CALLS)]  # fmt: skip
    messages: list[Any] = [
        {"role": "system", "content": "Be brief.\n\nUse tools."}, {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": TEXT, "reasoning": THOUGHT, "tool_calls": called},
        {"role": "tool", "content": "result 0", "tool_call_id": "c0"},
        {"role": "tool", "content": "result 1", "tool_call_id": "c1"}, {"role": "user", "content": "And?\nWell?"},
    ]  # fmt: skip
    tools: list[Any] = [{"type": "function", "function": FUNCTION}]
    client.chat.completions.create(model="toy", messages=messages, tools=tools)
    sent, _, _ = read.partition("[system]")
    assert prompt(actor).removeprefix(sent) == read.removeprefix(sent)


def test_types_that_nobody_knows_are_left_out_and_logged(
    client: openai.OpenAI, actor: ScriptedLLM, caplog: pytest.LogCaptureFixture
) -> None:
    items: list[Any] = [
        {"type": "web_search_call", "id": "x", "status": "completed"}, {"role": "user", "content": "Hi"},
        {"type": "custom_tool_call", "call_id": "c", "name": "n", "input": "i"},
    ]  # fmt: skip
    tools = [{"type": "web_search"}, *TOOLS, {"type": "custom", "name": "apply_patch"}, {"type": "local_shell"}]
    with caplog.at_level(logging.INFO, "stretto.serve"):
        create(client, input=items, tools=tools)
    facts = [record.facts for record in caplog.records if "left out" in record.message]  # type: ignore[attr-defined]
    assert [fact["types"] for fact in facts] == [
        ["web_search_call", "custom_tool_call"], ["web_search", "custom", "local_shell"],
    ]  # fmt: skip
    assert prompt(actor).endswith("[user]Hi[assistant]") and "apply_patch" not in prompt(actor)


REFUSED: dict[str, dict[str, Any]] = {
    "previous_response_id": {"previous_response_id": "resp_1"},
    "conversation": {"conversation": "conv_1"},
    "background": {"background": True},
    "text.format": {"text": {"format": {"type": "xml"}}},
    "tool_choice": {"tool_choice": "required"},
    "input[0].content[0]": {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
    "input[1].arguments": {"input": [{"role": "user", "content": ""}, {"type": "function_call", "call_id": "c",
                                                                     "name": "n"}]},
    "input": {"input": [{"type": "web_search_call"}]},
    "max_output_tokens": {"max_output_tokens": 0},
    "n": {"extra_body": {"n": 2}},
}  # fmt: skip


@pytest.mark.parametrize("param", REFUSED)
@pytest.mark.parametrize("stream", [True, False])
def test_what_cannot_be_done_is_refused_by_name(client: openai.OpenAI, param: str, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as problem:
        create(client, stream=stream, **REFUSED[param])
    assert problem.value.param == param
    assert problem.value.response.headers["x-should-retry"] == "false"


def test_arguments_that_are_no_json_are_refused_where_they_came_from(client: openai.OpenAI) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "n", "arguments": "{"}
    with pytest.raises(openai.BadRequestError) as problem:
        create(client, input=[{"role": "user", "content": "x"}, call])
    assert problem.value.param == "input" and "arguments" in problem.value.message


def test_a_prompt_that_is_too_long(client: openai.OpenAI) -> None:
    """Codex shortens its history when the stream says so; an answer that is not streamed is an ordinary refusal."""
    for text in ("x" * 5000, "x" * 200_000):
        with pytest.raises(openai.BadRequestError) as problem:
            create(client, input=text)
        assert problem.value.code == "context_length_exceeded" and problem.value.param == "input"
        events = list(create(client, input=text, stream=True))
        assert [event.type for event in events] == ["response.created", "response.in_progress", "response.failed"]
        assert events[-1].response.status == "failed" and events[-1].sequence_number == 2
        assert events[-1].response.error.code == "context_length_exceeded"


def test_what_fails_on_the_way_is_said_in_the_stream(client: openai.OpenAI, actor: ScriptedLLM) -> None:
    actor.scripted.failing = lambda request: len(request.output) == 20
    events = list(create(client, stream=True))
    assert events[-1].type == "response.failed" and events[-1].response.error.code == "server_error"
    assert "0x7ffe" not in events[-1].response.error.message
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_roles_reach_templates_that_know_them(agent: Running, actor: ScriptedLLM) -> None:
    """`developer` is the system's newer name; a template that does not write it gets the older one, on every route."""
    body = {"messages": [{"role": "developer", "content": "D"}, {"role": "user", "content": "U"}]}
    assert agent.post(CHAT, body).status_code == 200
    assert prompt(actor) == "[system]D[user]U[assistant]"
