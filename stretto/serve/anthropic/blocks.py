"""Anthropic's messages as a conversation.

    text                   of the user, the assistant or the system
    thinking               what the assistant thought (`redacted_thinking` holds nothing that could be read)
    tool_use               the assistant calls a function
    tool_result            what the function gave back: a turn of its own for the template

Claude Code begins the system prompt with a line of its own accounting, which differs from request to request. It is
dropped: otherwise no two prompts had more than their first tokens in common, and no prefix could be reused.
"""

import re
from collections.abc import Sequence
from typing import Any

from stretto.serve.anthropic.schema import BlockMessage
from stretto.serve.errors import invalid
from stretto.serve.schema import Message
from stretto.serve.turns import Turns

_BILLING = re.compile(r"\s*x-anthropic-billing-header:[^\n]*\n*", re.I)
_UNREADABLE = ("image", "document", "search_result", "container_upload")


def messages_of(
    messages: Sequence[BlockMessage], system: str | list[dict[str, Any]] | None
) -> tuple[list[Message], list[str]]:
    """The conversation, and the types of blocks that were left out. Raises ApiError."""
    turns, skipped = Turns(), list[str]()
    if texts := system_texts(system):
        turns.say("system", texts)
    for i, message in enumerate(messages):
        _Reader(turns, skipped, message.role, f"messages[{i}].content").read(message.content)
    if turns.ends_with_answer:
        raise invalid("messages: the assistant's last turn cannot be continued; end with one of the user", "messages")
    return turns.messages(), skipped


def system_texts(system: str | list[dict[str, Any]] | None) -> list[str]:
    """The texts of the system prompt, without the lines of accounting before them. Raises ApiError."""
    texts = _texts(system or [], "system")
    while texts and (found := _BILLING.match(texts[0])):
        texts[:1] = [rest] if (rest := texts[0][found.end() :]) else []
    return texts


class _Reader:
    """Blocks of one message."""

    def __init__(self, turns: Turns, skipped: list[str], role: str, where: str) -> None:
        self._turns, self._skipped, self._role, self._where = turns, skipped, role, where
        self._texts: list[str] = []

    def read(self, content: str | list[dict[str, Any]]) -> None:
        if isinstance(content, str):
            self._texts.append(content)
        else:
            for k, block in enumerate(content):
                self._block(block, f"{self._where}[{k}]")
        self._say()

    def _block(self, block: dict[str, Any], where: str) -> None:
        kind = block.get("type")
        if kind == "text":
            self._texts.append(_field(block, "text", where))
        elif kind == "thinking":
            self._turns.think(_field(block, "thinking", where))
        elif kind == "tool_use":
            self._say()
            arguments = block.get("input")
            if not isinstance(arguments, dict):
                raise invalid(f"{where}.input must be an object", f"{where}.input", "invalid_value")
            self._turns.call(_field(block, "id", where), _field(block, "name", where), arguments)
        elif kind == "tool_result":
            self._say()
            texts = _texts(block.get("content") or "", f"{where}.content")
            self._turns.result(_field(block, "tool_use_id", where), texts)
        elif kind in _UNREADABLE:
            raise _unreadable(where)
        else:
            self._skipped.append(str(kind))

    def _say(self) -> None:
        """What has been read so far is said before what comes next."""
        if self._texts and self._role == "assistant":
            self._turns.answer(self._texts)
        elif self._texts:
            self._turns.say(self._role, self._texts)
        self._texts = []


def _texts(content: Any, where: str) -> list[str]:
    if isinstance(content, str):
        return [content] if content else []
    if not isinstance(content, list):
        raise invalid(f"{where} must be text or a list of blocks", where, "invalid_value")
    found = []
    for k, block in enumerate(content):
        if not isinstance(block, dict) or block.get("type") != "text":
            raise _unreadable(f"{where}[{k}]")
        found.append(_field(block, "text", f"{where}[{k}]"))
    return found


def _field(block: dict[str, Any], name: str, where: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise invalid(f"{where}.{name} must be text", f"{where}.{name}", "missing_required_parameter")
    return value


def _unreadable(where: str) -> Exception:
    return invalid(f"{where} is no text block; this model reads text only", where, "unsupported_content")
