"""What the tests of native kernels share: libraries of every level, and tapes over plain tensors."""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from stretto.core.card import CODECS, Can
from stretto.core.codec import Stored
from stretto.core.env import read_env
from stretto.kernels.native.buffers import ALL_ROWS
from stretto.kernels.native.build import build, supported_levels
from stretto.kernels.native.library import Team, load
from stretto.kernels.native.tape import Tape

LEVELS = supported_levels()


@cache
def team(level: str = LEVELS[0], num_threads: int = 2) -> Team:
    """Threads that run the kernels of `level`; compiled into the user's cache, as everywhere."""
    env = read_env()
    return Team(load(build(level, env.cache_dir, compiler=env.cxx)), num_threads)


LAYOUTS = team().library.enum("Format")
"""Codecs with a native layout."""
PLAIN = tuple(name for name in LAYOUTS if CODECS.card(name).make().is_plain)
"""Those of them whose numbers are not quantized."""


def int32(values: Sequence[int]) -> ctypes.Array[ctypes.c_int32]:
    return (ctypes.c_int32 * len(values))(*values)


def stored(codec: str, rows: int, width: int) -> Stored:
    """A random tensor of this codec; of codecs that are only read, random bytes with sensible scales."""
    card = CODECS.card(codec)
    made = card.make()
    if Can.ENCODE in card.can:
        return made.encode(torch.randn(rows, width) * torch.rand(rows, 1) * 4)
    dtype, first, last = made.floats
    shape = (rows, width // made.block)
    data = torch.randint(0, 256, (*shape, made.block_bytes), dtype=torch.uint8)
    scales = torch.rand(*shape, (last - first) // dtype.itemsize) * 0.02 - 0.005
    data[..., first:last] = scales.to(dtype).view(torch.uint8)
    return Stored(made, (rows, width), data.flatten(1))


def run_rows(
    op: Callable[..., Tensor],
    *inputs: Tensor,
    level: str = LEVELS[0],
    num_threads: int = 2,
    positions: Sequence[int] | None = None,
    out_rows: Sequence[int] | None = None,
    context: int = 4096,
    coarse_from: int | None = None,
) -> Tensor:
    """Record `op` over buffers that hold `inputs` (equal numbers of rows), run it, and return its rows.

    Buffers are poisoned with NaN first: what an operation does not write is seen. coarse_from: the rows from here on
    are a prompt, and prompts are coarse.
    """
    rows = len(inputs[0])
    sizes = {"max_rows": rows + 3, "max_out": rows + 3, "context": context}
    tape = Tape(team(level, num_threads), **sizes, coarse_prompts=coarse_from is not None)
    buffers = [tape.empty(ALL_ROWS, *x.shape[1:], dtype=x.dtype) for x in inputs]
    with tape.recording():
        out = op(*buffers)
    for buffer, x in zip(buffers, inputs, strict=True):
        buffer.view(torch.uint8).fill_(0xFF) if buffer.dtype.is_floating_point else buffer.fill_(0)
        buffer[:rows] = x
    ctypes.memset(out.data_ptr(), 0xFF, out.numel() * out.itemsize)
    where = int32(list(range(rows)) if positions is None else positions)
    wanted = int32(list(range(rows)) if out_rows is None else out_rows)
    starts = int32([0, rows] if coarse_from is None else [0, coarse_from, rows])
    tape.step.num_rows, tape.step.num_out, tape.step.num_seqs = rows, len(wanted), len(starts) - 1
    tape.step.num_step_seqs = 1
    tape.step.positions, tape.step.out_rows = ctypes.addressof(where), ctypes.addressof(wanted)
    tape.step.starts = ctypes.addressof(starts)
    tape.run()
    return out[: rows if out_rows is None else len(out_rows)].clone()
