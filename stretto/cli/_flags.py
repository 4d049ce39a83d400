"""Dataclass -> command line: a verb declares its options once, with their help.

    class Options:
        model: str = argument("alias, .gguf file or checkpoint directory")
        seed: int | None = option("the same seed gives the same text", default=None)

Types: str, int, float, bool (a switch), Path (`~` is the home folder; shells leave `--flag=~/x` as it is), `T | None`,
`tuple[T, ...]` (the flag may be repeated; numbers may be separated by commas too). Flags and arguments may be mixed in
any order, `--` ends the flags, and a flag is never abbreviated, so that adding one breaks no script. Help pages are the
same on every Python version and terminal.
"""

import dataclasses
import difflib
import textwrap
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from stretto.core.env import expand_home
from stretto.core.errors import UserError

T = TypeVar("T")
REQUIRED: Any = dataclasses.MISSING
WIDTH = 100
_EXPECTED = {int: "a whole number", float: "a number"}
_METAVARS = {int: "N", float: "X", Path: "FILE"}


def argument(help: str, *, default: Any = REQUIRED) -> Any:
    """A positional argument; optional if it has a default."""
    return dataclasses.field(default=default, metadata={"help": help, "positional": True})


def option(
    help: str, *, default: Any = REQUIRED, short: str = "", metavar: str = "", choices: Sequence[str] = ()
) -> Any:
    """A flag `--field-name`, and `short` beside it."""
    meta = {"help": help, "positional": False, "short": short, "metavar": metavar, "choices": tuple(choices)}
    return dataclasses.field(default=default, metadata=meta)


class Flag:
    """One field as the command line sees it."""

    def __init__(self, field: "dataclasses.Field[Any]", hint: Any) -> None:
        meta = field.metadata
        self.field, self.help, self.positional = field.name, str(meta["help"]), bool(meta["positional"])
        parts = [hint] if get_origin(hint) not in (Union, types.UnionType) else list(get_args(hint))
        kind = next(part for part in parts if part is not type(None))
        self.repeats = get_origin(kind) is tuple
        self.kind: Any = get_args(kind)[0] if self.repeats else kind
        self.required, self.default = field.default is REQUIRED, field.default
        self.choices: tuple[str, ...] = meta.get("choices", ())
        self.metavar = meta.get("metavar") or _METAVARS.get(self.kind, "TEXT")
        name = field.name.replace("_", "-")
        self.names = (name.upper(),) if self.positional else tuple(filter(None, (meta["short"], f"--{name}")))

    @property
    def title(self) -> str:
        """The left column of the help page."""
        if self.positional:
            return self.names[0] if self.required else f"[{self.names[0]}]"
        value = "" if self.kind is bool else " " + ("|".join(self.choices) or self.metavar)
        return ", ".join(self.names) + value

    @property
    def note(self) -> str:
        """The right column."""
        if self.required and not self.positional:
            return f"{self.help} (required)"
        if self.required or self.default in (None, False, ()):
            return self.help
        shown: Any = self.default
        return f"{self.help} (default: {','.join(map(str, shown)) if self.repeats else shown})"

    def read(self, texts: Sequence[str]) -> Any:
        """The value of the field from what was written on the command line, in order; the last one counts."""
        if self.kind is bool:
            return True
        if self.repeats:
            cut = self.kind in _EXPECTED
            return tuple(self._one(part) for text in texts for part in (text.split(",") if cut else [text]))
        return self._one(texts[-1])

    def _one(self, text: str) -> Any:
        if self.choices and text not in self.choices:
            raise UserError(f"{self.names[-1]} is {text!r}", try_=near(text, self.choices))
        try:
            return self.kind(expand_home(text) if self.kind is Path else text)
        except ValueError:
            raise UserError(f"{self.names[-1]} is {text!r}", why=f"it must be {_EXPECTED[self.kind]}") from None


