"""Where prompts come from: the command line, a pipe, a file. No torch here."""

import sys
from pathlib import Path

from stretto.cli._terminal import is_terminal
from stretto.core.errors import UserError


def read_prompt(prompt: str | None, *, alone: str | None) -> str | None:
    """The prompt, from the command line or standard input; None means chat.

    alone: the flag that excludes a chat, if there is one. One line end at the end of standard input is not part of the
    prompt. Raises UserError for an empty prompt and for bytes that are no text.
    """
    if prompt is not None and prompt != "-":
        text = prompt
    elif prompt is None and is_terminal(sys.stdin):
        if alone is not None:
            raise UserError(f"{alone} needs a prompt", try_="a PROMPT, or a pipe")
        return None
    else:
        try:
            text = sys.stdin.read() if sys.stdin is not None else ""
        except UnicodeDecodeError as problem:
            raise UserError("standard input is not UTF-8 text", why=str(problem)) from None
        check_utf8(text, "standard input")
        text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise UserError("the prompt is empty", why="a model continues at least one token", try_="a non-empty prompt")
    return text


def check_utf8(text: str, where: str) -> None:
    """Raise UserError for bytes that Python could only smuggle into a string."""
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise UserError(f"{where} is not UTF-8 text", why=f"byte {problem.start} cannot be read") from None


def read_template(path: Path | None) -> str | None:
    """The text of a chat template; UserError if it cannot be read."""
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"--chat-template {path} cannot be read", why=str(problem)) from None
