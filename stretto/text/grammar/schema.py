"""A JSON schema as llguidance takes it: what means nothing is left out, what would switch its checks off is, too."""

from collections.abc import Iterator, Mapping
from typing import Any

from stretto.core.errors import UserError

_SCHEMAS = frozenset({
    "additionalItems", "additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then",
    "unevaluatedItems", "unevaluatedProperties", "contentSchema",
})  # fmt: skip
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems", "items"})
_NAMED = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
# Keywords that may be written with a value that says nothing, which llguidance refuses by name all the same.
_NEUTRAL: Mapping[str, Any] = {"uniqueItems": False}


def cleaned(schema: Any, *, is_root: bool = True) -> Any:
    """The same schema without keywords at their neutral value, and without llguidance's own options at the root."""
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        return schema
    found = {}
    for key, value in schema.items():
        if (key in _NEUTRAL and value is _NEUTRAL[key]) or (is_root and key == "x-guidance"):
            continue
        if key in _LISTS and isinstance(value, list):
            value = [cleaned(one, is_root=False) for one in value]
        elif key in _NAMED and isinstance(value, dict):
            value = {name: cleaned(one, is_root=False) for name, one in value.items()}
        elif key in _SCHEMAS and isinstance(value, dict):
            value = cleaned(value, is_root=False)
        found[key] = value
    return found


_BOUNDS = frozenset({"maximum", "minimum", "exclusiveMaximum", "exclusiveMinimum", "multipleOf"})


def check_numbers(schema: Any, what: str) -> None:
    """That a grammar would say the numbers of a schema as they are. Raises UserError, which starts with `what`.

    llguidance 1.9.1 holds numbers as floats, and whole ones within 64 bits: the constant 1234567890123456789 would be
    written 1234567890123456768. A `maximum` beyond them is kept: what it writes stays below.
    """
    for keyword, number in _numbers(schema):
        is_exact = -(2**63) < number < 2**63 and int(float(number)) == number
        if not is_exact and not (keyword == "maximum" and number >= 2**63 - 1):
            raise UserError(
                f"{what} cannot be enforced: {keyword}",
                why=f"{number} has no exact value in double precision",
                try_="numbers up to 2**53, or texts",
            )


def _numbers(schema: Any) -> Iterator[tuple[str, int]]:
    """The whole numbers of constants and bounds, with their keyword."""
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in ("const", "enum") or key in _BOUNDS:
            yield from ((key, number) for number in _within(value))
    for one in _inner(schema):
        yield from _numbers(one)


def _inner(schema: Mapping[str, Any]) -> Iterator[Any]:
    """The schemas that stand in a schema."""
    for key, value in schema.items():
        if key in _LISTS and isinstance(value, list):
            yield from value
        elif key in _NAMED and isinstance(value, dict):
            yield from value.values()
        elif key in _SCHEMAS:
            yield value


def _within(value: Any) -> Iterator[int]:
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _within(one)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield value
