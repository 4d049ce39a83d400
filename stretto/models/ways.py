"""The usual ways of a key: counts, numbers, flags, what a family fixes, what GGUF leaves to its tensor list.

And the parametrisations of numbers in which formats differ.
"""

from typing import Any

import torch
from torch import Tensor

from stretto.core.errors import ModelFileError
from stretto.models.reader import MAX_LAYERS, Reader
from stretto.models.table import Known, Source, Way


def nothing(value: Any, config: Any) -> dict[str, Any]:
    """No key is written."""
    return {}


def count(key: str, default: int | None = None) -> Way:
    """A positive integer."""
    return Way(lambda read, known: read.count(key, default), lambda value, config: {key: value})


def number(key: str, default: float | None = None) -> Way:
    """A finite number."""
    return Way(lambda read, known: read.number(key, default), lambda value, config: {key: float(value)})


def flag(key: str, default: bool) -> Way:
    """True or false."""
    return Way(lambda read, known: read.flag(key, default), lambda value, config: {key: value})


def fixed(value: Any) -> Way:
    """What every model of a family has; a format without a key for it can say nothing else."""
    return Way(lambda read, known: value, nothing, lambda other: bool(other == value))


def known_as(field: str) -> Way:
    """The same as a field that was read before."""
    return Way(lambda read, known: known[field], nothing, lambda value: value is not None)


def check(*allowed: Any, key: str, write: Any = None) -> Way:
    """A key without a field of ours: it must be absent or one of `allowed`; written, where `write` is given."""
    said = {} if write is None else {key: write}
    return Way(lambda read, known: read.expect(key, *allowed), lambda value, config: said)


def divisor(key: str, of: str, default: int | None = None, *, or_all: bool = False) -> Way:
    """A count that must divide the field `of`. or_all: without the key it is equal to it."""

    def read(read: Reader, known: Known) -> int:
        found = read.count(key, known[of] if or_all else default)
        read.divide(known[of], key, found)
        return found

    return Way(read, lambda value, config: {key: value})


def positive(key: str, none: float | None = None) -> Way:
    """A number of a GGUF file where 0, or no key, means that there is none, which is `none` for us."""

    def write(value: Any, config: Any) -> dict[str, Any]:
        return {} if value == none else {key: float(value)}

    return Way(lambda read, known: read.number(key, 0.0) or none, write)


# GGUF -----------------------------------------------------------------------------------------------------------------


def held(name: str, *, block: bool = True) -> Way:
    """Whether a GGUF file holds a tensor: no key says so. block: of the layer that has the part."""

    def read(read: Reader, known: Known) -> bool:
        return (f"blk.{known['block']}.{name}" if block else name) in tensors_of(read)

    return Way(read, nothing)


def same(key: str) -> Way:
    """A count that GGUF may give per layer and that must be the same for all layers that have it."""
    return Way(lambda read, known: same_count(read, key), lambda value, config: {key: value})


def same_count(read: Reader, key: str, default: int | None = None) -> int:
    """See `same`; 0 means that a layer does not have it."""
    values = {v for v in per_layer(read, key, default) if v}
    if len(values) != 1:
        raise ModelFileError(
            f"{read.where}: {read.prefix + key} differs between layers", why="this family has layers of one size"
        )
    return values.pop()


def per_layer(read: Reader, key: str, default: int | None = None) -> list[int]:
    """A number per layer, which the file may spell as one number."""
    layers = read.count("block_count", most=MAX_LAYERS)
    value = read.need(key) if default is None else read.get(key, default)
    values = value if isinstance(value, list) else [value] * layers
    if len(values) != layers or not all(isinstance(v, int) and v >= 0 for v in values):
        read.refuse(key, value, "it must be a number per layer, or one for all")
    return list(values)


def tensors_of(read: Reader) -> dict[str, tuple[int, ...]]:
    """The tensors of the file: name -> shape."""
    found: dict[str, tuple[int, ...]] = read.config["stretto.tensors"]
    return found


# Parametrisations -----------------------------------------------------------------------------------------------------


def minus_one(name: str) -> Source:
    """Our number is that of the file minus one."""
    return Source(name=name, load=lambda w: w - 1, save=lambda w: w + 1)


def plus_one(name: str) -> Source:
    """Our number is that of the file plus one."""
    return Source(name=name, load=lambda w: w + 1, save=lambda w: w - 1)


def log_of_minus(a: Tensor) -> Tensor:
    """`A_log` from A."""
    if not bool((a < 0).all()):
        raise ModelFileError("ssm_a has numbers that are not negative", why="a state that grows is no model's")
    return torch.log(-a)


def minus_exp(log: Tensor) -> Tensor:
    """A from `A_log`."""
    return -torch.exp(log)
