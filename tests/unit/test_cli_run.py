"""`stretto run`: answers, drafts that are shown, chats, and torch where nothing can be compiled."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from command import Run, answer

from stretto.cli import _input, main


def test_json_of_an_answer(cli: Run, tiny: Path) -> None:
    oracle = tokenizers.Tokenizer.from_file(str(tiny / "tokenizer.json"))
    found = answer(cli, tiny, "--raw", "hello wörld", "-n", "9", "--seed", "5", "--dtype", "float32", "--draft", "none")
    assert found["prompt_token_ids"] == oracle.encode("hello wörld").ids
    assert len(found["token_ids"]) == 9 or found["finish_reason"] == "stop"
    assert found["text"] == oracle.decode(found["token_ids"])
    assert found["usage"]["prompt_tokens"] == 12 and found["usage"]["completion_tokens"] == len(found["token_ids"])
    assert found["usage"]["total_tokens"] == 12 + len(found["token_ids"])
    assert (found["seed"], found["settings"]["draft"], found["settings"]["dtype"]) == (5, "none", "float32")
    assert found["model"] == str(tiny) and found["backend"] == "torch"
    numbers = ("load_s", "prefill_s", "decode_s", "prompt_per_second", "predicted_per_second")
    assert all(found["timings"][name] > 0 for name in numbers) and found["timings"]["draft_n"] == 0


def test_flags_reach_the_engine(cli: Run, tiny: Path) -> None:
    def ids(*words: object) -> list[int]:
        return list(answer(cli, tiny, "--raw", "abcabcabc", "-n", "24", "--dtype", "float32", *words)["token_ids"])

    greedy = ids("--temp", "0", "--draft", "none")
    assert greedy == ids("--temp", "0", "--draft", "ngram:nodes=5") == ids("--top-k", "1") == ids("--top-p", "1e-9")
    assert greedy == ids("--min-p", "1")
    sampled = ids("--seed", "3", "--draft", "none")
    assert sampled == ids("--seed", "3", "--draft", "ngram") and sampled != ids("--seed", "4", "--draft", "none")
    stop = answer(cli, tiny, "--raw", "abcabcabc", "-n", "24", "--dtype", "float32", "--temp", "0")["text"][4]
    found = answer(cli, tiny, "--raw", "abcabcabc", "-n", "24", "--dtype", "float32", "--temp", "0", "--stop", stop)
    assert found["finish_reason"] == "stop" and stop not in found["text"]


def test_a_prefix_goes_from_one_run_to_the_next(cli: Run, tiny: Path, tmp_path: Path) -> None:
    path, how = tmp_path / "one", ("-n", "4", "--temp", "0", "--dtype", "float32", "--draft", "none")
    first = answer(cli, tiny, "--raw", "abc" * 40, *how, "--save-prefix", path)
    again = answer(cli, tiny, "--raw", "abc" * 40, *how, "--load-prefix", path)
    assert first["usage"]["cached_tokens"] == 0 < again["usage"]["cached_tokens"]
    assert first["token_ids"] == again["token_ids"]
    code, _, err = cli("run", tiny, "--raw", "abc", "--no-stdin", *how, "--load-prefix", tmp_path / "two")
    assert code == 2 and "there is no file" in err


def test_text_goes_to_stdout_and_stats_to_stderr(cli: Run, tiny: Path) -> None:
    words = ("run", tiny, "--raw", "abcabc", "-n", "12", "--temp", "0", "--dtype", "float32")
    text = json.loads(cli(*words, "--json")[1])["text"]
    code, out, err = cli(*words, "--stats", "--draft", "none")
    assert code == 0 and out == text + ("" if text.endswith("\n") else "\n")
    for row in ("time to first token", "prefill", "decode", "tokens per step", "drafted, accepted"):
        assert f"\n{row} " in err
    assert "1.00" in err and cli(*words)[2] == ""


def test_show_draft_marks_what_was_accepted_and_rejected(cli: Run, tiny: Path) -> None:
    words = ("run", tiny, "--raw", "abcabcabc", "-n", "60", "--temp", "0", "--dtype", "float32")
    words += ("--draft", "ngram:nodes=4")
    found = json.loads(cli(*words, "--json")[1])
    out = cli(*words, "--show-draft")[1]
    accepted = out.count("{+")
    assert found["timings"]["draft_n"] > found["timings"]["draft_n_accepted"] and "[-" in out
    assert bool(accepted) == bool(found["timings"]["draft_n_accepted"])


class Typist:
    """Stands for a person: answers `input` with the lines, then Ctrl-D; an exception is raised instead."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self.lines = list(lines)

    def __call__(self, prompt: str = "") -> str:
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, str):
            return line
        raise line


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, tiny: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """A chat with the tiny model in a pretended terminal; returns also the conversations that were sent."""

    def call(*lines: str | type[BaseException], flags: Sequence[str] = ()) -> tuple[int, str, str]:
        monkeypatch.setattr("builtins.input", Typist(*lines))
        monkeypatch.setattr(_input, "is_terminal", lambda stream: True)
        code = main(["run", str(tiny), "--temp", "0", "-n", "5", "--dtype", "float32", *flags])
        return (code, *capsys.readouterr())

    return call


