"""What chat templates may call: the filters and functions that differ from Jinja's or Python's, each with its meter.

They give what the same filters give in Hugging Face's templates, and charge for what they make before they make it.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from jinja2 import Environment, filters, pass_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.utils import Namespace
from markupsafe import Markup

from stretto.text.meter import Meter, Overrun, meter_of

MAX_RANGE = 100_000
MAX_DATE = 256  # characters of a form of strftime_now
_MAX_STRIP = 256  # characters that strip() may look for: it compares each with each
_ESCAPED = 5  # longest text of an escaped character ("&amp;")
_PERCENT = re.compile(r"%(?:\([^()]*\))?[#0\- +]*\d{0,3}(?:\.\d{0,3})?[a-zA-Z%]")  # fields without huge widths
_SPEC = re.compile(r"[^\d{}]?[^\d{}]{0,3}\d{0,3},?(?:\.\d{1,3})?[a-zA-Z%]?")  # the same of format()
_DATE_WIDTH = re.compile(r"%[-_0^#+]*(\d*)[^\d]?")  # one directive of strftime, with glibc's flags and width


# -- methods of texts --------------------------------------------------------------------------------------------------


def before_method(
    meter: Meter, text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Charge for `text.name(*args, **kwargs)`, which is called next; returns the arguments to call it with.

    Methods that make no more than their text and arguments weigh are charged by their result alone.
    """
    if name in ("replace", "join", "strip", "lstrip", "rstrip") and kwargs.keys() - {"count"}:
        raise TypeError(f"{name}() takes its arguments by position")
    match name, args:
        case "replace", (str(old), new, *_):
            added = len(new) if isinstance(new, str) else meter.weigh(new)
            meter.charge(meter.allow(len(text) + growth(text) * added * text.count(old)))
        case "join", (values,):
            return (_metered_parts(meter, values, len(text), growth(text)),)
        case "strip" | "lstrip" | "rstrip", (str(chars), *_):
            check_strip(chars)
    return args


def growth(value: Any) -> int:
    """How many times as long a text can get that is put together with `value`: `Markup` escapes it."""
    return _ESCAPED if isinstance(value, Markup) else 1


def _metered_parts(meter: Meter, values: Iterable[Any], between: int, times: int) -> list[Any]:
    parts = []
    for part in values:
        meter.tick(times * meter.weigh(part) + between)
        parts.append(part)
    return parts


def check_strip(chars: str | None = None) -> None:
    if chars is not None and len(chars) > _MAX_STRIP:
        raise Overrun(f"strip takes at most {_MAX_STRIP} characters")


def percent(meter: Meter, form: str, args: Any) -> str:
    """`form % args`."""
    if "%" in _PERCENT.sub("", form):
        raise Overrun("a format with a width of more than three digits")
    meter.charge(meter.allow(len(form) + form.count("%") * (1000 + growth(form) * meter.weigh(args))))
    text: str = form % args
    return text


class _Fields(SandboxedFormatter):
    """`str.format`, charged for every field: a field may reach into what its argument does not weigh."""

    def __init__(self, env: Environment, meter: Meter, times: int, **escape: Callable[[Any], str]) -> None:
        super().__init__(env, **escape)
        self._meter, self._times = meter, times

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self._meter.charge(self._meter.allow(1000 + self._times * self._meter.weigh(value)))
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        if not _SPEC.fullmatch(format_spec):
            raise Overrun("a format with a width of more than three digits")
        return super().format_field(value, format_spec)


class _EscapedFields(_Fields, SandboxedEscapeFormatter):
    """The same for `Markup`."""