def flags(options: type) -> list[Flag]:
    """The fields of an options class."""
    hints = get_type_hints(options)
    return [Flag(field, hints[field.name]) for field in dataclasses.fields(options)]


def parse(options: type[T], words: Sequence[str], verb: str) -> T:
    """An instance of `options`. Raises UserError for anything unknown, missing or of the wrong type."""
    known = {name: flag for flag in flags(options) for name in flag.names if not flag.positional}
    found: dict[str, list[str]] = {}
    positional: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            positional += rest
            break
        name, equals, value = word.partition("=")
        if name not in known and word[:2] in known and not word.startswith("--"):
            name, equals, value = word[:2], "=", word[2:]  # -n5
        if name not in known:
            if not word.startswith("-") or word == "-" or " " in word:
                positional.append(word)
                continue
            _unknown(name, known, verb)
        flag = known[name]
        if flag.kind is bool and equals:
            raise UserError(f"{name} takes no value", why=f"got {value!r}")
        if flag.kind is not bool and not equals:
            if not rest:
                raise UserError(f"{name} needs a value", why=flag.help)
            value = rest.pop(0)
        found.setdefault(flag.field, []).append(value)
    values = _positionals([f for f in flags(options) if f.positional], positional, verb)
    for flag in known.values():
        if flag.field in found:
            values[flag.field] = flag.read(found[flag.field])
        elif flag.required:
            raise UserError(f"{flag.names[-1]} is missing", why=flag.help, try_=f"stretto {verb} --help")
    return options(**values)


def _positionals(wanted: Sequence[Flag], words: Sequence[str], verb: str) -> dict[str, Any]:
    if len(words) > len(wanted):
        raise UserError(
            f"unexpected argument {words[len(wanted)]!r}",
            why=f"stretto {verb} takes {' '.join(f.title for f in wanted) or 'no arguments'}",
            try_="quotes around a text with spaces",
        )
    for flag in wanted[len(words) :]:
        if flag.required:
            raise UserError(f"{flag.names[0]} is missing", why=flag.help, try_=f"stretto {verb} --help")
    return {flag.field: flag.read([word]) for flag, word in zip(wanted, words, strict=False)}


def _unknown(name: str, known: Sequence[str] | dict[str, Flag], verb: str) -> NoReturn:
    close = difflib.get_close_matches(name, list(known), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"stretto {verb} --help"
    raise UserError(f"unknown flag {name}", why="before a text that starts with - write --", try_=hint)


def near(word: str, known: Sequence[str]) -> str:
    """What to try in place of an unknown word."""
    close = difflib.get_close_matches(word, known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"one of {', '.join(known)}"


def page(options: type, verb: str, summary: str, examples: Sequence[str] = ()) -> str:
    """The help page of a verb."""
    every = flags(options)
    arguments = [(flag.title, flag.note) for flag in every if flag.positional]
    switches = [(flag.title, flag.note) for flag in every if not flag.positional]
    usage = " ".join(["usage: stretto", verb, *(title for title, _ in arguments), "[options]"])
    parts = [usage, f"{summary}."]
    if arguments:
        parts.append("\n".join(["arguments:", *columns(arguments)]))
    parts.append("\n".join(["options:", *columns([*switches, ("-h, --help", "show this page")])]))
    if examples:
        parts.append("\n".join(["examples:", *(f"  {example}" for example in examples)]))
    return "\n\n".join(parts) + "\n"


def columns(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Two aligned columns; the right one is wrapped."""
    left = min(max(len(title) for title, _ in rows), 30) + 4
    lines: list[str] = []
    for title, note in rows:
        wrapped = textwrap.wrap(note, WIDTH - left) or [""]
        head = f"  {title}".ljust(left)
        if len(title) + 3 > left:
            lines.append(head)
            head = " " * left
        lines += [(head + wrapped[0]).rstrip(), *(" " * left + line for line in wrapped[1:])]
    return lines
