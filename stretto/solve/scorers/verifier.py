"""A program says whether a text is right: one of the caller's, or whether the arithmetic in it holds.

The one that is built in looks for equations such as `12 + 5 * 3 = 27` (numbers, + - * / x, parentheses) and gives the
share of those that hold, exactly, in fractions; 0.5 for a text without one.
"""

import ast
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from stretto.core.card import Can, Card
from stretto.solve.sockets import Scorer
from stretto.solve.tree import Node

if TYPE_CHECKING:
    from stretto.solve.group import Group

_EXPRESSION = re.compile(r"[-+*/x×÷() 0-9.,$]{1,80}")
_SIGNS = {"×": "*", "x": "*", "÷": "/", ",": "", "$": ""}
_OPERATIONS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
_DEEPEST = 20  # parentheses and operations inside each other
_LONGEST = 20  # characters of a number


class Verifier(Scorer):
    """check: solution -> how right it is, from 0 to 1 (True and False count as 1 and 0). It is called in the event loop
    of the search, where nothing else happens meanwhile: it should be quick."""

    def __init__(self, check: Callable[[str], float] | None = None) -> None:
        self._check = check or arithmetic

    async def score(self, group: "Group", nodes: Sequence[Node]) -> list[float]:
        return [float(self._check(node.solution)) for node in nodes]


def arithmetic(text: str) -> float:
    """The share of the equations of a text that hold; 0.5 if there is none."""
    found = [left == right for left, right in equations(text)]
    return sum(found) / len(found) if found else 0.5


def equations(text: str) -> Iterator[tuple[Fraction, Fraction]]:
    """Both sides of every equation whose sides are expressions, one of them with an operation at least."""
    for line in text.splitlines():
        sides = line.split("=")
        for left, right in pairwise(sides):
            before, after = list(_EXPRESSION.finditer(left)), _EXPRESSION.match(right)
            if before and before[-1].end() == len(left) and after is not None:
                values = [value_of(before[-1][0]), value_of(after[0])]
                has_operation = any(re.search(r"[0-9)]\s*[-+*/x×÷]\s*[-(0-9]", one[0]) for one in (before[-1], after))
                if has_operation and values[0] is not None and values[1] is not None:
                    yield values[0], values[1]


def value_of(text: str) -> Fraction | None:
    """Of an expression; None if it is none. Nothing in it is run: it is read, and its numbers are added up here."""
    for sign, meaning in _SIGNS.items():
        text = text.replace(sign, meaning)
    try:
        return _value(ast.parse(text.strip(" .+*/"), mode="eval").body, _DEEPEST)
    except (SyntaxError, ZeroDivisionError, _NoNumber):
        return None


class _NoNumber(Exception):
    pass


def _value(node: ast.expr, depth: int) -> Fraction:
    match node:
        case _ if not depth:
            raise _NoNumber
        case ast.Constant(int() | float() as number) if len(str(number)) <= _LONGEST:
            return Fraction(str(number))
        case ast.UnaryOp(ast.USub(), inner):
            return -_value(inner, depth - 1)
        case ast.BinOp(left, sign, right) if type(sign) in _OPERATIONS:
            found: Fraction = _OPERATIONS[type(sign)](_value(left, depth - 1), _value(right, depth - 1))
            return found
    raise _NoNumber


CARD = Card(
    name="verifier",
    make=Verifier,
    idea="a program says whether a text is right; without one of the caller's, whether its arithmetic holds",
    paper="2110.14168",
    can=Can(0),
)
