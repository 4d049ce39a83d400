"""Dataclass -> command line: a verb declares its options once, with their help (`option`, `argument`).

A field may also hold a whole dataclass of options, with a heading of its own on the help page (`group`). Flags and
arguments may be mixed in any order, `--` ends the flags, a flag may be repeated where its field holds several values,
and it is never abbreviated, so that adding one breaks no script. Help pages are the same on every Python version and
terminal.
"""

import dataclasses
import difflib
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from stretto.core.errors import UserError
from stretto.core.option import Option, options_of

T = TypeVar("T")
WIDTH = 100
Texts = Mapping[str, Sequence[str]]
"""What was written for the fields that were given."""


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Options that a field of a verb holds as one object. build: from their texts and the command, `stretto run`."""

    title: str
    options: Sequence[Option]
    build: Callable[[Texts, str], Any]


def group(title: str, kind: type) -> Any:
    """A field that holds a dataclass of options, with a flag for each that has a text form."""
    options = [one for one in options_of(kind) if one.has_text]

    def build(texts: Texts, command: str) -> Any:
        return kind(**{one.field: one.read(texts[one.field], one.name) for one in options if one.field in texts})

    return dataclasses.field(metadata={"group": Group(title, options, build)})


def groups_of(options: type) -> dict[str, Group]:
    """The groups of a verb's options, by field."""
    return {f.name: f.metadata["group"] for f in dataclasses.fields(options) if "group" in f.metadata}


def parse(options: type[T], words: Sequence[str], verb: str) -> T:
    """An instance of `options`. Raises UserError for anything unknown, missing or of the wrong type."""
    own, groups = options_of(options), groups_of(options)
    flags = [*(one for one in own if not one.positional), *(one for group in groups.values() for one in group.options)]
    known = {name: one for one in flags for name in one.names}
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
        one = known[name]
        if one.kind is bool:
            if equals:
                raise UserError(f"{name} takes no value", why=f"got {value!r}")
            value = "yes"
        elif not equals:
            if not rest:
                raise UserError(f"{name} needs a value", why=one.help)
            value = rest.pop(0)
        found.setdefault(one.name, []).append(value)
    values = _positionals([one for one in own if one.positional], positional, verb)
    for one in own:
        if one.name in found:
            values[one.field] = one.read(found[one.name], one.name)
        elif one.required and not one.positional:
            raise UserError(f"{one.name} is missing", why=one.help, try_=f"stretto {verb} --help")
    for field, group in groups.items():
        texts = {one.field: found[one.name] for one in group.options if one.name in found}
        values[field] = group.build(texts, f"stretto {verb}")
    return options(**values)


def _positionals(wanted: Sequence[Option], words: Sequence[str], verb: str) -> dict[str, Any]:
    most = sys.maxsize if wanted and wanted[-1].repeats else len(wanted)
    if len(words) > most:
        raise UserError(
            f"unexpected argument {words[len(wanted)]!r}",
            why=f"stretto {verb} takes {' '.join(map(title, wanted)) or 'no arguments'}",
            try_="quotes around a text with spaces",
        )
    for one in wanted[len(words) :]:
        if one.required:
            raise UserError(f"{one.name} is missing", why=one.help, try_=f"stretto {verb} --help")
    rest = [list(words[i:]) if one.repeats else [words[i]] for i, one in enumerate(wanted[: len(words)])]
    return {one.field: one.read(texts, one.name) for one, texts in zip(wanted, rest, strict=False)}


def _unknown(name: str, known: Sequence[str] | dict[str, Option], verb: str) -> NoReturn:
    close = difflib.get_close_matches(name, list(known), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"stretto {verb} --help"
    raise UserError(f"unknown flag {name}", why="before a text that starts with - write --", try_=hint)


# -- help pages --------------------------------------------------------------------------------------------------------


def title(one: Option) -> str:
    """The left column of the help page."""
    if one.positional:
        name = f"{one.name}..." if one.repeats else one.name
        return name if one.required else f"[{name}]"
    return ", ".join(one.names) + ("" if one.kind is bool else f" {one.metavar}")


def meaning(one: Option) -> str:
    """The right column."""
    if one.required and not one.positional:
        return f"{one.help} (required)"
    says_nothing = one.required or one.default in (None, False, ())
    return one.help if says_nothing else f"{one.help} (default: {one.text_of(one.default)})"


def page(options: type, verb: str, summary: str, examples: Sequence[str] = ()) -> str:
    """The help page of a verb."""
    own, groups = options_of(options), groups_of(options)
    arguments = [(title(one), meaning(one)) for one in own if one.positional]
    switches = [(title(one), meaning(one)) for one in own if not one.positional]
    usage = " ".join(["usage: stretto", verb, *(name for name, _ in arguments), "[options]"])
    parts = [usage, f"{summary}."]
    if arguments:
        parts.append("\n".join(["arguments:", *columns(arguments)]))
    parts.append("\n".join(["options:", *columns([*switches, ("-h, --help", "show this page")])]))
    for group in groups.values():
        parts.append("\n".join([f"{group.title}:", *columns([(title(one), meaning(one)) for one in group.options])]))
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
