"""Who is let in: keys on every route but the public ones, hosts, origins."""

import hmac
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from scripted import saying
from serving import CHAT, HELLO, Running, serving, told

from stretto.core.errors import UserError
from stretto.serve.address import access_for
from stretto.serve.app import Access, entries
from stretto.serve.auth import PUBLIC, Keys, host_of, is_loopback
from stretto.serve.log import LOGGER, Lines
from stretto.serve.models import alone
from stretto.serve.service import Config, Service

KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with serving(saying(tmp_path_factory.mktemp("locked"), "open"), access=Access(keys=KEYS)) as one:
        yield one


ROUTES = [
    (e.method, e.path.replace("{id:path}", "x").replace("{id}", "x"))
    for e in entries(alone(Service(Config(names=("m",)))))
]
HEALTH = {"/health", "/v1/health", "/ping", "/ready"}


def test_the_public_routes_are_those_of_health() -> None:
    assert PUBLIC == HEALTH and {path for _, path in ROUTES} > HEALTH
    assert len(ROUTES) >= 15


@pytest.mark.parametrize("method, path", [*ROUTES, ("GET", "/nothing"), ("POST", "/health"), ("OPTIONS", CHAT)])
def test_without_a_key_every_route_but_those_of_health_is_closed(locked: Running, method: str, path: str) -> None:
    is_open = path in HEALTH and method == "GET"
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic first-key"}, {"x-api-key": "x"}):
        response = locked.http.request(method, path, headers=headers)
        assert response.status_code == (200 if is_open else 401)
        if not is_open:
            kind, message = told(path, response)
            assert kind in ("authentication_error", "") and "key" in message
            assert response.headers["www-authenticate"] == "Bearer" and response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer first-key"},
        {"authorization": "bearer  second-key"},
        {"x-api-key": "second-key"},
        {"x-api-key": "first-key", "authorization": "Bearer wrong"},
    ],
)
def test_every_key_opens(locked: Running, headers: dict[str, str]) -> None:
    response = locked.post(CHAT, {"messages": HELLO}, headers=headers)
    assert response.status_code == 200 and response.json()["choices"][0]["message"]["content"] == "open"


def test_a_key_is_compared_as_a_digest_with_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: (calls.append((a, b)), compare(a, b))[1])
    keys = Keys(["a", "bb", "ccc"])
    for text, number in (("a", 0), ("ccc", 2), ("d", None), ("é\ud800", None)):
        calls.clear()
        assert keys.whose([text]) == number
        assert len(calls) == 3 and all(len(a) == len(b) == 32 for a, b in calls)
    assert keys.whose([]) is None and keys.whose(["x", "bb"]) == 1 and not Keys([])


def test_hosts_that_can_only_be_this_machine() -> None:
    for header in ("localhost", "localhost:80", "LOCALHOST.", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000", "[::1]"):
        assert is_loopback(host_of(header)), header
    for header in ("", "example.org", "localhost.example.org:80", "127.0.0.1.example.org", "10.0.0.1", "[::]", "::1x"):
        assert not is_loopback(host_of(header)), header


def test_without_keys_the_host_and_the_origin_must_be_this_machine(scripted: Running) -> None:
    for host in ("evil.example", "evil.example:8000", "169.254.1.1"):
        for path in ("/v1/models", "/health"):
            response = scripted.http.get(path, headers={"host": host})
            assert response.status_code == 403 and response.json()["error"]["code"] == "host_not_allowed"
    for origin, status in (("http://localhost:3000", 200), ("https://evil.example", 403), ("null", 403)):
        response = scripted.post(CHAT, {"messages": HELLO, "max_tokens": 1}, headers={"origin": origin})
        assert response.status_code == status
        assert not [name for name in response.headers if name.startswith("access-control")]
    assert scripted.raw(b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 403")


def test_no_page_may_ask_unless_its_origin_is_named(tmp_path: Path, locked: Running) -> None:
    page = {"origin": "https://page.example", "access-control-request-method": "POST"}
    response = locked.http.options(CHAT, headers=page)
    assert response.status_code == 401 and "access-control-allow-origin" not in response.headers
    access = Access(keys=KEYS, origins=("https://page.example",))
    with serving(saying(tmp_path, "x"), access=access) as one:
        allowed = one.http.options(CHAT, headers=page)
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"
        assert "access-control-allow-credentials" not in allowed.headers
        other = one.http.options(CHAT, headers={**page, "origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers
        answer = one.post(CHAT, {"messages": HELLO}, headers={"x-api-key": KEYS[0], "origin": page["origin"]})
        assert answer.headers["access-control-allow-origin"] == "https://page.example"


def test_another_address_needs_a_key_or_a_word() -> None:
    assert access_for("127.0.0.1", (), (), no_auth=False).loopback_only
    assert access_for("::1", (), (), no_auth=False).loopback_only
    assert not access_for("127.0.0.1", ("k",), (), no_auth=False).loopback_only
    assert access_for("127.0.0.1", (), (), no_auth=True).loopback_only
    assert not access_for("0.0.0.0", ("k",), (), no_auth=False).loopback_only
    assert not access_for("0.0.0.0", (), (), no_auth=True).loopback_only
    for address in ("0.0.0.0", "::", "192.168.0.7"):
        with pytest.raises(UserError, match="there is no API key"):
            access_for(address, (), (), no_auth=False)


def test_the_log_has_a_line_per_request_and_no_secrets(locked: Running, caplog: pytest.LogCaptureFixture) -> None:
    LOGGER.setLevel(logging.INFO)
    headers = {"authorization": f"Bearer {KEYS[0]}"}
    with caplog.at_level(logging.INFO, logger="stretto.serve"):
        body = {
            "messages": [{"role": "user", "content": "tell nobody"}],
            "user": "x\nlevel=error\x1b[31m",
            "new\r\nline": 1,
        }
        locked.post(CHAT, body, headers={**headers, "x-request-id": "a"})
        locked.http.get("/v1/models/%0aforged", headers={**headers, "x-request-id": "b"})
        locked.post(CHAT, {"messages": HELLO}, headers={"authorization": "Bearer stolen", "x-request-id": "c"})
        while len([r for r in caplog.records if r.getMessage() == "request"]) < 3:
            time.sleep(0.001)  # a line is written when the response has gone
    lines = [Lines().format(record) for record in caplog.records if record.name == "stretto.serve"]
    assert [line.count("\n") + line.count("\x1b") + line.count("\r") for line in lines] == [0] * len(lines)
    text = "".join(lines)
    assert not [secret for secret in (*KEYS, "stolen", "nobody", "open") if secret in text]
    rows = [json.loads(line) for line in lines]
    requests = {row["id"]: row for row in rows if row["event"] == "request"}
    assert {name: row["status"] for name, row in requests.items()} == {"a": 200, "b": 404, "c": 401}
    first = requests["a"]
    assert first["tenant"] == "key-1" and first["finish_reason"] == "stop" and first["ttft_ms"] > 0
    assert requests["b"]["path"] == "/v1/models/\nforged"
    assert [row["fields"] for row in rows if row["event"] == "unknown fields are ignored"] == [["new\r\nline"]]
