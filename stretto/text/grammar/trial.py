"""Compiling a grammar first where it can do no harm: in a process with little memory, for at most a few seconds.

llguidance 1.9.1 bounds its parser, and not all of its compiler: some short schemas take many seconds and hundreds of
megabytes, and some grammars end the process that compiles them. In the process that serves, either would end every
other request, too.
"""

import json
import select
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from stretto.core.errors import RunError, UserError
from stretto.text.grammar.limits import LIMITS, MEMORY_BYTES, SECONDS
from stretto.text.tokenizer import Tokenizer

_SCRIPT = Path(__file__).with_name("_tried.py")
_START_SECONDS = 30.0  # of Python, on a machine that is busy


class Trials:
    """Processes that compile grammars on trial, as many as are asked at a time. One of them is kept, until nobody holds
    this object any more."""

    def __init__(self, tokenizer: Tokenizer, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES) -> None:
        self._seconds = seconds
        special = tokenizer.special_ids | tokenizer.eos_ids
        self._given = {
            "limits": LIMITS,
            "memory": memory_bytes,
            "size": tokenizer.vocab_size,
            "special": {i: tokenizer.token_text(i) for i in sorted(special)},
            "ends": sorted(tokenizer.eos_ids),
        }
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        weakref.finalize(self, _end, self._idle)

    def check(self, grammar: str, name: str) -> str:
        """llguidance's complaint about its grammar `grammar`, "" if it has none.

        Raises UserError, which starts with `name`, if compiling it takes too long or too much memory, or ends the
        process.
        """
        with self._lock:
            process = self._idle.pop() if self._idle else None
        process = process or _Process(self._given)
        try:
            answer = process.ask(grammar, self._seconds)
        except BaseException:
            process.end()
            raise
        if answer is None:
            is_late = process.end() is None
            raise UserError(
                f"{name} cannot be compiled",
                why=f"it takes more than {self._seconds:g} s" if is_late else "it is too complex: its compiler failed",
                try_="smaller numbers and fewer levels",
            )
        with self._lock:
            keeps = not self._idle
            if keeps:
                self._idle.append(process)
        if not keeps:
            process.end()
        return answer

    def close(self) -> None:
        """End the process that is kept."""
        with self._lock:
            _end(self._idle)


def _end(idle: "list[_Process]") -> None:
    while idle:
        idle.pop().end()


class _Process:
    """It reads grammars, a line of JSON each, and answers each with a line. It ends when its input does.

    given: the first line (`_tried`).
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-P", str(_SCRIPT)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as problem:
            raise RunError("no process can be started that compiles grammars", why=str(problem)) from problem
        if self.ask(given, _START_SECONDS) is None:
            code = self.end()
            raise RunError("the process that compiles grammars does not start", why=f"exit status {code}")

    def ask(self, question: Any, seconds: float) -> str | None:
        """Its answer; None if it has none in time, or ends."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(question).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            return None
        return self._line(seconds)

    def end(self) -> int | None:
        """End it. How it had ended by itself, None if it had not."""
        code = self._child.poll()
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # what was written last has no reader
                pipe.close()
        return code

    def _line(self, seconds: float) -> str | None:
        assert self._child.stdout is not None
        ready, _, _ = select.select([self._child.stdout], [], [], seconds)
        line = self._child.stdout.readline() if ready else b""
        if not line:
            if ready:
                self._child.wait()  # its end was seen before its exit status
            return None
        text: str = json.loads(line)
        return text
