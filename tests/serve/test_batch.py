"""A batch: every line is answered once, as a client would be answered, however often it is ended on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from serving import CHAT, COMPLETIONS, HELLO

from stretto.cli import main
from stretto.core.errors import RunError
from stretto.serve.batch.lines import Answers

SETTINGS = ["--dtype", "float32", "--draft", "none", "--max-seqs", "4"]


def line(custom_id: str, url: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
    made = {"max_tokens": 6, "temperature": 0, **body}
    if url == COMPLETIONS:
        made.setdefault("prompt", f"once upon a time {custom_id}")
    else:
        made.setdefault("messages", HELLO)
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": made}


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


def read(path: Path) -> dict[str, Any]:
    found = [json.loads(text) for text in path.read_text().splitlines()]
    assert len({one["custom_id"] for one in found}) == len(found), "a line is there twice"
    return {one["custom_id"]: one for one in found}


def run(model: Path, source: Path, target: Path, *words: str) -> int:
    return main(["batch", str(model), str(source), str(target), *SETTINGS, *words])


def test_every_line_is_answered_as_by_the_server(folder: Path, tmp_path: Path, capsys: Any) -> None:
    lines = [
        line("a"),
        line("b", CHAT),
        line("n", COMPLETIONS, n=2, seed=1, temperature=1),
        line("wrong", temperature=-1),
        line("stream", stream=True),
        line("other", model="gpt-4"),
    ]
    source, target = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    assert run(folder, source, target, "--json") == 1, "some lines failed"
    found = read(target)
    assert found.keys() == {one["custom_id"] for one in lines}
    status = {name: one["response"]["status_code"] for name, one in found.items()}
    assert status == {"a": 200, "b": 200, "n": 200, "wrong": 400, "stream": 400, "other": 404}
    assert found["a"]["response"]["body"]["object"] == "text_completion"
    assert found["b"]["response"]["body"]["choices"][0]["message"]["role"] == "assistant"
    assert len(found["n"]["response"]["body"]["choices"]) == 2
    assert found["wrong"]["response"]["body"]["error"]["param"] == "temperature"
    assert found["a"]["response"]["request_id"] and found["a"]["error"] is None
    said = json.loads(capsys.readouterr().out)
    assert said["answered"] == 6 and said["failed"] == 3 and said["completion_tokens"] > 0


def test_lines_that_are_answered_are_not_asked_again(folder: Path, tmp_path: Path, capsys: Any) -> None:
    source = write(tmp_path / "in.jsonl", [line(str(i)) for i in range(6)])
    target = tmp_path / "out.jsonl"
    assert run(folder, source, target) == 0
    whole = target.read_bytes()
    kept = whole.splitlines(keepends=True)
    target.write_bytes(b"".join(kept[:3]) + kept[3][:40])  # ended in the middle of a line
    assert run(folder, source, target) == 0
    text = capsys.readouterr().err
    assert "3 of 6 lines are answered" in text and "cut off" in text
    found, before = read(target), {json.loads(one)["custom_id"]: json.loads(one) for one in kept}
    assert target.read_bytes().startswith(b"".join(kept[:3]))
    texts = [
        {name: one["response"]["body"]["choices"][0]["text"] for name, one in all_.items()} for all_ in (found, before)
    ]
    assert texts[0] == texts[1]
    assert run(folder, source, target) == 0 and "nothing is left" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_whatever_ends_it_nothing_is_lost_or_doubled(folder: Path, tmp_path: Path, number: int) -> None:
    lines = [line(str(i), max_tokens=30, ignore_eos=True) for i in range(40)]
    source, target = write(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    words = [sys.executable, "-m", "stretto", "batch", str(folder), str(source), str(target), *SETTINGS]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, env=dict(os.environ))
    until = time.monotonic() + 100
    while not (target.exists() and target.read_bytes().count(b"\n") >= 3):
        assert time.monotonic() < until and process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.002)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    ended = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[signal.Signals(number)]
    assert process.returncode == ended, said
    before = [text for text in target.read_bytes().splitlines(keepends=True) if text.endswith(b"\n")]
    assert 3 <= len(before) < 40, "it was over already"
    assert run(folder, source, target) == 0
    assert len(read(target)) == 40 and target.read_bytes().startswith(b"".join(before))


def test_two_processes_do_not_write_one_output(tmp_path: Path) -> None:
    first = Answers(tmp_path / "out.jsonl")
    with pytest.raises(RunError, match="another process"):
        Answers(tmp_path / "out.jsonl")
    first.close()
    Answers(tmp_path / "out.jsonl").close()


WRONG = {
    "not json": ("{", "line 1 is no request"),
    "no id": ('{"url": "/v1/completions", "body": {}}', "custom_id"),
    "twice": ("\n".join(json.dumps(line("a")) for _ in range(2)), "line 2: custom_id 'a' is that of line 1"),
    "url": (json.dumps({**line("a"), "url": "/v1/other"}), "is not served"),
    "method": (json.dumps({**line("a"), "method": "GET"}), "is not served"),
    "empty": ("\n\n", "holds no requests"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_input_is_refused_before_the_model_is_loaded(tmp_path: Path, capsys: Any, name: str) -> None:
    text, message = WRONG[name]
    source = tmp_path / "in.jsonl"
    source.write_text(text + "\n")
    assert main(["batch", "no-such-model.gguf", str(source), str(tmp_path / "out.jsonl")]) == 2
    assert message in capsys.readouterr().err


def test_another_output_is_refused(tmp_path: Path, capsys: Any) -> None:
    source, target = write(tmp_path / "in.jsonl", [line("a")]), tmp_path / "out.jsonl"
    target.write_text('{"custom_id": "b"}\n')
    assert main(["batch", "x.gguf", str(source), str(target)]) == 2 and "does not hold" in capsys.readouterr().err
    target.write_text("hello\n")
    assert main(["batch", "x.gguf", str(source), str(target)]) == 2 and "no answer" in capsys.readouterr().err
    assert target.read_text() == "hello\n", "what is not ours is not touched"
    assert main(["batch", "x.gguf", str(source), str(source)]) == 2
