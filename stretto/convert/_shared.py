"""What the file formats share: mapping a file, naming its damage, replacing a file in one step."""

import difflib
import errno
import mmap
import os
import secrets
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import BinaryIO
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from stretto.core.card import CODECS
from stretto.core.codec import Codec, Stored
from stretto.core.errors import ModelFileError, RunError, UserError

MAX_VALUES = 1 << 48  # of one tensor, zero-sized dimensions counted as 1: strides stay far from 2^63


def map_file(path: Path) -> tuple[mmap.mmap, Tensor]:
    """The bytes of a file, twice without a copy: to parse, and as a read-only uint8 tensor [size].

    Raises UserError if there is no such file or it may not be read, ModelFileError if it is empty.
    """
    if not path.is_file():  # before opening: opening a pipe would wait forever
        raise UserError(f"{path} is not a file", try_="the path of a model file")
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise damaged(path, "is empty")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as e:
        raise UserError(f"cannot read {path}: {e.strerror or e}") from e
    with warnings.catch_warnings():  # the view is read-only on purpose: stored weights are never written in place
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        mapped = torch.frombuffer(data, dtype=torch.uint8)
    _MAPPED[mapped.data_ptr()] = data
    return data, mapped


_MAPPED: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()
"""By the address of their first byte, the files that are mapped."""


def forget_pages(view: Tensor) -> None:
    """If these bytes are a view of a mapped file, its pages leave this process: they count as its memory, and are read
    again, from the system's cache, if somebody looks. Bytes that are not a view of one stay."""
    data = _MAPPED.get(view.untyped_storage().data_ptr())
    if data is not None:
        data.madvise(mmap.MADV_DONTNEED)


def damaged(path: Path, what: str, why: str | None = None) -> ModelFileError:
    """The error for a file that breaks its format."""
    return ModelFileError(f"{path}: {what}", why=why, try_="download or convert the file again")


@cache
def codec_named(name: str) -> Codec:
    """The codec of that name; codecs have no state, so one instance serves all tensors."""
    codec: Codec = CODECS.card(name).make()
    return codec


def quoted(name: str) -> str:
    """A name from a file, safe to print: escaped, at most 80 characters."""
    return repr(name if len(name) <= 80 else f"{name[:77]}...")


def absent(path: Path, name: str, names: Iterable[str]) -> ModelFileError:
    """The error for a tensor that the file does not hold, with the nearest names."""
    near = difflib.get_close_matches(name, list(names), n=3)
    found = f"the nearest names are {', '.join(map(quoted, near))}" if near else None
    return ModelFileError(f"{path} has no tensor {quoted(name)}", why=found)


def product(shape: Iterable[int], floor: int = 0) -> int:
    """The product of the dimensions, each at least `floor`; in Python integers, which do not overflow."""
    n = 1
    for dim in shape:
        n *= max(dim, floor)
    return n


def write_bytes(file: BinaryIO, stored: Stored) -> None:
    """Append the payload of a tensor."""
    write_tensor(file, stored.data)


def write_tensor(file: BinaryIO, data: Tensor) -> None:
    """Append the numbers of a tensor of any integer or fp32 dtype."""
    file.write(data.contiguous().cpu().numpy().data)


def replace_file(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file beside `path` and put it there when it is complete and on disk: readers see the old file or the
    new one, never a part. Nothing is left behind on failure; RunError if the disk is full or refuses."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        raise RunError(
            f"cannot write {path}: {e.strerror or e}",
            why="the disk is full" if full else None,
            try_="free some space, or write elsewhere" if full else "another place to write to",
        ) from e
    finally:
        part.unlink(missing_ok=True)
