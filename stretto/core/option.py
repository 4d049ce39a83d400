"""Options: fields of a dataclass that can be given as text. What a field means and may hold is said there, once.

    class Settings:
        threads: int | None = option("threads of the native kernels", default=None, low=1, high=1024)

The command line (cli/_flags.py), the environment (core/settings.py) and the pages are made from these fields; `Option`
is one of them as those readers see it. Types: str, int, float, bool, Path (`~` is the home folder; shells leave
`--flag=~/x` as it is), `T | None`, `tuple[T, ...]`. Fields without a help text are no options.
"""

import dataclasses
import math
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Union, cast, get_args, get_origin

from stretto.core.env import expand_home
from stretto.core.errors import UserError, near

REQUIRED: Any = dataclasses.MISSING
SWITCH: Mapping[str, bool] = {"1": True, "true": True, "yes": True, "on": True} | {
    "0": False, "false": False, "no": False, "off": False,
}  # fmt: skip
_METAVARS: Mapping[Any, str] = {int: "N", float: "X", Path: "FILE"}


def argument(help: str, *, default: Any = REQUIRED) -> Any:
    """A field that is a positional argument; optional if it has a default."""
    return dataclasses.field(default=default, metadata={"help": help, "positional": True})


def option(
    help: str,
    *,
    default: Any = REQUIRED,
    flag: str | None = "",
    short: str = "",
    aliases: Sequence[str] = (),
    metavar: str = "",
    kind: Any = None,
    choices: Sequence[str] = (),
    low: float = -math.inf,
    high: float = math.inf,
    check: Callable[[Any, str], None] | None = None,
) -> Any:
    """A field that is an option.

    flag: its name in words (default: that of the field, `--field-name`; None: it has no text form); short: `-n` beside
    it; aliases: what others call it, `--max-model-len`. kind: the type of its texts, where the annotation says more.
    choices, low, high: what a value, or each of several, may be. check: called with a value and its name in place of
    those limits; it raises UserError.
    """
    meta = {
        "help": help, "flag": flag, "short": short, "aliases": tuple(aliases), "metavar": metavar, "kind": kind,
        "choices": tuple(choices),
        "low": low, "high": high, "check": check,
    }  # fmt: skip
    return dataclasses.field(default=default, metadata=meta)


class Option:
    """One field: its names, how a text is read, what a value may be. default: in place of the field's own."""

    def __init__(self, field: "dataclasses.Field[Any]", default: Any = REQUIRED) -> None:
        meta = field.metadata
        self.field, self.help, self.positional = field.name, str(meta["help"]), bool(meta.get("positional"))
        hint = meta.get("kind") or field.type
        parts = [hint] if get_origin(hint) not in (Union, types.UnionType) else list(get_args(hint))
        kind = next(part for part in parts if part is not type(None))
        self.repeats = get_origin(kind) is tuple
        self.kind: Any = get_args(kind)[0] if self.repeats else kind
        self.default = field.default if default is REQUIRED else default
        self.required = self.default is REQUIRED
        self.choices: tuple[str, ...] = meta.get("choices", ())
        self.metavar = str("|".join(self.choices) or meta.get("metavar") or _METAVARS.get(self.kind, "TEXT"))
        self._low, self._high = meta.get("low", -math.inf), meta.get("high", math.inf)
        self._check: Callable[[Any, str], None] | None = meta.get("check")
        name = meta.get("flag", "") or field.name.replace("_", "-")
        flags = tuple(filter(None, (meta.get("short"), *meta.get("aliases", ()), f"--{name}")))
        self.names: tuple[str, ...] = (name.upper(),) if self.positional else flags
        self.has_text = meta.get("flag", "") is not None

    @property
    def name(self) -> str:
        """`--ctx`; of an argument `MODEL`."""
        return self.names[-1]

    @property
    def variable(self) -> str:
        """The environment variable of a setting: `STRETTO_CTX`."""
        return "STRETTO_" + self.name.lstrip("-").replace("-", "_").upper()

    def read(self, texts: Sequence[str], what: str) -> Any:
        """The value that was written, in one text or several, of which the last one counts unless the field repeats.

        Numbers that repeat may be separated by commas too. what: where it was written (`--ctx`, `STRETTO_CTX`), for the
        UserError that is raised for anything wrong.
        """
        if self.repeats:
            cut = self.kind in (int, float)
            parts = [part for text in texts for part in (text.split(",") if cut else [text])]
            value: Any = tuple(self._of_text(part, what) for part in parts)
        else:
            value = self._of_text(texts[-1], what)
        self.check(value, what)
        return value

    def check(self, value: Any, what: str) -> None:
        """Raise UserError, which starts with `what`, for a value that the field cannot have."""
        if value is None and self.default is None:
            return
        if self._check is not None:
            self._check(value, what)
            return
        if self.repeats and not isinstance(value, Collection):
            raise UserError(f"{what} is {value!r}", why="it must be a list", try_=self._advice)
        for item in value if self.repeats else [value]:
            if self.choices and item not in self.choices:
                why = f"it must be {' or '.join(self.choices)}"
                raise UserError(f"{what} is {item!r}", why=why, try_=near(str(item), self.choices))
            if self.kind in (int, float):
                check_number(item, what, self.kind, self._low, self._high, self._advice)

    def _of_text(self, text: str, what: str) -> Any:
        if self.kind is bool:
            if text.lower() not in SWITCH:
                raise UserError(f"{what} is {text!r}", why="it is on or off", try_=f"{what}=1 or {what}=0")
            return SWITCH[text.lower()]
        if self.kind is Path:
            return Path(expand_home(text))
        try:
            return self.kind(text)
        except ValueError:
            why = f"it must be {_expected(self.kind, self._low, self._high)}"
            raise UserError(f"{what} is {text!r}", why=why, try_=self._advice) from None

    @property
    def _advice(self) -> str:
        return "leave it out" if self.default in (None, ()) else f"leave it out, for {self.text_of(self.default)}"

    def text_of(self, value: Any) -> str:
        """`value` as it would be written."""
        return ",".join(map(str, value)) if self.repeats else str(value)


def check_number(
    value: object, what: str, kind: type, low: float = -math.inf, high: float = math.inf, advice: str = ""
) -> None:
    """Raise UserError, which starts with `what`, for anything but a finite number of `kind` (int, float) in limits."""
    is_number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if is_number and low <= value <= high and value not in (-math.inf, math.inf):  # type: ignore[operator]
        return
    shown = f"{value:g}" if isinstance(value, float) else repr(value)
    raise UserError(f"{what} is {shown}", why=f"it must be {_expected(kind, low, high)}", try_=advice or None)


def _expected(kind: type, low: float, high: float) -> str:
    number = "a whole number" if kind is int else "a finite number"
    least, most = (f"{limit:,}" if isinstance(limit, int) else f"{limit:g}" for limit in (low, high))
    if low == -math.inf:
        return number
    return f"{number} from {least} up" if high == math.inf else f"{number} from {least} to {most}"


def options_of(kind: type) -> tuple[Option, ...]:
    """The options of a dataclass, in their order."""
    return _options(cast(Any, kind))


@cache
def _options(kind: Any) -> tuple[Option, ...]:
    return tuple(Option(field) for field in dataclasses.fields(kind) if "help" in field.metadata)


def check_fields(instance: Any) -> None:
    """Check every option of a dataclass instance, under the name of its field (call it in `__post_init__`)."""
    for one in options_of(type(instance)):
        one.check(getattr(instance, one.field), one.field)
