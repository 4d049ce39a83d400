"""Choosing tokens with native threads (sample.cpp): a row of logits each, the same law and noise as laws.py."""

import ctypes
import math
from collections.abc import Sequence
from ctypes import c_int32
from typing import Any

import torch
from torch import Tensor

from stretto.core.sampling import Noise, Sampling
from stretto.kernels.native.library import Library, Team
from stretto.kernels.sampling import reference
from stretto.kernels.sampling.noise import Purpose

Draw = tuple[Sampling, Noise, int]  # resolved; the stream; the absolute position of the token


def row(library: Library, x: int, argmax: int, width: int, how: Draw) -> Any:
    """A `Row` of sample.h. x: address of fp32 logits [width]; argmax: of an int32, the lowest id of the largest."""
    s, noise, position = how
    assert s.temperature is not None and s.top_p is not None and s.top_k is not None and s.min_p is not None
    key = reference.key(noise)
    return library.struct("Row")(
        x, argmax, width,
        max(s.temperature, torch.finfo(torch.float32).tiny) if s.temperature > 0 else 0.0,
        s.top_p, math.log(s.min_p) if s.min_p > 0 else -math.inf, s.top_k,
        (key & reference.MASK32, key >> 32), position, Purpose.TOKEN,
    )  # fmt: skip


def choose(logits: Sequence[Tensor], argmax: Sequence[int], how: Sequence[Draw], threads: Team) -> list[int]:
    """The token of every row. logits: each [W] fp32, contiguous. The threads share the rows."""
    for x in logits:
        assert x.dtype == torch.float32 and x.is_contiguous() and not x.is_cuda
    ids = (c_int32 * len(argmax))(*argmax)
    first = ctypes.addressof(ids)
    places = [first + r * ctypes.sizeof(c_int32) for r in range(len(ids))]
    made = [
        row(threads.library, x.data_ptr(), at, len(x), draw) for x, at, draw in zip(logits, places, how, strict=True)
    ]
    rows = (threads.library.struct("Row") * len(made))(*made)
    threads.run_once("choose", [{"num_rows": len(rows), "rows": rows}])
    return [one.token for one in rows]
