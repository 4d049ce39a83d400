"""The cost model: how long a step must take on a machine of known bandwidth and arithmetic rate.

Pure Python, used by the doctor, the benchmarks, the planner and the draft policy. A number here is a *bound* (or a
prediction made from measured coefficients), never a measurement.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What was measured. bandwidth: bytes/s of a read-only pass; flops: useful FLOP/s of a large matmul;
    op_seconds: fixed cost of one operation or launch."""

    bandwidth: float
    flops: float
    op_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCost:
    """What one model costs. weight_bytes: streamed per step; params: multiplied per token (head included);
    kv_bytes: cache bytes per token of context; state_bytes: fixed-size state per sequence (read and written);
    attention_flops: per token and token of context; num_ops: operations per step."""

    weight_bytes: int
    params: int
    kv_bytes: int = 0
    state_bytes: int = 0
    attention_flops: int = 0
    num_ops: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenCost:
    """Operations for a token of a prompt. per_token: whatever stands before it; per_pair: for every token that it sees,
    however far back."""

    per_token: float
    per_pair: float


def step_seconds(machine: Machine, model: ModelCost, *, num_tokens: int, num_seqs: int, sum_context: int) -> float:
    """Lower bound of a step over `num_tokens` rows of `num_seqs` sequences that hold `sum_context` tokens.

    Weights are streamed once while rows are multiplied (the larger of the two counts); cache traffic and fixed costs
    come on top.
    """
    stream = model.weight_bytes / machine.bandwidth
    multiply = 2 * model.params * num_tokens / machine.flops
    cache_bytes = sum_context * model.kv_bytes + 2 * num_seqs * model.state_bytes
    attend = sum_context * model.attention_flops * (num_tokens / max(1, num_seqs)) / machine.flops
    return max(stream, multiply) + cache_bytes / machine.bandwidth + attend + model.num_ops * machine.op_seconds


def decode_bound(machine: Machine, model: ModelCost, context: int = 0) -> float:
    """Tokens/s that one stream cannot exceed."""
    return 1.0 / step_seconds(machine, model, num_tokens=1, num_seqs=1, sum_context=context)


def prefill_bound(machine: Machine, model: ModelCost, num_tokens: int) -> float:
    """Prompt tokens/s that a prompt of `num_tokens` cannot exceed (causal attention: half the square)."""
    seconds = 2 * model.params * num_tokens / machine.flops
    seconds += model.attention_flops * num_tokens * num_tokens / 2 / machine.flops
    return num_tokens / max(seconds, model.weight_bytes / machine.bandwidth)


class Staircase:
    """Seconds of a step by its rows: measured points, and straight lines between and behind them.

    points: rows -> seconds, of at least one number of rows. Before the first point a step takes what that takes; more
    rows never take less.
    """

    def __init__(self, points: Mapping[int, float]) -> None:
        assert points and min(points) >= 1 and min(points.values()) > 0, "rows and seconds are positive"
        highest, self._points = 0.0, list[tuple[int, float]]()
        for rows in sorted(points):
            highest = max(highest, points[rows])
            self._points.append((rows, highest))

    def seconds(self, rows: int) -> float:
        """Of a step with so many rows."""
        points = self._points
        if rows <= points[0][0] or len(points) == 1:
            return points[0][1]
        pairs = list(pairwise(points))
        (low, short), (high, long) = next((pair for pair in pairs if rows <= pair[1][0]), pairs[-1])
        return short + (long - short) * (rows - low) / (high - low)


def break_even(step_ratio: float, num_tokens: int) -> float:
    """How likely each of `num_tokens` drafted tokens must be accepted (given those before it) for a step that takes
    `step_ratio` times as long as a plain one to give as many tokens per second; above 1 = it cannot."""
    if step_ratio >= num_tokens + 1:
        return math.inf if step_ratio > num_tokens + 1 else 1.0
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        tokens = sum(middle**depth for depth in range(num_tokens + 1))
        low, high = (middle, high) if tokens < step_ratio else (low, middle)
    return high


def verified_rows(seconds: Mapping[int, float]) -> dict[int, str]:
    """What steps of so many rows take, in words: how sure drafts must be to pay. seconds: by rows, of 1 too."""
    found = {}
    for rows, taken in sorted(seconds.items()):
        found[rows] = f"{1e3 * taken:.2f} ms"
        if rows > 1:
            least = break_even(taken / seconds[1], rows - 1)
            how = f"if {least:.0%} of its tokens hold, given those before" if least <= 1 else "never"
            found[rows] += f", a draft of {rows - 1} pays {how}"
    return found
