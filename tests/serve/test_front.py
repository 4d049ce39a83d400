"""The front process over servers of this process: what is sent on, what is answered for all, and when one ends."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripted import ScriptedLLM, saying
from serving import CHAT, HELLO, Running, beside, parsed, serving

from stretto.serve.address import listen, resolve, url_of
from stretto.serve.app import Access, guarded
from stretto.serve.lifecycle import Lifecycle, Server
from stretto.serve.router.front import Front
from stretto.serve.router.merge import merge
from stretto.serve.router.policies.prefix import Prefix
from stretto.serve.router.pool import Pool
from stretto.serve.router.relay import Pieces
from stretto.serve.router.replica import Launch

KEY = "front-key"
BEHIND = Access(keys=(KEY,), admin_keys=(KEY,), behind_front=True)
TEXT = "Once upon a time there was a wörld of bytes."


class StillPool(Pool):
    """Of servers that are there already, at these sockets."""

    def __init__(self, paths: list[Path]) -> None:
        super().__init__(Launch(lambda path: [], {}, KEY), len(paths), Prefix())
        for one, path in zip(self.replicas, paths, strict=True):
            one.path, one.is_ready = path, True

    async def start(self) -> None:
        pass


@dataclass
class Fronted:
    """A front, its replicas, and a client."""

    front: Front
    pool: StillPool
    replicas: list[Running]
    http: httpx.Client
    loop: asyncio.AbstractEventLoop
    lifecycle: Lifecycle

    def settled(self) -> None:
        until(lambda: not self.front.num_calls and not any(self.pool.work))
        for one in self.replicas:
            one.settled()


@contextmanager
def front_of(paths: list[Path], replicas: list[Running], access: Access | None = None) -> Iterator[Fronted]:
    listening, found = listen(*resolve("127.0.0.1", 0)), list[Fronted]()

    async def main(is_ready: Callable[[], None]) -> None:
        pool = StillPool(paths)
        front = Front(pool)
        app = guarded(front, access or Access(loopback_only=True), front.rejected)
        lifecycle = Lifecycle(front, Server(app), listening, drain_timeout=10.0)
        client = httpx.Client(base_url=url_of(listening), timeout=30)
        found.append(Fronted(front, pool, replicas, client, asyncio.get_running_loop(), lifecycle))

        async def start(beside: ExitStack) -> None:
            is_ready()

        await lifecycle.run(start, signals=False)

    def end() -> None:
        found[0].http.close()
        found[0].loop.call_soon_threadsafe(found[0].lifecycle.end)

    with beside(main, end):
        yield found[0]


@contextmanager
def fronted(folder: Path, count: int = 2, access: Access | None = None) -> Iterator[Fronted]:
    """A front over `count` servers of a model that always says `TEXT`."""
    with ExitStack() as stack:
        paths = [folder / f"{n}.sock" for n in range(count)]
        replicas = [stack.enter_context(serving(saying(folder, TEXT), access=BEHIND, uds=path)) for path in paths]
        one = stack.enter_context(front_of(paths, replicas, access))
        yield one
        one.settled()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fronted]:
    with fronted(tmp_path_factory.mktemp("pair")) as one:
        yield one


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def engines(one: Fronted) -> list[Any]:
    return [replica.llm.scripted for replica in one.replicas if isinstance(replica.llm, ScriptedLLM)]


# -- what is sent on ---------------------------------------------------------------------------------------------------

BODIES = {
    CHAT: {"messages": HELLO, "seed": 1},
    "/v1/completions": {"prompt": "Hello", "seed": 1},
    "/v1/responses": {"input": "Hello", "seed": 1},
    "/v1/messages": {"model": "toy", "messages": HELLO, "max_tokens": 30},
    "/api/chat": {"model": "toy", "messages": HELLO, "options": {"seed": 1}},
}
_CHANGING = re.compile(
    rb'"(id|item_id|created|created_at|completed_at|x_request_id|\w+_ms|\w+_per_second|\w*duration)":("[^"]*"|[\d.e+-]+)'
)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", BODIES)
def test_answers_are_those_of_one_server(tmp_path: Path, pair: Fronted, path: str, stream: bool) -> None:
    """Byte for byte, but for ids and times."""
    body = {**BODIES[path], "stream": stream}
    with serving(saying(tmp_path, TEXT)) as alone:
        expected = alone.post(path, body)
    found = pair.http.post(path, json=body)
    assert found.status_code == expected.status_code == 200
    assert _CHANGING.sub(rb'"\1"', found.content) == _CHANGING.sub(rb'"\1"', expected.content)
    kept = ("content-type", "cache-control", "x-accel-buffering", "transfer-encoding")
    assert [found.headers.get(name) for name in kept] == [expected.headers.get(name) for name in kept]


@pytest.mark.parametrize(
    "path, body", [(CHAT, {"messages": HELLO, "top_p": 7}), (CHAT, b"{"), ("/no/such", {}), ("/v1/messages", {}),
                   ("/api/chat", {"model": "other"})],
)  # fmt: skip
def test_refusals_are_those_of_one_server(tmp_path: Path, pair: Fronted, path: str, body: Any) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body)
    headers = {"x-request-id": "mine.1"}
    with serving(saying(tmp_path, TEXT)) as alone:
        expected = alone.http.post(path, content=content, headers=headers)
    found = pair.http.post(path, content=content, headers=headers)
    assert (found.status_code, found.content) == (expected.status_code, expected.content)
    assert found.headers.get_list("x-request-id") == ["mine.1"]


def test_a_stream_is_not_held_back(pair: Fronted) -> None:
    for engine in engines(pair):
        engine.gate.close()
    lets = [threading.Thread(target=engine.gate.let, args=(1,)) for engine in engines(pair)]
    for one in lets:
        one.start()
    with pair.http.stream("POST", CHAT, json={"messages": HELLO, "stream": True}) as response:
        blocks = response.iter_bytes()
        first = next(blocks)
        for engine in engines(pair):
            engine.gate.open()
        whole = first + b"".join(blocks)
    for one in lets:
        one.join()
    assert b"[DONE]" not in first and parsed(whole)[-1] == "[DONE]"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_ends_its_request_at_the_replica(pair: Fronted, stream: bool) -> None:
    before = sum(engine.num_cancelled for engine in engines(pair))
    added = sum(len(engine.added) for engine in engines(pair))
    for engine in engines(pair):
        engine.gate.close()
    client = httpx.Client(base_url=pair.http.base_url, timeout=30)
    request = threading.Thread(target=partial(_abandoned, client, stream))
    request.start()
    until(lambda: sum(len(engine.added) for engine in engines(pair)) == added + 1)
    client.close()
    until(lambda: not pair.front.num_calls and not any(one.service.num_calls for one in pair.replicas))
    for engine in engines(pair):
        engine.gate.open()
    request.join()
    pair.settled()
    assert sum(engine.num_cancelled for engine in engines(pair)) == before + 1


def _abandoned(client: httpx.Client, stream: bool) -> None:
    with pytest.raises((httpx.HTTPError, OSError, RuntimeError)):
        client.post(CHAT, json={"messages": HELLO, "stream": stream}, timeout=0.2)


# -- what is answered for all ------------------------------------------------------------------------------------------


def test_metrics_of_all_on_one_page(pair: Fronted) -> None:
    page = pair.http.get("/metrics").text
    assert 'stretto:num_requests_running{replica="0",model_name="toy"} 0.0' in page
    assert 'stretto:num_requests_running{replica="1",model_name="toy"} 0.0' in page
    assert page.count("# TYPE stretto:num_requests_running gauge") == 1
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name: family for family in text_string_to_metric_families(page)}
    assert {s.labels["replica"] for s in families["stretto:step_num_tokens"].samples} == {"0", "1"}
    assert all("replica" in sample.labels for family in families.values() for sample in family.samples)


def test_merging_keeps_families_together() -> None:
    page = '# HELP a A thing\n# TYPE a counter\na_total{x="}"} 1.0\na_total 2.0 17\n# TYPE b gauge\nb 3.0\n'
    assert merge([("0", page), ("1", page)]) == (
        '# HELP a A thing\n# TYPE a counter\na_total{replica="0",x="}"} 1.0\na_total{replica="0"} 2.0 17\n'
        'a_total{replica="1",x="}"} 1.0\na_total{replica="1"} 2.0 17\n'
        '# TYPE b gauge\nb{replica="0"} 3.0\nb{replica="1"} 3.0\n'
    )


def test_one_replica_is_asked_by_its_number(pair: Fronted) -> None:
    assert pair.http.get("/stretto/state?replica=1").json()["model"] == "toy"
    for text in ("2", "-1", "x", ""):
        assert pair.http.get(f"/stretto/state?replica={text}").json()["error"]["code"] == "replica_not_found"
    assert pair.http.get("/stretto/trace?after=0").status_code == 200
    pair.pool.replicas[1].is_ready = False
    assert pair.http.get("/stretto/state?replica=1").status_code == 503
    assert pair.http.get("/ready").status_code == 200
    pair.pool.replicas[0].is_ready = False
    for path in ("/ready", "/health", "/v1/models", "/stretto/state"):
        assert pair.http.get(path).json()["error"]["message"] == "Loading model"
    assert pair.http.get("/metrics").status_code == 200
    for one in pair.pool.replicas:
        one.is_ready = True
    assert pair.http.get("/ready").json() == {"status": "ready"}


# -- who may ask -------------------------------------------------------------------------------------------------------


def test_keys_are_those_of_the_front_and_tenants_reach_the_replica(tmp_path: Path) -> None:
    with fronted(tmp_path, access=Access(keys=("aaa", "bbb"), admin_keys=("root",))) as one:
        body = {"messages": HELLO, "max_tokens": 2}
        for key, tenant in (("aaa", "key-1"), ("bbb", "key-2"), ("root", "admin-1")):
            spoofed = {"authorization": f"Bearer {key}", "x-stretto-tenant": "key-9"}
            assert one.http.post(CHAT, json=body, headers=spoofed).status_code == 200
            assert tenant in {request.job.tenant for engine in engines(one) for request in engine.added}
        assert "key-9" not in {request.job.tenant for engine in engines(one) for request in engine.added}
        for key in ("x", KEY):
            assert one.http.post(CHAT, json=body, headers={"authorization": f"Bearer {key}"}).status_code == 401
        assert one.http.get("/v1/models").status_code == 401 and one.http.get("/metrics").status_code == 401
        assert one.http.get("/ready").status_code == one.http.get("/").status_code == 200
        pull = one.http.post("/api/pull", json={"model": "x"}, headers={"authorization": "Bearer aaa"})
        assert pull.status_code == 403


def test_a_replica_answers_its_front_alone(tmp_path: Path) -> None:
    with serving(saying(tmp_path, TEXT), access=BEHIND) as one:
        assert one.http.get("/v1/models").status_code == 401
        assert one.http.get("/v1/models", headers={"authorization": "Bearer x"}).status_code == 401
        assert one.http.get("/v1/models", headers={"authorization": f"Bearer {KEY}"}).status_code == 200


def test_a_request_is_cancelled_wherever_it_runs(tmp_path: Path) -> None:
    with fronted(tmp_path, access=Access(keys=("aaa", "bbb"))) as one:
        ours, theirs = ({"authorization": f"Bearer {key}"} for key in ("aaa", "bbb"))
        for engine in engines(one):
            engine.gate.close()
        found: list[httpx.Response] = []
        headers = {**ours, "x-request-id": "r"}
        ask = threading.Thread(
            target=lambda: found.append(one.http.post(CHAT, json={"messages": HELLO}, headers=headers))
        )
        ask.start()
        until(lambda: any(engine.added for engine in engines(one)))
        assert one.http.post("/v1/requests/r/cancel", headers=theirs).status_code == 404
        done = one.http.post("/v1/requests/r/cancel", headers=ours)
        assert done.json() == {"id": "r", "object": "request.cancelled", "cancelled": 1}
        for engine in engines(one):
            engine.gate.open()
        ask.join()
        assert found[0].status_code == 409


# -- a replica that ends -----------------------------------------------------------------------------------------------


@contextmanager
def broken(folder: Path, says: bytes, replicas: int = 1) -> Iterator[Fronted]:
    """A front whose replica 0 says this to everybody and hangs up; the others are real."""
    path, is_over = folder / "broken.sock", threading.Event()

    async def main(is_ready: Callable[[], None]) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(says)
            await writer.drain()
            writer.close()

        async with await asyncio.start_unix_server(answer, path):
            is_ready()
            while not is_over.is_set():
                await asyncio.sleep(0.01)

    with ExitStack() as stack:
        stack.enter_context(beside(main, is_over.set))
        paths = [folder / f"{n}.sock" for n in range(1, replicas)]
        real = [stack.enter_context(serving(saying(folder, TEXT), access=BEHIND, uds=one)) for one in paths]
        yield stack.enter_context(front_of([path, *paths], real))


BEGUN = b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 90\r\n\r\n{"
AWAY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}"


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 200 OK\r\nconte", WHOLE, AWAY])
def test_what_has_sent_nothing_is_asked_of_another_once(tmp_path: Path, says: bytes) -> None:
    with broken(tmp_path, says, replicas=2) as one:
        found = one.http.post(CHAT, json={"messages": HELLO, "max_tokens": 99})
        assert found.status_code == 200 and found.json()["choices"][0]["message"]["content"] == TEXT
        assert len(engines(one)[0].added) == 1
        assert 'front_retries_total{replica="front"} 1.0' in one.http.get("/metrics").text
        one.settled()


def test_where_there_is_no_other_it_fails_clearly(tmp_path: Path) -> None:
    with broken(tmp_path, WHOLE) as one:
        found = one.http.post(CHAT, json={"messages": HELLO})
        assert (found.status_code, found.json()["error"]["code"]) == (503, "replica_lost")
        assert found.headers["retry-after"] == "1" and "x-should-retry" not in found.headers
        found = one.http.post("/v1/messages", json={"messages": HELLO})
        assert found.json()["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize(
    "path, media_type, end",
    [
        (CHAT, b"text/event-stream; charset=utf-8", {"error": {"code": "replica_lost"}}),
        ("/v1/messages", b"text/event-stream; charset=utf-8", {"type": "error", "error": {"type": "overloaded_error"}}),
        ("/v1/responses", b"text/event-stream; charset=utf-8",
         {"type": "error", "code": "replica_lost", "sequence_number": 1}),
        ("/api/chat", b"application/x-ndjson", {"error": "The replica that answered has ended; ask again"}),
    ],
)  # fmt: skip
def test_a_stream_that_has_begun_ends_with_an_error_of_its_api(
    tmp_path: Path, path: str, media_type: bytes, end: dict[str, Any]
) -> None:
    """The event that was on its way is left out, and nobody else is asked."""
    is_lines = media_type == b"application/x-ndjson"
    event = b'{"a":1}\n' if is_lines else b'event: a\ndata: {"a":1}\n\n'
    says = BEGUN % (media_type, len(event) + 9, event + b'data: {"a')
    with broken(tmp_path, says, replicas=2) as one:
        found = one.http.post(path, json={"messages": HELLO, "stream": True})
        assert found.status_code == 200 and found.content.startswith(event)
        rest = found.content.removeprefix(event)
        assert rest.endswith(b"\n" if is_lines else b"\n\n") and rest.count(b"\n\n") == (not is_lines)
        told = json.loads(rest[rest.index(b"{") :])
        assert told.items() >= {k: v for k, v in end.items() if not isinstance(v, dict)}.items()
        if isinstance(end.get("error"), dict):
            assert told["error"].items() >= end["error"].items()
        assert not engines(one)[0].added and b"[DONE]" not in rest


def test_what_is_no_stream_of_events_is_cut_off(tmp_path: Path) -> None:
    says = BEGUN % (b"application/octet-stream", 3, b"abc")
    with broken(tmp_path, says, replicas=2) as one, pytest.raises(httpx.RemoteProtocolError):
        one.http.get("/page/whatever")


def test_pieces_are_whole_events() -> None:
    pieces = Pieces(b"\n\n")
    assert [pieces.push(b) for b in (b"a\n", b"\nb", b"c\n\nd\n\ne", b"")] == [b"", b"a\n\n", b"bc\n\nd\n\n", b""]
    assert pieces.rest == b"e"
    assert Pieces(b"").push(b"x") == b"x"


def test_draining(tmp_path: Path) -> None:
    """What runs goes on, nothing new is taken."""
    with fronted(tmp_path) as one:
        for engine in engines(one):
            engine.gate.close()
        found: list[httpx.Response] = []
        ask = threading.Thread(target=lambda: found.append(one.http.post(CHAT, json={"messages": HELLO})))
        ask.start()
        until(lambda: any(engine.added for engine in engines(one)))
        with httpx.Client(base_url=one.http.base_url) as other:
            assert other.get("/ready").status_code == 200
            one.loop.call_soon_threadsafe(one.lifecycle.end)
            until(lambda: other.get("/ready").status_code == 503)
            refused = other.post(CHAT, json={"messages": HELLO})
            assert refused.status_code == 503 and "shutting down" in refused.json()["error"]["message"]
            assert other.get("/health").status_code == 200
            for engine in engines(one):
                engine.gate.open()
            ask.join()
        assert found[0].status_code == 200
