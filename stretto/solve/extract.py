"""Extractors: the answer in a text.

    last-number     the last number
    boxed           what is in the last \\boxed{...}
    json:KEY        the value of KEY in the last JSON object that has it
    regex:PATTERN   the last match, its first group if it has one

Answers are compared as they are returned: numbers in one spelling (`1,250.0` is `1250`), other texts with single
spaces.
"""

import json
import re
from collections.abc import Callable
from typing import Any

from stretto.core.errors import UserError, near

Extract = Callable[[str], str | None]

_NUMBER = re.compile(r"(?<![\w.])-?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?")
_NAMES = ("last-number", "boxed", "json:KEY", "regex:PATTERN")


def read_extract(text: str, what: str = "extract") -> Extract:
    """An extractor by its name. Raises UserError, which starts with `what`."""
    kind, _, rest = text.partition(":")
    if text in ("last-number", "boxed"):
        return last_number if text == "last-number" else boxed
    if kind == "json" and rest:
        return lambda answer: json_value(answer, rest)
    if kind == "regex" and rest:
        try:
            pattern = re.compile(rest)
        except re.error as problem:
            raise UserError(f"{what} is {text!r}", why=f"the pattern cannot be read: {problem}") from problem
        return lambda answer: last_match(answer, pattern)
    if kind in ("json", "regex"):
        raise UserError(
            f"{what} is {text!r}", why=f"what comes after {kind}: is missing", try_=_NAMES[2 + (kind == "regex")]
        )
    raise UserError(f"{what} is {text!r}", why="there is no such extractor", try_=near(text, _NAMES))


def last_number(text: str) -> str | None:
    """The last number of a text. A minus sign belongs to it where no letter or digit stands before the sign."""
    found = list(_NUMBER.finditer(text))
    return normal(found[-1][0]) if found else None


def boxed(text: str) -> str | None:
    """What stands in the braces of the last `\\boxed{...}` that is closed."""
    end = len(text)
    while (start := text.rfind("\\boxed{", 0, end)) >= 0:
        depth, begin = 1, start + len("\\boxed{")
        for i in range(begin, len(text)):
            depth += (text[i] == "{") - (text[i] == "}")
            if not depth:
                return normal(text[begin:i])
        end = start
    return None


def json_value(text: str, key: str) -> str | None:
    """The value of `key` in the last JSON object of the text that has it; objects in its values do not count."""
    decoder, found, at = json.JSONDecoder(), None, text.find("{")
    while at >= 0:
        end = at + 1
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):  # no object begins here
            value = None
        if isinstance(value, dict) and key in value:
            found = value[key]
            found = found if isinstance(found, str) else json.dumps(found, sort_keys=True)
        at = text.find("{", end)
    return None if found is None else normal(found)


def last_match(text: str, pattern: re.Pattern[str]) -> str | None:
    """The last match of a pattern: its first group that took part, or all of it where the pattern has no group."""
    found = list(pattern.finditer(text))
    if not found:
        return None
    groups: list[Any] = [one for one in found[-1].groups() if one is not None]
    return normal(groups[0] if groups else found[-1][0])


def normal(text: str) -> str:
    """An answer in the spelling in which it is compared."""
    text = " ".join(text.split())
    if not re.fullmatch(r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?", text):
        return text
    sign, digits = ("-" if text[0] == "-" else ""), text.lstrip("+-").replace(",", "")
    whole, _, part = digits.partition(".")
    whole, part = whole.lstrip("0") or "0", part.rstrip("0")
    number = f"{whole}.{part}" if part else whole
    return number if number == "0" else sign + number
