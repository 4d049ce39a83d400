"""Tool calls as grammars: what a model that was trained on a format of calls may write, given its tools.

The format is the one that the model's chat template writes for earlier turns (`find_format`):

    hermes   <tool_call>\\n{"name": N, "arguments": {...}}\\n</tool_call>         Qwen, Hermes, Granite 4
    llama3   {"name": N, "parameters": {...}}, perhaps after <|python_tag|>
    mistral  [TOOL_CALLS] [{"name": N, "arguments": {...}}, ...]
    args     [TOOL_CALLS]N[ARGS]{...}, repeated                                 Mistral since tokenizer v11
    granite  <|tool_call|>[{"name": N, "arguments": {...}}, ...]                Granite 3, Phi 4 (with an end mark)
    lfm2     <|tool_call_start|>[N(a="x", b=1), ...]<|tool_call_end|>
    gemma    <start_function_call>call:N{a:<escape>x<escape>,b:1}<end_function_call>

Marks that are special tokens of a vocabulary are written as such and are part of the text (`Grammar.shows`).
`stretto.text.tool_calls` reads what was written.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stretto.core.errors import UserError
from stretto.core.grammar import Grammar, json_text, parsed_json
from stretto.text.grammar.schema import check_numbers
from stretto.text.tokenizer import Tokenizer

Style = Literal["object", "list", "args", "python", "gemma"]
MAX_TOOLS = 128
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_NOTES = frozenset({"$comment", "$id", "$schema", "default", "deprecated", "description", "examples", "title"})
_NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
_LITERAL = frozenset({"const", "enum"})


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a family of models writes calls.

    opening, closing: marks around one call (style `object` and `gemma`) or around all of them. before, after: text
    between the marks and a call. key: of the arguments. is_bare: the opening mark may be missing, if the text begins
    with the call.
    """

    name: str
    style: Style
    opening: str
    closing: str = ""
    before: str = ""
    after: str = ""
    key: str = "arguments"
    is_bare: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """All marks that may be special tokens."""
        inner = {"args": ("[ARGS]",), "gemma": ("<escape>",)}.get(self.style, ())
        return tuple(mark for mark in (self.opening, *inner, self.closing) if mark)


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that may be called. parameters: a JSON schema. is_strict: its schema is enforced or refused; of
    another's, keywords that cannot be enforced are left to the model, as the API that these tools come from has it."""

    name: str
    parameters: Mapping[str, Any]
    is_strict: bool = False


def find_format(template: str | None) -> ToolFormat | None:
    """The format that a chat template writes; None if it writes none of these (XML elements, Harmony)."""
    if template is None:
        return None
    if "<|tool_call_start|>" in template:
        return ToolFormat("lfm2", "python", "<|tool_call_start|>", "<|tool_call_end|>")
    if "<start_function_call>" in template:
        return ToolFormat("gemma", "gemma", "<start_function_call>", "<end_function_call>")
    if "[TOOL_CALLS]" in template:
        if "[ARGS]" in template:
            return ToolFormat("args", "args", "[TOOL_CALLS]")
        return ToolFormat("mistral", "list", "[TOOL_CALLS]", before="" if "[TOOL_CALLS][" in template else " ")
    if "<|tool_call|>" in template:
        closing = "<|/tool_call|>" if "<|/tool_call|>" in template else ""
        return ToolFormat("granite", "list", "<|tool_call|>", closing)
    if "<tool_call>" in template and not re.search(r"<function=|<arg_key>|<parameter=", template):
        return ToolFormat("hermes", "object", "<tool_call>", "</tool_call>", before="\n", after="\n")
    if "<|python_tag|>" in template or ("<|start_header_id|>" in template and '"parameters": ' in template):
        return ToolFormat("llama3", "object", "<|python_tag|>", key="parameters", is_bare=True)
    return None


def read_tools(tools: Sequence[Mapping[str, Any]]) -> list[Tool]:
    """Tools in OpenAI's shape. Raises UserError for anything that is none."""
    if not 1 <= len(tools) <= MAX_TOOLS:
        raise UserError(f"{len(tools)} tools", why=f"it must be 1 to {MAX_TOOLS}")
    found: dict[str, Tool] = {}
    for n, tool in enumerate(tools):
        function = tool.get("function")
        if tool.get("type", "function") != "function" or not isinstance(function, Mapping):
            raise UserError(f"tools[{n}] is no function", try_='{"type": "function", "function": {"name": ...}}')
        name, parameters = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise UserError(f"tools[{n}] has the name {name!r:.80}", why="1 to 64 of A-Z, a-z, 0-9, _, . and -")
        parameters = _parameters({} if parameters is None else parameters, f"tools[{n}].function.parameters")
        if name in found:
            raise UserError(f"two tools are named {name}", why="a call could mean either")
        found[name] = Tool(name, parameters, function.get("strict") is True)
    return list(found.values())


