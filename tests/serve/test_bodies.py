"""What a body may hold: sizes, depth, every number at its limits, fields that are refused by name."""

import json
from typing import Any

import pytest
from scripted import saying
from serving import CHAT, COMPLETIONS, HELLO, Running, serving

from stretto.serve import refusals
from stretto.serve.body import MAX_BODY

HEAD = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"


def refused(one: Running, path: str, body: Any, status: int = 400) -> dict[str, Any]:
    """The error, which has the shape of all errors; the next request is served."""
    response = one.post(path, body)
    assert response.status_code == status, (body, response.text)
    assert response.headers["x-should-retry"] == "false" and response.headers["x-request-id"]
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"
    assert one.post(CHAT, {"messages": HELLO, "max_tokens": 1}).status_code == 200
    return error


# -- numbers -----------------------------------------------------------------------------------------------------------

LIMITS: dict[str, tuple[Any, Any, type]] = {
    "max_tokens": (1, 2**31, int), "min_tokens": (0, 2**31, int), "temperature": (0, 100, float),
    "top_p": (1e-6, 1, float), "top_k": (-1, 2**31, int), "min_p": (0, 1, float), "presence_penalty": (-2, 2, float),
    "frequency_penalty": (-2, 2, float), "repetition_penalty": (1e-3, 1e3, float), "seed": (-1, 2**63 - 1, int),
    "n": (1, 32, int), "priority": (0, 0, int), "timeout": (0.5, 86400, float),
}  # fmt: skip
"""Lowest and highest value that are served. n: of this server, whose places are as many; 128 by the schema."""
OF_CHAT = {"max_completion_tokens": (1, 2**31, int), "top_logprobs": (0, 20, int)}
OF_COMPLETIONS = {"logprobs": (0, 20, int)}
BEYOND = {"n": (0, 129), "priority": (-(2**31) - 1, 2**31 + 1), "timeout": (0, 86401), "top_p": (0, 1.01)}
NO_NUMBERS = ["true", "NaN", "Infinity", "-Infinity", "1e999", "-1e999", '"1"', "[]", "{}", "9" * 400]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with serving(saying(tmp_path_factory.mktemp("bodies"), "abc"), max_waiting=32) as found:
        yield found


@pytest.mark.parametrize(
    "path, field, low, high, kind",
    [
        *((CHAT, name, *limits) for name, limits in {**LIMITS, **OF_CHAT}.items()),
        *((COMPLETIONS, name, *limits) for name, limits in {**LIMITS, **OF_COMPLETIONS}.items()),
    ],
)
def test_every_number_at_its_limits(one: Running, path: str, field: str, low: Any, high: Any, kind: type) -> None:
    body: dict[str, Any] = {"messages": HELLO} if path == CHAT else {"prompt": "x"}
    body |= {"logprobs": True} if field == "top_logprobs" else {}
    for value in (low, high, None):
        response = one.post(path, {**body, field: value})
        assert response.status_code == 200, response.text
    step = 1 if kind is int else 0.01
    for value in (*BEYOND.get(field, (low - step, high + step)), 2**63, -(2**63) - 1, *([1.5] if kind is int else [])):
        assert field in refused(one, path, {**body, field: value})["message"]
    for text in NO_NUMBERS:
        whole = json.dumps(body)[:-1] + f', "{field}": {text}}}'
        assert refused(one, path, whole)["code"] in ("invalid_value", "invalid_json")


def test_lists_and_maps_have_limits_too(one: Running) -> None:
    for field, good, bad in [
        ("stop", ["x"] * 16, ["x"] * 17),
        ("stop", "x" * 256, "x" * 257),
        ("stop", ["é" * 128], ["é" * 129]),
        ("stop", [], [""]),
        ("stop_token_ids", [257] * 1024, [257] * 1025),
        ("stop_token_ids", [0], [-1]),
        ("stop_token_ids", [257], [258]),
        ("logit_bias", {str(i): 1 for i in range(258)}, {str(i): 1 for i in range(301)}),
        ("logit_bias", {"1": -100}, {"1": -100.5}),
        ("logit_bias", {"0": 1}, {"a": 1}),
        ("logit_bias", {}, {"258": 1}),
        ("logit_bias", {}, {"-1": 1}),
        ("logit_bias", {}, {"²": 1}),
        ("user", "u" * 512, "u" * 513),
        ("cache_salt", "s" * 256, ""),
    ]:
        assert one.post(CHAT, {"messages": HELLO, field: good}).status_code == 200, field
        refused(one, CHAT, {"messages": HELLO, field: bad})
    refused(one, CHAT, {"messages": HELLO * 4097})
    assert refused(one, CHAT, {"messages": HELLO * 128})["code"] == "context_length_exceeded"
    tool = {"type": "function", "function": {"name": "f"}}
    assert "tools" in refused(one, CHAT, {"messages": HELLO, "tools": [tool]})["message"], "no place in the template"
    refused(one, CHAT, {"messages": HELLO, "tools": [tool] * 129})
    refused(one, COMPLETIONS, {"prompt": ["x"] * 1025})
    assert "max_waiting is 32" in refused(one, COMPLETIONS, {"prompt": ["x"] * 33})["message"]
    assert "max_waiting is 32" in refused(one, COMPLETIONS, {"prompt": ["x"] * 11, "n": 3})["message"]


