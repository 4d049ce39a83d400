"""What llguidance says of a grammar that it refuses, as an error that names the keyword."""

import re

from stretto.core.errors import UserError
from stretto.core.grammar import Grammar

_KEYS = re.compile(r"Unimplemented keys: \[(.*)\]")
_CASES = (  # a part of the complaint, what cannot be enforced, what to do
    ("oneOf constraints", "oneOf", "anyOf, or branches that a type, a const or closed properties tell apart"),
    ("Unknown format", "format", "pattern, or no format"),
    ("Invalid type", "type", "one of null, boolean, object, array, number, string, integer"),
    ("Pointer", "$ref", "a definition that is in the schema"),
    ("is not present in a registry", "$ref", "definitions inside the schema: nothing is fetched"),
    ("regex parse error", "pattern", "a pattern without look-around and back-references"),
    ("Failed to generate regex for", "minimum and maximum", "rounder numbers"),
    ("multipleOf", "multipleOf", None),
    ("schema too large", "allOf, anyOf, oneOf", "fewer combinations of branches"),
    ("Unsatisfiable schema", None, "a schema that some document fulfils"),
)


def refusal(grammar: Grammar, complaint: str) -> UserError:
    """The error for what llguidance said. Its first line is enough: others show the grammar."""
    why = next(line for line in map(str.strip, complaint.splitlines()) if line)
    why = why.removesuffix("<non-verbose/>").strip()[:300]
    if why.startswith("NoExtension"):
        return UserError(f"{grammar.name} cannot be fulfilled", why="no text of this vocabulary begins as it says")
    if grammar.kind != "json_schema":
        why = _reason_of_regex(complaint) or why
        return UserError(f"{grammar.name} cannot be used", why=why)
    keys = _KEYS.search(complaint)
    if keys is not None:
        names = keys[1].replace('"', "")
        return UserError(f"{grammar.name} cannot be enforced: {names}", why="this keyword is not supported")
    for part, name, advice in _CASES:
        if part in complaint:
            about = f" cannot be enforced: {name}" if name is not None else " cannot be fulfilled"
            if name == "oneOf":
                why = "its branches overlap, or cannot be told apart: a document must fulfil exactly one"
            return UserError(grammar.name + about, why=_reason_of_regex(complaint) or why, try_=advice)
    return UserError(f"{grammar.name} cannot be used", why=why)


def _reason_of_regex(complaint: str) -> str | None:
    """The last line of a message of Rust's `regex` says what is wrong; those before it show where."""
    found = re.search(r"^\s*error: (.+)$", complaint, re.MULTILINE)
    return found[1] if found is not None else None
