"""Running chat templates that nobody has read: Jinja2's sandbox with a meter on time and memory.

A template is code from a model file. Jinja's immutable sandbox keeps it away from Python; the meter keeps it from
running for ever or filling memory. It works without a second process:

- every turn of a loop and every call (macros and blocks among them) ticks, which looks at the clock;
- everything that makes a new value (operators, concatenation, literals, slices, calls, filters, output) is charged for
  its memory, before it is made where that can be many times the operands', and no value may weigh more than
  `MAX_WEIGHT`. Weight counts nested values as often as they occur, so a list of itself twice, forty times over, is
  refused while it is small;
- what a namespace or a loop leads to may change, so it adds nothing to their weight: nothing prints or compares it,
  and what reaches into it (fields of a format, sorting by an attribute) is charged for what it finds there;
- filters and methods that can make much from little (centre, wordwrap, zfill, ...) do not exist.

So between two ticks only a bounded amount of work can happen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from types import BuiltinMethodType, MethodType
from typing import Any

from jinja2 import Environment, Undefined, nodes, pass_context
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from stretto.text.meter import meter_of, size_of
from stretto.text.template_filters import FILTERS, before_method, formatted, functions, growth, percent

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
    tuple: frozenset({"count", "index", "grouper", "list"}),  # the last two: of what groupby gives
}
# What Jinja adds to the arguments of a call inside a loop or a block, for functions that want their scope.
_SCOPES = frozenset({"_loop_vars", "_block_vars"})


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
        self.meter_tick, self.meter_concat = _Hook(_tick), _Hook(_concat)
        self.meter_made, self.meter_slice = _Hook(_made), _Hook(_slice)
        self.filters = {name: self.filters[name] for name in _FILTERS.split()} | FILTERS
        self.globals = functions(now)

    def syntax(self, source: str) -> nodes.Template:
        """The template as it was written, without the meter, to look at. Raises TemplateSyntaxError."""
        return super()._parse(source, None, None)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        found: nodes.Template = _Instrument().visit(tree)
        found.set_environment(self)
        return found

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter = meter_of(context)
        if operator == "%" and isinstance(left, str):
            return percent(meter, left, right)
        if operator == "**" and isinstance(left, int) and isinstance(right, int):
            meter.allow_bits(left.bit_length() * right)
        times = (_times(right, left), _times(left, right)) if operator == "*" else (growth(right), growth(left))
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
        if super().wrap_str_format(value) is None:
            return None
        text: str = value.__self__

        @pass_context
        def metered(context: Context, *args: Any, **kwargs: Any) -> str:
            if value.__name__ == "format_map":
                (kwargs,) = args
                args = ()
            return formatted(self, meter_of(context), text, args, kwargs)

        return metered

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        if isinstance(obj, _Hook):
            return obj.function(*args)
        meter = meter_of(context)
        meter.tick()
        # A method of a `Markup` is Python code, not a builtin.
        if isinstance(obj, BuiltinMethodType | MethodType) and isinstance(obj.__self__, str):
            named = {name: value for name, value in kwargs.items() if name not in _SCOPES}
            args = before_method(meter, obj.__self__, obj.__name__, args, named)
        return meter.made(super().call(context, obj, *args, **kwargs))


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
