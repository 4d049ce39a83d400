"""From loading to the end: what is answered when, signals, addresses, what a start imports."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripted import saying
from serving import CHAT, HELLO, serving

from stretto.cli import main
from stretto.cli._models import client_names
from stretto.cli.serve import Options, keys_of
from stretto.core.errors import RunError, UserError
from stretto.core.settings import Configuration, Settings
from stretto.serve.address import listen, listen_at, resolve, url_of
from stretto.serve.threads import in_thread

LOADING = {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error", "param": None}}


def test_work_in_a_thread_is_awaited_whatever_it_gives() -> None:
    """Nothing is a result, too: who awaits it goes on."""

    async def scene() -> None:
        assert await asyncio.wait_for(in_thread(lambda: None), 30) is None
        assert await asyncio.wait_for(in_thread(lambda: 3), 30) == 3
        with pytest.raises(RunError):
            await asyncio.wait_for(in_thread(lambda: (_ for _ in ()).throw(RunError("x"))), 30)

    asyncio.run(scene())


def test_while_the_model_loads(tmp_path: Path) -> None:
    """Health says so, as llama.cpp's server does; what needs the model is to be asked again."""
    with serving(saying(tmp_path, "x")) as one:
        service, llm = one.service, one.service.llm
        service.state, service._llm = "loading", None
        for path in ("/health", "/v1/health", "/ping", "/ready", "/v1/models"):
            response = one.http.get(path)
            assert (response.status_code, response.json()) == (503, LOADING), path
            assert response.headers["retry-after"] == "1" and "x-should-retry" not in response.headers
        for path, body in ((CHAT, {"messages": HELLO}), ("/tokenize", {"content": "x"})):
            assert one.post(path, body).json() == LOADING
        assert one.http.get("/metrics").status_code == one.http.get("/version").status_code == 200
        service.open(llm)
        assert one.http.get("/health").json() == {"status": "ok"} and one.http.get("/ready").status_code == 200


def test_an_engine_that_has_ended_is_not_healthy(tmp_path: Path) -> None:
    with serving(saying(tmp_path, "x")) as one:
        llm = one.service.llm
        llm._admission.close()
        while not llm.is_over:
            time.sleep(0.001)
        assert one.http.get("/health").status_code == one.http.get("/ready").status_code == 503
        assert one.post(CHAT, {"messages": HELLO}).status_code == 503
        assert one.http.get("/metrics").status_code == 200


def test_draining_lets_what_runs_finish_and_takes_nothing_new(tmp_path: Path) -> None:
    llm = saying(tmp_path, "to the last word")
    with serving(llm, drain_timeout=30.0) as one:
        llm.scripted.gate.close()
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(one.events(max_tokens=100)))
        thread.start()
        while not one.service.llm.num_requests:
            time.sleep(0.001)
        second = httpx.Client(base_url=one.url)  # a connection of before the end
        assert second.get("/ready").status_code == 200
        one.loop.call_soon_threadsafe(one.lifecycle.end)
        while second.get("/ready").status_code == 200:
            pass
        refused = second.post(CHAT, json={"messages": HELLO})
        assert refused.status_code == 503 and refused.headers["retry-after"] == "5"
        assert "shutting down" in refused.json()["error"]["message"]
        assert second.get("/health").status_code == 200, "it is healthy while it drains"
        llm.scripted.gate.open()
        thread.join(20)
        assert found[0][-1] == "[DONE]" and found[0][-2]["choices"][0]["finish_reason"] == "stop"
        second.close()


@pytest.mark.parametrize("how", ["the time is over", "asked twice"])
def test_what_does_not_finish_is_told_so(tmp_path: Path, how: str) -> None:
    llm = saying(tmp_path, "x" * 400)
    with serving(llm, drain_timeout=0.05 if how == "the time is over" else 60.0) as one:
        llm.scripted.gate.close()
        body = {"messages": HELLO, "stream": True, "max_tokens": 300}
        steps = threading.Thread(target=lambda: llm.scripted.gate.let(1))
        steps.start()
        with one.http.stream("POST", CHAT, json=body) as response:
            steps.join()
            blocks = response.iter_bytes()
            next(blocks)
            for _ in range(1 if how == "the time is over" else 2):
                one.loop.call_soon_threadsafe(one.lifecycle.end)
            while one.service.state != "draining" or not one.service.llm._admission._is_over:
                time.sleep(0.001)
            llm.scripted.gate.open()
            last = b"".join(blocks)
        assert b"[DONE]" not in last and json.loads(last.split(b"data: ")[-1])["error"]["code"] == 503


