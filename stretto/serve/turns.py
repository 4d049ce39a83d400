"""A conversation built from pieces, for APIs that send it as items and blocks and not as messages."""

from typing import Any

from stretto.serve.schema import Message


class Turns:
    """Law: all that the assistant does between two messages of others is one turn, and so is what the system says
    before anybody else: templates want it that way."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._system: list[str] = []
        self._thought: list[str] = []
        self._answer: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._names: dict[str, str] = {}  # of the functions, by the ids of calls

    def say(self, role: str, texts: list[str]) -> None:
        """A message of the system or the user."""
        if role == "system" and not self._messages and not self._is_open:
            self._system += texts
            return
        self._close()
        self._messages.append(Message(role=role, content=_content(texts)))  # type: ignore[arg-type]

    def think(self, text: str) -> None:
        """The assistant thought."""
        self._thought.append(text)

    def answer(self, texts: list[str]) -> None:
        """The assistant said. Without texts, an empty answer."""
        self._answer += texts or [""]

    def call(self, call_id: str, name: str, arguments: Any) -> None:
        """The assistant called a function. arguments: JSON text, or the object."""
        function = {"name": name, "arguments": arguments}
        self._calls.append({"id": call_id, "type": "function", "function": function})
        self._names[call_id] = name

    def result(self, call_id: str, texts: list[str]) -> None:
        """What a function gave back."""
        self._close()
        content = _content(texts)
        self._messages.append(
            Message(role="tool", content=content, tool_call_id=call_id, name=self._names.get(call_id))
        )

    def messages(self) -> list[Message]:
        """All of it."""
        self._close()
        system = [Message(role="system", content="\n\n".join(self._system))] if self._system else []
        return system + self._messages

    @property
    def ends_with_answer(self) -> bool:
        """Whether the assistant had the last word."""
        return self._is_open

    @property
    def _is_open(self) -> bool:
        return bool(self._thought or self._answer or self._calls)

    def _close(self) -> None:
        if not self._is_open:
            return
        reasoning = "\n".join(self._thought) if self._thought else None
        self._messages.append(
            Message(
                role="assistant", content=_content(self._answer), reasoning=reasoning, tool_calls=self._calls or None
            )
        )
        self._thought, self._answer, self._calls = [], [], []


def _content(texts: list[str]) -> str | list[dict[str, Any]]:
    """Text; several as parts, which the conversation joins as it does for everybody."""
    if len(texts) < 2:
        return texts[0] if texts else ""
    return [{"type": "text", "text": text} for text in texts]
