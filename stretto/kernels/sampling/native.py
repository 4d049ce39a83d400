"""Draws by native threads (sample.cpp): a row of logits each, with the law of laws.py and the noise of noise.py."""

import ctypes
import math
from collections.abc import Sequence
from ctypes import c_int32
from typing import Any

import torch
from torch import Tensor

from stretto.core.errors import UserError
from stretto.core.sampling import Noise, Sampling
from stretto.kernels.native.library import Library, Team
from stretto.kernels.sampling import reference
from stretto.kernels.sampling.reference import Purpose
from stretto.kernels.sampling.rows import Refusals, RowSampling, adjusted

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


def why_not(x: Tensor, threads: Team | None) -> str | None:
    """Threads must be there to draw; fp32 logits on the CPU, row by row."""
    if threads is None:
        return "no native threads are there to draw"
    if x.dtype != torch.float32 or x.is_cuda or x.stride(-1) != 1:
        return "it draws from rows of fp32 logits on the CPU"
    return None


def choose(
    xs: Sequence[Tensor], rows: Sequence[RowSampling], argmax: Sequence[int], threads: Team
) -> tuple[list[int], Refusals]:
    """Gumbel-max over the survivors of every row [W]. The threads share the rows."""
    xs, argmax, refused = list(xs), list(argmax), Refusals()
    for r, one in enumerate(rows):
        if one.is_adjusted:
            try:
                xs[r], argmax[r] = adjusted(xs[r], one)
            except UserError as why:
                refused[r] = why  # it is drawn as it was, for nothing
    ids = (c_int32 * len(argmax))(*argmax)
    first = ctypes.addressof(ids)
    made = [
        row(threads.library, x.data_ptr(), first + r * ctypes.sizeof(c_int32), len(x), how)
        for r, (x, how) in enumerate(zip(xs, ((s.sampling, s.noise, s.position) for s in rows), strict=True))
    ]
    held = (threads.library.struct("Row") * len(made))(*made)
    threads.run_once("choose", [{"num_rows": len(held), "rows": held}])
    return [one.token for one in held], refused
