"""Chat templates of our own in the styles of known families (`*.jinja`), conversations, and what transformers renders.

Each template was written for these tests; the comment on its first line says what its family is known for.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from stretto.core.errors import UserError
from stretto.text.chat import ChatTemplate

FOLDER = Path(__file__).parent
SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))}
NOW = datetime(2026, 3, 4, 5, 6, 7)
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
# What a template, or what it is given, raises in transformers.
REFUSALS = (TemplateError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError)

Messages = Sequence[Mapping[str, Any]]
CITY = {"type": "string", "description": 'Where, as "Bonn"'}
TOOLS: Sequence[Mapping[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather <now> & 'later' für eine Stadt",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": CITY,
                    "days": {"type": "integer", "default": 1},
                    "units": {"type": "array", "items": {"type": "string", "enum": ["C", "F"]}},
                    "near": {"type": "object", "properties": {"name": CITY}, "required": ["name"]},
                },
                "required": ["city"],
            },
            "return": {"type": "object"},
        },
    },
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object"}}},
]
ARGUMENTS = (
    '{"city": "Köln \\"Süd\\"", "days": 2, "limit": 0.5, "raw": true, "units": ["C", null], "near": {"name": "x<y"}}'
)


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """messages: as a client sends them. tools: what comes with them."""

    messages: Messages
    tools: Sequence[Mapping[str, Any]] | None = None

    def parsed(self) -> list[dict[str, Any]]:
        """The messages with the arguments of tool calls as objects, which transformers leaves to its caller."""
        found: list[dict[str, Any]] = json.loads(json.dumps(self.messages))
        for call in (call for message in found for call in message.get("tool_calls") or []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        return found

    def with_empty_text(self) -> "Conversation":
        """The same with empty text in place of null."""
        messages = [{**message, "content": message["content"] or ""} for message in self.messages]
        return replace(self, messages=messages)

    def joined(self) -> "Conversation":
        """The same with the text parts of a message as one text."""
        messages = [
            {**m, "content": "\n".join(part["text"] for part in m["content"])} if isinstance(m["content"], list) else m
            for m in self.messages
        ]
        return replace(self, messages=messages)


USER = {"role": "user", "content": "  Grüße 👩🏽‍💻 \r\nund <b>Fragen</b> & so\n"}
SYSTEM = {"role": "system", "content": "Be terse.\n"}
CONVERSATIONS = {
    "user": Conversation(messages=[USER]),
    "system": Conversation(messages=[SYSTEM, USER]),
    "turns": Conversation(
        messages=[
            USER,
            {"role": "assistant", "content": " Hallo!\n"},
            {"role": "user", "content": "Wie geht's?"},
            {"role": "assistant", "content": "Gut."},
            {"role": "user", "content": "Schön."},
        ]
    ),
    "tools": Conversation(messages=[SYSTEM, {"role": "user", "content": "Regnet es?"}], tools=TOOLS),
    "call": Conversation(
        messages=[
            {"role": "user", "content": "Regnet es?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "call12345", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
                ],
            },
            {"role": "tool", "tool_call_id": "call12345", "name": "weather", "content": '{"rain": "ja"}'},
            {"role": "assistant", "content": "Ja."},
            {"role": "user", "content": "Danke."},
        ],
        tools=TOOLS,
    ),
    "parts": Conversation(
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Erstens."}, {"type": "text", "text": "Zweitens."}]},
            {"role": "assistant", "content": "Gut."},
            {"role": "user", "content": [{"type": "text", "text": "Drittens."}]},
        ]
    ),
    "reasoning": Conversation(
        messages=[
            SYSTEM,
            {"role": "user", "content": "Wieviel ist 6 * 7?"},
            {"role": "assistant", "reasoning_content": "Sechs mal sieben.\n", "content": "42"},
            {"role": "user", "content": "Sicher?"},
            {"role": "assistant", "reasoning_content": "Nochmal: 42.\n", "content": "Ja."},
        ]
    ),
}


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), **SPECIAL_TOKENS)


class _Clock(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return NOW


def reference(source: str, conversation: Conversation, *, add_generation_prompt: bool, **options: Any) -> str | None:
    """What transformers' `apply_chat_template` makes of it at `NOW`; None if it refuses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template_utils, "datetime", _Clock)
        try:
            text: str = _tokenizer().apply_chat_template(
                conversation.parsed(),
                chat_template=source,
                tools=conversation.tools,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **options,
            )
        except REFUSALS:
            return None
    return text


@cache
def _compiled(source: str) -> ChatTemplate:
    return ChatTemplate(source, SPECIAL_TOKENS, now=lambda: NOW)


def rendered(source: str, conversation: Conversation, *, add_generation_prompt: bool, **options: Any) -> str | None:
    """What stretto makes of it at `NOW`; None if it refuses."""
    try:
        return _compiled(source).render(
            conversation.messages,
            tools=conversation.tools,
            add_generation_prompt=add_generation_prompt,
            kwargs=options,
        )
    except UserError:
        return None
