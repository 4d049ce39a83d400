"""The parts of an answer while it grows: what was thought, what was said, and which tools are called.

Every API writes the same parts in its own form. Law: however the text is cut into pieces, the parts joined are the
same.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stretto.llm.results import Chunk
from stretto.serve.reasoning import Splitter, Tags
from stretto.text.tool_calls import Argued, Called, Said
from stretto.text.tool_calls import Part as CallPart

__all__ = [
    "Argued",
    "CallPart",
    "CallReader",
    "CallReaders",
    "Called",
    "Part",
    "PartReader",
    "Said",
    "Thought",
    "arguments_of",
]


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of the thinking."""

    text: str


Part = Thought | CallPart


class CallReader(Protocol):
    """Finds the calls in what a model writes. `push` gives out what is certain, `finish` what was held back."""

    def push(self, text: str) -> list[CallPart]: ...

    def finish(self) -> list[CallPart]: ...


CallReaders = Callable[[], CallReader]


class PartReader:
    """Text in, parts out. tags: around the thinking, None = there is none; begins_open: the text begins inside of it;
    calls: None = no tools are offered, so what looks like a call is text."""

    def __init__(self, tags: Tags | None, begins_open: bool = False, calls: CallReader | None = None) -> None:
        self._splitter, self._calls = Splitter(tags, begins_open), calls
        self.tags, self.begins_open = tags, begins_open
        self.num_calls = 0

    def push(self, text: str) -> list[Part]:
        """What `text` makes certain, in order."""
        return self._read(self._splitter.push(text))

    def finish(self) -> list[Part]:
        """What was held back."""
        found = self._read(self._splitter.finish())
        if self._calls is not None:
            found += self._counted(self._calls.finish())
        return found

    def read(self, chunk: Chunk) -> list[Part]:
        """What a chunk makes certain; everything, if it is the last one."""
        return self.push(chunk.text) + (self.finish() if chunk.result is not None else [])

    def whole(self, text: str) -> list[Part]:
        """All parts of a whole answer."""
        return self.push(text) + self.finish()

    def _read(self, pieces: Sequence[tuple[str, str]]) -> list[Part]:
        found: list[Part] = []
        for part, text in pieces:
            if part == "reasoning":
                found.append(Thought(text))
            elif self._calls is None:
                found.append(Said(text))
            else:
                found += self._counted(self._calls.push(text))
        return found

    def _counted(self, parts: list[CallPart]) -> list[CallPart]:
        self.num_calls += sum(isinstance(part, Called) for part in parts)
        return parts


def arguments_of(text: str) -> dict[str, Any] | None:
    """The arguments of a call, from its pieces joined; None if the call broke off, or they are nested too deep."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