def formatted(env: Environment, meter: Meter, text: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """`text.format(*args, **kwargs)`."""
    meter.charge(meter.allow(len(text)))
    if isinstance(text, Markup):
        return Markup(_EscapedFields(env, meter, _ESCAPED, escape=text.escape).vformat(text, args, kwargs))
    return _Fields(env, meter, 1).vformat(text, args, kwargs)


# -- filters -----------------------------------------------------------------------------------------------------------


@pass_context
def _tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in Hugging Face templates: no escaping for HTML, non-ASCII characters kept."""
    meter = meter_of(context)
    meter.charge(meter.weigh(value))
    if (indent is not None and not 0 <= int(indent) <= 16) or len("".join(separators or ())) > 16:
        raise Overrun("tojson takes an indent of at most 16")
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    parts: list[str] = []
    for part in encoder.iterencode(value):
        meter.tick(len(part))
        parts.append(part)
    return "".join(parts)


@pass_context
def _replace(context: Context, s: Any, old: Any, new: Any, count: int | None = None) -> str:
    text, old, new = str(s), str(old), str(new)
    meter = meter_of(context)
    meter.charge(meter.allow(len(text) + len(new) * text.count(old)))
    return text.replace(old, new, -1 if count is None else int(count))


@pass_context
def _join(context: Context, value: Iterable[Any], d: Any = "", attribute: str | None = None) -> str:
    meter, between, parts = meter_of(context), str(d), list[str]()
    for item in value:
        part = item if attribute is None else context.environment.getitem(item, attribute)
        meter.tick(meter.weigh(part) + len(between))
        parts.append(str(part))
    return between.join(parts)


@pass_context
def _format(context: Context, value: Any, *args: Any, **kwargs: Any) -> str:
    if args and kwargs:
        raise TypeError("format takes values by position or by name")
    return percent(meter_of(context), str(value), kwargs or args)


@pass_context
def _indent(context: Context, s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    pad = width[:64] if isinstance(width, str) else min(int(width), 64)
    meter = meter_of(context)
    meter.charge(meter.allow(len(s) + 65 * (1 + s.count("\n"))))
    return filters.do_indent(s, pad, first, blank)


def _trim(value: Any, chars: str | None = None) -> str:
    check_strip(chars)
    return str(value).strip(chars)


def _round(value: float, precision: int = 0, method: Literal["common", "ceil", "floor"] = "common") -> float:
    if not -20 <= precision <= 20:
        raise Overrun("round takes a precision of at most 20")
    rounded: float = filters.do_round(value, precision, method)
    return rounded


@pass_context
def _sum(context: Context, iterable: Iterable[Any], attribute: str | None = None, start: float = 0) -> float:
    total = start
    for value in iterable:
        item = value if attribute is None else context.environment.getitem(value, attribute)
        if not isinstance(item, int | float) or not isinstance(start, int | float):
            raise SecurityError("sum takes numbers")
        total += item
    return total


def _by_attribute(name: str, position: int) -> Callable[..., Any]:
    """Jinja's filter `name`, which compares an attribute of values, given as argument `position` or by name.

    A value may weigh less than its attributes do (a namespace, a loop): what is compared must weigh no more than one
    value may. The other arguments are the filter's own.
    """
    filtered = filters.FILTERS[name]

    @pass_context
    def bounded(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        attribute = args[position] if len(args) > position else kwargs.get("attribute")
        if value and attribute is not None:
            value = _compared(context, value, attribute, several=name == "sort")
        needs_context = name in ("selectattr", "rejectattr")
        return filtered(context if needs_context else context.environment, value, *args, **kwargs)

    return bounded


def _compared(context: Context, values: Iterable[Any], attribute: Any, *, several: bool) -> list[Any]:
    """`values`, after their attribute was found to be light enough to compare. several: names with commas between."""
    getter = filters.make_multi_attrgetter if several else filters.make_attrgetter
    read, meter, found, weight = getter(context.environment, attribute), meter_of(context), list[Any](), 0
    for value in values:
        meter.tick()
        weight = meter.allow(weight + meter.weigh(read(value)))
        found.append(value)
    return found


FILTERS: dict[str, Callable[..., Any]] = {
    "format": _format,
    "groupby": _by_attribute("groupby", 0),
    "indent": _indent,
    "join": _join,
    "max": _by_attribute("max", 1),
    "min": _by_attribute("min", 1),
    "rejectattr": _by_attribute("rejectattr", 0),
    "replace": _replace,
    "round": _round,
    "selectattr": _by_attribute("selectattr", 0),
    "sort": _by_attribute("sort", 2),
    "sum": _sum,
    "tojson": _tojson,
    "trim": _trim,
    "unique": _by_attribute("unique", 1),
}
"""Filters of ours, in place of Jinja's of the same name."""


# -- functions ---------------------------------------------------------------------------------------------------------


class _Names(Namespace):
    """`namespace()`, without names that begin with an underscore. It compares by identity and has no text.

    So nothing but the template's own code can walk into one, and what it holds adds nothing to its weight: that may
    change at any time, and may be the namespace itself.
    """

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_name(name)
        super().__init__(attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        raise SecurityError("a namespace cannot be printed")


def _check_name(name: str) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def _range(*args: int) -> range:
    found = range(*args)
    if len(found) > MAX_RANGE:
        raise Overrun(f"range of more than {MAX_RANGE:,}")
    return found


def _raise_exception(message: str) -> None:
    raise TemplateError(str(message))


def functions(now: Callable[[], datetime]) -> dict[str, Any]:
    """The functions that every template finds. now: what `strftime_now` shows."""

    def strftime_now(format: str) -> str:
        """As `datetime.strftime`, so with the flags and widths of the C library, but no width above 99."""
        if len(format) > MAX_DATE or any(len(width) > 2 for width in _DATE_WIDTH.findall(format)):
            raise Overrun(f"strftime_now does not take {format[:64]!r}")
        return now().strftime(format)

    return {
        "dict": dict,
        "namespace": _Names,
        "raise_exception": _raise_exception,
        "range": _range,
        "strftime_now": strftime_now,
    }
