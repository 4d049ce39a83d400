"""Worker processes as the benchmark sees them: asked one thing at a time, and stopped while it is not their turn.

A library whose threads spin for a while after their work would otherwise be timed together with the next one. However
the benchmark ends, its workers end with it: `Keeper` sees to it, from a process of its own.
"""

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Self

HERE = Path(__file__).parent
REASON = 300  # most letters of what a system says about a failure


class WorkerError(Exception):
    """A worker could not do what it was asked, with its reason."""


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP unwind this process as Ctrl-C does, so that everything in a `with` block is closed.

    Ctrl-C does so itself, unless the shell that started this process in the background let it be ignored.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)


class Keeper:
    """Starts processes, each in a session of its own, and ends what is left of them at the end of a `with` block.

    If this process is killed instead, its pipe to `keeper.py` ends and that process does the same.
    """

    def __enter__(self) -> "Keeper":
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", str(HERE / "keeper.py")],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
        )  # fmt: skip
        return self

    def __exit__(self, *error: object) -> None:
        self._process.communicate()

    def start(self, command: Sequence[str], **options: Any) -> "subprocess.Popen[str]":
        """A process in a session of its own; options are those of Popen."""
        process = subprocess.Popen(command, start_new_session=True, **options)
        self._say(f"+{process.pid}")
        return process

    def end(self, process: "subprocess.Popen[str]") -> None:
        """Kill what is left of the session of a process, and forget it."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._say(f"-{process.pid}")

    def run(self, command: Sequence[str], **options: Any) -> int:
        """The exit code of a command that is waited for."""
        process = self.start(command, **options)
        try:
            return process.wait()
        finally:
            self.end(process)

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


class Process:
    """A process of its own session, so that a signal reaches its children too. Ended by `close` or a `with` block.

    What it prints goes to a log that goes with it; streams are options of Popen that say otherwise.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], name: str, keeper: Keeper, **streams: Any
    ) -> None:
        self.name, self._keeper = name, keeper
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  for as long as the process
        self.started = time.perf_counter()
        silent = {"stdin": subprocess.DEVNULL, "stdout": self._log, "stderr": self._log}
        self._process = keeper.start(with_variables(command, environment), text=True, **(silent | streams))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close(gently=kind is None)

    @property
    def pid(self) -> int:
        return self._process.pid

    @contextmanager
    def turn(self) -> Iterator[Self]:
        """Let it run inside a `with` block; stopped again afterwards."""
        self._signal(signal.SIGCONT)
        try:
            yield self
        finally:
            self.pause()

    def pause(self) -> None:
        """Stop every thread of it."""
        self._signal(signal.SIGSTOP)

    def peak_bytes(self) -> int:
        """Highest resident memory so far, files mapped into it included, summed over the processes of the session."""
        total = 0
        for folder in self._processes():
            with suppress(FileNotFoundError, ProcessLookupError):  # it may end while we look
                fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
                total += int(fields.get("VmHWM", "0 kB").split()[0]) * 1024
        return total

    def avx512_age(self) -> float | None:
        """Seconds since a thread of it was last seen with AVX-512 state when Linux put it aside; None = never.

        Linux says so of every thread where it is built to. 256-bit instructions of AVX-512 that keep to the registers
        of AVX2 leave no such state and are not seen.
        """
        ages = []
        for folder in self._processes():
            for status in folder.glob("task/*/arch_status"):
                with suppress(FileNotFoundError, ProcessLookupError):
                    ages += [int(line.split(":")[1]) for line in status.read_text().splitlines() if "AVX512" in line]
        seen = [age for age in ages if age >= 0]
        return min(seen) / 1e3 if seen else None

    def _processes(self) -> Iterator[Path]:
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(ProcessLookupError):
                if os.getsid(int(folder.name)) == self._process.pid:
                    yield folder

    def close(self, *, gently: bool = True) -> None:
        """End it, if nobody has; gently: it may end by itself first."""
        if self._log.closed:
            return
        if gently:
            self._signal(signal.SIGCONT)
            with suppress(BrokenPipeError, subprocess.TimeoutExpired):
                self._ask_to_end()
                self._process.wait(10)
        self._keeper.end(self._process)
        self._log.close()

    def _ask_to_end(self) -> None:
        self._signal(signal.SIGTERM)

    def _ended(self) -> str:
        code = self._process.wait(30)
        return f"the process ended with {code}: {last_line(self._log)}"

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):  # it has ended already
            os.killpg(self._process.pid, number)


class Worker(Process):
    """A process that is asked one thing at a time, by lines."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], name: str, keeper: Keeper) -> None:
        super().__init__(command, environment, name, keeper, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, limit_s: float = 900.0, **request: Any) -> dict[str, Any]:
        """The answer to one request. Raises WorkerError if there is an error, no process or no answer in time."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(self._ended()) from error
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(limit_s):
                raise WorkerError(f"no answer to {request['op']!r} in {limit_s:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise WorkerError(self._ended())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(without_folders(" ".join(str(answer["error"]).split()))[:REASON])
        return answer

    def _ask_to_end(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()


def one_process(command: Sequence[str], environment: Mapping[str, str], keeper: Keeper) -> tuple[float, int]:
    """(seconds from start to exit, peak resident bytes) of a command. Raises WorkerError if it fails."""
    timed = [sys.executable, "-S", "-E", str(HERE / "timed.py"), *with_variables(command, environment)]
    with tempfile.TemporaryFile("w+", errors="replace") as out, tempfile.TemporaryFile("w+", errors="replace") as log:
        keeper.run(timed, stdin=subprocess.DEVNULL, stdout=out, stderr=log)
        out.seek(0)
        found: dict[str, Any] = json.loads(out.read() or '{"code": "no answer"}')
        if found["code"] != 0:
            raise WorkerError(f"{Path(command[0]).name} ended with {found['code']}: {last_line(log)}")
    return found["seconds"], found["peak_bytes"]


def with_variables(command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """`command` under these environment variables."""
    return ["env", *(f"{key}={value}" for key, value in environment.items()), *command]


def last_line(log: Any) -> str:
    """What a process said last, from the file that holds it."""
    log.seek(0)
    said = [line.strip() for line in log if line.strip()]
    return said[-1] if said else "it said nothing"


def without_folders(text: str) -> str:
    """`text` with absolute paths cut down to the names of their files: a record is read on other machines."""
    return re.sub(r"(?<![\w.:/])/(?:[^\s/:'\"]+/)+", "", text)
