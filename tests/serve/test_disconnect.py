"""Clients that leave: their requests end within one step, whatever they were waiting for, and nothing else does."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from scripted import ScriptedEngine, ScriptedLLM, saying
from serving import CHAT, HELLO, Running, serving

from stretto.llm.admission import Drop


@contextmanager
def slow(folder: Path, **options: int) -> Iterator[tuple[Running, ScriptedEngine]]:
    """A server whose engine stands still."""
    llm = saying(folder, "x" * 400, **options)
    with serving(llm) as one:
        llm.scripted.gate.close()
        try:
            yield one, llm.scripted
        finally:
            llm.scripted.gate.open()


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def send(one: Running, *, stream: bool, **fields: object) -> socket.socket:
    body = json.dumps({"messages": HELLO, "stream": stream, "max_tokens": 300, **fields}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    client = socket.create_connection(("127.0.0.1", one.port), timeout=30)
    client.sendall(head + body)
    return client


def answered(client: socket.socket) -> bool:
    """Whether a whole answer comes."""
    found = b""
    while block := client.recv(65536):
        found += block
        if b'"finish_reason":"length"' in found:
            return True
    return False


@pytest.mark.parametrize("stream", [True, False])
def test_before_the_first_chunk(tmp_path: Path, stream: bool) -> None:
    with slow(tmp_path) as (one, engine):
        client = send(one, stream=stream)
        until(lambda: len(engine.added) == 1)
        client.close()
        until(lambda: one.service.num_calls == 0)
        engine.gate.open()
        one.settled()
        assert engine.num_steps == 1 and engine.num_cancelled == 1, "the step that stood there, and no other"


@pytest.mark.parametrize("stream", [True, False])
def test_after_the_first_chunk(tmp_path: Path, stream: bool) -> None:
    with slow(tmp_path) as (one, engine):
        client = send(one, stream=stream)
        until(lambda: len(engine.added) == 1)
        request = engine.added[0]
        engine.gate.let(5)
        if stream:
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        client.close()
        until(lambda: one.service.num_calls == 0)
        engine.gate.open()
        one.settled()
        assert len(request.output) <= 6 and engine.num_steps <= 6 and engine.num_cancelled == 1


def test_all_answers_of_one_request_end(tmp_path: Path) -> None:
    with slow(tmp_path) as (one, engine):
        client = send(one, stream=True, n=5)
        until(lambda: len(engine.added) == 5)
        client.close()
        until(lambda: one.service.num_calls == 0)
        engine.gate.open()
        one.settled()
        assert engine.num_cancelled == 5


def test_while_it_waits_in_the_queue(tmp_path: Path) -> None:
    """One runs and two wait behind it; the one in the middle leaves, and the others get what is theirs."""
    with slow(tmp_path, max_seqs=1) as (one, engine):
        clients = []
        for i in range(3):
            clients.append(send(one, stream=False, max_tokens=20))
            until(lambda i=i: one.service.llm.num_requests == i + 1)
        engine.gate.let(1)  # the first one came into the engine alone; the step after that has all
        until(lambda: len(engine.added) == 3)
        clients[1].close()
        until(lambda: one.service.num_calls == 2)
        engine.gate.open()
        assert all(answered(client) for client in (clients[0], clients[2]))
        one.settled()
        assert engine.num_cancelled == 1 and [len(r.output) for r in engine.added] == [20, 0, 20]
        for client in clients:
            client.close()


def test_twenty_at_once(tmp_path: Path) -> None:
    with slow(tmp_path) as (one, engine):
        clients = [send(one, stream=i % 2 == 0) for i in range(20)]
        stays = send(one, stream=False, max_tokens=5)
        until(lambda: one.service.llm.num_requests == 21)
        for client in clients:
            client.close()
        until(lambda: one.service.num_calls == 1)
        engine.gate.open()
        assert answered(stays)
        stays.close()
        one.settled()
        assert engine.num_cancelled + 21 - len(engine.added) == 20, "some never came into the engine"


def test_a_client_that_leaves_while_its_body_is_read(tmp_path: Path) -> None:
    with serving(saying(tmp_path, "x")) as one:
        client = socket.create_connection(("127.0.0.1", one.port))
        client.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 900\r\n\r\nabc".encode())
        client.close()
        assert one.chat()["choices"][0]["finish_reason"] == "stop"
        one.settled()


def test_nothing_is_cancelled_after_a_normal_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drops: list[Drop] = []
    monkeypatch.setattr("stretto.llm.admission.Drop", lambda reader: drops.append(Drop(reader)) or drops[-1])
    with slow(tmp_path) as (one, engine):
        engine.gate.open()
        for _ in range(3):
            one.chat(max_tokens=5)
            one.events(max_tokens=5)
        assert not drops and engine.num_cancelled == 0
        engine.gate.close()
        client = send(one, stream=True)
        until(lambda: one.service.llm.num_requests)
        client.close()
        until(lambda: one.service.num_calls == 0 and len(drops) == 1)


# -- being cancelled ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["its own id", "the id of its answer"])
def test_a_request_is_cancelled_by_its_id(tmp_path: Path, by: str) -> None:
    with slow(tmp_path) as (one, engine):
        body = {"messages": HELLO, "stream": True, "max_tokens": 300}
        steps = threading.Thread(target=lambda: engine.gate.let(1))
        steps.start()
        with one.http.stream("POST", CHAT, json=body, headers={"x-request-id": "mine.1"}) as response:
            steps.join()
            blocks = response.iter_bytes()
            first = next(blocks)
            assert response.headers["x-request-id"] == "mine.1"
            reply = json.loads(first.split(b"\n\n")[0].removeprefix(b"data: "))["id"]
            one_id = "mine.1" if by == "its own id" else reply
            done = one.post(f"/v1/requests/{one_id}/cancel", {})
            assert done.status_code == 200 and done.json()["cancelled"] == 1
            engine.gate.open()
            last = b"".join(blocks).split(b"\n\n")[-2]
            assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "request_cancelled"
        one.settled()
        assert engine.num_cancelled == 1
        assert one.post(f"/v1/requests/{one_id}/cancel", {}).status_code == 404


def test_a_tenant_cannot_cancel_what_belongs_to_another(tmp_path: Path) -> None:
    from stretto.serve.app import Access

    llm: ScriptedLLM = saying(tmp_path, "x" * 100)
    with serving(llm, access=Access(keys=("aaa", "bbb"))) as one:
        ours, theirs = ({"authorization": f"Bearer {key}"} for key in ("aaa", "bbb"))
        body = {"messages": HELLO, "stream": True, "max_tokens": 20}
        llm.scripted.gate.close()
        steps = threading.Thread(target=lambda: llm.scripted.gate.let(1))
        steps.start()
        with one.http.stream("POST", CHAT, json=body, headers={**ours, "x-request-id": "r"}) as response:
            steps.join()
            assert one.post("/v1/requests/r/cancel", {}, headers=theirs).status_code == 404
            llm.scripted.gate.open()
            assert b"".join(response.iter_bytes()).endswith(b"[DONE]\n\n")
        assert {r.job.tenant for r in llm.scripted.added} == {"key-1"}


def test_the_timeout_of_a_request(tmp_path: Path) -> None:
    with slow(tmp_path) as (one, engine):
        response = one.post(CHAT, {"messages": HELLO, "timeout": 0.02})
        assert response.status_code == 408 and response.headers["x-should-retry"] == "false"
        assert response.json()["error"]["param"] == "timeout"
        engine.gate.open()
        one.settled()
        assert engine.num_cancelled == 1
