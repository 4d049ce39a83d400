"""A worker process as the benchmark sees it: asked one thing at a time, and stopped while it is not its turn.

A library whose threads spin for a while after their work would otherwise be timed together with the next one.
"""

import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class WorkerError(Exception):
    """A worker could not do what it was asked, with its reason."""


class Worker:
    """A process of its own session, so that a signal reaches its children too."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], name: str) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  for as long as the process
        variables = [f"{key}={value}" for key, value in environment.items()]
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            ["env", *variables, *command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, start_new_session=True,
        )  # fmt: skip

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
            raise WorkerError(str(answer["error"]).splitlines()[0])
        return answer

    def _ended(self) -> str:
        code = self._process.wait(30)
        self._log.seek(0)
        said = [line.strip() for line in self._log if line.strip()]
        return f"the process ended with {code}: {said[-1] if said else 'it said nothing'}"

    def pause(self) -> None:
        """Stop every thread of it."""
        self._signal(signal.SIGSTOP)

    @contextmanager
    def turn(self) -> Iterator["Worker"]:
        """Let it run inside a `with` block; stopped again afterwards."""
        self._signal(signal.SIGCONT)
        try:
            yield self
        finally:
            self.pause()

    def peak_bytes(self) -> int:
        """Highest resident memory so far, files mapped into it included, summed over the processes of the session."""
        total = 0
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                if os.getsid(int(status.parent.name)) == self._process.pid:
                    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
                    total += int(fields.get("VmHWM", "0 kB").split()[0]) * 1024
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
        return total

    def close(self) -> None:
        """End it, gently if it can be."""
        self._signal(signal.SIGCONT)
        try:
            if self._process.stdin is not None:
                self._process.stdin.close()
            self._process.wait(10)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            pass  # the signal below is for this
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return  # it has ended already
