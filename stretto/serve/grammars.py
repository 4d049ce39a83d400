"""What a conversation's answer must look like, as a grammar: `response_format`, and calls of tools.

A grammar begins after the thinking, if there will be any. Templates either open it in the prompt, or close it there
at once (thinking is switched off), or leave it to the model: a template with a switch for it then means that the model
thinks.
"""

from typing import Any

from stretto.core.errors import UserError
from stretto.core.grammar import Grammar, TokenMatcher
from stretto.core.sampling import Sampling
from stretto.llm.asynchronous import AsyncLLM
from stretto.serve.errors import ApiError, invalid, of_problem
from stretto.serve.reasoning import Tags, is_open
from stretto.serve.schema import ChatRequest
from stretto.text.tokenizer import Tokenizer
from stretto.text.tools import ToolFormat, read_tools, tools_grammar

_SWITCH = "enable_thinking"


def grammar_of(
    request: ChatRequest, tokenizer: Tokenizer, form: ToolFormat | None, *, after: str | None
) -> Grammar | None:
    """The grammar of an answer; None = it is free. form: how this model writes calls; after: what ends its thinking.
    Raises ApiError."""
    wanted = _format(request.response_format, after)
    choice = _choice(request.tool_choice)
    if not request.tools or choice == "none":
        if choice not in ("auto", "none"):
            raise invalid("tool_choice: there are no tools to call", "tool_choice", "invalid_value")
        return wanted
    if form is None:
        if choice != "auto":
            raise _refused("tool_choice", "the chat template of this model shows no form of calls that is known")
        if request.parallel_tool_calls is False:
            raise _refused(
                "parallel_tool_calls", "the chat template of this model shows no form of calls that is known"
            )
        return wanted
    if wanted is not None:
        raise _refused("response_format", "it cannot be combined with tools; `tool_choice` none leaves them out")
    try:
        return tools_grammar(read_tools(request.tools), form, tokenizer, choice=choice,
                             parallel=request.parallel_tool_calls is not False, after=after)  # fmt: skip
    except UserError as problem:
        raise of_problem(problem, "tool_choice" if choice not in ("auto", "required") else "tools") or problem from None


async def matchers_of(llm: AsyncLLM, sampling: Sampling, count: int, param: str) -> list[TokenMatcher | None]:
    """What follows the grammar of `sampling`, for each of `count` requests. param: where the grammar was asked for.
    Raises ApiError for one that cannot be used."""
    if sampling.grammar is None:
        return [None] * count
    try:
        return await llm.offload(lambda: [llm.llm.matcher(sampling) for _ in range(count)])
    except UserError as problem:
        raise of_problem(problem, param) or problem from None


def thinking_end(prompt: str, tags: Tags | None, template: str | None) -> str | None:
    """What ends the thinking that an answer to this prompt begins with; None if there will be none. prompt: its end."""
    if tags is None or prompt.rstrip().endswith(tags.closing):
        return None
    return tags.closing if is_open(prompt, tags) or _SWITCH in (template or "") else None


def _format(given: dict[str, Any] | None, after: str | None) -> Grammar | None:
    if given is None or (kind := given.get("type")) == "text":
        return None
    try:
        if kind == "json_object":
            return Grammar.json_object(after=after)
        if kind == "json_schema":
            schema = (given.get("json_schema") or {}).get("schema")
            if not isinstance(schema, dict | bool):
                raise invalid(
                    "response_format: json_schema.schema must be an object", "response_format", "invalid_value"
                )
            return Grammar.json_schema(schema, after=after)
    except UserError as problem:
        raise of_problem(problem, "response_format") or problem from None
    raise invalid("response_format: its type must be text, json_object or json_schema", "response_format",
                  "invalid_value")  # fmt: skip


def _choice(given: str | dict[str, Any] | None) -> str:
    """`none`, `auto`, `required`, or the name of a function."""
    if given in ("none", "auto", "required"):
        return str(given)
    if given is None:
        return "auto"
    function = given.get("function") if isinstance(given, dict) and given.get("type") == "function" else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or name in ("none", "auto", "required"):
        raise invalid("tool_choice: none, auto, required, or a function by its name", "tool_choice", "invalid_value")
    return name


def _refused(name: str, why: str) -> ApiError:
    return invalid(f"{name}: {why}", name, "unsupported")
