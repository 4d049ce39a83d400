"""The command `stretto VERB`: one file per verb, imported when it is called. No torch before it is needed.

A verb file has `Options` (a frozen dataclass, see core/option.py), `run(options) -> int` and `EXAMPLES`. Data goes to
standard output, everything for the person to standard error. Whatever goes wrong ends here: see `main` for exit codes.
"""

import contextlib
import errno
import importlib
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, Protocol, cast

import stretto
from stretto.cli import _flags
from stretto.cli._terminal import has_colour, paint
from stretto.core.env import read_display
from stretto.core.errors import FitError, RunError, UserError, near

VERBS: dict[str, str] = {
    "run": "Answer a prompt, or chat in the terminal",
    "serve": "Serve a model to clients of the OpenAI API, with a web page",
    "batch": "Answer the requests of a file into another one",
    "solve": "Search an answer with several texts, under a budget of tokens and seconds",
    "top": "Show what a server is doing: cache, requests, steps",
    "trace": "Record the steps and requests of a server for Perfetto",
    "pull": "Download a model and check it",
    "show": "Say what a model file is, without loading it",
    "list": "List every filler of every socket, and the pulled models",
    "convert": "Write a model in another format",
    "bench": "Measure prefill and decode speed against what this machine allows",
    "doctor": "Say what this machine offers, what was chosen, and why",
}


class Verb(Protocol):
    """What a verb file offers."""

    Options: type
    EXAMPLES: Sequence[str]

    def run(self, options: Any) -> int: ...


class _Termination(BaseException):
    """SIGTERM: unwinds the stack, so that files and processes are closed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: that of the process) and return its exit code.

    0 ok; 1 failed at run time; 2 usage or settings; 3 model file; 4 memory; 5 missing dependency; 130 Ctrl-C; 143
    SIGTERM. Nothing but a bug in STRETTO_TRACEBACK=1 prints a traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a narrow locale must not end an answer
    try:
        with _sigterm():
            code = _dispatch(list(sys.argv[1:] if argv is None else argv))
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
    except KeyboardInterrupt:
        return _say(["interrupted"], 130)
    except _Termination:
        return _say(["terminated"], 143)
    except BrokenPipeError:
        _drop_output()
        return 1
    except UserError as problem:
        return _explain(problem)
    except MemoryError as problem:
        return _explain(_out_of_memory(problem))
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EIO):
            _drop_output()  # or the interpreter fails once more when it flushes at exit
        return _explain(RunError(_os_error(problem), try_=_OS_HINTS.get(problem.errno or 0)))
    except Exception as problem:  # the last stop: anything else is a defect of ours, and never a bare traceback
        if "can't allocate memory" in str(problem) or type(problem).__name__ == "OutOfMemoryError":
            return _explain(_out_of_memory(problem))
        return _bug(problem)


def help_text(verb: str | None) -> str:
    """The help page of a verb, or of the command."""
    if verb is not None:
        module = _verb(verb)
        return _flags.page(module.Options, verb, VERBS[verb], module.EXAMPLES)
    rows = "\n".join(_flags.columns(list(VERBS.items())))
    options = "\n".join(_flags.columns([("-h, --help", "show this page"), ("--version", "show the version")]))
    codes = (
        "exit codes:\n  0 ok, 1 failed at run time, 2 usage or settings, 3 model file bad or unsupported,\n"
        "  4 does not fit in memory, 5 optional dependency missing, 130 Ctrl-C, 143 SIGTERM"
    )
    first = "Run language models from the command line: `stretto run smollm2` chats with a small one."
    return (
        f"usage: stretto VERB ...\n\n{first}\n\nverbs:\n{rows}\n\noptions:\n{options}\n\n{codes}\n\n"
        "`stretto VERB --help` shows the options of a verb; every verb knows --json.\n"
    )


def _dispatch(words: list[str]) -> int:
    if not words:
        sys.stderr.write(help_text(None))
        return 2
    name, rest = words[0], words[1:]
    if name in ("-h", "--help", "help"):
        asked = rest[0] if rest and name == "help" else None
        sys.stdout.write(help_text(asked))
        return 0
    if name == "--version":
        print(f"stretto {stretto.__version__}")
        return 0
    module = _verb(name)
    flags = rest[: rest.index("--")] if "--" in rest else rest
    if "-h" in flags or "--help" in flags:
        sys.stdout.write(help_text(name))
        return 0
    return module.run(_flags.parse(module.Options, rest, name))


def _verb(name: str) -> Verb:
    if name not in VERBS:
        kind = "flag" if name.startswith("-") else "verb"
        raise UserError(f"unknown {kind} {name!r}", try_=near(name, list(VERBS)))
    module = "list_" if name == "list" else name  # a submodule `list` would hide the builtin in this file
    return cast(Verb, importlib.import_module(f"stretto.cli.{module}"))


# -- how things end ----------------------------------------------------------------------------------------------------

_OS_HINTS = {errno.ENOSPC: "free some space, or another disk"}


def _explain(problem: UserError) -> int:
    colour = has_colour(sys.stderr)
    styles = {"error": "bold red", "why": "dim", "try": "cyan"}
    lines = []
    for line in problem.lines():
        label, _, text = line.partition(": ")
        lines.append(f"{paint(label + ':', styles[label], colour)} {text}")
    return _say(lines, problem.exit_code, problem)


def _bug(problem: Exception) -> int:
    text = f"{type(problem).__name__}: {problem}".splitlines()[0]
    lines = [f"error: this is a bug in stretto: {text}"]
    if not read_display().traceback:
        lines.append("try: the same with STRETTO_TRACEBACK=1, and report what it prints")
    return _say(lines, 1, problem)


def _say(lines: Sequence[str], code: int, problem: BaseException | None = None) -> int:
    """Print for the person and hand the exit code on; standard error itself may be closed or full."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stdout is not None:
            sys.stdout.flush()
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            print("\n".join(lines), file=sys.stderr, flush=True)
            if problem is not None and read_display().traceback:
                traceback.print_exception(problem)
    return code


def _out_of_memory(problem: BaseException) -> FitError:
    first = (str(problem) or "no details").splitlines()[0]
    return FitError("not enough memory", why=first, try_="a smaller model, --dtype bfloat16 or a smaller --ctx")


def _os_error(problem: OSError) -> str:
    reason = (problem.strerror or str(problem)).lower()
    return f"{problem.filename}: {reason}" if problem.filename else reason


def _drop_output() -> None:
    """Send what is still buffered for standard output nowhere."""
    with contextlib.suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)


@contextlib.contextmanager
def _sigterm() -> Iterator[None]:
    """SIGTERM raises `_Termination` inside the block (only the main thread may set handlers)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Termination

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
