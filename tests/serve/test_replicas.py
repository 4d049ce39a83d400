"""`stretto serve --replicas 2`: real processes, one of which is killed while it works."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from serving import CHAT, HELLO

from stretto.cli._replicas import command, environ, settings_of
from stretto.cli.serve import FRONT_VARIABLE, Options
from stretto.core.settings import Configuration, Settings, configure

WORDS = ["--replicas", "2", "--port", "0", "--json", "--draft", "none", "--drain-timeout", "20"]


class Replicated:
    """The front process and its replicas."""

    def __init__(self, folder: Path) -> None:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("STRETTO_")} | {"STRETTO_API_KEY": "sesame"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stretto", "serve", str(folder), *WORDS],
            env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "it did not start"
        self.facts: dict[str, Any] = json.loads(line)
        headers = {"authorization": "Bearer sesame"}
        self.http = httpx.Client(base_url=self.facts["url"], headers=headers, timeout=60)

    @property
    def replicas(self) -> list[psutil.Process]:
        """The processes behind the front, as the system knows them."""
        children = psutil.Process(self.process.pid).children()
        return [one for one in children if "serve" in one.cmdline()]

    def close(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=60)


@pytest.fixture
def served(folder: Path) -> Iterator[Replicated]:
    one = Replicated(folder)
    yield one
    one.close()


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def asked(one: Replicated, seed: int, stream: bool) -> tuple[int, str, bool]:
    """Status, text, and whether the answer ended as it should."""
    body = {"messages": HELLO, "seed": seed, "temperature": 1.0, "max_tokens": 100, "ignore_eos": True}
    response = one.http.post(CHAT, json={**body, "stream": stream})
    if response.status_code != 200:
        assert response.json()["error"]["code"] == "replica_lost"
        return response.status_code, "", False
    if not stream:
        return 200, response.json()["choices"][0]["message"]["content"], True
    events = [json.loads(line[6:]) for line in response.text.split("\n\n") if line.startswith("data: {")]
    text = "".join(c["delta"].get("content", "") for e in events if "error" not in e for c in e["choices"])
    is_whole = response.text.endswith("data: [DONE]\n\n")
    assert is_whole or events[-1]["error"]["code"] == "replica_lost"
    return 200, text, is_whole


@pytest.mark.full
def test_a_replica_is_killed_under_load(served: Replicated) -> None:
    """Every answer is right, or a beginning that says it is none; whole answers are asked of the other replica. Then
    there are two again."""
    expected = {seed: asked(served, seed, False)[1] for seed in range(8)}
    first = {one.pid for one in served.replicas}
    assert len(first) == 2
    with ThreadPoolExecutor(16) as threads:
        wanted = [(i % 8, i % 2 == 0) for i in range(240)]
        found = [threads.submit(asked, served, seed, stream) for seed, stream in wanted]
        until(lambda: sum(one.done() for one in found) > 40)
        os.kill(next(iter(first)), signal.SIGKILL)
        results = [one.result() for one in found]
    for (seed, stream), (_, text, is_whole) in zip(wanted, results, strict=True):
        assert text == expected[seed] if is_whole else expected[seed].startswith(text)
        assert is_whole or stream, "nothing had been sent: the other one was asked"
    until(lambda: len({one.pid for one in served.replicas} - first) == 1)
    until(lambda: 'num_requests_running{replica="0"' in (page := served.http.get("/metrics").text)
          and 'num_requests_running{replica="1"' in page)  # fmt: skip
    assert all(asked(served, seed, True) == (200, text, True) for seed, text in expected.items())


@pytest.mark.full
def test_sigterm_drains_and_leaves_no_process(served: Replicated) -> None:
    replicas = served.replicas
    body = {"messages": HELLO, "stream": True, "max_tokens": 100, "ignore_eos": True}
    with served.http.stream("POST", CHAT, json=body) as response:
        blocks = response.iter_bytes()
        whole = next(blocks)
        served.process.send_signal(signal.SIGTERM)
        whole += b"".join(blocks)
    assert whole.endswith(b"data: [DONE]\n\n")
    assert served.process.wait(60) == 143
    assert len(replicas) == 2 and not any(one.is_running() for one in replicas)


@pytest.mark.full
def test_replicas_end_with_a_front_that_is_killed(served: Replicated) -> None:
    replicas = served.replicas
    assert len(replicas) == 2 and served.http.get("/v1/models", headers={"authorization": "no"}).status_code == 401
    served.process.kill()
    gone, alive = psutil.wait_procs(replicas, timeout=30)
    assert len(gone) == 2 and not alive


@pytest.mark.full
def test_a_replica_that_stands_still_is_replaced(served: Replicated) -> None:
    first = {one.pid for one in served.replicas}
    os.kill(next(iter(first)), signal.SIGSTOP)
    until(lambda: len(first & {one.pid for one in served.replicas}) == 1, 90)
    until(lambda: len(served.replicas) == 2)


@pytest.mark.full
def test_a_model_that_cannot_be_loaded_ends_all(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-m", "stretto", "serve", str(tmp_path), *WORDS],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 3 and "before it was ready" in done.stderr


# -- how a replica is started ------------------------------------------------------------------------------------------


def test_no_key_stands_on_a_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRETTO_API_KEY", "sesame")
    monkeypatch.setenv("STRETTO_ADMIN_KEY", "root")
    options = Options(
        model="m", api_key=("sesame",), admin_key=("root",), replicas=2, configuration=Configuration(Settings())
    )
    words = command(options, tmp_path)
    assert not {"sesame", "root", "run-key"} & set(words) and "--served-model-name" in words
    variables = environ("run-key")
    assert variables[FRONT_VARIABLE] == "run-key" and not {"sesame", "root"} & set(variables.values())


def test_settings_are_passed_on_and_the_machine_is_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(9)))
    monkeypatch.setattr("stretto.cli._replicas.available_memory", lambda: 4000 << 20)
    (tmp_path / "model.safetensors").write_bytes(bytes(100))
    given = configure({"context": ["4096"]}, environ={"STRETTO_MAX_SEQS": "7"})
    words = settings_of(given, 4, tmp_path)
    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        "--ctx": "4096",
        "--max-seqs": "7",
        "--threads": "2",
        "--mem": str((900 << 20) - 200),
    }
    said = configure({"threads": ["3"], "memory": ["1GiB"]}, environ={})
    assert settings_of(said, 4, tmp_path) == ["--mem", "1GiB", "--threads", "3"]
