"""The matrix product against its fp64 reference, and the promise that step rows keep their bits."""

import pytest
import torch

from stretto.core.card import CODECS
from stretto.core.errors import UserError
from stretto.core.seqs import Seqs
from stretto.kernels.linear import Linear, matmul
from stretto.kernels.linear.onednn import Prepacked, cannot_pack, prepack

DTYPES = [torch.float64, torch.float32, torch.bfloat16]


def weights(weight: torch.Tensor) -> list[torch.Tensor | Prepacked]:
    """The weight in every layout that this machine can multiply from."""
    return [weight] if cannot_pack(weight) else [weight, prepack(weight)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, num_step", [(0, 0), (1, 1), (5, 0), (16, 16), (37, 37), (40, 3)])
def test_torch_equals_the_reference(rows: int, num_step: int, dtype: torch.dtype) -> None:
    x, weight, bias = (torch.randn(shape, dtype=dtype) for shape in ((rows, 48), (30, 48), (30,)))
    want = matmul(x, weight, bias, impl="reference")
    eps = torch.finfo(dtype).eps
    for layout in weights(weight):
        got = matmul(x, layout, bias, num_step_rows=num_step)
        # two roundings of the result (before and after the bias), sums of 48 products in fp32 or wider
        torch.testing.assert_close(got, want, rtol=4 * eps, atol=64 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, 576])
def test_step_rows_keep_their_bits_in_any_company(width: int, dtype: torch.dtype) -> None:
    x = torch.randn(70, width, dtype=dtype)
    for weight in weights(torch.randn(96, width, dtype=dtype)):
        alone = torch.cat([matmul(row[None], weight, num_step_rows=1) for row in x])
        for n in (1, 2, 15, 16, 17, 33, 70):
            assert torch.equal(matmul(x[:n], weight, num_step_rows=n), alone[:n])
            assert torch.equal(matmul(x.roll(-3, 0)[:n], weight, num_step_rows=n), alone.roll(-3, 0)[:n])
        assert torch.equal(matmul(x, weight, num_step_rows=5)[:5], alone[:5])


def test_segments_are_rows_of_one_matrix() -> None:
    linear = Linear(8, {"q": 6, "k": 2}, bias=True)
    x = torch.randn(3, 8)
    q, k = linear.split(linear(x, Seqs.of([3])))
    want = x @ linear.weight[linear.rows("q")].T + linear.bias[linear.rows("q")]  # type: ignore[index]
    torch.testing.assert_close(q, want)
    assert k.shape == (3, 2)
    with pytest.raises(KeyError):
        linear.rows("v")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_decodes_every_row_of_a_stored_tensor(dtype: torch.dtype) -> None:
    values = torch.randn(5000, 512)
    stored = CODECS.card("q8_0").make().encode(values)
    linear = Linear(512, {"a": 3, "b": 5000}).to(dtype)
    before = linear.weight[:3].clone()
    linear.load("b", stored)
    assert torch.equal(linear.weight[3:], stored.decode(dtype)) and torch.equal(linear.weight[:3], before)
    assert linear.stored["b"] is stored


def test_a_prepacked_matrix_gives_up_its_plain_copy_and_its_gradients() -> None:
    linear = Linear(64, {"a": 32}, bias=True).bfloat16()
    if (reason := cannot_pack(linear.weight)) is not None:
        pytest.skip(reason)
    x = torch.randn(20, 64, dtype=torch.bfloat16)
    want = linear.product(x, 20).detach()
    linear.requires_grad_(False).prepack(keep_plain=True)
    assert linear.weight.shape == (32, 64) and linear.layout is not None
    linear.layout = None
    linear.prepack()
    assert "weight" not in dict(linear.named_parameters()) and linear.num_weights == 32 * 64
    torch.testing.assert_close(linear.product(x, 20), want)
    with pytest.raises(UserError, match="no implementation"):
        linear.product(x.requires_grad_(), 20)


def test_only_bf16_weights_are_packed() -> None:
    linear = Linear(64, {"a": 32})
    linear.prepack()
    assert linear.layout is None and "float32" in str(cannot_pack(linear.weight))
