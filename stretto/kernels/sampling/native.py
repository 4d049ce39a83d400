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


class _Row(ctypes.Structure):
    _fields_ = [
        ("x", c_void_p),
        ("width", c_int32),
        ("argmax", c_int32),
        ("temperature", c_float),
        ("top_p", c_float),
        ("log_min_p", c_float),
        ("top_k", c_int32),
        ("key", c_uint32 * 2),
        ("position", c_uint32),
        ("purpose", c_uint32),
        ("token", c_int32),
        ("unused", c_int32),
    ]


class _ChooseArgs(ctypes.Structure):
    _fields_ = [("num_rows", c_int64), ("rows", c_void_p)]


class Choice:
    """One row to choose from. logits: [W] fp32, contiguous, finite or -inf; argmax: the lowest id of the largest."""

    def __init__(self, logits: Tensor, argmax: int, sampling: Sampling, noise: Noise, position: int) -> None:
        s = sampling
        assert logits.dtype == torch.float32 and logits.is_contiguous() and not logits.is_cuda
        assert s.temperature is not None and s.top_p is not None and s.top_k is not None and s.min_p is not None
        self._logits, key = logits, reference.key(noise)
        self.row = _Row(
            logits.data_ptr(), len(logits), argmax,
            max(s.temperature, torch.finfo(torch.float32).tiny) if s.temperature > 0 else 0.0,
            s.top_p, math.log(s.min_p) if s.min_p > 0 else -math.inf, s.top_k,
            (key & reference.MASK32, key >> 32), position, Purpose.TOKEN,
        )  # fmt: skip


def choose(choices: Sequence[Choice], threads: Pool) -> list[int]:
    """The token of every row. The threads share the rows."""
    rows = (_Row * len(choices))(*(choice.row for choice in choices))
    threads.run_once([("choose", _ChooseArgs(len(rows), ctypes.addressof(rows)))])
    return [row.token for row in rows]