@pytest.mark.parametrize(
    "prompt",
    [
        [],
        "",
        [[]],
        [""],
        [1, "x"],
        [[1], "x"],
        [[1], 2],
        [-1],
        [258],
        [[258]],
        [True],
        [1.5],
        [2**31],
        [2**64],
        None,
        {},
        7,
    ],
    ids=str,
)
def test_prompts_that_are_none(one: Running, prompt: Any) -> None:
    assert "prompt" in refused(one, COMPLETIONS, {"prompt": prompt})["message"]


def test_prompts_of_every_form(one: Running) -> None:
    for prompt, count in [("ab", 1), ([1, 2], 1), (["a", "b"], 2), ([[1, 2], [3]], 2)]:
        assert len(one.post(COMPLETIONS, {"prompt": prompt}).json()["choices"]) == count
    assert one.post(COMPLETIONS, {"prompt": "x"}).json()["usage"]["completion_tokens"] == 4


# -- messages ----------------------------------------------------------------------------------------------------------


def test_parts_of_text_are_joined_and_others_refused(one: Running) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    body = {"messages": [{"role": "user", "content": parts}]}
    assert one.post("/apply-template", body).json()["prompt"] == "[user]Hel\nlo[a]"
    for part in ({"type": "image_url", "image_url": {"url": "http://example.org/x.png"}}, {"type": "input_audio"}, {}):
        error = refused(one, CHAT, {"messages": [*HELLO, {"role": "user", "content": [parts[0], part]}]})
        assert error["param"] == "messages[1].content[1]"


@pytest.mark.parametrize(
    "message",
    [{}, {"role": "user"}, {"content": "x"}, {"role": "wizard", "content": "x"}, {"role": "user", "content": 7},
     {"role": "user", "content": [{"type": "text"}]}, {"role": "assistant", "tool_calls": "x"}, "x", None],
    ids=str,
)  # fmt: skip
def test_messages_that_are_none(one: Running, message: Any) -> None:
    assert "messages" in refused(one, CHAT, {"messages": [message]})["message"]


def test_an_earlier_answer_may_name_its_thinking_either_way(one: Running) -> None:
    for name in ("reasoning", "reasoning_content"):
        turn = {"role": "assistant", "content": "x", name: "because"}
        assert one.post(CHAT, {"messages": [*HELLO, turn, *HELLO]}).status_code == 200


def test_a_prompt_that_is_too_long_says_so(one: Running) -> None:
    for text in ("x" * 600, "x" * 100_000):
        for path, body in ((CHAT, {"messages": [{"role": "user", "content": text}]}), (COMPLETIONS, {"prompt": text})):
            error = refused(one, path, body)
            assert error["code"] == "context_length_exceeded" and "512" in error["message"]
    assert (
        refused(one, "/tokenize", {"content": "x" * 100_000, **{"messages": None}})["code"] == "context_length_exceeded"
    )


# -- fields ------------------------------------------------------------------------------------------------------------

UNSUPPORTED: list[tuple[str, dict[str, Any]]] = [
    *((CHAT, {name: {"x": 1} if name not in ("chat_template",) else "x"}) for name in refusals._FIELDS
      if name not in ("suffix", "store", "continue_final_message", "include_stop_str_in_output")),
    (CHAT, {"store": True}), (CHAT, {"continue_final_message": True}), (CHAT, {"include_stop_str_in_output": True}),
    (CHAT, {"modalities": ["audio"]}), (CHAT, {"top_logprobs": 3}), (CHAT, {"best_of": 4}), (CHAT, {"priority": 1}),
    (CHAT, {"stream_options": {"include_usage": True}}),
    (COMPLETIONS, {"suffix": "x"}), (COMPLETIONS, {"prompt_logprobs": 1}), (COMPLETIONS, {"best_of": 2}),
]  # fmt: skip


@pytest.mark.parametrize("path, fields", UNSUPPORTED, ids=lambda value: str(value)[:60])
def test_what_is_not_there_yet_is_refused_by_its_name(one: Running, path: str, fields: dict[str, Any]) -> None:
    error = refused(one, path, {"messages": HELLO, "prompt": "x", **fields})
    assert error["param"] == next(iter(fields)) and error["message"].startswith(f"{error['param']}: ")
    assert error["code"] == "unsupported"