def tools_grammar(
    tools: Sequence[Tool],
    form: ToolFormat,
    tokenizer: Tokenizer,
    *,
    choice: str = "auto",
    parallel: bool = True,
    after: str | None = None,
    budget: int | None = None,
) -> Grammar | None:
    """What may be written where `tools` may be called; None if none may.

    choice: `none`, `auto` (a text, and calls if the model wants), `required` (one call or more) or the name of the tool
    to call, once. parallel: whether there may be several calls. after, budget: of `Grammar`. Raises UserError for a
    name that no tool has.
    """
    if choice == "none":
        return None
    if choice not in ("auto", "required"):
        tools, parallel = [tool for tool in tools if tool.name == choice], False
        if not tools:
            raise UserError(f"tool_choice names {choice!r:.80}", why="no tool has that name")
    writer = _Writer(form, tokenizer)
    rules = [*writer.start(is_auto=choice == "auto", parallel=parallel), *writer.calls(tools, parallel)]
    return Grammar.lark("\n".join(rules), after=after, budget=budget, shows=writer.special_marks)


class _Writer:
    """The rules of one grammar, in Lark."""

    def __init__(self, form: ToolFormat, tokenizer: Tokenizer) -> None:
        self._form = form
        names = {tokenizer.token_text(i): i for i in tokenizer.special_ids}
        self._special = {mark: names[mark] for mark in form.marks if mark in names}

    @property
    def special_marks(self) -> tuple[str, ...]:
        return tuple(self._special)

    def start(self, *, is_auto: bool, parallel: bool) -> Iterator[str]:
        """The beginning, up to the rule `body` (what stands behind an opening mark, closing mark included)."""
        form = self._form
        # Of styles whose marks stand around each call, several calls are several bodies.
        repeats = parallel and form.style in ("object", "args", "gemma") and not form.is_bare
        if form.is_bare:
            marked = f"{self._mark(form.opening)} body"
            yield f"start: {marked} | body" + (" | OTHER" if is_auto else "")
            if is_auto:
                # A text that is no call does not begin like one; a special mark is no text in any case.
                first = "{" if form.opening in self._special else "{" + form.opening[0]
                yield rf"OTHER: /[^{first}](.|\n)*/"
            return
        if not is_auto:
            gap = f"{_text(form.after)} " if form.style == "object" and form.after else ""
            yield f"start: call ({gap}call)*" if repeats else "start: call"
            yield f"call: {self._mark(form.opening)} body"
            return
        yield r"TEXT: /(.|\n)*/"
        if form.opening in self._special:
            yield "start: TEXT (call TEXT)*" if repeats else "start: TEXT call?"
            yield f"call: {self._mark(form.opening)} body"
        else:
            yield "start: call* TEXT" if repeats else "start: TEXT | call"
            yield f"head[lazy]: TEXT {_text(form.opening)}"
            yield "call: head body"

    def calls(self, tools: Sequence[Tool], parallel: bool) -> Iterator[str]:
        """The rule `body` and what it needs."""
        form, closing = self._form, self._mark(self._form.closing)
        before, after = _text(form.before), _text(form.after)
        yield "one: " + " | ".join(f"one{n}" for n in range(len(tools)))
        if form.style in ("list", "python"):
            more = ' (", " one)*' if parallel else ""
            yield f'body: {before} "[" one{more} "]" {after} {closing}'
        else:
            yield f"body: {before} one {after} {closing}"
        for n, tool in enumerate(tools):
            yield from self._one(n, tool)

    def _one(self, n: int, tool: Tool) -> Iterator[str]:
        form = self._form
        if form.style in ("object", "list"):
            yield f'one{n}: {_text(_head(tool.name, form.key))} args{n} "}}"'
            yield f"args{n}: {_json(_object(tool))}"
        elif form.style == "args":
            yield f"one{n}: {_text(tool.name)} {self._mark('[ARGS]')} args{n}"
            yield f"args{n}: {_json(_object(tool))}"
        elif form.style == "python":
            yield f'one{n}: {_text(tool.name + "(")} a{n}x0 ")"'
            yield from self._arguments(n, tool, ", ", "=", _python_value)
        else:
            yield f'one{n}: {_text(f"call:{tool.name}" + "{")} a{n}x0 "}}"'
            yield from self._arguments(n, tool, ",", ":", self._gemma_value)

    def _arguments(self, n: int, tool: Tool, comma: str, equals: str, value_of: Any) -> Iterator[str]:
        """Arguments in the order of the schema: rule `a{n}x{k}` is those from the k-th on if none has come before,
        `a{n}y{k}` if some has."""
        schema = _object(tool)
        properties = list(schema.get("properties", {}).items())
        required = set(schema.get("required", ()))
        for k, (name, of) in enumerate(properties):
            yield f"v{n}x{k}: {_text(name + equals)} {value_of(of, tool, schema)}"
            skip = [] if name in required else [f"a{n}x{k + 1}"]
            yield f"a{n}x{k}: " + " | ".join([f"v{n}x{k} a{n}y{k + 1}", *skip])
            skip = [] if name in required else [f"a{n}y{k + 1}"]
            yield f"a{n}y{k}: " + " | ".join([f"{_text(comma)} v{n}x{k} a{n}y{k + 1}", *skip])
        yield f'a{n}x{len(properties)}: ""'
        yield f'a{n}y{len(properties)}: ""'

    def _gemma_value(self, schema: Any, tool: Tool, root: Mapping[str, Any]) -> str:
        """Texts stand between escape marks and hold anything else, by their length and no pattern."""
        kind = schema.get("type") if isinstance(schema, Mapping) else None
        if kind != "string":
            return _json(_below(schema, root))
        for name in ("format", "pattern"):
            if tool.is_strict and name in schema:
                why = f"{tool.name} is strict, and in this model's format of calls this keyword is not supported"
                raise UserError(f"the parameters of {tool.name} cannot be enforced: {name}", why=why)
        options, low, high = schema.get("enum", []), schema.get("minLength", 0), schema.get("maxLength", 0)
        if not isinstance(options, list) or type(low) is not int or type(high) is not int or min(low, high) < 0:
            why = "enum must be a list, and minLength and maxLength whole numbers from 0"
            raise UserError(f"the parameters of {tool.name} hold {json.dumps(schema):.80}", why=why)
        options = [value for value in options if isinstance(value, str)]
        high = schema.get("maxLength", "")
        inner = "(" + " | ".join(map(_text, options)) + ")" if options else f"/[^<]{{{low},{high}}}/"
        escape = self._mark("<escape>")
        return f"{escape} {inner} {escape}"

    def _mark(self, mark: str) -> str:
        if not mark:
            return ""
        return f"<[{self._special[mark]}]>" if mark in self._special else _text(mark)


