"""A JSON schema as llguidance takes it: what means nothing is left out, what would switch its checks off is, too."""

from collections.abc import Mapping
from typing import Any

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
