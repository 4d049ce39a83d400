"""The output of a response: items that grow one after the other, and the events that tell it.

    reasoning        output_item.added, reasoning_summary_part.added, reasoning_summary_text.delta ...,
                     reasoning_summary_text.done, reasoning_summary_part.done, output_item.done
    message          output_item.added, content_part.added, output_text.delta ...,
                     output_text.done, content_part.done, output_item.done
    function_call    output_item.added, function_call_arguments.delta ..., function_call_arguments.done,
                     output_item.done

All names begin with `response.`, and every event says which item it is about.
"""

from collections.abc import Sequence
from typing import Any

from stretto.serve.parts import Argued, Called, Part, Thought
from stretto.serve.reply import new_id

Event = dict[str, Any]


class Output:
    """items: as they are so far. An item is done when the next one begins, or at the end."""

    def __init__(self) -> None:
        self._items: list[_Item] = []
        self._is_open = False

    @property
    def items(self) -> list[dict[str, Any]]:
        """For the response."""
        return [item.value() for item in self._items]

    def grow(self, parts: Sequence[Part]) -> list[Event]:
        """The events of more parts of the answer."""
        found: list[Event] = []
        for part in parts:
            if isinstance(part, Called):
                found += self._begin(_Call(len(self._items), part.name))
                continue
            kind = _Reasoning if isinstance(part, Thought) else _Call if isinstance(part, Argued) else _Text
            if not self._is_open or not isinstance(self._items[-1], kind):
                assert kind is not _Call, "arguments follow the beginning of their call"
                found += self._begin(kind(len(self._items)))
            self._items[-1].text += part.text
            found.append(self._items[-1].event(kind.delta, delta=part.text))
        return found

    def finish(self, *, is_whole: bool) -> list[Event]:
        """The events of the end. is_whole: the answer was not cut. An answer of nothing is a message without text."""
        found = self._begin(_Text(0)) if not self._items else []
        if self._is_open:
            found += self._end("completed" if is_whole else "incomplete")
        return found

    def _begin(self, item: "_Item") -> list[Event]:
        found = self._end("completed") if self._is_open else []
        self._items.append(item)
        self._is_open = True
        return found + item.beginning()

    def _end(self, status: str) -> list[Event]:
        self._is_open = False
        self._items[-1].status = status
        return self._items[-1].ending()


class _Item:
    prefix: str
    delta: str

    def __init__(self, index: int) -> None:
        self._index, self._id = index, new_id(self.prefix)
        self.text, self.status = "", "in_progress"

    def event(self, name: str, /, **fields: Any) -> Event:
        return {"type": f"response.{name}", "item_id": self._id, "output_index": self._index, **self.place, **fields}

    @property
    def place(self) -> dict[str, int]:
        """Where in the item its text stands."""
        return {}

    def value(self) -> dict[str, Any]:
        raise NotImplementedError

    def beginning(self) -> list[Event]:
        return [self._about("output_item.added", self.value())]

    def ending(self) -> list[Event]:
        return [self._about("output_item.done", self.value())]

    def _about(self, name: str, item: dict[str, Any]) -> Event:
        return {"type": f"response.{name}", "output_index": self._index, "item": item}


class _Text(_Item):
    prefix, delta = "msg", "output_text.delta"

    @property
    def place(self) -> dict[str, int]:
        return {"content_index": 0}

    def value(self) -> dict[str, Any]:
        content = [self._part()] if self.status != "in_progress" else []
        return {"id": self._id, "type": "message", "status": self.status, "role": "assistant", "content": content}

    def event(self, name: str, /, **fields: Any) -> Event:
        extra: dict[str, Any] = {"logprobs": []} if name.startswith("output_text.") else {}
        return super().event(name, **fields, **extra)

    def beginning(self) -> list[Event]:
        return [*super().beginning(), self.event("content_part.added", part=self._part())]

    def ending(self) -> list[Event]:
        return [self.event("output_text.done", text=self.text), self.event("content_part.done", part=self._part()),
                *super().ending()]  # fmt: skip

    def _part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": []}


class _Reasoning(_Item):
    prefix, delta = "rs", "reasoning_summary_text.delta"

    @property
    def place(self) -> dict[str, int]:
        return {"summary_index": 0}

    def value(self) -> dict[str, Any]:
        summary = [self._part()] if self.status != "in_progress" else []
        return {"id": self._id, "type": "reasoning", "status": self.status, "summary": summary}

    def beginning(self) -> list[Event]:
        return [*super().beginning(), self.event("reasoning_summary_part.added", part=self._part())]

    def ending(self) -> list[Event]:
        return [self.event("reasoning_summary_text.done", text=self.text),
                self.event("reasoning_summary_part.done", part=self._part()), *super().ending()]  # fmt: skip

    def _part(self) -> dict[str, Any]:
        return {"type": "summary_text", "text": self.text}


class _Call(_Item):
    prefix, delta = "fc", "function_call_arguments.delta"

    def __init__(self, index: int, name: str = "") -> None:
        super().__init__(index)
        self._name, self._call_id = name, new_id("call")

    def value(self) -> dict[str, Any]:
        return {"id": self._id, "type": "function_call", "status": self.status, "call_id": self._call_id,
                "name": self._name, "arguments": self.text}  # fmt: skip

    def ending(self) -> list[Event]:
        done = self.event("function_call_arguments.done", name=self._name, arguments=self.text)
        return [done, *super().ending()]
