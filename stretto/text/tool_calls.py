"""Reading calls as they are written: which tool, and its arguments as JSON text, piece by piece.

What is given out is final. The arguments of JSON formats are pieces of the model's own text, never a completed guess at
it (`{"a": 12.` is not 12); those of other formats are translated value by value, each when it is whole. Text that may
still turn out to be a mark is held back.
"""

import ast
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from stretto.text.tools import ToolFormat


@dataclass(frozen=True, slots=True)
class Said:
    """Text beside the calls."""

    text: str


@dataclass(frozen=True, slots=True)
class Called:
    """A call begins. index: its number among the calls of this output."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Argued:
    """The arguments of call `index` go on by `text`; all pieces joined are a JSON object once the call is whole."""

    index: int
    text: str


Part = Said | Called | Argued
_HEAD = re.compile(r'\s*\[?\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)')
_PYTHON_HEAD = re.compile(r"\s*\[?\s*([A-Za-z0-9_.-]+)\(\s*")
_GEMMA_HEAD = re.compile(r"\s*call:([A-Za-z0-9_.-]+)\{")
_KEY = re.compile(r"\s*,?\s*([^=:,\s(){}\[\]]+)\s*[=:]\s*")
_LONGEST_HEAD = 64 << 10  # characters: what is longer and still no head is text
_ESCAPE = "<escape>"


class ToolCallReader:
    """Pieces of an output in, parts out. Law: however the output is cut into pieces, the parts joined are the same.

    An output that is no call after all comes out as text. White space before an opening mark, between calls and behind
    them is dropped. A call that breaks off has the arguments that are certain.
    """

    def __init__(self, form: ToolFormat) -> None:
        self._form = form
        self._held = ""
        self._mark = ""  # the opening mark that has been read
        self._step: Step = self._beginning if form.is_bare else self._outside
        self._count = 0
        self._value, self._scanned = _Value(form.style), 0
        self._arguments = _Arguments(form.style)

    @property
    def num_calls(self) -> int:
        """Calls that have begun."""
        return self._count

    def push(self, text: str) -> list[Part]:
        """What `text` makes certain."""
        self._held += text
        return _joined(self._run(is_end=False))

    def finish(self) -> list[Part]:
        """What was held back; the output is over."""
        return _joined(self._run(is_end=True))

    def _run(self, *, is_end: bool) -> Iterator[Part]:
        """Steps, while they get on. A step takes what it can from `_held`, sets the next one, and says whether that can
        go on with what is left."""
        goes_on = True
        while goes_on:
            parts, goes_on = self._step(is_end)
            yield from parts

    # -- outside of calls ----------------------------------------------------------------------------------------

    def _beginning(self, is_end: bool) -> tuple[list[Part], bool]:
        """Of a format whose calls may begin without a mark: is this one?"""
        text = self._held.lstrip()
        if not text and not is_end:
            return [], False
        self._expect_head() if text.startswith("{") else self._expect(self._outside)
        return [], True

    def _outside(self, is_end: bool) -> tuple[list[Part], bool]:
        mark = self._form.opening
        before, found, behind = self._held.partition(mark)
        if found:
            self._held, self._mark = behind, mark
            self._expect_head()
            said = before.rstrip()
            return ([Said(said)] if said else []), True
        keep = 0
        if not is_end:
            keep = _prefix_at_end(self._held, mark)
            keep = len(self._held) - len(self._held[: len(self._held) - keep].rstrip())
        said, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        if self._count and not said.strip():
            said = ""
        return ([Said(said)] if said else []), False

    def _rest(self, is_end: bool) -> tuple[list[Part], bool]:
        """No call after all: text to the end."""
        said, self._held, self._mark = self._mark + self._held, "", ""
        return ([Said(said)] if said else []), False

    # -- a call --------------------------------------------------------------------------------------------------

    def _head(self, is_end: bool) -> tuple[list[Part], bool]:
        style = self._form.style
        if style in ("list", "python"):
            text = self._held.lstrip("[, \n")
            if self._count and text.startswith("]"):
                self._held = text[1:]
                self._expect(self._closing)
                return [], True
            self._held = text if self._count else self._held
        name, rest = _name(self._held, style)
        if name is not None:
            self._held = rest
            return [self._begin(name)], True
        if style in ("object", "list") and (parts := self._whole_object()):
            return parts, True
        if is_end or self._value.is_whole or len(self._held) > _LONGEST_HEAD or not _may_be_head(self._held, style):
            self._expect(self._rest)
            return [], True
        return [], False

    def _begin(self, name: str) -> Called:
        self._count, self._mark, self._arguments = self._count + 1, "", _Arguments(self._form.style)
        self._expect(self._json if self._form.style in ("object", "list", "args") else self._argument)
        return Called(self._count - 1, name)

    def _whole_object(self) -> list[Part]:
        """A call whose fields come in another order is read once it is whole."""
        self._scanned += self._value.read(self._held[self._scanned :])
        call = _call_of(self._held[: self._scanned]) if self._value.is_whole else None
        if call is None:
            return []
        self._held = self._held[self._scanned :]
        begun = self._begin(call[0])
        self._expect_head() if self._form.style == "list" else self._expect(self._closing)
        return [begun, Argued(begun.index, call[1])]

    def _json(self, is_end: bool) -> tuple[list[Part], bool]:
        """Arguments as the model writes them, to the end of their object."""
        size = self._value.read(self._held)
        piece, self._held = self._held[:size], self._held[size:]
        parts: list[Part] = [Argued(self._count - 1, piece)] if piece else []
        if not self._value.is_whole:
            return parts, False
        self._expect(self._tail if self._form.style != "args" else self._closing)
        return parts, True

    def _tail(self, is_end: bool) -> tuple[list[Part], bool]:
        """The end of the object around the arguments."""
        at = self._held.find("}")
        if at < 0:
            return [], False
        self._held = self._held[at + 1 :]
        self._expect_head() if self._form.style == "list" else self._expect(self._closing)
        return [], True

    def _argument(self, is_end: bool) -> tuple[list[Part], bool]:
        """Arguments of a format that is not JSON, to the end of the call."""
        piece, self._held = self._arguments.read(self._held)
        parts: list[Part] = [Argued(self._count - 1, piece)] if piece else []
        if not self._arguments.is_whole:
            return parts, False
        self._expect_head() if self._form.style == "python" else self._expect(self._closing)
        return parts, True

    def _closing(self, is_end: bool) -> tuple[list[Part], bool]:
        """The closing mark, if the format has one and it is written."""
        mark, text = self._form.closing, self._held.lstrip()
        if mark and not is_end and text != mark and mark.startswith(text):
            return [], False
        self._held = text[len(mark) :] if mark and text.startswith(mark) else self._held
        self._expect(self._outside)
        return [], True

    def _expect_head(self) -> None:
        self._expect(self._head)

    def _expect(self, step: "Step") -> None:
        self._step, self._value, self._scanned = step, _Value(self._form.style), 0


Step = Callable[[bool], tuple[list[Part], bool]]


class _Arguments:
    """Named arguments that are not JSON, up to the bracket around them: given out as JSON, each when it is whole."""

    def __init__(self, style: str) -> None:
        self._style, self._end = style, ")" if style == "python" else "}"
        self._key: str | None = None
        self._raw, self._value, self._count = "", _Value(style), 0
        self.is_whole = False

    def read(self, held: str) -> tuple[str, str]:
        """The JSON text that is certain now, and what is left of `held`."""
        said = ""
        while True:
            if self._key is None:
                text = held.lstrip(" ,\n")
                if text.startswith(self._end):
                    self.is_whole = True
                    return said + ("}" if self._count else "{}"), text[1:]
                match = _KEY.match(text)
                if match is None:
                    return said, held
                held, self._key, self._raw, self._value = text[match.end() :], match[1], "", _Value(self._style)
            size = self._value.read(held)
            self._raw, held = self._raw + held[:size], held[size:]
            if not self._value.is_whole:
                return said, held
            value = json.dumps(_translated(self._raw.strip(), self._style), ensure_ascii=False)
            said += f"{', ' if self._count else '{'}{json.dumps(self._key, ensure_ascii=False)}: {value}"
            self._key, self._count = None, self._count + 1


class _Value:
    """Finds the end of a value in text that comes in pieces: brackets and strings are balanced.

    style: `python` and `gemma` values end before a comma or the bracket around them, JSON objects behind their own
    bracket.
    """

    def __init__(self, style: str) -> None:
        self._style, self._is_inner = style, style in ("python", "gemma")
        self._depth, self._quote, self._is_escaped = 0, "", False
        self.is_whole = False

    def read(self, text: str) -> int:
        """How many characters of `text`, which goes on from what was read before, belong to the value; not those that
        may begin a mark."""
        end = len(text) - (_prefix_at_end(text, _ESCAPE) if self._style == "gemma" else 0)
        n = 0
        while n < end and not self.is_whole:
            if self._style == "gemma" and text.startswith(_ESCAPE, n):
                self._quote = "" if self._quote else _ESCAPE
                n += len(_ESCAPE)
            elif self._ends_before(text[n]):
                self.is_whole = True
            else:
                n += 1
        return n

    def _ends_before(self, char: str) -> bool:
        """Read one character, unless the value ends before it."""
        if self._quote:
            if self._is_escaped:
                self._is_escaped = False
            elif char == "\\" and self._quote != _ESCAPE:
                self._is_escaped = True
            elif char == self._quote:
                self._quote = ""
        elif char == '"' or (char == "'" and self._style == "python"):
            self._quote = char
        elif char in "[{(":
            self._depth += 1
        elif char in "]})":
            if self._is_inner and self._depth == 0:
                return True
            self._depth -= 1
            self.is_whole = self._depth == 0 and not self._is_inner
        return char == "," and self._is_inner and self._depth == 0 and not self._quote


def _name(text: str, style: str) -> tuple[str | None, str]:
    """The name of the call that `text` begins, and what follows its head; None if that is not there yet."""
    if style == "args":
        before, mark, rest = text.partition("[ARGS]")
        return (before.strip(), rest) if mark else (None, text)
    match = {"python": _PYTHON_HEAD, "gemma": _GEMMA_HEAD}.get(style, _HEAD).match(text)
    if match is None:
        return None, text
    name = match[1]
    return (_translated(name, "json") if name.startswith('"') else name), text[match.end() :]


def _call_of(text: str) -> tuple[str, str] | None:
    """Name and arguments, as JSON, of an object that stands for a call."""
    call = _translated(text[text.find("{") :], "json")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = next((call[key] for key in ("arguments", "parameters") if key in call), None)
    return (call["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def _may_be_head(text: str, style: str) -> bool:
    """Whether more text could make a head of this."""
    text = text.lstrip()
    if style == "python":
        return re.fullmatch(r"\[?\s*[A-Za-z0-9_.-]*", text) is not None
    if style == "gemma":
        return "call:".startswith(text[:5]) and re.fullmatch(r"[A-Za-z0-9_.-]*", text[5:]) is not None
    if style == "args":
        return re.fullmatch(r"[A-Za-z0-9_.-]*(\[[ARGS]*)?", text) is not None
    return not text or text[0] in ("[{" if style == "list" else "{")


def _translated(raw: str, style: str) -> Any:
    """The value that a literal stands for; a text that is none is itself."""
    if style == "gemma" and raw.startswith(_ESCAPE):
        return raw.removeprefix(_ESCAPE).removesuffix(_ESCAPE)
    for read in (json.loads, ast.literal_eval) if style == "python" else (json.loads,):
        try:
            value = read(raw)
            json.dumps(value, allow_nan=False)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        return value
    return raw


def _joined(parts: Iterable[Part]) -> list[Part]:
    """Neighbours of one kind as one."""
    found: list[Part] = []
    for part in parts:
        last = found[-1] if found else None
        if isinstance(part, Said) and isinstance(last, Said):
            found[-1] = Said(last.text + part.text)
        elif isinstance(part, Argued) and isinstance(last, Argued) and part.index == last.index:
            found[-1] = Argued(last.index, last.text + part.text)
        else:
            found.append(part)
    return found


def _prefix_at_end(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    return next((n for n in range(min(len(text), len(mark) - 1), 0, -1) if mark.startswith(text[-n:])), 0)
