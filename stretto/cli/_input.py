"""Where prompts come from: the command line, a pipe, a file. No torch here."""

import os
import select
import stat
import sys
from typing import TextIO

from stretto.cli._terminal import is_terminal, note
from stretto.core.errors import RunError, UserError
from stretto.core.files import as_text

PATIENCE = 2.0  # seconds without a byte; then the person is told what is waited for
MOST_BYTES = 64 << 20  # far beyond any context; a program that writes without end must not fill the memory
_BLOCK = 1 << 16


def read_prompt(prompt: str | None, *, alone: str | None, raw: bool = False, no_stdin: bool = False) -> str | None:
    """The prompt: PROMPT of the command line, standard input, or both; None means chat.

    A PROMPT follows the text of a file, pipe or socket on standard input, after a blank line (raw: directly). `-`, or
    no PROMPT where standard input is no terminal, takes standard input alone. One line end at the end of standard input
    is not part of its text; everything else is, spaces too. alone: the flag that excludes a chat, if there is one.
    no_stdin: PROMPT alone. Raises UserError for an empty prompt and for bytes that are no text.
    """
    if prompt == "":
        raise _empty()
    if prompt is None and is_terminal(sys.stdin):
        if alone is not None:
            raise UserError(f"{alone} needs a prompt", try_="a PROMPT, or a pipe")
        return None
    if prompt is not None and prompt != "-":
        if no_stdin or not _brings_text(sys.stdin):
            return prompt
        text = _standard_input("as text before the prompt; --no-stdin leaves it out")
        return text + ("" if raw or not text else "\n\n") + prompt
    text = _standard_input("as the prompt")
    if not text:
        raise _empty()
    return text


def check_utf8(text: str, where: str) -> None:
    """Raise UserError for bytes that Python could only smuggle into a string."""
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise UserError(f"{where} is not UTF-8 text", why=f"byte {problem.start} cannot be read") from None


def _empty() -> UserError:
    return UserError("the prompt is empty", why="a model continues at least one token", try_="a non-empty prompt")


def _descriptor(stream: TextIO | None) -> int | None:
    """None: closed, or a stream of a program that is no file of the system (a notebook's)."""
    if stream is None or stream.closed:
        return None
    try:
        return stream.fileno()
    except OSError:
        return None


def _brings_text(stream: TextIO | None) -> bool:
    """Whether something was put there to be read. Devices are not: terminals wait for a person, /dev/null is empty."""
    file = _descriptor(stream)
    if file is None:
        return False
    mode = os.fstat(file).st_mode
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _standard_input(purpose: str) -> str:
    """All text of standard input. purpose: what the person is told after `PATIENCE` without a byte."""
    file = _descriptor(sys.stdin)
    if file is None:
        raise UserError("there is no prompt", why="standard input is closed", try_="a PROMPT, or a pipe")
    try:
        data = _read_to_end(file, None if is_terminal(sys.stdin) else f"note: reading standard input, {purpose}")
    except OSError as problem:
        raise RunError("standard input cannot be read", why=problem.strerror) from problem
    text = as_text(data, "standard input")
    return text[:-2] if text.endswith("\r\n") else text.removesuffix("\n")


def _read_to_end(file: int, waiting: str | None) -> bytes:
    """Every byte up to the end. waiting: printed once, at the first `PATIENCE` seconds without a byte.

    An open pipe that never sends (inherited from an editor, a cron job) waits for ever, which only a person can notice.
    """
    blocks, size = list[bytes](), 0
    patience = None if waiting is None else 1000 * PATIENCE
    ready = select.poll()  # it takes regular files too, and any number of a file
    ready.register(file, select.POLLIN)
    while True:
        if not ready.poll(patience):
            note(str(waiting))
            patience = None
            continue
        try:
            block = os.read(file, _BLOCK)
        except BlockingIOError:  # the pipe was set not to block, and another reader was faster
            continue
        if not block:
            return b"".join(blocks)
        blocks.append(block)
        size += len(block)
        if size > MOST_BYTES:
            raise UserError(
                f"standard input is larger than {MOST_BYTES >> 20} MiB",
                why="it is read to its end, and no context holds so much",
                try_="the part of it that matters",
            )
