"""Layer normalisation against torch in fp64, the reference and finite differences; native rows and heads."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from native import LEVELS, run_rows
from torch import Tensor

from stretto.kernels.layernorm import layer_norm

EPS = 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("given", ["", "weight", "weight bias"])
@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_it_is_that_of_torch_in_fp64(dtype: torch.dtype, given: str, impl: Any) -> None:
    x = (torch.randn(5, 4, 12) * 3 + 2).to(dtype)
    vectors = [torch.randn(12).to(dtype) if name in given else None for name in ("weight", "bias")]
    found = layer_norm(x, *vectors, eps=EPS, impl=impl)
    wanted = F.layer_norm(x.double(), (12,), *(None if v is None else v.double() for v in vectors), eps=EPS)
    assert found.dtype == dtype
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), wanted, rtol=2 * unit, atol=8 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_has_the_same_bits_alone(dtype: torch.dtype) -> None:
    x, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((23, 30), (30,), (30,)))
    together = layer_norm(x, weight, bias, eps=EPS)
    for t in range(23):
        assert torch.equal(layer_norm(x[t : t + 1].clone(), weight, bias, eps=EPS), together[t : t + 1])


def test_gradients_equal_finite_differences() -> None:
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    weight, bias = (torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *args: layer_norm(*args, eps=EPS), (x, weight, bias))


WEIGHT = torch.rand(45, generator=torch.Generator().manual_seed(0)) + 0.5


def vector(x: Tensor, size: int = 45) -> Tensor:
    return WEIGHT[:size].to(x.dtype)


NATIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda x: layer_norm(x, vector(x), -vector(x), eps=EPS),
    "without bias": lambda x: layer_norm(x, vector(x), eps=EPS),
    "without either": lambda x: layer_norm(x, eps=EPS),
    "heads": lambda x: layer_norm(x[:, 3:].unflatten(1, (2, 21)), vector(x, 21), eps=EPS),
    "whole vectors": lambda x: layer_norm(x[:, 4:36], eps=EPS),
}


@pytest.mark.parametrize("name", NATIVE)
def test_native_rows(name: str) -> None:
    """Rows far from zero among them, and one that is the same number everywhere."""
    x = torch.randn(11, 45) * 3
    x[1] += 50
    x[2] = 7.0
    x[3] = torch.nan
    found = run_rows(NATIVE[name], x)
    wanted = NATIVE[name](x.double())
    keep = [row for row in range(11) if row != 3]
    torch.testing.assert_close(found[keep].double(), wanted[keep], rtol=1e-6, atol=5e-6)
    assert found[3].isnan().all()
    for level in LEVELS[1:]:
        assert torch.equal(run_rows(NATIVE[name], x, level=level, num_threads=1)[keep], found[keep]), level
    alone = torch.cat([run_rows(NATIVE[name], row[None]) for row in x])
    assert torch.equal(alone[keep], found[keep])
