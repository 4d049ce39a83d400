"""Ollama's `keep_alive`: how long a model stays in memory after a request."""

import math
import re

from stretto.serve.errors import ApiError, invalid

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)"


def seconds_of(given: str | float | None) -> float | None:
    """Seconds; infinity for what is negative; None if nothing is said. A number is seconds, a text a duration of Go:
    `5m`, `1h30m`. Raises ApiError."""
    if given is None:
        return None
    seconds = _seconds(given.strip()) if isinstance(given, str) else float(given)
    return math.inf if seconds < 0 else seconds


def _seconds(text: str) -> float:
    if re.fullmatch(r"[+-]?\d+(\.\d+)?", text, re.A):
        return float(text)
    sign = -1.0 if text.startswith("-") else 1.0
    rest = text.removeprefix("-").removeprefix("+") if text[:1] in "+-" else text
    if len(rest) > 64 or not re.fullmatch(f"({_PART})+", rest, re.A):
        raise _not_a_duration()
    return sign * sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, rest, re.A))


def _not_a_duration() -> ApiError:
    return invalid("keep_alive: seconds, or a duration such as 5m; negative for ever", "keep_alive", "invalid_value")
