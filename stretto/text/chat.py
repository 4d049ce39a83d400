"""From a conversation to the text a model was trained to read.

A chat template comes with the model and is code; `sandbox` runs it. Without a template there is no conversation: the
caller refuses and never guesses a format.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError

from stretto.core.errors import ModelFileError, UserError
from stretto.text.conversation import checked_messages, checked_objects, plain
from stretto.text.meter import METER, Meter, Overrun
from stretto.text.sandbox import TemplateEnvironment
from stretto.text.template_reads import reads_parts, variables
from stretto.text.tokenizer import Tokenizer

MAX_OUTPUT = 4 << 20  # characters
MAX_SECONDS = 2.0
MAX_SOURCE = 1 << 20  # characters
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
# What carries content. A switch that a template does not know changes nothing; content that it never reads is lost.
_CONTENT = frozenset({"builtin_tools", "custom_instructions", "documents", "python_tools", "tools", "xml_tools"})
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
        special_tokens: Mapping[str, str] | None = None,
        *,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """Compile `source` (Jinja2, as in tokenizer_config.json).

        special_tokens: what the template may write by name (`bos_token`, `pad_token`, ...); a BOS or EOS that is not
        among them is empty. now: what `strftime_now` shows. Raises ModelFileError if it is no template.
        """
        self.source = source.removeprefix("\ufeff")  # a byte-order mark is no text
        self._special_tokens = {"bos_token": "", "eos_token": "", **(special_tokens or {})}
        if len(source) > MAX_SOURCE:
            raise ModelFileError(f"the chat template has {len(source):,} characters; at most {MAX_SOURCE:,} are taken")
        env = TemplateEnvironment(now)
        try:
            tree = env.syntax(self.source)
            self._as_parts, self._reads = reads_parts(tree), variables(tree)
            self._template = env.from_string(self.source)
        except TemplateSyntaxError as e:
            raise ModelFileError(
                f"the chat template has a syntax error in line {e.lineno}",
                why=e.message,
                try_="--chat-template FILE with another template",
            ) from e
        except (TemplateError, SyntaxError, RecursionError, MemoryError) as e:
            raise ModelFileError("the chat template cannot be compiled", why=_reason(e)) from e

    @staticmethod
    def of(tokenizer: Tokenizer, source: str | None = None) -> "ChatTemplate | None":
        """The template of a model, or `source` in its place, with the model's special tokens; None if there is none."""
        source = tokenizer.chat_template if source is None else source
        return None if source is None else ChatTemplate(source, tokenizer.special_tokens)

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
        be JSON values. The arguments of a tool call are JSON text or an object; the template is given the object.
        tools: JSON objects, as OpenAI's `{"type": "function", "function": {...}}`; an empty list is none. kwargs: names
        of `KWARGS`.

        Raises UserError for anything else, for what the template itself refuses, and for a template that runs too long
        or writes too much. Tools and other content (`documents`, ...) that the template never reads are refused too:
        the model would not see them, and would answer as if they had not been given.
        """
        meter = Meter(MAX_SECONDS)
        given = {"tools": checked_objects(tools, "tools")} | _checked_kwargs(kwargs or {})
        self._check_content_is_read(given)
        variables = (
            self._special_tokens
            | {"documents": None}
            | given
            | {
                "messages": checked_messages(messages, as_parts=self._as_parts),
                "add_generation_prompt": add_generation_prompt,
                METER: meter,
            }
        )
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

    def _check_content_is_read(self, given: Mapping[str, Any]) -> None:
        for name in sorted(_CONTENT & given.keys() - self._reads):
            if given[name]:
                raise UserError(
                    f"the chat template has no place for {name}",
                    why=f"it never reads `{name}`, so the model would not see what was given",
                    try_=f"leave out {name}, or --chat-template FILE with one that reads them",
                )


def chat_ids(
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a conversation: the rendered text, encoded.

    A template writes every special token itself, BOS among them, and for a checkpoint folder nothing is added, whatever
    the tokenizer puts before plain text: so do `apply_chat_template`, vLLM and SGLang. In GGUF files a template may
    leave its BOS to `add_bos_token`: where that is set (`Tokenizer.template_adds_bos`) the BOS comes first, unless the
    template wrote it. Raises UserError without a template, and for what `ChatTemplate.render` refuses.
    """
    if template is None:
        raise UserError(
            "this model has no chat template",
            why="guessing a chat format gives bad answers silently",
            try_="--chat-template FILE, or --raw for a plain continuation",
        )
    text = template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt, kwargs=kwargs)
    ids = tokenizer.encode(text, add_bos=False)
    if tokenizer.template_adds_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
        return [tokenizer.bos_id, *ids]
    return ids


def _reason(e: BaseException) -> str:
    text = str(e) or type(e).__name__
    return text if isinstance(e, TemplateError) else f"{type(e).__name__}: {text}"


def _checked_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    for name in kwargs:
        if name not in KWARGS:
            raise UserError(f"unknown chat template argument {name!r}", why=f"taken are: {', '.join(KWARGS)}")
    return {
        name: checked_objects(value, name) if name == "documents" else plain(value, name)
        for name, value in kwargs.items()
    }