def _python_value(schema: Any, tool: Tool, root: Mapping[str, Any]) -> str:
    """Literals that Python and JSON write alike, but for the three names."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "boolean":
        return '("True" | "False")'
    if kind == "null":
        return '"None"'
    return _json(_below(schema, root))


def _below(schema: Any, root: Mapping[str, Any]) -> Any:
    """A schema that stands inside another, with the definitions that it may refer to."""
    if not isinstance(schema, Mapping):
        return {}
    shared = {key: root[key] for key in ("$defs", "definitions", "x-guidance") if key in root}
    return {**shared, **schema}


def _object(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments: an object, without words for the reader, and written in one line."""
    schema = {"type": "object", **_bare(dict(tool.parameters))}
    if schema["type"] != "object":
        raise UserError(f"the parameters of {tool.name} are of type {schema['type']!r:.80}", why="it must be object")
    check_numbers(schema, f"the parameters of {tool.name}")
    how: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    if not tool.is_strict:
        how |= {"lenient": True, "coerce_one_of": True}
    return {**schema, "x-guidance": how}


def _bare(schema: Any) -> Any:
    """A schema without annotations, which are most of what tools are made of."""
    if isinstance(schema, list):
        return [_bare(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {}
    for key, value in schema.items():
        if key in _NOTES or key == "x-guidance" or (key == "uniqueItems" and value is False):
            continue
        if key in _NAMED and isinstance(value, dict):
            found[key] = {name: _bare(one) for name, one in value.items()}
        else:
            found[key] = value if key in _LITERAL else _bare(value)
    return found


def _parameters(given: Any, where: str) -> dict[str, Any]:
    """A copy of the schema of some arguments, as far as this module reads it. Raises UserError."""
    schema = parsed_json(json_text(given, where), where)  # it may be nested too deep
    if not isinstance(schema, dict):
        raise UserError(f"{where} is {schema!r:.80}", why="it must be a JSON schema")
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict):
        raise UserError(f"{where}.properties is {properties!r:.80}", why="it must be an object, of a schema per name")
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise UserError(f"{where}.required is {required!r:.80}", why="it must be a list of names")
    return schema


def _head(name: str, key: str) -> str:
    return f'{{"name": {json.dumps(name)}, "{key}": '


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if text else ""


def _json(schema: Any) -> str:
    return f"%json {json.dumps(schema, ensure_ascii=False)}"
