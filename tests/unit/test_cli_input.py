"""Where the prompt of `stretto run` comes from: the command line, standard input, a template; bytes stay."""

import codecs
import io
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

import pytest
import tokenizers
from command import Run, answer

from stretto.cli import _input
from stretto.cli._input import read_prompt
from stretto.core.errors import RunError, UserError

Prompt = Callable[..., str]


@pytest.fixture
def prompt(cli: Run, tiny: Path) -> Prompt:
    """`prompt(*words, stdin=...)`: what the model saw, decoded by the tokenizers package."""
    oracle = tokenizers.Tokenizer.from_file(str(tiny / "tokenizer.json"))

    def call(*words: object, stdin: str | bytes = "") -> str:
        return str(oracle.decode(answer(cli, tiny, "-n", "1", *words, stdin=stdin)["prompt_token_ids"]))

    return call


# -- what reaches the model --------------------------------------------------------------------------------------------


def test_prompts_from_a_template_and_from_standard_input(prompt: Prompt, tiny: Path, cli: Run, tmp_path: Path) -> None:
    assert prompt("hi") == "[user]hi[a]"
    assert prompt("hi", "--system", "be") == "[system]be[user]hi[a]"
    assert prompt(stdin="piped\n") == prompt("-", stdin="piped") == "[user]piped[a]"
    assert prompt("--raw", stdin="two\nlines\n\n") == "two\nlines\n"
    (tmp_path / "own.jinja").write_text("<{{ messages[0].content }}>")
    assert prompt("hi", "--chat-template", tmp_path / "own.jinja") == "<hi>"
    oracle = tokenizers.Tokenizer.from_file(str(tiny / "tokenizer.json"))
    found = json.loads(cli("run", "--raw", "--json", "-n", "1", "--", tiny, "--json")[1])
    assert oracle.decode(found["prompt_token_ids"]) == "--json", "after -- nothing is a flag"


def test_piped_text_comes_before_the_prompt(prompt: Prompt) -> None:
    assert prompt("Sum up", stdin="the report\n") == "[user]the report\n\nSum up[a]"
    assert prompt("Sum up", stdin="the report") == "[user]the report\n\nSum up[a]"
    assert prompt("--raw", " upon", stdin="Once\n") == "Once upon", "nothing between"
    assert prompt("--raw", "x", stdin="a\n\n") == "a\nx", "one line end is not part of the text"
    assert prompt("Sum up", stdin=" \n") == "[user] \n\nSum up[a]", "spaces are text"
    assert prompt("Sum up", stdin="\n") == prompt("Sum up", stdin="\r\n") == "[user]Sum up[a]", "nothing to sum up"
    assert prompt("Sum up", stdin="") == prompt("Sum up", "--no-stdin", stdin="dropped") == "[user]Sum up[a]"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a\r\nb\r\n", "a\r\nb"),
        (b"a\rb\r", "a\rb\r"),
        (b"a\x00b", "a\0b"),
        (b"\xef\xbb\xbfhi\n", "hi"),
        (b"\xef\xbb\xbf\xef\xbb\xbfhi", "\ufeffhi"),
        ("größer\u2028 🎻".encode(), "größer\u2028 🎻"),
    ],
    ids=["CRLF", "CR", "NUL", "mark", "two marks", "beyond ASCII"],
)
def test_text_is_taken_as_it_is(prompt: Prompt, data: bytes, expected: str) -> None:
    assert prompt("--raw", stdin=data) == expected
    assert prompt("--raw", "!", stdin=data) == expected + "!"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (bytes(range(256)), "is not UTF-8 text\nwhy: byte 128 cannot be read"),
        (b"\xed\xa0\x80", "is not UTF-8 text\nwhy: byte 0 cannot be read"),
        (codecs.BOM_UTF16_LE + "hi".encode("utf-16-le"), "is UTF-16 text"),
        (codecs.BOM_UTF16_BE + "hi".encode("utf-16-be"), "is UTF-16 text"),
        (codecs.BOM_UTF32_LE + "hi".encode("utf-32-le"), "is UTF-32 text"),
    ],
    ids=["binary", "surrogate", "UTF-16, little", "UTF-16, big", "UTF-32"],
)
def test_bytes_that_are_no_text_are_refused(cli: Run, tiny: Path, tmp_path: Path, data: bytes, expected: str) -> None:
    for words in ((), ("hi",)):
        code, out, err = cli("run", tiny, *words, stdin=data)
        assert (code, out) == (2, "") and f"standard input {expected}" in err
    template = tmp_path / "own.jinja"
    template.write_bytes(data)
    code, out, err = cli("run", tiny, "hi", "--chat-template", template)
    assert (code, out) == (2, "") and f"{template} {expected}" in err


def test_a_byte_order_mark_of_a_template_is_not_part_of_it(prompt: Prompt, tmp_path: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("<{{ messages[0].content }}>", encoding="utf-8-sig")
    assert prompt("hi", "--chat-template", template) == "<hi>"


@pytest.mark.parametrize("data", ["", "\n", "\r\n", b"\xef\xbb\xbf"])
def test_an_empty_prompt_is_refused(cli: Run, tiny: Path, data: str | bytes) -> None:
    assert cli("run", tiny, stdin=data)[2].startswith("error: the prompt is empty\n")
    assert cli("run", tiny, "", stdin="text")[2].startswith("error: the prompt is empty\n"), (
        "a variable that is not set"
    )


# -- what is read ------------------------------------------------------------------------------------------------------


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str | None]:
    """`take(PROMPT, stream)`: the prompt with this standard input."""

    def call(given: str | None, stream: IO[str] | None) -> str | None:
        monkeypatch.setattr(sys, "stdin", stream)
        return read_prompt(given, alone=None)

    return call