def test_chat_keeps_the_conversation_until_reset(chat: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from stretto.llm import LLM

    sent: list[list[str]] = []
    original = LLM.chat_stream

    def spy(self: LLM, messages: Any, sampling: Any = None, **options: Any) -> Any:
        sent.append([message["role"][0] + ":" + str(message["content"]) for message in messages])
        return original(self, messages, sampling, **options)

    monkeypatch.setattr(LLM, "chat_stream", spy)
    code, _, err = chat(
        "one", KeyboardInterrupt, "two", "/rset", "/reset", "three", "", "/exit", "four", flags=["--system", "S"]
    )
    assert code == 0 and "did you mean /reset" in err
    first = sent[1][2]
    assert sent == [["s:S", "u:one"], ["s:S", "u:one", first, "u:two"], ["s:S", "u:three"]] and first[:2] == "a:"


def test_a_turn_that_does_not_fit_is_taken_back(chat: Run) -> None:
    code, out, err = chat("long " * 40, "ok")
    assert code == 0 and "error: the prompt has 208 tokens; the context is 128" in err and "taken back" in err
    assert out.strip(), "the chat goes on"


def test_ctrl_c_stops_one_answer_and_keeps_the_chat(chat: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from stretto.llm import LLM

    original, pieces = LLM.chat_stream, list[int]()

    def interrupted(self: LLM, messages: Any, sampling: Any = None, **options: Any) -> Any:
        pieces.append(0)
        for chunk in original(self, messages, sampling, **options):
            pieces[-1] += 1
            if len(pieces) == 1:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)  # Python runs the handler at the next instruction of the main thread
            yield chunk

    monkeypatch.setattr(LLM, "chat_stream", interrupted)
    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)  # a shell may have left it ignored
    code, _, _ = chat("one", "two", flags=["--draft", "none"])
    assert code == 0 and pieces[0] == 1 and pieces[1] == 5
    assert signal.getsignal(signal.SIGINT) is before


# -- without native kernels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_there", [False, True], ids=["no compiler", "a compiler that fails"])
def test_torch_answers_where_nothing_can_be_compiled(cli: Run, tiny: Path, tmp_path: Path, is_there: bool) -> None:
    tools, cache = tmp_path / "tools", tmp_path / "empty"
    tools.mkdir()
    if is_there:
        (tools / "c++").write_text("#!/bin/sh\necho no space in the register >&2\nexit 1\n")
        (tools / "c++").chmod(0o755)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STRETTO_")}
    environ |= {"PATH": str(tools), "STRETTO_CACHE": str(cache)}
    run = ["run", "--json", str(tiny), "Hello", "-n", "4", "--temp", "0"]

    def start(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "stretto", *run, *words]
        return subprocess.run(command, capture_output=True, text=True, env=environ, stdin=subprocess.DEVNULL)

    done = start()
    lines = done.stderr.splitlines()
    reasons = [line for line in lines if "not on the native kernels" in line]
    assert done.returncode == 0 and len(reasons) == 1 and len(lines) == (2 if is_there else 1), done.stderr
    answer, want = json.loads(done.stdout), json.loads(cli(*run, "--backend", "torch")[1])
    assert answer["backend"] == "torch" and answer["token_ids"] == want["token_ids"] and len(want["token_ids"]) == 4
    if is_there:
        assert "compiling the native kernels" in lines[0]
        log = next(Path(word) for word in re.split("[ ;]+", reasons[0]) if word.endswith(".log"))
        assert log.is_relative_to(cache) and "no space in the register" in log.read_text()
    else:
        assert "no C++ compiler" in reasons[0] and not (cache / "native").exists()

    done = start("--backend", "native")
    lines = done.stderr.splitlines()[is_there:]
    assert (done.returncode, done.stdout) == (2, "") and [line.partition(":")[0] for line in lines] == [
        "error",
        "why",
        "try",
    ]
    assert ("do not compile" if is_there else "no C++ compiler") in lines[1]
