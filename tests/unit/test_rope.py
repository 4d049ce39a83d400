"""The rotation against complex numbers in fp64, and the property it exists for."""

import pytest
import torch

from stretto.core.seqs import Seqs
from stretto.kernels.rope import Rope, apply_rope


@pytest.mark.parametrize("dim", [8, 4, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_torch_equals_the_reference(dim: int, dtype: torch.dtype) -> None:
    x, rope, seqs = torch.randn(7, 3, 8, dtype=dtype), Rope(dim=dim), Seqs.of([2, 5], [0, 7000])
    got, want = apply_rope(x, rope, seqs), apply_rope(x, rope, seqs, impl="reference")
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got, want, rtol=2 * eps, atol=4 * eps)
    assert torch.equal(got[..., dim:], x[..., dim:])


def test_scores_depend_on_distance_only() -> None:
    q, k = torch.randn(1, 1, 16, dtype=torch.float64), torch.randn(1, 1, 16, dtype=torch.float64)
    rope = Rope(dim=16)

    def score(i: int, j: int) -> float:
        rotated = [apply_rope(x, rope, Seqs.of([1], [p])) for x, p in ((q, i), (k, j))]
        return float((rotated[0] * rotated[1]).sum())

    assert score(5, 2) == pytest.approx(score(105, 102), abs=1e-4)  # tables are fp32
    assert abs(score(5, 2) - score(5, 3)) > 1e-3


def test_gradients_are_the_inverse_rotation() -> None:
    x = torch.randn(4, 2, 8, dtype=torch.float64, requires_grad=True)
    rope, seqs = Rope(dim=8), Seqs.of([4])
    weights = torch.randn(4, 2, 8, dtype=torch.float64)
    (got,) = torch.autograd.grad((apply_rope(x, rope, seqs) * weights).sum(), x)
    want = swapped(apply_rope(swapped(weights), rope, seqs))  # with its halves swapped, a pair turns the other way
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def swapped(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
