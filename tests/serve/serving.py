"""What the tests of the server share: one in a thread of this process, over a model that loads in milliseconds."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from stretto import LLM
from stretto.serve.address import listen_at
from stretto.serve.app import Access, make_app
from stretto.serve.lifecycle import Lifecycle, Server
from stretto.serve.models import Models
from stretto.serve.service import Config, Service
from stretto.serve.slot import Limits, Slot

HELLO = [{"role": "user", "content": "Hello"}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


@dataclass
class Running:
    """A server that is ready. port: of 127.0.0.1."""

    models: Models
    port: int
    loop: asyncio.AbstractEventLoop
    lifecycle: Lifecycle
    key: str | None = None
    made: LLM | None = None
    clients: list[httpx.Client] = field(default_factory=list)

    @property
    def service(self) -> Service:
        """Of the first model, or the only one."""
        return self.models.first

    @property
    def llm(self) -> LLM:
        """The model of it, loaded or not."""
        return self.made or self.service.llm.llm

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def http(self) -> httpx.Client:
        if not self.clients:
            headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
            self.clients.append(httpx.Client(base_url=self.url, headers=headers, timeout=30))
        return self.clients[0]

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        if isinstance(body, bytes | str):
            return self.http.post(path, content=body, **options)
        return self.http.post(path, json=body, **options)

    def chat(self, **fields: Any) -> dict[str, Any]:
        """An answer to `HELLO`, or to other messages."""
        response = self.post(CHAT, {"messages": HELLO, "temperature": 0, "max_tokens": 8, **fields})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def events(self, path: str = CHAT, **fields: Any) -> list[Any]:
        """The events of a stream, `[DONE]` included."""
        body = {"messages": HELLO, "temperature": 0, "max_tokens": 8, "stream": True, **fields}
        if path == COMPLETIONS:
            body.pop("messages")
        response = self.post(path, body)
        assert response.status_code == 200, response.text
        return parsed(response.content)

    def raw(self, request: bytes) -> bytes:
        """What comes back on a connection of its own, until the server closes it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as one:
            one.sendall(request)
            blocks = []
            while block := one.recv(65536):
                blocks.append(block)
            return b"".join(blocks)

    def settled(self) -> None:
        """Wait until nothing runs; then every page and every state must be free."""
        until = time.monotonic() + 20
        engine = self.llm.engine
        while self.models.num_calls or not engine.is_idle or (self.service.is_loaded and self.service.llm.num_requests):
            assert time.monotonic() < until, "something runs on"
            time.sleep(0.001)
        cache = engine.runner.cache
        assert cache.free_blocks == cache.pools.num_pages and not engine.scheduler.waiting


def until(holds: Callable[[], bool]) -> None:
    """Wait for it."""
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def told(path: str, response: httpx.Response) -> tuple[str, str]:
    """Kind and message of an error, which must have the form of the API that this path belongs to. Ollama's has no
    kind."""
    body = response.json()
    if path.startswith("/api/"):
        assert set(body) == {"error"} and body["error"]
        return "", body["error"]
    if path.startswith("/v1/messages"):
        assert set(body) == {"type", "error", "request_id"} and body["type"] == "error"
        assert body["request_id"] in response.headers["request-id"] and set(body["error"]) == {"type", "message"}
    else:
        assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]["type"], body["error"]["message"]


def parsed(stream: bytes) -> list[Any]:
    """The values of a stream of events; every byte of it must be an event or a comment, each with its blank line."""
    assert stream.endswith(b"\n\n")
    found: list[Any] = []
    for block in stream.decode().removesuffix("\n\n").split("\n\n"):
        assert "\n" not in block
        if block.startswith(":"):
            continue
        assert block.startswith("data: ")
        text = block.removeprefix("data: ")
        found.append(text if text == "[DONE]" else json.loads(text))
    return found


def joined(events: list[Any], key: str = "content", index: int = 0) -> str:
    """The deltas of one choice, one after the other."""
    choices = [c for event in events if event != "[DONE]" for c in event["choices"] if c["index"] == index]
    return "".join(c["delta"].get(key, "") if "delta" in c else c["text"] for c in choices)


def slot_of(llm: LLM | Callable[[], LLM], *names: str, need: int = 1, **options: Any) -> Slot:
    """The place of a model, which may be made when it is loaded. options: fields of `Config`."""
    service = Service(Config(**{"names": names or ("toy",), **options}))
    return Slot(service, (lambda: llm) if isinstance(llm, LLM) else llm, need=need)


@contextmanager
def serving(
    llm: LLM | Sequence[Slot],
    *,
    limits: Limits | None = None,
    clock: Callable[[], float] = time.monotonic,
    access: Access | None = None,
    key: str | None = None,
    admin_key: str | None = None,
    max_waiting: int = 64,
    max_queued_tokens: int | None = None,
    **options: Any,
) -> Iterator[Running]:
    """A server of a model, or of several, until the end of the block. options: fields of `Config`, of `Server` and
    `Lifecycle`."""
    access = access or Access(
        keys=(key,) if key else (), admin_keys=(admin_key,) if admin_key else (), loopback_only=not key
    )
    drain_timeout, connections = options.pop("drain_timeout", 10.0), options.pop("max_connections", 512)
    path: Path | None = options.pop("uds", None)
    listening = listen_at(path) if path else socket.create_server(("127.0.0.1", 0), backlog=512)
    found = list[Running]()

    bounds = replace(limits or Limits(), max_waiting=max_waiting, max_queued_tokens=max_queued_tokens)

    async def main(is_ready: Callable[[], None]) -> None:
        slots = [slot_of(llm, **options)] if isinstance(llm, LLM) else llm
        models = Models(slots, bounds, clock=clock)
        server = Server(make_app(models, access), max_connections=connections)
        lifecycle = Lifecycle(models, server, listening, drain_timeout=drain_timeout)
        port, loop = 0 if path else listening.getsockname()[1], asyncio.get_running_loop()
        found.append(Running(models, port, loop, lifecycle, key, llm if isinstance(llm, LLM) else None))
        await lifecycle.run(partial(models.start, lambda _: is_ready()), signals=False)

    def end() -> None:
        for client in found[0].clients:
            client.close()
        found[0].loop.call_soon_threadsafe(found[0].lifecycle.end)

    with beside(main, end):
        yield found[0]


@contextmanager
def beside(main: Callable[[Callable[[], None]], Coroutine[Any, Any, None]], end: Callable[[], None]) -> Iterator[None]:
    """Run `main`, which says when it is ready, in a thread of its own; `end` asks it to end with the block."""
    is_ready, problems = threading.Event(), list[BaseException]()

    def run() -> None:
        try:
            asyncio.run(main(is_ready.set))
        except BaseException as problem:
            problems.append(problem)
        finally:
            is_ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert is_ready.wait(30) and not problems, problems
    try:
        yield
    finally:
        if thread.is_alive():
            end()
        thread.join(30)
        assert not thread.is_alive(), "the server does not end"
    assert not problems, problems


def tiny(folder: Path, **settings: Any) -> LLM:
    """A random model whose tokens are bytes."""
    return LLM(folder, **{"dtype": "float32", "draft": "none", "max_seqs": 6, **settings})
