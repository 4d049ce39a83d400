"""The tables of the parts of models, one file each; a file of this folder with a `PART` is found by listing it."""

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from stretto.models.table import Part


@functools.cache
def _parts() -> Mapping[Any, Part]:
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    parts = (getattr(module, "PART", None) for module in modules)
    return {part.config: part for part in parts if part is not None}


def part_of(config: Any) -> Part:
    """The table of a mixer or a channel, by the type of its config. A missing table is a KeyError: no file has one."""
    return _parts()[type(config)]