def test_no_response_waits_for_an_acknowledgement(tmp_path: Path) -> None:
    """Nagle's algorithm and delayed ACKs together would add 40 ms to every response."""
    with serving(saying(tmp_path, "x")) as one:
        one.chat()
        sockets = [c.transport.get_extra_info("socket") for c in one.lifecycle._server.server_state.connections]
        assert [s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0 for s in sockets] == [True]


def test_connections_have_a_bound_and_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stretto.serve import lifecycle

    whole = lifecycle.limited
    monkeypatch.setattr(lifecycle, "limited", lambda most: whole(most, header_seconds=0.05))
    with serving(saying(tmp_path, "x"), max_connections=3) as one:
        idle = [socket.create_connection(("127.0.0.1", one.port)) for _ in range(3)]
        idle[0].sendall(b"GET /health HTTP/1.1\r\nhost: loc")
        fourth = one.raw(b"")
        assert fourth == b"" or fourth.startswith(b"HTTP/1.1 503")
        for client in idle:  # a header that never ends is not waited for
            client.settimeout(20)
            assert client.recv(10) == b""
            client.close()
        assert one.http.get("/health").status_code == 200


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, why",
    [
        (["--host", "0.0.0.0"], "there is no API key"),
        (["--host", "::"], "there is no API key"),
        (["--host", "no.such.host.invalid"], "no address of this machine"),
        (["--api-key", "two words"], "printable ASCII without spaces"),
        (["--api-key", ""], "printable ASCII without spaces"),
        (["--api-key", "x", "--no-auth"], "exclude each other"),
        (["--api-key-file", "/no/such/file"], "cannot be read"),
        (["--port", "65536"], "whole number from 0 to 65,535"),
        (["--drain-timeout", "nan"], "finite number"),
        (["--reasoning-format", "some"], "auto or none"),
        (["other", "--replicas", "2"], "serve one model each"),
        (["--models-memory", "1GiB", "--replicas", "2"], "--models-memory with --replicas 2"),
        (["--models-max", "1", "--replicas", "2"], "--models-max with --replicas 2"),
        (["--idle-unload", "9", "--replicas", "2"], "without its model serves nobody"),
        (["--prefix-dir", "/tmp", "--replicas", "2"], "changes one engine"),
        (["other", "--lora", "other=/"], "names 'other' twice"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], why: str
) -> None:
    assert main(["serve", str(folder), *words]) == 2
    assert why in capsys.readouterr().err


def test_a_port_that_is_taken(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(folder), "--port", str(taken.getsockname()[1])]) == 1
    assert "cannot listen on 127.0.0.1" in capsys.readouterr().err


def options(**fields: Any) -> Options:
    return Options(configuration=Configuration(Settings()), **fields)


