"""The input of `/v1/responses` as a conversation.

    message                 a turn of the user, the system or the assistant, text only
    reasoning               what the assistant thought: its content, else its summary
    function_call           the assistant calls a function
    function_call_output    what the function gave back

Items of other types belong to tools of OpenAI's own and are left out, with a line in the log.
"""

from typing import Any

from stretto.serve.errors import invalid
from stretto.serve.schema import Message
from stretto.serve.turns import Turns

_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_ROLES = ("user", "assistant", "system", "developer")


def messages_of(given: str | list[dict[str, Any]], instructions: str | None) -> tuple[list[Message], list[str]]:
    """The conversation, and the types of items that were left out. Raises ApiError."""
    turns, skipped = Turns(), list[str]()
    if instructions:
        turns.say("system", [instructions])
    for i, item in enumerate([{"role": "user", "content": given}] if isinstance(given, str) else given):
        where, kind = f"input[{i}]", item.get("type", "message")
        if kind == "message":
            _message(turns, item, where)
        elif kind == "reasoning":
            for text in texts_of(item.get("content") or item.get("summary"), f"{where}.content"):
                turns.think(text)
        elif kind == "function_call":
            call_id, name = _text(item, "call_id", where), _text(item, "name", where)
            turns.call(call_id, name, _text(item, "arguments", where))
        elif kind == "function_call_output":
            turns.result(_text(item, "call_id", where), texts_of(item.get("output"), f"{where}.output"))
        elif kind == "item_reference":
            raise invalid(f"{where}: nothing is stored here, so an item cannot be referred to", where, "unsupported")
        else:
            skipped.append(str(kind))
    messages = turns.messages()
    if not messages:
        raise invalid("input: there is no item that this model can read", "input")
    return messages, skipped


def texts_of(content: Any, where: str) -> list[str]:
    """The texts of a content, which is a text or a list of parts. Raises ApiError for other parts."""
    if content is None:
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        raise invalid(f"{where} must be text or a list of parts", where, "invalid_value")
    found = []
    for k, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else None
        if kind not in (*_TEXTS, "refusal"):
            raise invalid(
                f"{where}[{k}] is no text part; this model reads text only", f"{where}[{k}]", "unsupported_content"
            )
        if not isinstance(text, str):
            raise invalid(f"{where}[{k}].text is missing", f"{where}[{k}].text", "missing_required_parameter")
        found.append(text)
    return found


def _message(turns: Turns, item: dict[str, Any], where: str) -> None:
    role, texts = item.get("role"), texts_of(item.get("content"), f"{where}.content")
    if role not in _ROLES:
        raise invalid(f"{where}.role must be one of {', '.join(_ROLES)}", f"{where}.role", "invalid_value")
    if role == "assistant":
        turns.answer(texts)
    else:
        turns.say("system" if role == "developer" else role, texts)


def _text(item: dict[str, Any], name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise invalid(f"{where}.{name} must be text", f"{where}.{name}", "missing_required_parameter")
    return value
