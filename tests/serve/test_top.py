"""`stretto top` and `stretto trace` against a server of this process."""

import fcntl
import io
import json
import os
import pty
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from serving import Running, serving, tiny

from stretto.cli import main, top, trace
from stretto.cli._server import KEY_VARIABLE
from stretto.serve.address import listen_at

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def locked(folder: Path) -> Iterator[Running]:
    with serving(tiny(folder, draft="ngram:nodes=4"), key="sesame") as one:
        yield one


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)

    def call(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert "Traceback" not in err + out
        return code, out, err

    return call


def test_top_prints_what_the_route_says(locked: Running, cli: Run) -> None:
    locked.chat(max_tokens=20)
    code, out, _ = cli("top", "--url", locked.url, "--api-key", "sesame", "--once", "--json")
    state, expected = json.loads(out), locked.http.get("/stretto/state").json()
    assert code == 0 and state.keys() == expected.keys()
    for name in ("model", "num_steps", "pools", "steps", "histogram", "context"):
        assert state[name] == expected[name]


def test_the_key_may_stand_in_the_environment(locked: Running, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sesame")
    assert cli("top", "--url", f"{locked.url}/", "--once", "--json")[0] == 0


def test_a_picture_has_pools_steps_and_requests(locked: Running, cli: Run) -> None:
    locked.chat(max_tokens=20)
    code, out, _ = cli("top", "--url", locked.url, "--api-key", "sesame", "--once")
    assert code == 0 and "\x1b" not in out
    assert "toy" in out and "pages all" in out and "median" in out and "no requests" in out


def test_requests_stand_in_the_picture() -> None:
    one = {"id": 7, "phase": "decode", "prompt": 1234, "cached": 16, "held": 5, "output": 6, "limit": 89, "pages": 3,
           "age_s": 1.25, "drafted": 40, "accepted": 30, "preemptions": 0}  # fmt: skip
    pool = {"kind": "pages", "name": "all", "total": 100, "free": 70, "used": 25, "idle": 5}
    state = {
        "model": "a\x1b[2Jb", "status": "ready", "backend": "b", "tokens_per_second": 12.3, "running": 1, "max_seqs": 8,
        "waiting": 0, "draft_tokens": 40, "accepted_tokens": 30, "preemptions": 2, "pools": [pool], "steps": [],
        "requests": [one],
    }  # fmt: skip
    file = io.StringIO()
    console = Console(file=file, width=100, color_system=None)
    console.print(top.frame(state, "http://x", 100))
    text = file.getvalue()
    assert "1,234" in text and "30/40" in text and "75% of drafts" in text and "none yet" in text
    assert "25 used, 5 idle, 70 free" in text and "\x1b" not in text
    assert text.count("█") == round(0.25 * 52) + round(0.05 * 52)


@pytest.mark.parametrize("verb", ["top", "trace"])
def test_whoever_is_refused_is_told_why(locked: Running, cli: Run, verb: str, tmp_path: Path) -> None:
    extra = ("--out", tmp_path / "t.json", "--seconds", 0) if verb == "trace" else ()
    code, out, err = cli(verb, "--url", locked.url, "--api-key", "wrong", *extra)
    assert (code, out) == (2, "") and "api key is wrong" in err and "--api-key" in err
    code, _, err = cli(verb, "--url", locked.url + "/nowhere", "--api-key", "sesame", *extra)
    assert code == 1 and "refused" in err
    code, _, err = cli(verb, "--url", "ftp://x", *extra)
    assert code == 2 and "no address" in err
    code, _, err = cli(verb, "--url", "http://x:99999", *extra)
    assert code == 2 and "no address" in err


def test_where_nobody_answers(cli: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code, out, err = cli("top", "--url", f"http://127.0.0.1:{port}", "--once")
    assert (code, out) == (1, "") and "no server answers" in err and "stretto serve" in err
    code, _, err = cli("top", "--url", f"unix:{tmp_path}/none", "--once")
    assert code == 1 and "no such file" in err


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n[]", b"hello\r\n\r\n"])
def test_another_server_is_not_ours(cli: Run, answer: bytes, tmp_path: Path) -> None:
    with listen_at(tmp_path / "s") as listening:

        def serve() -> None:
            one, _ = listening.accept()
            with one:
                one.recv(4096)
                one.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        code, _, err = cli("top", "--url", f"unix:{tmp_path}/s", "--once")
        thread.join(30)
    assert code == 1 and err.startswith("error: ")


def test_ctrl_c_ends_it(locked: Running, cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(top, "time", SimpleNamespace(sleep=sleep))
    code, out, err = cli("top", "--url", locked.url, "--api-key", "sesame", "--json", "--every", 0.5)
    assert code == 130 and looks == [0.5] * 3 and err == "interrupted\n"
    assert [json.loads(line)["model"] for line in out.splitlines()] == ["toy"] * 3


def test_in_a_terminal_it_is_drawn_until_ctrl_c(locked: Running) -> None:
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    words = [sys.executable, "-m", "stretto", "top", "--url", locked.url, "--api-key", "sesame", "--every", "0.1"]
    process = subprocess.Popen(words, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, "TERM": "xterm"})
    os.close(slave)
    seen = b""
    while seen.count(b"tokens/s") < 3:  # drawn again and again
        seen += os.read(master, 65536)
    process.send_signal(signal.SIGINT)
    with suppress(OSError):  # the terminal is gone when its last user is
        while block := os.read(master, 65536):
            seen += block
    os.close(master)
    assert process.wait(30) == 130
    assert (
        seen.index(b"\x1b[?1049h") < seen.index(b"tokens/s") < seen.index(b"\x1b[?1049l") < seen.index(b"interrupted")
    )
    assert b"Traceback" not in seen and seen.count(b"\x1b[?25l") == seen.count(b"\x1b[?25h")  # the cursor is back


def test_a_trace_is_written(locked: Running, cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    locked.chat(max_tokens=5)  # before: not in the file

    def sleep(seconds: float) -> None:
        locked.chat(max_tokens=12)

    clock = iter([0.0, 0.0, 1.5, 3.0])
    monkeypatch.setattr(trace, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: next(clock)))
    out = tmp_path / "trace.json"
    code, said, err = cli("trace", "--url", locked.url, "--api-key", "sesame", "--seconds", 2, "--out", out, "--json")
    assert code == 0, err
    whole: dict[str, Any] = json.loads(out.read_text())
    steps = [one for one in whole["traceEvents"] if one["ph"] == "X"]
    assert sum(one["args"]["emitted"] for one in steps) == 24
    assert len({one["args"]["number"] for one in steps}) == len(steps)
    assert json.loads(said) == {"out": str(out), "steps": len(steps), "requests": 2, "lost": 0}
    assert [one["args"]["name"] for one in whole["traceEvents"] if one["ph"] == "M"] == ["engine of toy", "requests"]


def test_ctrl_c_writes_what_there_is(
    locked: Running, cli: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def sleep(seconds: float) -> None:
        locked.chat(max_tokens=7)
        raise KeyboardInterrupt

    monkeypatch.setattr(trace, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: 0.0))
    out = tmp_path / "trace.json"
    code, _, err = cli("trace", "--url", locked.url, "--api-key", "sesame", "--out", out)
    steps = [one for one in json.loads(out.read_text())["traceEvents"] if one["ph"] == "X"]
    assert code == 130 and sum(one["args"]["emitted"] for one in steps) == 7 and "requests: 1" in err


def test_a_file_that_cannot_be_written_is_refused_before_recording(cli: Run, tmp_path: Path) -> None:
    code, _, err = cli("trace", "--url", "http://127.0.0.1:1", "--out", tmp_path / "none" / "t.json")
    assert code == 2 and "there is no folder" in err
