"""Ollama's routes through the real `ollama` client, and as bytes."""

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama
import pytest
from agents import ANSWER, CALLS, FUNCTION, TEXT, THOUGHT, prompt, says
from scripted import ScriptedLLM, saying
from serving import Running, serving

import stretto
from stretto.core.errors import RunError
from stretto.hub import models as hub

CHAT, GENERATE = "/api/chat", "/api/generate"
HELLO = [{"role": "user", "content": "Hello"}]
TOOLS = [{"type": "function", "function": FUNCTION}]
WANTED = [(name, json.loads(given)) for name, given in CALLS]
SIZE = len(ANSWER.encode()) + 1


@pytest.fixture
def client(agent: Running) -> Iterator[ollama.Client]:
    one = ollama.Client(host=agent.url)
    yield one
    one._client.close()


def lines(server: Running, path: str, **body: Any) -> list[dict[str, Any]]:
    """The values of a stream of lines."""
    response = server.post(path, {"model": "toy", **body})
    assert response.status_code == 200 and response.headers["content-type"] == "application/x-ndjson", response.text
    assert response.content.endswith(b"}\n") and b"\n\n" not in response.content
    return [json.loads(line) for line in response.content.splitlines()]


def test_a_conversation_whole(client: ollama.Client) -> None:
    began = time.monotonic()
    found = client.chat("toy", HELLO, tools=TOOLS)
    most = 1e9 * (time.monotonic() - began)  # the client's watch runs longer than the server's
    assert found.message.thinking == THOUGHT and found.message.content == TEXT
    assert [(c.function.name, c.function.arguments) for c in found.message.tool_calls or ()] == WANTED
    assert found.done and found.done_reason == "stop" and found.model == "toy"
    assert found.eval_count == SIZE and found.prompt_eval_count
    assert found.total_duration and found.total_duration >= (found.prompt_eval_duration or 0) + (
        found.eval_duration or 0
    )
    assert 1000 < (found.eval_duration or 0) <= found.total_duration <= most, "nanoseconds"


def test_a_conversation_in_lines(client: ollama.Client, agent: Running) -> None:
    parts = list(client.chat("toy", HELLO, tools=TOOLS, stream=True))
    assert "".join(p.message.thinking or "" for p in parts) == THOUGHT
    assert "".join(p.message.content or "" for p in parts) == TEXT
    calls = [(c.function.name, c.function.arguments) for p in parts for c in p.message.tool_calls or ()]
    assert calls == WANTED
    assert [p.done for p in parts] == [False] * (len(parts) - 1) + [True] and parts[-1].eval_count == SIZE
    found = lines(agent, CHAT, messages=HELLO)
    assert [one["done"] for one in found][-2:] == [False, True], "streaming unless it is told not to"
    assert found[-1]["message"] == {"role": "assistant", "content": ""} and found[0]["created_at"].endswith("Z")


def test_a_prompt(client: ollama.Client, actor: ScriptedLLM) -> None:
    whole = client.generate("toy", "Hi", system="Be brief.")
    assert prompt(actor) == "[system]Be brief.[user]Hi[assistant]"
    assert whole.thinking == THOUGHT and (whole.response or "").startswith(TEXT) and whole.eval_count == SIZE
    parts = list(client.generate("toy", "Hi", stream=True))
    assert "".join(p.response or "" for p in parts) == whole.response and parts[-1].done_reason == "stop"
    raw = client.generate("toy", "Hi", raw=True)
    assert prompt(actor) == "Hi" and raw.response == ANSWER


def test_a_conversation_goes_on_with_what_tools_gave_back(client: ollama.Client, actor: ScriptedLLM) -> None:
    first = client.chat("toy", HELLO, tools=TOOLS)
    results = [{"role": "tool", "tool_name": name, "content": f"result of {name}"} for name, _ in CALLS]
    client.chat("toy", [*HELLO, first.message, *results, {"role": "user", "content": "And?"}])
    calls = "".join(f"<call>{name}{given}</call>" for name, given in CALLS)
    assert prompt(actor) == (
        f"[user]Hello[assistant]<think>{THOUGHT}</think>{TEXT}{calls}"
        "[tool]result of weather[tool]result of clock[user]And?[assistant]"
    )


def test_options_reach_the_engine(client: ollama.Client, actor: ScriptedLLM, caplog: pytest.LogCaptureFixture) -> None:
    options = {
        "num_predict": 7, "temperature": 0.5, "top_k": 3, "top_p": 0.25, "min_p": 0.125, "seed": 11,
        "stop": ["zz", "yy"], "repeat_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.25,
        "num_ctx": 999999, "num_gpu": 1, "mirostat": 0, "num_thread": 4, "new_option": 1,
    }  # fmt: skip
    with caplog.at_level(logging.INFO, "stretto.serve"):
        found = client.chat("toy", HELLO, options=options, keep_alive="5m")
    assert found.done_reason == "length" and found.eval_count == 7
    sampling = actor.scripted.added[-1].sampling
    want = {
        "max_tokens": 7, "temperature": 0.5, "top_k": 3, "top_p": 0.25, "min_p": 0.125, "seed": 11,
        "stops": ("zz", "yy"), "repetition_penalty": 1.5, "presence_penalty": 0.5, "frequency_penalty": 0.25,
    }  # fmt: skip
    assert {name: getattr(sampling, name) for name in want} == want
    noted = [record.facts["options"] for record in caplog.records if "options" in getattr(record, "facts", {})]
    assert noted == [["new_option"], ["num_ctx"]]
    says(actor, "unbounded")
    assert client.generate("toy", "x", options={"num_predict": -1}).response == "unbounded"


