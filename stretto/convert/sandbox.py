"""Running chat templates that nobody has read: Jinja2's sandbox with a meter on time and memory.

A template is code from a model file. Jinja's immutable sandbox keeps it away from Python; the meter keeps it from
running for ever or filling memory. It works without a second process:

- every turn of a loop and every call (macros and blocks among them) ticks, which looks at the clock;
- everything that makes a new value (operators, concatenation, literals, slices, calls, filters, output) is charged for
  its memory, before it is made where that can be many times the operands', and no value may weigh more than
  `MAX_WEIGHT`. Weight counts nested values as often as they occur, so a list of itself twice, forty times over, is
  refused while it is small;
- filters and methods that can make much from little (centre, wordwrap, zfill, ...) do not exist.

So between two ticks only a bounded amount of work can happen.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from string import Formatter
from types import BuiltinMethodType
from typing import Any, Literal

from jinja2 import Environment, Undefined, filters, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from stretto.convert.meter import Meter, Overrun, meter_of, size_of

MAX_RANGE = 100_000
_FILTERS = """abs capitalize count d default dictsort e escape first float forceescape format groupby indent int items
join last length list lower map max min reject rejectattr replace reverse round safe select selectattr sort string sum
title trim unique upper"""
_STR_METHODS = """capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal isdigit islower
isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition
rsplit rstrip split splitlines startswith strip swapcase title upper"""
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(_STR_METHODS.split()),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
    tuple: frozenset({"count", "index"}),
}
_MAX_STRIP = 256  # characters that strip() may look for: it compares each with each
_PERCENT = re.compile(r"%(?:\([^()]*\))?[#0\- +]*\d{0,3}(?:\.\d{0,3})?[a-zA-Z%]")  # fields without huge widths
_SPEC = re.compile(r"[^\d{}]?[^\d{}]{0,3}\d{0,3},?(?:\.\d{1,3})?[a-zA-Z%]?")


class _Instrument(NodeTransformer):
    """Writes the ticks and charges into a parsed template."""

    def _call(self, name: str, *args: nodes.Expr) -> nodes.Expr:
        function = nodes.EnvironmentAttribute(name)
        return nodes.Call(function, [nodes.ContextReference(), *args], [], None, None)

    def _tick(self, at: nodes.Node, size: int) -> nodes.Node:
        return nodes.ExprStmt(self._call("meter_tick", nodes.Const(size))).set_lineno(at.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, self._tick(node, 0))
        return node

    def visit_Output(self, node: nodes.Output) -> Any:
        self.generic_visit(node)
        size = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        return [self._tick(node, size), node] if size else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._call("meter_concat", *node.nodes)

    def _value(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        is_target = isinstance(node, nodes.Tuple) and node.ctx != "load"
        return node if is_target else self._call("meter_made", node)

    visit_List = visit_Tuple = visit_Dict = visit_Filter = _value

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        is_slice = isinstance(node.arg, nodes.Slice)
        self.generic_visit(node)
        return self._call("meter_slice", node) if is_slice else node

    def visit_FilterBlock(self, node: nodes.FilterBlock) -> nodes.Node:
        # Its filter chain has no innermost operand and must stay a chain of filters.
        node.body = [part for old in node.body for part in _as_list(self.visit(old))]
        return node


def _as_list(found: Any) -> list[nodes.Node]:
    return found if isinstance(found, list) else [found]


@dataclass(frozen=True, slots=True)
class _Hook:
    """A function of ours that instrumented templates call."""

    function: Callable[..., Any]


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks the model's words for training; here it only keeps its scope."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The environment of chat templates: that of Hugging Face, metered. Shared by all renderings."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, _Generation],
            finalize=_printed,
            optimized=False,  # folding constants would run unmetered
            cache_size=0,
        )
        self.now = now
        self.meter_tick, self.meter_concat = _Hook(_tick), _Hook(_concat)
        self.meter_made, self.meter_slice = _Hook(_made), _Hook(_slice)
        self.filters = {name: self.filters[name] for name in _FILTERS.split()}
        self.filters |= {"tojson": _tojson, "format": _format, "indent": _indent, "join": _join, "replace": _replace}
        self.filters |= {"round": _round, "sum": _sum, "trim": _trim}
        self.globals = {
            "range": _range,
            "dict": dict,
            "namespace": _Names,
            "raise_exception": _raise_exception,
            "strftime_now": self._strftime_now,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        found: nodes.Template = _Instrument().visit(tree)
        found.set_environment(self)
        return found

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = meter_of(context)
        if operator == "%" and isinstance(left, str):
            return _percent(meter, left, right)
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            meter.allow_bits(left.bit_length() * right)
        times = (_times(right, left), _times(left, right)) if operator == "*" else (1, 1)
        compute = self.binop_table[operator]
        return meter.repeated(left, right, times, lambda: compute(left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        for kind, names in _METHODS.items():
            if isinstance(obj, kind):
                return attr in names
        return isinstance(obj, LoopContext | Namespace | Macro | Undefined)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        template = str(value.__self__)

        @pass_context
        def metered(context: Context, *args: Any, **kwargs: Any) -> str:
            fields = [(name, spec) for _, name, spec, _ in Formatter().parse(template) if name is not None]
            if not all(_SPEC.fullmatch(spec or "") for _, spec in fields):
                raise Overrun("a format with a width of more than three digits")
            meter = meter_of(context)
            meter.charge(meter.allow(len(template) + len(fields) * (1000 + meter.weigh([*args, *kwargs.values()]))))
            return wrapped(*args, **kwargs)

        return metered

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        if isinstance(obj, _Hook):
            return obj.function(*args)
        meter = meter_of(context)
        meter.tick()
        if isinstance(obj, BuiltinMethodType) and isinstance(obj.__self__, str):
            if obj.__name__ == "replace":
                return _replace(context, obj.__self__, *args, **kwargs)
            if obj.__name__ == "join":
                (values,) = args
                return _join(context, values, obj.__self__)
            if obj.__name__ in ("strip", "lstrip", "rstrip"):
                _check_strip(*args)
        return meter.made(super().call(context, obj, *args, **kwargs))

    def _strftime_now(self, form: str) -> str:
        if len(form) > 64 or re.search(r"%[^a-zA-Z%]", form):
            raise Overrun(f"strftime_now does not take {form[:64]!r}")
        return self.now().strftime(form)


class _Names(Namespace):
    """`namespace()`, without names that begin with an underscore."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_name(name)
        super().__init__(attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def _tick(context: Context, size: int) -> str:
    return meter_of(context).tick(size)


def _made(context: Context, value: Any) -> Any:
    return meter_of(context).made(value)


def _slice(context: Context, value: Any) -> Any:
    meter_of(context).charge(size_of(value))  # it weighs no more than what it is cut from
    return value


def _concat(context: Context, *parts: Any) -> str:
    meter = meter_of(context)
    meter.charge(meter.allow(sum(map(meter.weigh, parts))))
    return "".join(map(str, parts))


def _times(count: Any, value: Any) -> int:
    """How often `value * count` repeats `value`."""
    return abs(count) if isinstance(count, int) and isinstance(value, str | list | tuple) else 1


@pass_context
def _printed(context: Context, value: Any) -> Any:
    meter = meter_of(context)
    meter.charge(meter.weigh(value))  # what str() will make of it
    return value


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
def _format(context: Context, value: Any, *args: Any) -> str:
    return _percent(meter_of(context), str(value), args)


def _percent(meter: Meter, form: str, args: Any) -> str:
    if "%" in _PERCENT.sub("", form):
        raise Overrun("a format with a width of more than three digits")
    meter.charge(meter.allow(len(form) + form.count("%") * (1000 + meter.weigh(args))))
    text: str = form % args
    return text


@pass_context
def _indent(context: Context, s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    pad = width[:64] if isinstance(width, str) else min(int(width), 64)
    meter = meter_of(context)
    meter.charge(meter.allow(len(s) + 65 * (1 + s.count("\n"))))
    return filters.do_indent(s, pad, first, blank)


def _trim(value: Any, chars: str | None = None) -> str:
    _check_strip(chars)
    return str(value).strip(chars)


def _check_strip(chars: str | None = None) -> None:
    if chars is not None and len(chars) > _MAX_STRIP:
        raise Overrun(f"strip takes at most {_MAX_STRIP} characters")


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


def _range(*args: int) -> range:
    found = range(*args)
    if len(found) > MAX_RANGE:
        raise Overrun(f"range of more than {MAX_RANGE:,}")
    return found


def _raise_exception(message: str) -> None:
    raise TemplateError(str(message))
