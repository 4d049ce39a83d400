"""The gated linear recurrence: backends against each other, closed forms, and transformers' delta rule."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_next.modeling_qwen3_next import (
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)

from stretto.core.errors import UserError
from stretto.core.seqs import Accepted, Seqs
from stretto.core.state import SlotRef, StateSpec, TensorCache, TensorSlot
from stretto.kernels.glr import glr

H, K, V = 4, 5, 3
F64 = torch.float64


def inputs(num: int, groups: int = H, *, delta: bool, dtype: torch.dtype = F64, decay: float = 1.0) -> dict[str, Any]:
    """Random arguments of `glr` for `num` rows; keys have length 1, gates between -2 decay and 0."""
    unit = torch.nn.functional.normalize
    return {
        "q": torch.randn(num, groups, K, dtype=dtype),
        "k": unit(torch.randn(num, groups, K, dtype=dtype), dim=-1),
        "v": torch.randn(num, H, V, dtype=dtype),
        "g": -decay * 2 * torch.rand(num, H, dtype=dtype),
        "beta": torch.rand(num, H, dtype=dtype) * 2 if delta else None,
    }


def slot_of(num_seqs: int, dtype: torch.dtype = F64) -> TensorSlot:
    return TensorSlot(torch.randn(num_seqs, H, K, V, dtype=dtype))


def close(found: Tensor, wanted: Tensor, atol: float = 1e-11) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("delta", [False, True], ids=["decay", "delta"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("chunk", [1, 3, 16, 64])
@pytest.mark.parametrize("num_step", [0, 2, 6])
def test_torch_equals_the_reference(delta: bool, groups: int, chunk: int, num_step: int) -> None:
    seqs = Seqs.of([3, 0, 70, 1, 0, 17], [7, 2, 5, 0, 0, 63], num_step=num_step)
    args = inputs(seqs.num_rows, groups, delta=delta)
    start = slot_of(6)
    found, wanted = TensorSlot(start.states), TensorSlot(start.states)
    o = glr(**args, seqs=seqs, state=found, scale=0.7, chunk=chunk, impl="torch")
    close(o, glr(**args, seqs=seqs, state=wanted, scale=0.7, impl="reference"))
    close(found.states, wanted.states)


@pytest.mark.parametrize("delta", [False, True], ids=["decay", "delta"])
@pytest.mark.parametrize("num_step", [0, 3])
def test_gradients_equal_the_reference(delta: bool, num_step: int) -> None:
    seqs = Seqs.of([9, 1, 20], [2, 0, 0], num_step=num_step)
    args = {name: x for name, x in inputs(30, 2, delta=delta).items() if x is not None}
    leaves = [x.requires_grad_() for x in args.values()]
    entry = torch.randn(3, H, K, V, dtype=F64, requires_grad=True)
    weights, end_weights = torch.randn(30, H, V, dtype=F64), torch.randn(3, H, K, V, dtype=F64)
    grads = []
    for impl in ("torch", "reference"):
        state = TensorSlot(entry)
        o = glr(**args, seqs=seqs, state=state, chunk=8, impl=impl)
        grads.append(torch.autograd.grad((o * weights).sum() + (state.states * end_weights).sum(), [*leaves, entry]))
    for found, wanted in zip(*grads, strict=True):
        close(found, wanted)


@pytest.mark.parametrize("oracle", [torch_chunk_gated_delta_rule, torch_recurrent_gated_delta_rule])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "g=0 is DeltaNet"])
@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("num_step", [0, 1])
def test_delta_rule_equals_transformers(oracle: Any, gated: bool, impl: Any, num_step: int) -> None:
    args = inputs(150, 2, delta=True, dtype=torch.float32, decay=float(gated))
    state = slot_of(1, torch.float32)
    batched = {name: x.repeat_interleave(H // x.shape[1], 1)[None] for name, x in args.items()}
    wanted, end = oracle(
        *(batched[name] for name in "qkv"),
        g=batched["g"],
        beta=batched["beta"],
        initial_state=state.states.clone(),
        output_final_state=True,
    )
    o = glr(**args, seqs=Seqs.of([150], num_step=num_step), state=state, scale=K**-0.5, impl=impl)
    close(o, wanted[0], atol=2e-5)
    close(state.states, end, atol=2e-5)


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_decay_equals_its_quadratic_form(impl: Any) -> None:
    args = inputs(40, 2, delta=False)
    q, k = (args[name].repeat_interleave(2, 1) for name in "qk")
    sums = args["g"].cumsum(0)
    gamma = (sums[:, None] - sums[None]).exp() * torch.ones(40, 40, dtype=F64).tril()[..., None]
    wanted = torch.einsum("thk,shk,tsh,shv->thv", q, k, gamma, args["v"])
    close(glr(**args, seqs=Seqs.of([40]), impl=impl), wanted)


@pytest.mark.parametrize("num_step", [0, 1])
def test_beta_zero_writes_nothing(num_step: int) -> None:
    args = inputs(30, delta=True) | {"beta": torch.zeros(30, H, dtype=F64)}
    state = slot_of(1)
    entry = state.states[0]
    o = glr(**args, seqs=Seqs.of([30], num_step=num_step), state=state, chunk=16)
    decay = args["g"].cumsum(0).exp()
    close(o, torch.einsum("th,thk,hkv->thv", decay, args["q"], entry))
    close(state.states[0], decay[-1][:, None, None] * entry)


@pytest.mark.parametrize("delta", [False, True], ids=["decay", "delta"])
def test_strong_decay_stays_exact_and_differentiable(delta: bool) -> None:
    args = inputs(130, delta=delta, dtype=torch.float32)
    args["g"][::2] *= 500.0
    args["g"][5] = -torch.inf
    args["g"][64:70] = 0.0
    args["g"][1::4] = -1e-3
    seqs = Seqs.of([130])
    wanted = glr(**args, seqs=seqs, impl="reference")
    leaves = [x.requires_grad_() for x in args.values() if x is not None]
    o = glr(**args, seqs=seqs, impl="torch")
    close(o, wanted, atol=2e-6)
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(o.square().sum(), leaves))


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_without_rows_nothing_happens(impl: Any) -> None:
    for lens, num_step in (([], 0), ([0, 0], 0), ([0, 0], 2), ([0, 0], 1)):
        state = slot_of(len(lens))
        entry = state.states.clone()
        o = glr(**inputs(0, delta=True), seqs=Seqs.of(lens, num_step=num_step), state=state, impl=impl)
        assert o.shape == (0, H, V) and torch.equal(state.states, entry)


@pytest.mark.parametrize("delta", [False, True], ids=["decay", "delta"])
def test_a_warm_prefix_continues_with_the_bits_of_a_cold_one(delta: bool) -> None:
    args = {name: x for name, x in inputs(150, 2, delta=delta, dtype=torch.float32).items() if x is not None}
    companion = inputs(21, 2, delta=delta, dtype=torch.float32)

    def read(first: int, last: int, entry: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [first, last) beside another sequence: (o, end state)."""
        both = {name: torch.cat([x[first:last], companion[name]]) for name, x in args.items()}
        state = TensorSlot(torch.cat([entry, torch.zeros(1, H, K, V)]))
        o = glr(**both, seqs=Seqs.of([last - first, 21], [first, 0]), state=state, chunk=16)
        return o[: last - first], state.states[:1]

    zero = torch.zeros(1, H, K, V)
    for first in (0, 7):  # boundaries are multiples of 16 wherever a call starts
        entry = zero if first == 0 else read(0, first, zero)[1]
        state = TensorSlot(entry)
        cold = {name: x[first:] for name, x in args.items()}
        wanted = glr(**cold, seqs=Seqs.of([150 - first], [first]), state=state, chunk=16)
        for cut in (16, 64, 128):
            _, warm = read(first, cut, entry)
            o, end = read(cut, 150, warm)
            assert torch.equal(o, wanted[cut - first :]) and torch.equal(end, state.states)


