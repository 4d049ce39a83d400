"""`Front`: the application of the front process. It answers for the replicas what is about all of them, and sends on
what is for one."""

import asyncio
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.datastructures import QueryParams
from starlette.responses import Response as Answer
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from stretto.serve.auth import TENANT
from stretto.serve.body import MAX_BODY, Gone, read_body
from stretto.serve.endpoint import CLIENT_LEFT, while_connected
from stretto.serve.errors import ApiError, draining, loading
from stretto.serve.json import Json
from stretto.serve.log import LOGGER, Record
from stretto.serve.router.exchange import Broken, Headers, exchange
from stretto.serve.router.merge import merge
from stretto.serve.router.policy import Ask
from stretto.serve.router.pool import Pool
from stretto.serve.router.relay import lost, relay
from stretto.serve.router.replica import Replica
from stretto.serve.router.work import ask_of

ASK_SECONDS = 5.0  # for a replica to answer what is asked of all
_OWN = frozenset({"host", "connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "expect",
                  "cookie", "content-length", "authorization", "x-api-key", "origin",
                  "x-request-id", TENANT})  # fmt: skip
"""Headers that are for the front process, or of one connection."""


class Front:
    """state: as that of a `Service`, which it stands for in a `Lifecycle`. prefix: of the metrics."""

    def __init__(self, pool: Pool, *, prefix: str = "stretto") -> None:
        self._pool = pool
        self.state: Literal["ready", "draining"] = "ready"
        self.num_calls = 0
        self._registry = CollectorRegistry(auto_describe=False)
        self._rejected = Counter(f"{prefix}:front_rejected", "Requests that were refused", ["reason"],
                                 registry=self._registry)  # fmt: skip
        self._retries = Counter(f"{prefix}:front_retries", "Requests sent to a second replica", registry=self._registry)
        own: list[tuple[str, Any]] = [
            ("/health", self._health), ("/v1/health", self._health), ("/ping", self._health), ("/ready", self._ready),
            ("/metrics", self._metrics),
        ]  # fmt: skip
        self._router = Router(
            [
                *(Route(path, _Own(answer), methods=["GET"]) for path, answer in own),
                Route("/stretto/{what}", _Endpoint(self._of_one), methods=["GET"]),
                Route("/v1/requests/{id}/cancel", _Endpoint(self._cancel), methods=["POST"]),
                Route("/admin/{path:path}", _Endpoint(_of_each)),
                Route("/{path:path}", _Endpoint(self._forward)),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._router(scope, receive, send)

    def drain(self) -> None:
        """Take no new work; what runs goes on."""
        self.state = "draining"

    async def close(self) -> None:
        """End everything, at once."""
        self.state = "draining"
        await self._pool.close()

    def rejected(self, reason: str) -> None:
        """A request was refused."""
        self._rejected.labels(reason).inc()

    async def _health(self) -> ASGIApp:
        if not self._pool.ready:
            raise loading()
        return Json({"status": "ok"})

    async def _ready(self) -> ASGIApp:
        if self.state == "draining":
            raise draining()
        await self._health()
        return Json({"status": "ready"})

    async def _metrics(self) -> ASGIApp:
        found = await asyncio.gather(*(self._page(one) for one in self._pool.ready))
        pages = [("front", generate_latest(self._registry).decode()), *(page for page in found if page is not None)]
        return Answer(merge(pages), headers={"content-type": CONTENT_TYPE_LATEST})

    async def _page(self, replica: Replica) -> tuple[str, str] | None:
        try:
            async with asyncio.timeout(ASK_SECONDS), exchange(replica.path, "GET", b"/metrics", _key(replica)) as one:
                return str(replica.number), (await one.body()).decode()
        except (Broken, TimeoutError):
            return None  # it says nothing: its samples are missing, as Prometheus expects of what is down

    async def _of_one(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What is about one engine: of the replica that the query names."""
        replica = self._pool.named(QueryParams(scope["query_string"]).get("replica"))
        record: Record = scope["state"]["record"]
        try:
            async with exchange(replica.path, "GET", _target(scope), _headers(scope, replica)) as response:
                await relay(response, send, record.path, record.id)
        except Broken:
            raise lost() from None

    async def _cancel(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Only one replica has the request, and none is known to: all are asked."""
        count, record = 0, scope["state"]["record"]
        for replica in self._pool.ready:
            try:
                async with exchange(replica.path, "POST", _target(scope), _headers(scope, replica)) as response:
                    count += response.status == 200
            except Broken:
                LOGGER.warning("replica does not answer", extra={"facts": {"id": record.id, "replica": replica.number}})
        if not count:
            raise ApiError(404, "There is no such request, or it has ended", param="id", code="request_not_found")
        answer = {"id": scope["path_params"]["id"], "object": "request.cancelled", "cancelled": count}
        await Json(answer)(scope, receive, send)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        record: Record = scope["state"]["record"]
        body = b""
        if scope["method"] == "POST":
            try:
                body = await read_body(scope, receive, MAX_BODY)
            except Gone:
                record.status = CLIENT_LEFT
                return
            if self.state == "draining":
                raise draining()
        self.num_calls += 1
        try:
            if not await while_connected(self._answer(scope, body, send), receive):
                record.status = CLIENT_LEFT
        finally:
            self.num_calls -= 1

    async def _answer(self, scope: Scope, body: bytes, send: Send) -> None:
        """Ask a replica, and if it gives nothing, once another one."""
        record: Record = scope["state"]["record"]
        ask = ask_of(body, record.tenant) if body else Ask()
        tried: list[int] = []
        while True:
            with self._pool.chosen(ask, tried) as replica:
                tried.append(replica.number)
                record.facts["replica"] = replica.number
                may_retry = len(tried) == 1 and self._pool.has_other(tried)
                headers = _headers(scope, replica)
                try:
                    async with exchange(replica.path, scope["method"], _target(scope), headers, body) as response:
                        if response.status != 503 or not may_retry:  # 503: it takes no work
                            await relay(response, send, record.path, record.id)
                            return
                except Broken:
                    if record.status or not may_retry:  # a status: the response has begun
                        raise lost() from None
            self._retries.inc()


async def _of_each(scope: Scope, receive: Receive, send: Send) -> None:
    raise ApiError(501, "This changes one engine, and there are several behind this address", code="has_replicas")


class _Endpoint:
    """An object, so that the router takes it for an application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


class _Own:
    """An answer of the front process itself."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: ASGIApp = await self._answer()
        await response(scope, receive, send)


def _target(scope: Scope) -> bytes:
    path: bytes = scope["raw_path"]
    query: bytes = scope["query_string"]
    return path + b"?" + query if query else path


def _key(replica: Replica) -> Headers:
    return [(b"authorization", f"Bearer {replica.key}".encode())]


def _headers(scope: Scope, replica: Replica) -> Headers:
    """Those of the client that are for the replica, and who the client is."""
    record: Record = scope["state"]["record"]
    kept = [(name, value) for name, value in scope["headers"] if name.decode("latin-1") not in _OWN]
    about = [(b"x-request-id", record.id.encode()), (TENANT.encode(), record.tenant.encode())]
    return [*kept, *_key(replica), *about]
