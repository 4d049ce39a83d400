"""Conversations in OpenAI's shape, checked and copied into what chat templates read.

Templates never see an object of the caller's. They see a message as Hugging Face's `apply_chat_template` shows it: no
field that is null, reasoning under each name that templates read it by. What a client sends in another form than
templates read is brought into theirs: the arguments of tool calls travel as JSON text and become the object that they
spell; the content of a message that only calls tools is null and becomes empty text.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from stretto.core.errors import UserError

MAX_MESSAGES = 4096
_MAX_DEPTH = 64
_REASONING = ("reasoning_content", "thinking", "reasoning")  # the first that is given counts


def checked_messages(messages: object, *, as_parts: bool) -> list[dict[str, Any]]:
    """`messages` as a template reads them. as_parts: text parts stay a list; otherwise they are joined by newlines.

    Raises UserError for anything but messages of text.
    """
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise UserError("messages must be a list", try_='[{"role": "user", "content": "Hello"}]')
    if not 0 < len(messages) <= MAX_MESSAGES:
        raise UserError(f"a conversation of {len(messages):,} messages", why=f"from 1 to {MAX_MESSAGES:,} are taken")
    return [_checked_message(message, f"messages[{i}]", as_parts=as_parts) for i, message in enumerate(messages)]


def checked_objects(values: object, name: str) -> list[dict[str, Any]] | None:
    """A list of JSON objects (tools, documents), copied; None if there are none. Raises UserError."""
    if values is None:
        return None
    if not isinstance(values, list | tuple):
        raise UserError(f"{name} must be a list of objects", why=f"found {type(values).__name__}")
    for k, value in enumerate(values):
        if not isinstance(value, Mapping):
            raise UserError(f"{name}[{k}] must be an object", why=f"found {type(value).__name__}")
    return [plain(value, f"{name}[{k}]") for k, value in enumerate(values)] or None


def plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy of a JSON value: templates never see objects of ours. Raises UserError."""
    if depth > _MAX_DEPTH:
        raise UserError(f"{where} is nested more than {_MAX_DEPTH} deep")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {str(key): plain(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, where, depth + 1) for item in value]
    raise UserError(f"{where} holds a {type(value).__name__}", why="only JSON values can be handed to a chat template")


def _checked_message(message: object, where: str, *, as_parts: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UserError(f"{where} needs a role", why='a message is an object with "role" (text) and "content"')
    found: dict[str, Any] = plain({key: value for key, value in message.items() if value is not None}, where)
    reasoning = next((found[name] for name in _REASONING if name in found), None)
    if reasoning is not None:
        found = {"thinking": reasoning, **found, "reasoning_content": reasoning}
    if "tool_calls" in found:
        found["tool_calls"] = _checked_calls(found["tool_calls"], f"{where}.tool_calls")
    if "function_call" in found:
        found["function_call"] = _checked_function(found["function_call"], f"{where}.function_call")
    if "content" not in found and (found.get("tool_calls") or "function_call" in found or reasoning is not None):
        found["content"] = ""  # what says nothing says so with null or without the field; most templates want text
    found["content"] = _checked_content(found.get("content"), f"{where}.content", as_parts=as_parts)
    return found


def _checked_content(content: Any, where: str, *, as_parts: bool) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UserError(f"{where} must be text or a list of text parts", why=f"found {type(content).__name__}")
    for k, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise UserError(f'{where}[{k}] must be {{"type": "text", "text": ...}}', why="this model reads text only")
    return content if as_parts else "\n".join(part["text"] for part in content)


def _checked_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise UserError(f"{where} must be a list of objects", why=f"found {type(calls).__name__}")
    found = []
    for k, call in enumerate(calls):
        if not isinstance(call, dict):
            raise UserError(f"{where}[{k}] must be an object", why=f"found {type(call).__name__}")
        if "function" in call:
            found.append(call | {"function": _checked_function(call["function"], f"{where}[{k}].function")})
        elif "arguments" in call:
            found.append(_checked_function(call, f"{where}[{k}]"))
        else:
            found.append(call)  # of another kind
    return found


def _checked_function(function: Any, where: str) -> dict[str, Any]:
    """A call with its arguments as an object; without arguments, or with empty ones, an empty object."""
    if not isinstance(function, dict):
        raise UserError(f"{where} must be an object", why=f"found {type(function).__name__}")
    return function | {"arguments": _checked_arguments(function.get("arguments"), f"{where}.arguments")}


def _checked_arguments(arguments: Any, where: str) -> dict[str, Any]:
    if isinstance(arguments, dict):
        return arguments
    if arguments is None or arguments == "":
        return {}
    if not isinstance(arguments, str):
        raise UserError(f"{where} must be the text of a JSON object", why=f"found {type(arguments).__name__}")
    try:
        found = json.loads(arguments)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where} is not the text of a JSON object", why=str(e)) from e
    if not isinstance(found, dict):
        raise UserError(f"{where} must be the text of a JSON object", why=f"it spells a {type(found).__name__}")
    return dict(plain(found, where))  # it may be nested too deep, or hold what only Python takes for JSON: NaN
