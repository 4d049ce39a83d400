"""Activations with reproducible bits: torch's values and gradients, and rows that do not know their place."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.kernels.pointwise import sigmoid, silu, softplus

PAIRS = [
    pytest.param(sigmoid, torch.sigmoid, id="sigmoid"),
    pytest.param(silu, F.silu, id="silu"),
    pytest.param(softplus, lambda x: F.softplus(x, threshold=40.0), id="softplus"),
]


@pytest.mark.parametrize(("ours", "oracle"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_values_and_gradients_equal_torch(
    ours: Callable[[Tensor], Tensor], oracle: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    special = torch.tensor([0.0, -0.0, 39.9, 40.1, 80.0, -79.0, -81.0, 100.0, -100.0, 3e4, -3e4, 3e38, -3e38])
    x = torch.cat([special, torch.linspace(-60, 60, 2001)]).to(dtype).requires_grad_()
    found, wanted = ours(x), oracle(x)
    rtol = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=1e-30)
    grads = [torch.autograd.grad(y.sum(), x)[0] for y in (found, wanted)]
    torch.testing.assert_close(*grads, rtol=4 * rtol, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize(("ours", "_oracle"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_value_has_the_same_bits_everywhere(
    ours: Callable[[Tensor], Tensor], _oracle: object, dtype: torch.dtype
) -> None:
    x = (3 * torch.randn(1000)).to(dtype)
    together = ours(x)
    for first in range(100):
        assert torch.equal(ours(x[first : first + 37].clone()), together[first : first + 37])
        assert torch.equal(ours(x[first::7]), together[first::7])
