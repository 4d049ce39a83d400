"""The rotation against complex numbers in fp64, and the property it exists for."""

import pytest
import torch

from stretto.kernels.rope import Rope, apply_rope, rope_tables


@pytest.mark.parametrize("dim", [8, 4, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_torch_equals_the_reference(dim: int, dtype: torch.dtype) -> None:
    x, tables = torch.randn(7, 3, 8, dtype=dtype), rope_tables(Rope(dim=dim), torch.arange(7) * 1000)
    got, want = apply_rope(x, tables), apply_rope(x, tables, impl="reference")
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got, want, rtol=2 * eps, atol=4 * eps)
    assert torch.equal(got[..., dim:], x[..., dim:])


def test_scores_depend_on_distance_only() -> None:
    q, k = torch.randn(1, 1, 16, dtype=torch.float64), torch.randn(1, 1, 16, dtype=torch.float64)
    rope = Rope(dim=16)

    def score(i: int, j: int) -> float:
        rotated = [apply_rope(x, rope_tables(rope, torch.tensor([p]))) for x, p in ((q, i), (k, j))]
        return float((rotated[0] * rotated[1]).sum())

    assert score(5, 2) == pytest.approx(score(105, 102), abs=1e-4)  # tables are fp32
    assert abs(score(5, 2) - score(5, 3)) > 1e-3


def test_gradients_are_the_inverse_rotation() -> None:
    x = torch.randn(4, 2, 8, dtype=torch.float64, requires_grad=True)
    tables = rope_tables(Rope(dim=8), torch.arange(4))
    weights = torch.randn(4, 2, 8, dtype=torch.float64)
    (got,) = torch.autograd.grad((apply_rope(x, tables) * weights).sum(), x)
    torch.testing.assert_close(got, apply_rope(weights, (tables[0], -tables[1])), rtol=1e-12, atol=1e-12)
