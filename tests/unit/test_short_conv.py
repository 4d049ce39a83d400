"""The short convolution against torch's conv1d, its reference, and itself row by row."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.core.seqs import Accepted, Seqs
from stretto.core.state import SlotRef, TensorSlot
from stretto.kernels.short_conv import short_conv

C = 7
F64 = torch.float64


def parameters(width: int, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    return torch.randn(C, width, dtype=dtype), torch.randn(C, dtype=dtype)


def oracle(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """One sequence through conv1d, left-padded with zeros."""
    padded = F.pad(x.T[None], (weight.shape[1] - 1, 0))
    return F.silu(F.conv1d(padded, weight[:, None], bias, groups=C))[0].T


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("num_step", [0, 2, 5])
def test_packed_sequences_equal_conv1d(impl: Any, width: int, num_step: int) -> None:
    weight, bias = parameters(width)
    lens = [1, 0, 9, 2, 30]
    x = torch.randn(sum(lens), C, dtype=F64)
    for b in (bias, None):
        state = TensorSlot(torch.zeros(5, width - 1, C, dtype=F64))
        seqs = Seqs.of(lens, num_step=num_step)
        y = short_conv(x, weight, b, seqs=seqs, state=state, activation="silu", impl=impl)
        parts = x.split(lens)
        wanted = torch.cat([oracle(part, weight, b) for part in parts if len(part)])
        torch.testing.assert_close(y, wanted, rtol=0, atol=1e-12)
        for tail, part in zip(state.states, parts, strict=True):
            assert torch.equal(tail, F.pad(part, (0, 0, width, 0))[len(part) + 1 :])


@pytest.mark.parametrize("num_step", [0, 1])
def test_gradients_equal_conv1d(num_step: int) -> None:
    weight, bias = (p.requires_grad_() for p in parameters(4))
    x = torch.randn(12, C, dtype=F64, requires_grad=True)
    leaves = [x, weight, bias]
    weights = torch.randn(12, C, dtype=F64)
    y = short_conv(x, weight, bias, seqs=Seqs.of([12], num_step=num_step), activation="silu")
    found = torch.autograd.grad((y * weights).sum(), leaves)
    wanted = torch.autograd.grad((oracle(x, weight, bias) * weights).sum(), leaves)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_form_gives_a_row_the_same_bits(dtype: torch.dtype) -> None:
    weight, bias = parameters(4, dtype)
    x = torch.randn(20, C).to(dtype)
    whole = short_conv(x, weight, bias, seqs=Seqs.of([20]), activation="silu")
    state = TensorSlot(torch.zeros(1, 3, C, dtype=dtype))
    for t in range(20):
        seqs = Seqs.of([1], [t], num_step=1)
        y = short_conv(x[t : t + 1], weight, bias, seqs=seqs, state=state, activation="silu")
        assert torch.equal(y, whole[t : t + 1])
    other = torch.randn(9, C).to(dtype)
    packed = torch.cat([other[:5], x, other[5:]])
    for num_step in (0, 1, 2, 3):
        seqs = Seqs.of([5, 20, 4], num_step=num_step)
        y = short_conv(packed, weight, bias, seqs=seqs, activation="silu")
        assert torch.equal(y[5:25], whole)


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("width", [2, 4])
def test_a_tree_reads_its_ancestors_and_commit_keeps_a_path(impl: Any, width: int) -> None:
    weight, bias = parameters(width)
    parents = (-1, 0, 0, 2, 1, 3)
    paths = {3: [0, 2, 3], 4: [0, 1, 4], 5: [0, 2, 3, 5]}
    past, x, other = (torch.randn(n, C, dtype=F64) for n in (2, 6, 3))
    pool = torch.zeros(5, width - 1, C, dtype=F64)
    first = SlotRef(pool, torch.tensor([0, 0]), torch.tensor([2, 4]))
    short_conv(torch.cat([past, other]), weight, bias, seqs=Seqs.of([2, 3]), state=first, impl=impl)
    ref = SlotRef(pool, torch.tensor([2, 4]), torch.tensor([2, 3]))
    seqs = Seqs.of([6, 0], [2, 3], num_draft=[5, 0], parents=[parents, None], num_step=2)
    y = short_conv(x, weight, bias, seqs=seqs, state=ref, impl=impl)
    for row, path in paths.items():
        wanted = short_conv(torch.cat([past, x[path]]), weight, bias, seqs=Seqs.of([2 + len(path)]), impl="reference")
        torch.testing.assert_close(y[row], wanted[-1], rtol=0, atol=1e-12)
    ref.commit(Accepted.of(seqs, [[2, 3], []]))
    read = torch.cat([past, x[[0, 2, 3]]])
    assert torch.equal(pool[2], read[len(read) - width + 1 :])
    assert torch.equal(pool[3], other[len(other) - width + 1 :]) and not pool[[0, 1]].any()