def test_thinking_is_switched(agent: Running, actor: ScriptedLLM, tmp_path: Path) -> None:
    for think in (True, False, "high"):
        assert agent.post(CHAT, {"model": "toy", "messages": HELLO, "think": think}).status_code == 200
    with serving(saying(tmp_path, "Yes.")) as plain:
        response = plain.post(CHAT, {"model": "toy", "messages": HELLO, "think": True})
        assert response.status_code == 400 and response.json() == {"error": "think: toy does not think"}
        assert plain.post(CHAT, {"model": "toy", "messages": HELLO, "think": False}).status_code == 200


def test_what_a_server_says_of_itself(client: ollama.Client, agent: Running) -> None:
    assert agent.http.get("/api/version").json() == {"version": stretto.__version__}
    assert [one.model for one in client.list().models] == ["toy"] == [one.model for one in client.ps().models]
    found = client.show("toy")
    assert found.capabilities == ["completion", "chat", "thinking", "tools", "structured_output"] and "<think>" in (
        found.template or ""
    )
    info: Any = found.modelinfo
    assert info[f"{info['general.architecture']}.context_length"] == 4096
    for path in ("/", "/api/tags", "/api/version"):
        assert agent.http.head(path).status_code == 200
    assert "stretto" in agent.http.get("/").text, "a probe finds the web page"
    assert client.chat("toy:latest", HELLO).done, "clients add a tag"


def test_an_empty_request_asks_whether_the_model_is_there(agent: Running, client: ollama.Client) -> None:
    assert client.generate("toy").done_reason == "load" and client.chat("toy").message.content == ""
    assert agent.post(GENERATE, {"model": "toy", "keep_alive": 0}).json()["done_reason"] == "unload"
    with pytest.raises(ollama.ResponseError, match="no model 'other'"):
        client.generate("other")


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "format: ": (CHAT, {"messages": HELLO, "format": "yaml"}),
    "format: the JSON schema": (GENERATE, {"prompt": "x", "format": {"uniqueItems": True}}),
    "messages[0].images": (CHAT, {"messages": [{"role": "user", "content": "x", "images": ["eA=="]}]}),
    "images": (GENERATE, {"prompt": "x", "images": ["eA=="]}),
    "suffix": (GENERATE, {"prompt": "x", "suffix": "y"}),
    "context": (GENERATE, {"prompt": "x", "context": [1]}),
    "logprobs": (CHAT, {"messages": HELLO, "logprobs": True}),
    "options.mirostat": (CHAT, {"messages": HELLO, "options": {"mirostat": 2}}),
    "options.top_k": (CHAT, {"messages": HELLO, "options": {"top_k": True}}),
    "options.temperature": (GENERATE, {"prompt": "x", "options": {"temperature": -1}}),
    "options.stop": (GENERATE, {"prompt": "x", "options": {"stop": ["x" * 300]}}),
    "The prompt has 5,0": (CHAT, {"messages": [{"role": "user", "content": "x" * 5000}]}),
    "The prompt has 5,00": (GENERATE, {"prompt": "x" * 5000, "raw": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("stream", [True, False])
def test_what_cannot_be_done_is_refused_by_name(agent: Running, name: str, stream: bool) -> None:
    path, body = REFUSED[name]
    response = agent.post(path, {"model": "toy", "stream": stream, **body})
    assert response.status_code == 400 and list(response.json()) == ["error"], response.text
    message = response.json()["error"]
    assert message.startswith(name) or f"{name}: " in message or (name == "The prompt has 5,0" and name in message)


def test_what_fails_on_the_way_is_an_error_of_the_client(client: ollama.Client, actor: ScriptedLLM) -> None:
    actor.scripted.failing = lambda request: len(request.output) == 20
    parts = []
    with pytest.raises(ollama.ResponseError) as problem:
        for part in client.chat("toy", HELLO, stream=True):
            parts.append(part)
    assert parts and "0x7ffe" not in str(problem.value)
    with pytest.raises(ollama.ResponseError) as problem:
        client.chat("toy", HELLO)
    assert problem.value.status_code == 500


def test_pulling_needs_the_admin_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aliases only, and for nobody but the operator: clients never give paths or addresses."""
    asked: list[str] = []

    def pull(name: str, **_: Any) -> Path:
        asked.append(name)
        if len(asked) == 3:
            raise RunError("no network", why="offline")
        return tmp_path

    monkeypatch.setattr(hub, "pull", pull)
    body = {"model": "smollm2", "stream": False}
    with serving(saying(tmp_path, "x"), key="user", admin_key="admin") as one:
        assert one.post("/api/pull", body).status_code == 403 and not asked
        assert one.post("/api/pull", body, headers={"authorization": "Bearer wrong"}).status_code == 401
        admin = {"authorization": "Bearer admin"}
        assert one.post("/api/pull", body, headers=admin).json() == {"status": "success"}
        stream = [json.loads(x) for x in one.post("/api/pull", {"name": "smollm2"}, headers=admin).text.splitlines()]
        assert stream == [{"status": "pulling smollm2"}, {"status": "success"}]
        failed = one.post("/api/pull", body, headers=admin)
        assert failed.status_code == 502 and failed.json() == {"error": "no network; offline"}
        assert asked == ["smollm2"] * 3
        for name in ("../../etc/passwd", "https://example.org/x", "org/repo"):
            assert one.post("/api/pull", {"model": name}, headers=admin).status_code == 404
        assert len(asked) == 3
        assert one.http.get("/v1/models", headers=admin).status_code == 200, "the admin may do what others may"
    with serving(saying(tmp_path, "x")) as one:
        response = one.post("/api/pull", body)
        assert response.status_code == 403 and "--admin-key" in response.json()["error"]
