"""The diagonal scan: backends against each other, closed forms, and bits that nothing but a row's past decides."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stretto.core.errors import UserError
from stretto.core.seqs import Accepted, Seqs
from stretto.core.state import SlotRef, StateSpec, TensorCache, TensorSlot
from stretto.kernels.dscan import dscan

F, S = 7, 5
F64 = torch.float64
ROWS = ("x_TF", "dt_TF", "B_TS", "C_TS")


def inputs(num: int, dtype: torch.dtype = F64, channels: int = F) -> dict[str, Tensor]:
    """Random arguments of `dscan` for `num` rows."""
    return {
        "x_TF": torch.randn(num, channels, dtype=dtype),
        "dt_TF": torch.rand(num, channels, dtype=dtype),
        "B_TS": torch.randn(num, S, dtype=dtype),
        "C_TS": torch.randn(num, S, dtype=dtype),
        "A_log_FS": torch.randn(channels, S, dtype=dtype),
        "D_F": torch.randn(channels, dtype=dtype),
    }


def rows_of(args: dict[str, Tensor], first: int, last: int) -> dict[str, Tensor]:
    return {name: x[first:last] if name in ROWS else x for name, x in args.items()}


def close(found: Tensor, wanted: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("chunk", [1, 3, 16, 64])
@pytest.mark.parametrize("num_step", [0, 2, 6])
def test_torch_equals_the_reference(chunk: int, num_step: int) -> None:
    seqs = Seqs.of([3, 0, 60, 1, 0, 17], [7, 2, 5, 0, 0, 63], num_step=num_step)
    args, start = inputs(seqs.num_rows), torch.randn(6, S, F, dtype=F64)
    found, wanted = TensorSlot(start), TensorSlot(start)
    y = dscan(**args, seqs=seqs, state=found, chunk=chunk, impl="torch")
    close(y, dscan(**args, seqs=seqs, state=wanted, impl="reference"))
    close(found.states, wanted.states)


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_one_channel_equals_its_sum(impl: Any) -> None:
    args = inputs(40)
    G = (args["dt_TF"].unsqueeze(2) * -args["A_log_FS"].exp()).cumsum(0)  # [T, F, S]
    decay = (G[:, None] - G[None]).exp() * torch.ones(40, 40, dtype=F64).tril()[..., None, None]
    wanted = torch.einsum("ts,tufs,uf,us->tf", args["C_TS"], decay, args["dt_TF"] * args["x_TF"], args["B_TS"])
    close(dscan(**args, seqs=Seqs.of([40]), impl=impl), wanted + args["D_F"] * args["x_TF"])


@pytest.mark.parametrize("num_step", [0, 3])
@pytest.mark.parametrize("chunk", [4, 64])
def test_gradients_equal_the_reference(num_step: int, chunk: int) -> None:
    seqs = Seqs.of([9, 1, 20], [2, 0, 0], num_step=num_step)
    args = inputs(30)
    leaves = [x.requires_grad_() for x in args.values()]
    entry = torch.randn(3, S, F, dtype=F64, requires_grad=True)
    weights, end_weights = torch.randn(30, F, dtype=F64), torch.randn(3, S, F, dtype=F64)
    grads = []
    for impl in ("torch", "reference"):
        state = TensorSlot(entry)
        y = dscan(**args, seqs=seqs, state=state, chunk=chunk, impl=impl)
        grads.append(torch.autograd.grad((y * weights).sum() + (state.states * end_weights).sum(), [*leaves, entry]))
    for found, wanted in zip(*grads, strict=True):
        close(found, wanted)


def test_gradients_equal_finite_differences() -> None:
    leaves = [x.requires_grad_() for x in inputs(7).values()]

    def forward(*leaves: Tensor) -> Tensor:
        rows, (A_log, D) = leaves[:4], leaves[4:]
        return dscan(*rows, A_log_FS=A_log, D_F=D, seqs=Seqs.of([5, 2]), chunk=2)

    assert torch.autograd.gradcheck(forward, leaves)


def test_training_keeps_the_states_of_one_chunk() -> None:
    num, channels = 512, 32
    args = inputs(num, torch.float32, channels)
    for x in args.values():
        x.requires_grad_()
    largest = kept = 0

    def pack(x: Tensor) -> Tensor:
        nonlocal largest, kept
        largest, kept = max(largest, x.numel()), kept + x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        y = dscan(**args, seqs=Seqs.of([num]), chunk=16)
    assert largest <= num * channels and kept < num * channels * S
    assert torch.autograd.grad(y.sum(), args["dt_TF"])[0].isfinite().all()


def test_strong_decay_stays_exact_and_differentiable() -> None:
    args = inputs(130, torch.float32)
    args["dt_TF"][::2] *= 1e4
    args["dt_TF"][64:70] = 0.0
    wanted = dscan(**args, seqs=Seqs.of([130]), impl="reference")
    y = dscan(**{name: x.requires_grad_() for name, x in args.items()}, seqs=Seqs.of([130]), impl="torch")
    assert (y - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(y.square().mean(), list(args.values())))


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_without_rows_nothing_happens(impl: Any) -> None:
    for lens, num_step in (([], 0), ([0, 0], 0), ([0, 0], 2), ([0, 0], 1)):
        state = TensorSlot(torch.randn(len(lens), S, F, dtype=F64))
        entry = state.states.clone()
        y = dscan(**inputs(0), seqs=Seqs.of(lens, num_step=num_step), state=state, impl=impl)
        assert y.shape == (0, F) and torch.equal(state.states, entry)


@pytest.mark.parametrize("channels", [1, 7, 48, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_do_not_depend_on_calls_and_companions(channels: int, dtype: torch.dtype) -> None:
    """Whole in chunked form, row by row, as a draft chain beside others, and replayed: the same bits."""
    args = {
        name: x if name[:2] in ("dt", "A_") else x.to(dtype) for name, x in inputs(90, torch.float32, channels).items()
    }
    zero = torch.zeros(1, S, channels)
    state = TensorSlot(zero)
    wanted = dscan(**args, seqs=Seqs.of([90]), state=state)
    plain, states = TensorSlot(zero), []
    for t in range(90):
        y = dscan(**rows_of(args, t, t + 1), seqs=Seqs.of([1], [t], num_step=1), state=plain, chunk=1)
        assert torch.equal(y[0], wanted[t])
        states.append(plain.states[0])
    assert torch.equal(plain.states, state.states)
    other = {name: x.to(args[name].dtype) for name, x in inputs(18, torch.float32, channels).items()}
    mine = rows_of(args, 0, 7)
    packed = {name: torch.cat([other[name][:6], mine[name], other[name][6:]]) for name in ROWS}
    packed |= {name: args[name] for name in ("A_log_FS", "D_F")}
    seqs = Seqs.of([5, 1, 7, 3, 9], [0, 3, 0, 2, 4], num_draft=[2, 0, 6, 3, 0], num_step=4)
    together = TensorSlot(torch.zeros(5, S, channels))
    y = dscan(**packed, seqs=seqs, state=together)
    assert torch.equal(y[6:13], wanted[:7]) and torch.equal(together.states[2], states[0])
    together.commit(Accepted.of(seqs, [[3], [], [1, 2, 3, 4], [0], []]))
    assert torch.equal(together.states[2], states[4])


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_pool_slots_are_read_written_and_replayed_by_index(impl: Any) -> None:
    seqs = Seqs.of([4, 2, 5], [6, 0, 3], num_draft=[3, 1, 0], num_step=2, parents=[(-1, 0, 0, 2), None, None])
    args = inputs(11)
    pool = torch.randn(8, S, F, dtype=F64)
    pool[0] = 0.0
    before = pool.clone()
    source, destination = torch.tensor([3, 0, 5]), torch.tensor([4, 1, 5])
    plain, ref = TensorSlot(pool[source]), SlotRef(pool, source, destination)
    close(dscan(**args, seqs=seqs, state=ref, impl=impl), dscan(**args, seqs=seqs, state=plain, impl="reference"))
    accepted = Accepted.of(seqs, [[2, 3], [], []])
    ref.commit(accepted)
    plain.commit(accepted)
    close(pool[destination], plain.states)
    untouched = torch.tensor([0, 2, 3, 6, 7])
    assert torch.equal(pool[untouched], before[untouched])


def test_narrow_inputs_keep_a_wide_state() -> None:
    spec = StateSpec(name="s", shape=(S, F), dtype=torch.float32, kind="slot")
    state = TensorCache([spec], 1, torch.bfloat16)["s"]
    assert isinstance(state, TensorSlot)
    args = {name: x.bfloat16() for name, x in inputs(100).items()}
    y = dscan(**args, seqs=Seqs.of([100]), state=state)
    wanted = dscan(**args, seqs=Seqs.of([100]), impl="reference")
    assert y.dtype == torch.bfloat16 and state.states.dtype == torch.float32
    close(y.float(), wanted.float(), atol=0.1)


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(UserError, match="dscan has no triton backend"):
        dscan(**inputs(1), seqs=Seqs.of([1]), impl="triton")
