"""Draws and log-probabilities by native threads (sample.cpp, logprobs.cpp): a row of logits each, with the law of
laws.py and the noise of noise.py.

Bias, penalties and masks are applied here, number by number, to copies of the rows that have some: as `adjust.py` does,
in fp32, to the bit.
"""

import ctypes
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from ctypes import c_float, c_int32, c_uint8
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stretto.core.errors import UserError
from stretto.core.sampling import Noise, Sampling
from stretto.kernels.native.library import Fields, Library, Team
from stretto.kernels.sampling import reference
from stretto.kernels.sampling.reference import Purpose
from stretto.kernels.sampling.rows import Refusals, RowSampling, check_ids, refusal

if TYPE_CHECKING:
    from torch import Tensor

Draw = tuple[Sampling, Noise, int]  # resolved; the stream; the absolute position of the token
_SMALLEST = 1.1754943508222875e-38  # normal fp32 number


@dataclass(frozen=True, slots=True)
class LogitRows:
    """Logits in memory: `count` rows of fp32 [width], `stride` bytes apart. threads: who computes with them. order:
    numbers of these rows, which then stand for the rows 0, 1, ...; None = all, as they are."""

    address: int
    count: int
    width: int
    stride: int
    threads: Team
    order: Sequence[int] | None = None

    def select(self, order: Sequence[int]) -> "LogitRows":
        """These rows, in this order."""
        assert self.order is None
        return replace(self, order=order)

    def at(self, row: int) -> int:
        """The address of a row."""
        row = row if self.order is None else self.order[row]
        assert 0 <= row < self.count
        return self.address + row * self.stride

    def tensor(self) -> "Tensor":
        """[count, width]: a view, valid as long as the memory."""
        import torch

        numbers = (c_float * (self.count * self.stride // 4)).from_address(self.address)
        whole = torch.frombuffer(numbers, dtype=torch.float32) if self.count else torch.empty(0)
        rows = whole.view(self.count, self.stride // 4)[:, : self.width]
        return rows if self.order is None else rows[list(self.order)]


def row(library: Library, x: int, argmax: int, width: int, how: Draw) -> Any:
    """A `Row` of sample.h. x: address of fp32 logits [width]; argmax: of an int32, the lowest id of the largest."""
    s, noise, position = how
    assert s.temperature is not None and s.top_p is not None and s.top_k is not None and s.min_p is not None
    key = reference.key(noise)
    return library.struct("Row")(
        x, argmax, width,
        max(s.temperature, _SMALLEST) if s.temperature > 0 else 0.0,
        s.top_p, math.log(s.min_p) if s.min_p > 0 else -math.inf, s.top_k,
        (key & reference.MASK32, key >> 32), position, Purpose.TOKEN,
    )  # fmt: skip


def why_not(x: "Tensor", threads: Team | None) -> str | None:
    """Threads must be there to draw; fp32 logits on the CPU, row by row."""
    import torch

    if threads is None:
        return "no native threads are there to draw"
    if x.dtype != torch.float32 or x.is_cuda or x.stride(-1) != 1:
        return "it draws from rows of fp32 logits on the CPU"
    return None


def choose(
    xs: "Sequence[Tensor]", rows: Sequence[RowSampling], argmax: Sequence[int], threads: Team
) -> tuple[list[int], Refusals]:
    """Gumbel-max over the survivors of every row [W]. The threads share the rows."""
    width = len(xs[0]) if xs else 0
    return choose_at([x.data_ptr() for x in xs], width, rows, argmax, threads)


def choose_at(
    addresses: Sequence[int], width: int, rows: Sequence[RowSampling], argmax: Sequence[int], threads: Team
) -> tuple[list[int], Refusals]:
    """The same for logits in memory. argmax: the lowest id of the largest logit of every row."""
    where, best, refused, held = list(addresses), list(argmax), Refusals(), list[Any]()
    for r, one in enumerate(rows):
        if one.is_adjusted:
            try:
                copy, best[r] = _adjusted(where[r], width, one, threads)
            except UserError as why:
                refused[r] = why  # it is drawn as it was, for nothing
                continue
            held.append(copy)
            where[r] = ctypes.addressof(copy)
    ids = (c_int32 * len(best))(*best)
    first = ctypes.addressof(ids)
    made = [
        row(threads.library, x, first + r * ctypes.sizeof(c_int32), width, (one.sampling, one.noise, one.position))
        for r, (x, one) in enumerate(zip(where, rows, strict=True))
    ]
    drawn = (threads.library.struct("Row") * len(made))(*made)
    threads.run_once("choose", [{"num_rows": len(drawn), "rows": drawn}])
    return [one.token for one in drawn], refused


def logprobs_at(
    addresses: Sequence[int], width: int, chosen: Sequence[int], num_top: int, threads: Team
) -> list[tuple[float, dict[int, float]]]:
    """Log-probabilities before any processing, per row: of its chosen token, and of the `num_top` likeliest, by id,
    likeliest first. The rows have a finite largest logit."""
    n, k = len(addresses), min(num_top, width)
    own, ids, values = (c_float * n)(), (c_int32 * (n * k))(), (c_float * (n * k))()
    starts = ctypes.addressof(own), ctypes.addressof(ids), ctypes.addressof(values)
    calls: list[Fields] = []
    for r, (x, token) in enumerate(zip(addresses, chosen, strict=True)):
        call: Fields = {"x": x, "width": width, "chosen": token, "num_top": k, "logprob": starts[0] + 4 * r}
        calls.append(call | {"ids": starts[1] + 4 * k * r, "logprobs": starts[2] + 4 * k * r})
    threads.run_once("row_logprobs", calls)
    tops = [dict(zip(ids[r * k : r * k + k], values[r * k : r * k + k], strict=True)) for r in range(n)]
    return list(zip(own, tops, strict=True))


def _adjusted(x: int, width: int, how: RowSampling, threads: Team) -> tuple["ctypes.Array[c_float]", int]:
    """A copy of a row with bias, penalties and masks, and the lowest id of its largest number. Raises as `adjust`."""
    copy = (c_float * width).from_buffer_copy((c_float * width).from_address(x))
    s = how.sampling
    check_ids(s.logit_bias, width)
    check_ids(how.banned, width)
    for token, bias in s.logit_bias.items():
        copy[token] += _fp32(bias)
    if s.has_penalties:
        counts = Counter(how.output)
        counts.update(how.path)
        repetition = _fp32(1.0 if s.repetition_penalty is None else s.repetition_penalty)
        if repetition != 1.0:
            for token in {*how.prompt, *counts}:
                value = copy[token]
                copy[token] = value / repetition if value > 0 else value * repetition
        _subtract(copy, counts, _fp32(s.frequency_penalty), _fp32(s.presence_penalty))
    for token in how.banned:
        copy[token] = -math.inf
    if how.allowed is not None:
        held = (c_uint8 * len(how.allowed)).from_buffer_copy(how.allowed)
        mask: Fields = {"x": ctypes.addressof(copy), "allowed": held, "width": width, "num_bytes": len(held)}
        threads.run_once("mask", [mask])
    top, argmax = c_float(), c_int32()
    fields: Fields = {"rows": threads.library.struct("Rows")(threads.library.code("RowKind", "constant_rows"), 1)}
    fields |= {"width": width, "x": ctypes.addressof(copy), "x_stride": width}
    threads.run_once("best", [fields | {"values": ctypes.addressof(top), "ids": ctypes.addressof(argmax)}])
    if not math.isfinite(top.value):
        raise refusal(top.value)
    return copy, argmax.value


def _subtract(x: "ctypes.Array[c_float]", counts: Mapping[int, int], frequency: float, presence: float) -> None:
    if frequency or presence:
        for token, count in counts.items():
            x[token] -= _fp32(_fp32(frequency * count) + presence)


def _fp32(value: float) -> float:
    """Rounded to fp32. One operation on such numbers in double precision, rounded again, is that operation in fp32."""
    return c_float(value).value
