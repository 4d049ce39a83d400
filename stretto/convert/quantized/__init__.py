"""Quantized checkpoints: `quantization_config.quant_method` of config.json -> who reads its tensors.

The folder is the registry: a method is a file of its name (`-` as `_`) with a `METHOD`, which puts the tensors that
its writers took apart (integers, scales, zero points) together as stored tensors of our codecs.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from stretto.core.codec import Stored
from stretto.core.errors import ModelFileError


class Container(Protocol):
    """Named tensors of a checkpoint. kind: the dtype in the file and the shape. held: our codec and the shape."""

    path: Path

    def names(self) -> list[str]: ...
    def kind(self, name: str) -> tuple[str, tuple[int, ...]]: ...
    def raw(self, name: str) -> torch.Tensor: ...
    def held(self, name: str) -> tuple[str, tuple[int, ...]]: ...
    def stored(self, name: str) -> Stored: ...


class Tensors(Protocol):
    """What a method gives: the tensors of the model."""

    def names(self) -> list[str]: ...
    def held(self, name: str) -> tuple[str, tuple[int, ...]]: ...
    def stored(self, name: str) -> Stored: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One way to quantize checkpoints.

    idea: what of it is read, for messages. check(quantization_config, where) raises ModelFileError with the name of
    every setting that is not followed, before any tensor is looked at. read(container) gives the tensors put together,
    and raises ModelFileError for those that do not fit together.
    """

    idea: str
    check: Callable[[Mapping[str, Any], str], None]
    read: Callable[[Container], Tensors]


def methods() -> list[str]:
    """The names of all methods, as config.json spells them."""
    files = (found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_"))
    return sorted(name.replace("_", "-") for name in files)


def method_of(config: Mapping[str, Any], where: str) -> Method | None:
    """Who reads the tensors of this config.json; None for a plain checkpoint. Raises ModelFileError for a method that
    is not known, or settings of one that are not followed."""
    quantization = config.get("quantization_config")
    if quantization is None:
        return None
    is_mapping = isinstance(quantization, Mapping)
    name = quantization.get("quant_method") if is_mapping else quantization
    if not is_mapping or name not in methods():
        near = difflib.get_close_matches(str(name), methods(), n=2)
        raise ModelFileError(
            f"{where}: quantization_config {name!r} is not supported",
            why=f"supported: plain f32, f16, bf16 tensors, {', '.join(_loaded(n).idea for n in methods())}",
            try_=f"did you mean {' or '.join(near)}?" if near else None,
        )
    method = _loaded(name)
    method.check(quantization, where)
    return method


def _loaded(name: str) -> Method:
    method: Method = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").METHOD
    return method
