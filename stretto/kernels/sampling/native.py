"""Choosing tokens with native threads (src/sample.cpp): a row of logits each, the same law and noise as laws.py."""

import ctypes
import math
from collections.abc import Sequence
from ctypes import c_float, c_int32, c_int64, c_uint32, c_void_p

import torch
from torch import Tensor

from stretto.core.judge import Noise
from stretto.core.sampling import Sampling
from stretto.kernels.native.library import Pool
from stretto.kernels.sampling import reference
from stretto.kernels.sampling.noise import Purpose

Draw = tuple[Sampling, Noise, int]  # resolved; the stream; the absolute position of the token


class Row(ctypes.Structure):
    """A row of logits and its token (`Row` of src/sample.h)."""

    _fields_ = [
        ("x", c_void_p),
        ("argmax", c_void_p),
        ("width", c_int32),
        ("temperature", c_float),
        ("top_p", c_float),
        ("log_min_p", c_float),
        ("top_k", c_int32),
        ("key", c_uint32 * 2),
        ("position", c_uint32),
        ("purpose", c_uint32),
        ("token", c_int32),
    ]

    @staticmethod
    def of(x: int, argmax: int, width: int, how: Draw) -> "Row":
        """x: address of fp32 logits [width]; argmax: of an int32, the lowest id of the largest of them."""
        s, noise, position = how
        assert s.temperature is not None and s.top_p is not None and s.top_k is not None and s.min_p is not None
        key = reference.key(noise)
        return Row(
            x, argmax, width,
            max(s.temperature, torch.finfo(torch.float32).tiny) if s.temperature > 0 else 0.0,
            s.top_p, math.log(s.min_p) if s.min_p > 0 else -math.inf, s.top_k,
            (key & reference.MASK32, key >> 32), position, Purpose.TOKEN,
        )  # fmt: skip


class ChooseArgs(ctypes.Structure):
    """Rows to choose from."""

    _fields_ = [("num_rows", c_int64), ("rows", c_void_p)]


class AdvanceArgs(ctypes.Structure):
    """What a step needs to describe the one that follows it (src/ahead.cpp)."""

    _fields_ = [
        ("step", c_void_p),
        ("rows", c_void_p),
        ("tops", c_void_p),
        ("tokens", c_void_p),
        ("all_tops", c_void_p),
        ("positions", c_void_p),
        ("contexts", c_void_p),
        ("state_source", c_void_p),
        ("stops", c_void_p),
        ("stop_starts", c_void_p),
        ("done", c_void_p),
        ("left", c_void_p),
    ]


def choose(logits: Sequence[Tensor], argmax: Sequence[int], how: Sequence[Draw], threads: Pool) -> list[int]:
    """The token of every row. logits: each [W] fp32, contiguous. The threads share the rows."""
    for x in logits:
        assert x.dtype == torch.float32 and x.is_contiguous() and not x.is_cuda
    ids = (c_int32 * len(argmax))(*argmax)
    first = ctypes.addressof(ids)
    places = [first + r * ctypes.sizeof(c_int32) for r in range(len(ids))]
    made = [Row.of(x.data_ptr(), at, len(x), draw) for x, at, draw in zip(logits, places, how, strict=True)]
    rows = (Row * len(made))(*made)
    threads.run_once([("choose", ChooseArgs(len(rows), ctypes.addressof(rows)))])
    return [row.token for row in rows]
