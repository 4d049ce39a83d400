"""The lines of a batch, in OpenAI's form: requests that are read, answers that are written, and which are there.

    {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}
    {"id": "batch_req_1", "custom_id": "1", "response": {"status_code": 200, "request_id": "...", "body": {...}}, ...}

An answer is one write of one line. What ends a process in the middle of a write leaves a line without an end, which the
next run cuts off: no answer is lost, and none is there twice.
"""

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from stretto.core.errors import RunError, UserError

_SYNC = 64  # answers between two times that the disk is asked to have them
MAX_LINE = 64 << 20  # bytes


class Request(msgspec.Struct, frozen=True):
    """A line of the input. method: POST; url: of a route that takes a body."""

    custom_id: str
    url: str
    body: msgspec.Raw
    method: str = "POST"


class _Named(msgspec.Struct, frozen=True):
    custom_id: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a line of the input stands: number from 1, offset and length in bytes."""

    number: int
    custom_id: str
    start: int
    size: int


def read_places(path: Path, urls: frozenset[str]) -> list[Place]:
    """Every line of the input, checked, in order. Raises UserError that names the line."""
    found: list[Place] = []
    seen: dict[str, int] = {}
    with _opened(path, "rb") as file:
        start = 0
        for number, line in enumerate(file, 1):
            if line.strip():
                one = _request(line, path, number, urls)
                if one.custom_id in seen:
                    raise UserError(
                        f"{path}, line {number}: custom_id {one.custom_id!r:.80} is that of line {seen[one.custom_id]}",
                        why="answers are found by it",
                    )
                seen[one.custom_id] = number
                found.append(Place(number, one.custom_id, start, len(line)))
            start += len(line)
    if not found:
        raise UserError(f"{path} holds no requests")
    return found


def read_request(file: IO[bytes], place: Place) -> Request:
    """The request at a place of the opened input."""
    file.seek(place.start)
    return msgspec.json.decode(file.read(place.size), type=Request)


def _request(line: bytes, path: Path, number: int, urls: frozenset[str]) -> Request:
    where = f"{path}, line {number}"
    if len(line) > MAX_LINE:
        raise UserError(f"{where} has {len(line):,} bytes", why=f"the limit is {MAX_LINE:,}")
    try:
        one = msgspec.json.decode(line, type=Request)
    except msgspec.MsgspecError as problem:
        raise UserError(f"{where} is no request: {problem}", try_='{"custom_id", "method", "url", "body"}') from None
    if one.method != "POST" or one.url not in urls:
        known = ", ".join(sorted(urls))
        raise UserError(f"{where}: {one.method} {one.url!r:.80} is not served", try_=f"POST to one of {known}")
    return one


class Answers:
    """The output: opened for this process alone. ids: of the answers that it holds.

    Raises RunError if another process writes it, UserError for a file that holds something else.
    """

    def __init__(self, path: Path) -> None:
        self._file = _opened(path, "a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise RunError(f"{path} is being written by another process", try_="another output, or wait") from None
        self.ids, self.was_cut, end = set[str](), False, 0
        self._unsynced = 0
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            if not line.endswith(b"\n"):
                self.was_cut = True  # whoever wrote it was ended
                break
            try:
                self.ids.add(msgspec.json.decode(line, type=_Named).custom_id)
            except msgspec.MsgspecError:
                self._file.close()
                raise UserError(f"{path}, line {number} is no answer of a batch", try_="another output") from None
            end += len(line)
        self._file.truncate(end)

    def write(self, answer: dict[str, Any]) -> None:
        """One answer more."""
        line = msgspec.json.encode(answer) + b"\n"
        while line:  # one call, unless a signal or a full disk cuts it short
            line = line[os.write(self._file.fileno(), line) :]
        self.ids.add(answer["custom_id"])
        self._unsynced += 1
        if self._unsynced >= _SYNC:
            self.sync()

    def sync(self) -> None:
        """What was written is on the disk."""
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def close(self) -> None:
        """Let another process have it."""
        self.sync()
        self._file.close()


def answers_in(path: Path) -> Iterator[dict[str, Any]]:
    """Every answer of an output."""
    with _opened(path, "rb") as file:
        yield from map(msgspec.json.decode, file)


def _opened(path: Path, mode: str) -> IO[bytes]:
    try:
        return open(path, mode, buffering=0 if "a" in mode else -1)
    except OSError as problem:
        raise UserError(f"{path}: {(problem.strerror or str(problem)).lower()}") from None
