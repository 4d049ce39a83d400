"""`constrain`: what an answer may be, from the form and the tools of its request: the one way there, for every API.

    a form                          the text has it, behind the thinking
    tools, called by their format   text and calls (auto), calls only (required, or one by its name)
    a budget alone                  the thinking ends in time, and what follows is free

Grammars are compiled in the threads that encode prompts, and every answer has a matcher of its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stretto.core.errors import UserError
from stretto.core.grammar import Grammar, TokenMatcher
from stretto.core.sampling import Sampling
from stretto.llm.asynchronous import AsyncLLM
from stretto.serve.call import Call
from stretto.serve.errors import ApiError, invalid
from stretto.serve.forms import form_of, grammar_refused
from stretto.serve.reasoning import Tags
from stretto.serve.schema import ChatRequest, Sampled
from stretto.text.tokenizer import Tokenizer
from stretto.text.tools import Tool, ToolFormat, read_tools, tools_grammar

_ANYTHING = "(?s).*"
_MODES = ("auto", "none", "required")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an answer is written. tokenizer: of the model; calls: how its calls are written, None = not in a way that
    is known here; thinking: the tags of the thinking that comes first, None = none does."""

    tokenizer: Tokenizer
    calls: ToolFormat | None = None
    thinking: Tags | None = None

    @property
    def after(self) -> str | None:
        """Behind which text a grammar begins."""
        return self.thinking.closing if self.thinking is not None else None


@dataclass(frozen=True, slots=True)
class Constraint:
    """The grammar of an answer, and a matcher for each of its answers. Without a grammar, any text will do."""

    grammar: Grammar | None
    matchers: Sequence[TokenMatcher | None]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """param: the field that says so; make: the grammar; instead: the one that is used if that cannot be, with a line in
    the log."""

    param: str
    make: Callable[[], Grammar]
    instead: Callable[[], Grammar] | None = None


async def constrain(call: Call, llm: AsyncLLM, request: Sampled, place: Place, count: int) -> Constraint:
    """The constraint of `count` answers to a request. Raises ApiError, under the field that says what cannot be."""
    none = Constraint(None, [None] * count)
    if count > llm.max_waiting:  # it will be refused for that, before any matchers are made
        return none
    try:
        wanted = _wanted(request, place)
    except UserError as problem:
        raise grammar_refused(problem, "tools") from None
    if wanted is None:
        return none
    try:
        return await _compiled(llm, wanted.make(), count)
    except UserError as problem:
        refusal = grammar_refused(problem, wanted.param)
        if wanted.instead is None or not isinstance(refusal, ApiError):
            raise refusal from None
    call.note_skipped("arguments of calls are not enforced", [refusal.message], "reasons")
    return await _compiled(llm, wanted.instead(), count)


async def _compiled(llm: AsyncLLM, grammar: Grammar, count: int) -> Constraint:
    sampling = Sampling(grammar=grammar)
    return Constraint(grammar, await llm.offload(lambda: [llm.llm.matcher(sampling) for _ in range(count)]))


def choice_of(request: ChatRequest) -> tuple[str, str | None]:
    """auto, none, required or named; and the name. Raises ApiError for anything else, and for calls of no tools."""
    given: Any = "auto" if request.tool_choice is None else request.tool_choice
    mode, name = given, None
    if isinstance(given, dict):
        function = given.get("function")
        name = function.get("name") if given.get("type") == "function" and isinstance(function, dict) else None
        mode = "named" if isinstance(name, str) else None
    elif given not in _MODES:
        mode = None
    if mode is None:
        raise invalid(
            "tool_choice must be auto, none, required or the name of a function", "tool_choice", "unsupported"
        )
    if mode in ("required", "named") and not request.tools:
        raise invalid("tool_choice: there are no tools to call", "tool_choice", "invalid_value")
    return mode, name


def budget_of(request: ChatRequest) -> int | None:
    """Tokens that the thinking may have; None if that is open, also for the number -1 of some templates."""
    kwargs = request.chat_template_kwargs or {}
    found = kwargs.get("thinking_budget") if request.thinking_budget is None else request.thinking_budget
    if found is not None and (isinstance(found, bool) or not isinstance(found, int)):
        raise invalid("chat_template_kwargs.thinking_budget must be a number of tokens", "chat_template_kwargs",
                      "invalid_value")  # fmt: skip
    return found if found is not None and found >= 0 else None


def _wanted(request: Sampled, place: Place) -> _Wanted | None:
    """Raises UserError for tools that are none."""
    if not isinstance(request, ChatRequest):
        return _of_form(form_of(request, after=None, budget=None))
    # What does not think keeps every budget.
    budget = budget_of(request) if place.thinking is not None else None
    form = form_of(request, after=place.after, budget=budget)
    mode, name = choice_of(request)
    if mode != "none" and request.tools:
        if place.calls is not None:
            if form is not None and mode == "auto":
                raise invalid(f"{form[0]}: beside tools that may be called a text has no form; tool_choice none,"
                              " required or a name goes with it", form[0], "unsupported")  # fmt: skip
            return _of_calls(request, place, place.calls, budget, mode, name)
        if mode != "auto" or request.parallel_tool_calls is False:
            param = "tool_choice" if mode != "auto" else "parallel_tool_calls"
            raise invalid(f"{param}: calls cannot be enforced, because the chat template of this model writes them in"
                          " no format that is known here", param, "unsupported")  # fmt: skip
    if form is None and budget is not None:
        return _Wanted("thinking_budget", lambda: Grammar.regex(_ANYTHING, after=place.after, budget=budget))
    return _of_form(form)


def _of_form(form: tuple[str, Grammar] | None) -> _Wanted | None:
    if form is None:
        return None
    param, grammar = form
    return _Wanted(param, lambda: grammar)


def _of_calls(
    request: ChatRequest, place: Place, form: ToolFormat, budget: int | None, mode: str, name: str | None
) -> _Wanted:
    tools = [tool for tool in read_tools(request.tools or ()) if name in (None, tool.name)]
    if not tools:
        raise invalid(f"tool_choice: no tool is named {name!r:.80}", "tool_choice", "invalid_value")
    parallel = request.parallel_tool_calls is not False and mode != "named"

    def grammar(of: Sequence[Tool]) -> Grammar:
        choice = "auto" if mode == "auto" else "required"
        found = tools_grammar(of, form, place.tokenizer, choice=choice, parallel=parallel, after=place.after,
                              budget=budget)  # fmt: skip
        assert found is not None, "calls are wanted"
        return found

    # Where nothing was promised, calls whose arguments cannot be enforced are calls with any arguments.
    is_promised = mode != "auto" or any(tool.is_strict for tool in tools)
    if is_promised or form.style not in ("object", "list", "args"):
        return _Wanted("tools", lambda: grammar(tools))
    bare = [replace(tool, parameters={}) for tool in tools]
    return _Wanted("tools", lambda: grammar(tools), lambda: grammar(bare))
