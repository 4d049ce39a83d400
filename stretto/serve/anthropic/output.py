"""The content of a message: blocks that grow one after the other, and the events that tell it.

    content_block_start, content_block_delta ..., content_block_stop        for every block, by its index

A block of thinking ends with its signature, which is empty here: nobody checks one.
"""

from collections.abc import Sequence
from typing import Any

from stretto.serve.parts import Argued, Called, Part, Said, Thought, arguments_of
from stretto.serve.reply import new_id

Event = dict[str, Any]
_FIELDS = {"text": "text", "thinking": "thinking", "tool_use": "partial_json"}
_DELTAS = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}


class Content:
    """The blocks so far."""

    def __init__(self) -> None:
        self._blocks: list[dict[str, Any]] = []
        self._texts: list[list[str]] = []
        self._is_open = False

    @property
    def blocks(self) -> list[dict[str, Any]]:
        """Whole, for a message that is not streamed. A call that was cut is left out: its input is no object."""
        found = []
        for block, pieces in zip(self._blocks, self._texts, strict=True):
            text = "".join(pieces)
            if block["type"] != "tool_use":
                found.append({**block, block["type"]: text})
            elif (value := arguments_of(text)) is not None:
                found.append({**block, "input": value})
        return found

    def grow(self, parts: Sequence[Part]) -> list[Event]:
        """The events of more parts of the answer."""
        found: list[Event] = []
        for part in parts:
            if isinstance(part, Called):
                found += self._begin({"type": "tool_use", "id": new_id("toolu"), "name": part.name, "input": {}})
                continue
            kind = "text" if isinstance(part, Said) else "thinking" if isinstance(part, Thought) else "tool_use"
            if not self._is_open or self._blocks[-1]["type"] != kind:
                assert not isinstance(part, Argued), "arguments follow the beginning of their call"
                extra = {"signature": ""} if kind == "thinking" else {}
                found += self._begin({"type": kind, kind: "", **extra})
            self._texts[-1].append(part.text)
            found.append(self._delta({"type": _DELTAS[kind], _FIELDS[kind]: part.text}))
        return found

    def finish(self) -> list[Event]:
        """The events of the end."""
        if not self._is_open:
            return []
        self._is_open = False
        last = len(self._blocks) - 1
        is_thinking = self._blocks[last]["type"] == "thinking"
        signature = [self._delta({"type": "signature_delta", "signature": ""})] if is_thinking else []
        return [*signature, {"type": "content_block_stop", "index": last}]

    def _begin(self, block: dict[str, Any]) -> list[Event]:
        found = self.finish()
        self._blocks.append(block)
        self._texts.append([])
        self._is_open = True
        return [*found, {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": block}]

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}