@pytest.fixture
def pipe() -> Iterator[tuple[IO[str], IO[bytes]]]:
    """Its reading end and its writing end, still open."""
    read, write = os.pipe()
    with open(read) as stream, open(write, "wb", buffering=0) as writer:
        yield stream, writer


Take = Callable[..., str | None]


def test_files_pipes_and_sockets_are_read(take: Take, pipe: tuple[IO[str], IO[bytes]], tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a file\n")
    with (tmp_path / "text").open() as stream:
        assert take("x", stream) == "a file\n\nx"
    stream, writer = pipe
    os.set_blocking(stream.fileno(), False)  # what another program left behind
    writer.write(b"a pipe\n")
    writer.close()
    assert take("x", stream) == "a pipe\n\nx"
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs), ours.makefile() as stream:
        theirs.sendall(b"a socket\n")
        theirs.shutdown(socket.SHUT_WR)
        assert take("x", stream) == "a socket\n\nx"


def test_terminals_and_devices_are_not_read_beside_a_prompt(take: Take) -> None:
    keyboard, terminal = pty.openpty()
    os.write(keyboard, b"typed ahead, for the shell\n")
    with open(terminal) as stream:
        assert take("x", stream) == "x"
        assert take(None, stream) is None, "a chat"
        os.write(keyboard, b"\x04")
        assert take("-", stream) == "typed ahead, for the shell", "it was left where it was"
    os.close(keyboard)
    with open(os.devnull) as stream:
        assert take("x", stream) == "x"
        with pytest.raises(UserError, match="the prompt is empty"):
            take(None, stream)


def test_what_cannot_be_read(take: Take) -> None:
    with open(os.devnull, "w") as stream:  # nohup puts it there
        assert take("x", stream) == "x"
        with pytest.raises(RunError, match="standard input cannot be read"):
            take("-", stream)
    with open(os.devnull) as closed:
        pass
    for stream in (None, closed, io.StringIO("of a program, not of the system")):
        assert take("x", stream) == "x"
        with pytest.raises(UserError, match="standard input is closed"):
            take(None, stream)


def test_a_closed_descriptor_is_not_taken_for_a_file() -> None:
    """Python leaves 0 free then, and the next file that is opened gets it."""
    code = (
        "import os, sys; from stretto.cli._input import read_prompt\n"
        "assert os.open(sys.executable, os.O_RDONLY) == 0\n"
        "print(read_prompt('x', alone=None))"
    )
    shell = ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-c", code]
    assert subprocess.run(shell, capture_output=True, text=True, check=True).stdout == "x\n"


def test_a_program_that_writes_without_end_is_stopped(cli: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_input, "MOST_BYTES", 1 << 20)
    code, out, err = cli("run", tiny, "x", stdin="y" * (1 << 20) + "!")
    assert (code, out) == (2, "") and "larger than 1 MiB" in err
    code, out, err = cli("run", tiny, "x", stdin="y" * (1 << 20))
    assert code == 2 and "tokens; the context is 128" in err


# -- waiting -----------------------------------------------------------------------------------------------------------


def test_a_pipe_without_data_is_named_once(
    take: Take, pipe: tuple[IO[str], IO[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, writer = pipe
    said: list[str] = []

    def send_later(line: str) -> None:
        said.append(line)
        writer.write(b"la")
        threading.Timer(0.05, lambda: (writer.write(b"te"), writer.close())).start()

    monkeypatch.setattr(_input, "PATIENCE", 0.01)
    monkeypatch.setattr(_input, "note", send_later)
    assert take("x", stream) == "late\n\nx"
    assert said == ["note: reading standard input, as text before the prompt; --no-stdin leaves it out"]


def test_ctrl_c_ends_the_waiting(tiny: Path) -> None:
    code = "import sys; from stretto.cli import main\nsys.exit(main(sys.argv[1:]))"
    for words, hint in (("run", tiny, "x"), True), (("run", tiny), False):
        command = [sys.executable, "-c", code, *map(str, words)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert child.stdin is not None and child.stderr is not None
        line = child.stderr.readline()
        assert line.startswith("note: reading standard input") and ("--no-stdin" in line) == hint
        child.send_signal(signal.SIGINT)
        assert child.stderr.read() == "interrupted\n" and child.wait(60) == 130
        child.stdin.close()
        child.stderr.close()


def test_the_command_takes_a_pipe_or_leaves_it(tiny: Path) -> None:
    oracle = tokenizers.Tokenizer.from_file(str(tiny / "tokenizer.json"))
    command = [sys.executable, "-m", "stretto", "run", str(tiny), "Sum up", "-n", "1", "--json", "--backend", "torch"]

    def seen(out: str) -> str:
        return str(oracle.decode(json.loads(out)["prompt_token_ids"]))

    done = subprocess.run(command, input="the report\n", capture_output=True, text=True, check=True)
    assert seen(done.stdout) == "[user]the report\n\nSum up[a]" and done.stderr == ""
    child = subprocess.Popen([*command, "--no-stdin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None
    with child.stdin, child.stdout:  # the pipe stays open until the answer is there
        assert seen(child.stdout.read()) == "[user]Sum up[a]" and child.wait(60) == 0
