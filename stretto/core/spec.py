"""A filler and its settings as a user writes them: `NAME` or `NAME:key=value,...`."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stretto.core.card import Card, Registry
from stretto.core.errors import UserError, near


@dataclass(frozen=True, slots=True)
class Spec:
    """A filler by its card, and the settings that were given. others: keys that belong to somebody else, as texts."""

    card: Card
    options: Mapping[str, Any]
    others: Mapping[str, str]

    def make(self) -> Any:
        """`card.make` with these settings."""
        return self.card.make(**self.options)


def read_spec(
    text: str, registry: Registry, what: str, *, others: Sequence[str] = (), aliases: Mapping[str, str] | None = None
) -> Spec:
    """The parts of a text. Raises UserError, which starts with `what`.

    others: keys that are not the filler's. aliases: further names, and what they stand for. Settings are the arguments
    that are numbers, texts or switches, by the types that the filler declares; it is made once, to let it check them.
    """
    name, _, rest = text.partition(":")
    aliases = aliases or {}
    names = (*aliases, *registry.names())
    if name not in names:
        raise UserError(f"{what} is {text!r}", why=f"there is no {registry.socket} {name!r}", try_=near(name, names))
    card = registry.card(aliases.get(name, name))
    arguments = inspect.signature(card.make, eval_str=True).parameters
    known = {name: one.annotation for name, one in arguments.items() if one.annotation in _KINDS}
    options: dict[str, Any] = {}
    extra: dict[str, str] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key in others:
            extra[key] = value
        elif key in known:
            options[key] = _typed(value, known[key], part, text, what)
        else:
            keys = (*others, *known)
            why = f"{name} has no setting {key!r}" if keys else f"{name} has no settings"
            raise UserError(f"{what} is {text!r}", why=why, try_=near(key, keys) if keys else name)
    spec = Spec(card, options, extra)
    if options:
        try:
            spec.make()
        except UserError as problem:
            raise UserError(f"{what} is {text!r}", why=problem.error, try_=problem.try_ or problem.why) from problem
    return spec


_KINDS = {int: "number", float: "number", bool: "true or false", str: "text"}


def _typed(value: str, kind: Any, part: str, text: str, what: str) -> Any:
    """A setting as an int, float, bool or str."""
    try:
        if kind is bool:
            return {"true": True, "false": False}[value]
        if kind is int and not (value.isascii() and value.isdigit()):
            raise ValueError
        return kind(value)
    except (ValueError, KeyError):
        key = part.partition("=")[0]
        why = f"{part!r} is not key={_KINDS[kind]}"
        raise UserError(f"{what} is {text!r}", why=why, try_=f"{key}={_KINDS[kind]}") from None
