"""Clients of the other APIs that leave: their requests end as those of `/v1/chat/completions` do."""

import json
import socket
from typing import Any

import pytest
from agents import says
from scripted import ScriptedLLM
from serving import Running, until

HELLO = [{"role": "user", "content": "Hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": "Hello"},
    "/v1/messages": {"model": "toy", "max_tokens": 400, "messages": HELLO},
    "/api/chat": {"model": "toy", "messages": HELLO},
    "/api/generate": {"model": "toy", "prompt": "Hello"},
}


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [True, False])
def test_the_request_ends_within_a_step(agent: Running, actor: ScriptedLLM, path: str, stream: bool) -> None:
    says(actor, "x" * 400)
    engine = actor.scripted
    engine.gate.close()
    count, cancelled = len(engine.added), engine.num_cancelled
    body = json.dumps({**BODIES[path], "stream": stream}).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", agent.port), timeout=30) as client:
        client.sendall(head + body)
        until(lambda: len(engine.added) == count + 1)
        engine.gate.let(5)
        if stream:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
    until(lambda: agent.service.num_calls == 0)
    engine.gate.open()
    agent.settled()
    assert len(engine.added[-1].output) <= 6 and engine.num_cancelled == cancelled + 1
