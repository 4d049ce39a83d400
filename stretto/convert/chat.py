"""From a conversation to the text a model was trained to read.

A chat template comes with the model and is code; `sandbox` runs it. Without a template there is no conversation: the
caller refuses and never guesses a format.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import TemplateError, TemplateSyntaxError

from stretto.convert.meter import METER, Meter, Overrun
from stretto.convert.sandbox import TemplateEnvironment
from stretto.convert.tokenizer import Tokenizer
from stretto.core.errors import ModelFileError, UserError

MAX_MESSAGES = 4096
MAX_OUTPUT = 4 << 20  # characters
MAX_SECONDS = 2.0
MAX_SOURCE = 1 << 20  # characters
_MAX_DEPTH = 64
KWARGS = (
    "builtin_tools",
    "custom_instructions",
    "date_string",
    "documents",
    "enable_thinking",
    "model_identity",
    "preserve_thinking",
    "python_tools",
    "reasoning_effort",
    "thinking",
    "thinking_budget",
    "tools_in_user_message",
    "xml_tools",
)
"""What a request may hand to a template by name; others could switch on what its author did not mean."""
# What a template, or what it is given, can raise besides Jinja's own errors.
_FAILURES = (
    TemplateError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    MemoryError,
)


class ChatTemplate:
    """One model's template. Rendering is bounded: `MAX_SECONDS`, `MAX_OUTPUT`; see `sandbox` for how."""

    def __init__(
        self,
        source: str,
        bos_token: str = "",
        eos_token: str = "",
        *,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """Compile `source` (Jinja2, as in tokenizer_config.json). now: what `strftime_now` shows.

        Raises ModelFileError if it is no template.
        """
        self.source, self._bos, self._eos = source, bos_token, eos_token
        if len(source) > MAX_SOURCE:
            raise ModelFileError(f"the chat template has {len(source):,} characters; at most {MAX_SOURCE:,} are taken")
        env = TemplateEnvironment(now)
        try:
            self._lists = _reads_lists(env.parse(source))
            self._template = env.from_string(source)
        except TemplateSyntaxError as e:
            raise ModelFileError(
                f"the chat template has a syntax error in line {e.lineno}",
                why=e.message,
                try_="--chat-template FILE with another template",
            ) from e
        except (TemplateError, SyntaxError, RecursionError, MemoryError) as e:
            raise ModelFileError("the chat template cannot be compiled", why=_reason(e)) from e

    @staticmethod
    def of(tokenizer: Tokenizer) -> "ChatTemplate":
        """The template of a model. Raises UserError if it has none."""
        if tokenizer.chat_template is None:
            raise UserError(
                "this model has no chat template",
                why="guessing a chat format gives bad answers silently",
                try_="--chat-template FILE, or send plain text",
            )
        ends = sorted(tokenizer.eos_ids)
        eos_id = tokenizer.eos_id if tokenizer.eos_id is not None else next(iter(ends), None)
        return ChatTemplate(
            tokenizer.chat_template,
            "" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id),
            "" if eos_id is None else tokenizer.token_text(eos_id),
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt text of a conversation in OpenAI's shape.

        messages: `role` (str) and `content` (str, list of text parts, or None beside `tool_calls`); further fields must
        be JSON values. kwargs: names of `KWARGS`. Raises UserError for anything else, for what the template itself
        refuses, and for a template that runs too long or writes too much.
        """
        meter = Meter(MAX_SECONDS)
        variables = {
            "messages": _checked_messages(messages, as_lists=self._lists),
            "tools": None if tools is None else _plain(list(tools), "tools"),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self._bos,
            "eos_token": self._eos,
            METER: meter,
        } | _checked_kwargs(kwargs or {})
        parts, size = list[str](), 0
        try:
            for part in self._template.generate(variables):
                parts.append(part)
                size += len(part)
                if size > MAX_OUTPUT:
                    raise Overrun(f"it writes more than {MAX_OUTPUT >> 20} MiB")
        except Overrun as e:
            raise UserError(
                "the chat template was stopped", why=_reason(e), try_="a shorter conversation, or --chat-template FILE"
            ) from e
        except _FAILURES as e:
            raise UserError("the chat template refused this conversation", why=_reason(e)) from e
        return "".join(parts)


def chat_ids(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a conversation: the rendered text with the BOS of the tokenizer, but never two."""
    text = template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt, kwargs=kwargs)
    ids = tokenizer.encode(text)
    if tokenizer.add_bos and ids[:2] == [tokenizer.bos_id] * 2:
        return ids[1:]
    return ids


def _reason(e: BaseException) -> str:
    text = str(e) or type(e).__name__
    return text if isinstance(e, TemplateError) else f"{type(e).__name__}: {text}"


def _checked_messages(messages: object, *, as_lists: bool) -> list[dict[str, Any]]:
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise UserError("messages must be a list", try_='[{"role": "user", "content": "Hello"}]')
    if not 0 < len(messages) <= MAX_MESSAGES:
        raise UserError(f"a conversation of {len(messages):,} messages", why=f"from 1 to {MAX_MESSAGES:,} are taken")
    found = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UserError(f"{where} needs a role", why='a message is an object with "role" (text) and "content"')
        plain = _plain(dict(message), where)
        if "content" in plain or "tool_calls" not in plain:
            plain["content"] = _checked_content(plain, where, as_lists=as_lists)
        found.append(plain)
    return found


def _checked_content(message: Mapping[str, Any], where: str, *, as_lists: bool) -> Any:
    content = message.get("content")
    if isinstance(content, str) or (content is None and message.get("tool_calls")):
        return content
    if not isinstance(content, list):
        raise UserError(f"{where}.content must be text or a list of text parts", why=f"found {type(content).__name__}")
    for k, part in enumerate(content):
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise UserError(
                f'{where}.content[{k}] must be {{"type": "text", "text": ...}}', why="this model reads text only"
            )
    return content if as_lists else "\n".join(part["text"] for part in content)


def _checked_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    for name in kwargs:
        if name not in KWARGS:
            raise UserError(f"unknown chat template argument {name!r}", why=f"taken are: {', '.join(KWARGS)}")
    return {name: _plain(value, name) for name, value in kwargs.items()}


def _plain(value: Any, where: str, depth: int = 0) -> Any:
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
        return {str(key): _plain(item, where, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where, depth + 1) for item in value]
    raise UserError(f"{where} holds a {type(value).__name__}", why="only JSON values can be handed to a chat template")


def _reads_lists(tree: nodes.Template) -> bool:
    """Whether the template loops over the content of a message, so that it wants parts instead of one text."""
    return any(_is_content(loop.iter) for loop in tree.find_all(nodes.For))


def _is_content(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return isinstance(node, nodes.Name) and node.name == "content"
