"""Tables: which key and which tensor of each file format holds which field and which parameter of ours.

A *part* is a mixer, a channel or the whole model around its layers. Its table has one row per field (`Key`) and one per
parameter (`Row`), each with a side for checkpoint directories (`hf`) and one for GGUF files (`gguf`). Readers and
writers of both formats are derived from the tables (`family.py`); `ways.py` has the usual sides of a key.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NoReturn

from torch import Tensor

from stretto.core.errors import ModelFileError
from stretto.models.reader import Reader

Format = Literal["hf", "gguf"]
Known = Mapping[str, Any]
"""What was read so far: fields of the whole model, then of the part, and `block`, a layer that has the part."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Where one of our tensors lies in a file. It covers every difference seen in practice.

    rows: (first, count) if it is a row range of a larger tensor there.
    order: our row i is row order[i] of the (part of the) tensor in the file; whole rows move, exact in every codec.
    columns: the same for the last dimension of a matrix. Exact in every codec, too, but where a block of the codec
    would be torn apart the values are decoded.
    shape: its shape in the file, where that is not ours; dimensions of size 1 may be missing or added.
    load, save: elementwise maps from the file's numbers to ours and back (computed in fp64, kept in fp32), for another
    parametrisation; where there are none, the format stores our numbers.
    """

    name: str
    rows: tuple[int, int] | None = None
    order: Tensor | None = None
    columns: Tensor | None = None
    shape: tuple[int, ...] | None = None
    load: Callable[[Tensor], Tensor] | None = None
    save: Callable[[Tensor], Tensor] | None = None


Names = Mapping[str, Source]
"""Our tensor name (see `LM.targets`) -> where it is stored. May name more than the model has (optional biases)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One parameter: its name in our module, and in both formats its source, named within the part."""

    ours: str
    hf: Source
    gguf: Source


def row(ours: str, hf: str, gguf: str) -> Row:
    """A parameter that both formats store as it is."""
    return Row(ours, Source(name=hf), Source(name=gguf))


def linear(ours: str, hf: Source, gguf: Source) -> tuple[Row, Row]:
    """Weight and, where there is one, bias of a segment; sources are named without their ending."""

    def ending(end: str) -> tuple[Source, Source]:
        return replace(hf, name=f"{hf.name}.{end}"), replace(gguf, name=f"{gguf.name}.{end}")

    return Row(ours, *ending("weight")), Row(f"{ours}.bias", *ending("bias"))


def always(value: Any) -> bool:
    """Every value can be written."""
    return True


@dataclass(frozen=True, slots=True)
class Way:
    """How a format spells a field.

    read(reader, known) gives its value. write(value, config) gives the keys that say so, config being that of the part.
    says(value): whether the format has words for it.
    """

    read: Callable[[Reader, Known], Any]
    write: Callable[[Any, Any], Mapping[str, Any]]
    says: Callable[[Any], bool] = always


@dataclass(frozen=True, slots=True)
class Key:
    """One field of ours and its way in each format. A row without a field checks a file, or writes what it must say."""

    field: str
    hf: Way
    gguf: Way

    def way(self, form: Format) -> Way:
        """The side of one format."""
        return self.hf if form == "hf" else self.gguf


@dataclass(frozen=True, slots=True)
class Part:
    """The table of one kind of mixer or channel, which families name (`stretto show` finds it by its config).

    tensors(config) gives the rows of its parameters; module: what stands before their names in a layer of a checkpoint.
    shown: the fields that `stretto show` prints. fits: which configs of this type it is the table of, where a family
    has two kinds of layers of one type.
    """

    config: Callable[..., Any]
    keys: tuple[Key, ...]
    tensors: Callable[[Any], Iterable[Row]]
    module: str
    shown: tuple[str, ...] = ()
    fits: Callable[[Any], bool] = always

    def having(self, ways: "Ways", **others: Any) -> "Part":
        """The part as another family spells it; ways: see `changed`; others: fields of the part."""
        return replace(self, keys=changed(self.keys, ways), **others)

    def holds(self, config: Any) -> bool:
        """Whether it is the table of `config`."""
        return type(config) is self.config and self.fits(config)

    def read(self, form: Format, read: Reader, known: Known) -> Any:
        """The config that a file describes."""
        found = read_keys(self.keys, form, read, known)
        return self.config(**{f.name: found[f.name] for f in fields(self.config) if f.name in found})  # type: ignore[arg-type]


Ways = Mapping[str, Way | tuple[Way, Way]]
"""Field -> its way in config.json, or its ways in both formats."""


def changed(keys: tuple[Key, ...], ways: Ways) -> tuple[Key, ...]:
    """The rows with other ways."""
    unknown = ways.keys() - {key.field for key in keys}
    assert not unknown, f"no row of the table: {unknown}"

    def new(key: Key) -> Key:
        way = ways.get(key.field, key.hf)
        return Key(key.field, *way) if isinstance(way, tuple) else Key(key.field, way, key.gguf)

    return tuple(map(new, keys))


def read_keys(keys: Iterable[Key], form: Format, read: Reader, known: Known) -> dict[str, Any]:
    """`known` and the fields of the rows."""
    found = dict(known)
    for key in keys:
        value = key.way(form).read(read, found)
        if key.field:
            found[key.field] = value
    return found


def write_keys(keys: Iterable[Key], form: Format, config: Any, where: str, into: dict[str, Any]) -> None:
    """Add the keys that describe `config`. Raises ModelFileError for a value that the format has no words for, also
    where two fields need different values of one key. where: the architecture, for messages."""
    for key in keys:
        way, value = key.way(form), getattr(config, key.field) if key.field else None
        if key.field and not way.says(value):
            refuse_to_write(f"{key.field} = {value}", where)
        for name, said in way.write(value, config).items():
            if into.setdefault(name, said) != said:
                refuse_to_write(f"{name} of two values ({into[name]} and {said})", where)


def refuse_to_write(what: str, where: str) -> NoReturn:
    """Raise ModelFileError: a format or architecture has no way to say something."""
    raise ModelFileError(f"{what} cannot be written to {where}", why="it has no key for it")
