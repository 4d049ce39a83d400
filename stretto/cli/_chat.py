"""The chat of `stretto run` in a terminal: `/exit` or Ctrl-D leaves, `/reset` forgets, Ctrl-C stops an answer."""

import importlib
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from stretto.cli._answer import Printer, stats
from stretto.cli._terminal import has_colour, note, paint
from stretto.core.errors import UserError, near

if TYPE_CHECKING:
    from stretto.cli._run_options import Options
    from stretto.llm import LLM

_HELP = "/exit or Ctrl-D leaves, /reset starts over, Ctrl-C stops an answer"
_COMMANDS = ("/exit", "/reset", "/help")


def chat(llm: "LLM", options: "Options") -> int:
    """Read, answer, repeat. A turn that fails is taken back; the chat goes on."""
    llm.encode_chat([{"role": "user", "content": "."}])  # without a template there is no chat: say so at once
    with suppress(ImportError):
        importlib.import_module("readline")  # line editing and history for `input`, where Python has it
    note(paint(_HELP, "dim", has_colour(sys.stderr)))
    opening = [{"role": "system", "content": options.system}] if options.system is not None else []
    messages: list[dict[str, Any]] = list(opening)
    while True:
        try:
            line = input(">>> ").strip()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            note(f"\n{_HELP}")
            continue
        if line == "/exit":
            return 0
        if line == "/reset":
            messages = list(opening)
        elif line == "/help":
            note(_HELP)
        elif line.startswith("/") and line[1:].isalpha():
            note(f"unknown command {line}: {near(line, _COMMANDS)}")
        elif line:
            messages.append({"role": "user", "content": line})
            try:
                messages.append({"role": "assistant", "content": answer(llm, options, messages)})
            except UserError as problem:
                messages.pop()
                note("\n".join([*problem.lines(), "the last message was taken back; /reset starts over"]))


def answer(llm: "LLM", options: "Options", messages: list[dict[str, Any]]) -> str:
    """Stream one answer and return it; Ctrl-C ends it after the step that is running."""
    said: list[str] = []
    printer = Printer(llm.tokenizer, options.show_draft)
    told = llm.chat_stream(messages, options.sampling, lora=options.lora_name)
    with _stop_on_sigint() as stopped, closing(printer), closing(told) as chunks:  # type: ignore[type-var]
        for chunk in chunks:
            printer.add(chunk)
            said.append(chunk.text)
            if chunk.result is not None and options.stats:
                printer.close()
                note(stats(chunk.result))
            if stopped:
                break
    return "".join(said)


@contextmanager
def _stop_on_sigint() -> Iterator[list[int]]:
    """A list that fills at the first Ctrl-C. A step is never torn apart; the second Ctrl-C is an ordinary one."""
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if stopped:
            raise KeyboardInterrupt
        stopped.append(number)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGINT, before)