def test_keys_come_from_flags_and_files_else_from_the_variable(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    assert keys_of(options(model="m", api_key=("x",), api_key_file=file), "env") == ("x", "one", "two")
    assert keys_of(options(model="m"), "env") == ("env",) and keys_of(options(model="m"), "") == ()
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no key"):
        keys_of(options(model="m", api_key_file=file), "env")


def test_clients_are_never_told_a_path() -> None:
    assert client_names(["/secret/place/model.gguf"], ()) == [("model.gguf",)]
    assert client_names(["./folder/"], ()) == [("folder",)]
    assert client_names(["x"], ("a", "b")) == [("a", "b")]
    assert client_names(["x", "y"], ("a", "b")) == [("a",), ("b",)]


def test_addresses(tmp_path: Path) -> None:
    family, address = resolve("localhost", 0)
    with listen(family, address) as one:
        assert url_of(one).startswith("http://") and not url_of(one).endswith(":0")
    path = tmp_path / "s"
    with listen_at(path) as one:
        assert url_of(one) == f"unix:{path}" and path.stat().st_mode & 0o077 == 0
        with pytest.raises(RunError, match="cannot listen"):
            listen_at(path)
    with listen_at(path):
        pass  # the one that was left behind is replaced
    (tmp_path / "file").write_text("kept")
    with pytest.raises(RunError, match="cannot listen"):
        listen_at(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


COMMAND = """
import atexit, sys
from stretto.cli import main
from stretto.cli._models import client_names
atexit.register(lambda: print(len(sys.modules), *({"torch", "numpy", "transformers", "scipy"} & set(sys.modules))))
sys.exit(main(["serve", *sys.argv[1:]]))
"""


class Served:
    """A server in a process of its own."""

    def __init__(self, folder: Path, cache: Path, *words: str) -> None:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("STRETTO_")}
        environ |= {"STRETTO_CACHE": str(cache), "STRETTO_API_KEY": "sesame"}
        command = [sys.executable, "-c", COMMAND, str(folder), "--port", "0", "--json", "--draft", "none", *words]
        self.process = subprocess.Popen(command, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.facts: dict[str, Any] = json.loads(line)
        headers = {"authorization": "Bearer sesame"}
        self.http = httpx.Client(base_url=self.facts["url"], headers=headers, timeout=60)

    def end(self, number: int | None = None) -> tuple[int, str, str]:
        self.http.close()
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    from stretto.core.env import read_env

    found = tmp_path / "cache"
    found.mkdir()
    (found / "native").symlink_to(read_env().cache_dir / "native")
    return found


def test_a_process_that_serves_drains_and_starts_again_without_torch(folder: Path, cache: Path) -> None:
    """Cold first: then SIGTERM while a stream runs, which ends as it should. The second start is warm."""
    body = {"messages": HELLO, "stream": True, "max_tokens": 100, "temperature": 0, "ignore_eos": True}
    cold = Served(folder, cache, "--backend", "native")
    assert cold.facts["kv_tokens"] > 0 and cold.facts["model"] == folder.name
    with cold.http.stream("POST", CHAT, json=body) as response:
        blocks = response.iter_bytes()
        first = next(blocks)
        cold.process.send_signal(signal.SIGTERM)
        whole = first + b"".join(blocks)
    assert whole.endswith(b"data: [DONE]\n\n")
    code, out, err = cold.end()
    assert code == 143 and "torch" in out.splitlines()[-1]
    assert "ready: " in err and "listening on http://127.0.0.1:" in err and "sesame" not in err + out
    requests = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert [r["completion_tokens"] for r in requests if r["event"] == "request"] == [100]

    warm = Served(folder, cache, "--backend", "native")
    with warm.http.stream("POST", CHAT, json=body) as response:
        again = b"".join(response.iter_bytes())
    assert texts(again) == texts(whole)
    for path in ("/metrics", "/openapi.json", "/v1/models"):
        assert warm.http.get(path).status_code == 200
    assert warm.http.get("/v1/models", headers={"authorization": "Bearer x"}).status_code == 401
    code, out, err = warm.end(signal.SIGINT)
    count, *heavy = out.splitlines()[-1].split()
    assert code == 130 and heavy == [] and int(count) <= 650, err


def texts(stream: bytes) -> str:
    events = [json.loads(line[6:]) for line in stream.decode().split("\n\n") if line.startswith("data: {")]
    return "".join(choice["delta"].get("content", "") for event in events for choice in event["choices"])


def test_a_model_that_cannot_be_loaded_ends_the_server(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "config.json").write_text("{}")
    assert main(["serve", str(bad), "--port", "0"]) == 3
    assert "error: " in capsys.readouterr().err
    assert main(["serve", str(folder), "--port", "0", "--mem", "1KiB"]) == 4


@pytest.fixture(autouse=True)
def _log_is_as_before() -> Iterator[None]:
    """The command sends the log to standard error; other tests of this process want it elsewhere."""
    import logging

    loggers = [logging.getLogger(name) for name in ("stretto.serve", "uvicorn.error")]
    before = [(one, list(one.handlers), one.propagate, one.level) for one in loggers]
    yield
    for one, handlers, propagate, level in before:
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)