@pytest.mark.parametrize("delta", [False, True], ids=["decay", "delta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_step_bits_do_not_depend_on_companions(delta: bool, dtype: torch.dtype) -> None:
    """Row by row, as a draft chain beside others, and replayed: the same outputs and states, bit for bit."""
    args = inputs(7, 2, delta=delta, dtype=torch.float32)
    args = {name: x if name == "g" else x.to(dtype) for name, x in args.items() if x is not None}
    plain = TensorSlot(torch.zeros(1, H, K, V))
    wanted, states = [], []
    for t in range(7):
        row = {name: x[t : t + 1] for name, x in args.items()}
        wanted.append(glr(**row, seqs=Seqs.of([1], [t], num_step=1), state=plain))
        states.append(plain.states)
    other = {
        name: x if name == "g" else x.to(dtype)
        for name, x in inputs(18, 2, delta=delta, dtype=torch.float32).items()
        if x is not None
    }
    packed = {name: torch.cat([other[name][:6], x, other[name][6:]]) for name, x in args.items()}
    seqs = Seqs.of([5, 1, 7, 3, 9], [0, 3, 0, 2, 4], num_draft=[2, 0, 6, 3, 0], num_step=4)
    state = TensorSlot(torch.zeros(5, H, K, V))
    o = glr(**packed, seqs=seqs, state=state)
    assert torch.equal(o[6:13], torch.cat(wanted))
    assert torch.equal(state.states[2:3], states[0])
    state.commit(Accepted.of(seqs, [[3], [], [1, 2, 3, 4], [0], []]))
    assert torch.equal(state.states[2:3], states[4])


@pytest.mark.parametrize("delta", [False, True], ids=["decay", "delta"])
@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_pool_slots_are_read_written_and_replayed_by_index(delta: bool, impl: Any) -> None:
    seqs = Seqs.of([4, 2, 5], [6, 0, 3], num_draft=[3, 1, 0], num_step=2, parents=[(-1, 0, 0, 2), None, None])
    args = inputs(11, 2, delta=delta)
    pool = torch.randn(8, H, K, V, dtype=F64)
    pool[0] = 0.0
    before = pool.clone()
    source, destination = torch.tensor([3, 0, 5]), torch.tensor([4, 1, 5])
    plain = TensorSlot(pool[source])
    ref = SlotRef(pool, source, destination)
    close(glr(**args, seqs=seqs, state=ref, impl=impl), glr(**args, seqs=seqs, state=plain, impl="reference"))
    accepted = Accepted.of(seqs, [[2, 3], [], []])
    ref.commit(accepted)
    plain.commit(accepted)
    close(pool[destination], plain.states)
    untouched = torch.tensor([0, 2, 3, 6, 7])
    assert torch.equal(pool[untouched], before[untouched])


def test_narrow_inputs_keep_a_wide_state() -> None:
    spec = StateSpec(name="s", shape=(H, K, V), dtype=torch.float32, kind="slot")
    cache = TensorCache([spec], 1, torch.bfloat16)
    state = cache["s"]
    assert isinstance(state, TensorSlot)
    args = {name: x.bfloat16() for name, x in inputs(100, 2, delta=True).items()}
    o = glr(**args, seqs=Seqs.of([100]), state=state)
    wanted = glr(**args, seqs=Seqs.of([100]), impl="reference")
    assert o.dtype == torch.bfloat16 and state.states.dtype == torch.float32
    close(o.float(), wanted.float(), atol=0.02)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(UserError, match="glr has no triton backend"):
        glr(**inputs(1, delta=False), seqs=Seqs.of([1]), impl="triton")
