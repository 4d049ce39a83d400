"""The form that a request asks its text to have, under the names of OpenAI, vLLM and llama.cpp, as one `Grammar`.

response_format       text, json_object, json_schema                                     OpenAI
structured_outputs    one of json, regex, choice, grammar, json_object                   vLLM
guided_*              guided_json, guided_regex, guided_choice, guided_grammar           vLLM, before
json_schema, grammar  a JSON schema; a Lark grammar                                      llama.cpp
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stretto.core.errors import UserError
from stretto.core.grammar import Grammar
from stretto.serve.errors import ApiError, invalid, of_problem
from stretto.serve.schema import Sampled

_GBNF = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "json": ((Mapping, str, bool), "a JSON schema"), "regex": (str, "a regular expression"),
    "choice": (list, "a list of texts"), "grammar": (str, "a Lark grammar"), "json_object": (bool, "true"),
}  # fmt: skip
"""Kinds of forms by vLLM's names: what their value is, as types and in words."""
_NEUTRAL = {"disable_any_whitespace", "disable_fallback"}
"""Options of vLLM's that are how it is here: white space of JSON is fixed, and nothing is tried instead."""
_FIELDS = ("response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
           "json_schema", "grammar")  # fmt: skip


def form_of(request: Sampled, *, after: str | None, budget: int | None) -> tuple[str, Grammar] | None:
    """The field that says the form, and the form; None if any text will do. after, budget: of `Grammar`. Raises
    ApiError for a form that cannot be read, and for two of them."""
    found = [(name, value) for name in _FIELDS if (value := getattr(request, name, None)) is not None]
    found = [(name, value) for name, value in found if not (name == "response_format" and value.get("type") == "text")]
    if not found:
        return None
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise invalid(f"{names}: a text has one form", found[1][0], "unsupported")
    name, value = found[0]
    form = _read(name, value)
    try:
        return name, form.grammar(after=after, budget=budget)
    except UserError as problem:
        raise grammar_refused(problem, name) from None


def response_format_of(given: dict[str, Any] | None) -> dict[str, Any] | None:
    """A `response_format` of a format whose schema stands beside its type, as newer APIs write it."""
    if given is None or given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": given}


def grammar_refused(problem: UserError, param: str) -> Exception:
    """What a client is told of a grammar that cannot be used."""
    known = of_problem(problem, param)
    if known is None:
        return problem
    return ApiError(known.status, f"{param}: {known.message}", param=param, code="invalid_grammar")


@dataclass(frozen=True, slots=True)
class _Form:
    """value: of the type that its kind has; where: its path in the request. Raises ApiError for another type, and for a
    grammar in llama.cpp's language."""

    kind: str
    value: Any
    where: str

    def __post_init__(self) -> None:
        types, what = _KINDS[self.kind]
        if not isinstance(self.value, types):
            raise invalid(f"{self.where} must be {what}", self.where, "invalid_value")
        if self.kind == "grammar" and _GBNF.search(str(self.value)):
            raise invalid(f"{self.where}: this grammar is GBNF; a Lark grammar is taken (`start: ...`)", self.where,
                          "unsupported")  # fmt: skip

    def grammar(self, **options: Any) -> Grammar:
        """Raises UserError."""
        if self.kind == "json_object":
            return Grammar.json_object(**options)
        if self.kind == "json":
            return Grammar.json_schema(self.value, **options)
        if self.kind == "choice":
            return Grammar.choice(self.value, **options)
        return (Grammar.regex if self.kind == "regex" else Grammar.lark)(self.value, **options)


def _read(name: str, value: Any) -> _Form:
    if name == "response_format":
        return _of_format(value)
    if name == "structured_outputs":
        return _of_structured(value)
    return _Form("json" if name == "json_schema" else name.removeprefix("guided_"), value, name)


def _of_format(value: Mapping[str, Any]) -> _Form:
    kind, where = value.get("type"), "response_format"
    if kind == "json_object":
        # llama.cpp's servers take the schema here.
        return _schema(value, where) if value.get("schema") is not None else _Form("json_object", True, where)
    if kind == "json_schema":
        inner = value.get("json_schema")
        if not isinstance(inner, Mapping):
            raise invalid(f"{where}.json_schema is missing", f"{where}.json_schema", "missing_required_parameter")
        return _schema(inner, f"{where}.json_schema")
    raise invalid(f"{where}.type must be text, json_object or json_schema", f"{where}.type", "invalid_value")


def _schema(value: Mapping[str, Any], where: str) -> _Form:
    """`strict` makes no difference: a schema is enforced or refused."""
    schema = value.get("schema")
    if schema is None:
        raise invalid(f"{where}.schema is missing", f"{where}.schema", "missing_required_parameter")
    return _Form("json", schema, f"{where}.schema")


def _of_structured(value: Mapping[str, Any]) -> _Form:
    where = "structured_outputs"
    given = {name: one for name, one in value.items() if one is not None and one is not False}
    kinds = [name for name in _KINDS if name in given]
    for name in given.keys() - _KINDS.keys() - _NEUTRAL:
        raise invalid(f"{where}.{name:.80}: it is not supported", f"{where}.{name:.80}", "unsupported")
    if len(kinds) != 1:
        raise invalid(f"{where}: exactly one of {', '.join(_KINDS)} is needed", where, "invalid_value")
    return _Form(kinds[0], given[kinds[0]], f"{where}.{kinds[0]}")
