"""The cost model: how long a step must take on a machine of known bandwidth and arithmetic rate.

Pure Python, used by the doctor, the benchmarks and the planner. A number here is a *bound* (or a prediction
made from measured coefficients), never a measurement.
"""

from dataclasses import dataclass


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