def test_log_probabilities_of_a_prompt_are_not_streamed(one: Running) -> None:
    error = refused(one, COMPLETIONS, {"prompt": "x", "echo": True, "logprobs": 0, "stream": True})
    assert error["param"] == "logprobs" and "echo" in error["message"]


def test_harmless_values_of_such_fields_are_taken(one: Running) -> None:
    fields = {
        "response_format": {"type": "text"}, "tool_choice": "auto", "tools": [], "best_of": 1, "store": False,
        "modalities": ["text"], "prompt_logprobs": None, "logprobs": False, "stream": False, "stream_options": None,
        "metadata": {"a": "b"}, "parallel_tool_calls": True, "priority": 0, "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False}, "service_tier": "auto",
    }  # fmt: skip
    assert one.post(CHAT, {"messages": HELLO, **fields}).status_code == 200


@pytest.mark.parametrize(
    "name", ["tokenize", "add_generation_prompt", "messages", "tools", "self", "tokenizer", "loop"]
)
def test_templates_are_handed_nothing_but_what_they_may_have(one: Running, name: str) -> None:
    error = refused(one, CHAT, {"messages": HELLO, "chat_template_kwargs": {name: True}})
    assert error["param"] == "chat_template_kwargs" and name in error["message"]


def test_unknown_fields(one: Running, tmp_path: Any) -> None:
    assert one.post(CHAT, {"messages": HELLO, "no_such_field": 1}).status_code == 200
    with serving(saying(tmp_path, "x"), strict=True) as strict:
        error = refused(strict, "/tokenize", {"content": "x", "zz": 1, "messages": None})
        assert error["param"] == "zz" and error["code"] == "unknown_field"


def test_the_model_is_found_by_its_name(one: Running) -> None:
    assert one.post(CHAT, {"messages": HELLO, "model": "toy"}).json()["model"] == "toy"
    for name in ("gpt-4", "../../etc/passwd", "toy\n", "/toy"):
        response = one.post(CHAT, {"messages": HELLO, "model": name})
        assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"


# -- the body itself ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    ["", "{", "[]", "null", "1", '"x"', '{"messages": [}', '{"messages": []} x', "\ufeff{}", b"\xff\xfe",
     b'{"prompt": "\xff"}', '{"prompt": "\\ud800"}', '{"prompt": NaN}', "{'prompt': 'x'}",
     '{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "[" * 1_000_000],
    ids=lambda body: str(body)[:20],
)  # fmt: skip
def test_what_is_no_json_object(one: Running, body: Any) -> None:
    for path in (CHAT, COMPLETIONS):
        refused(one, path, body.encode() if isinstance(body, str) else body)


def test_what_is_nested_too_deep(one: Running) -> None:
    deep: Any = {}
    for _ in range(100):
        deep = {"x": deep}
    error = refused(one, CHAT, {"messages": HELLO, "tools": [{"type": "function", "function": deep}]})
    assert "64 deep" in error["message"]
    refused(one, CHAT, {"messages": HELLO, "chat_template_kwargs": {"documents": [deep]}})


def test_a_large_body_is_refused_before_it_is_parsed(one: Running) -> None:
    declared = one.raw((HEAD + f"content-length: {MAX_BODY + 1}\r\n\r\n").encode())
    assert declared.startswith(b"HTTP/1.1 413") and b"request_too_large" in declared
    block = b"%x\r\n" % (1 << 20) + b" " * (1 << 20) + b"\r\n"
    sent = one.raw((HEAD + "transfer-encoding: chunked\r\n\r\n").encode() + block * 8 + b"1\r\n \r\n0\r\n\r\n")
    assert sent.startswith(b"HTTP/1.1 413")
    most = json.dumps({"messages": HELLO, "metadata": {"x": ""}})
    padded = most[:-3] + "y" * (MAX_BODY - len(most)) + most[-3:]
    assert len(padded) == MAX_BODY and one.post(CHAT, padded).status_code == 200
    assert one.post(CHAT, padded + " ").status_code == 413


def test_requests_that_are_not_http(one: Running) -> None:
    for request in (b"\x16\x03\x01hello\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"A" * (70 << 10)):
        answer = one.raw(request)
        assert answer.startswith(b"HTTP/1.1 400"), request[:20]
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    large = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx: " + b"y" * (66 << 10)
    assert one.raw(large + b"\r\n\r\n").startswith((b"HTTP/1.1 431", b"HTTP/1.1 400")), "in one piece or in several"
    fields = "".join(f"x-{i}: 1\r\n" for i in range(101))
    many = f"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{fields}\r\n".encode()
    assert one.raw(many).startswith(b"HTTP/1.1 431")
    compressed = one.raw((HEAD + "content-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}").encode())
    assert compressed.startswith(b"HTTP/1.1 415")
    assert one.http.get("/health").status_code == 200
