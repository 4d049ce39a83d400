"""Rows of signed bytes: what rounding costs, and products of integers by torch's own operation."""

import pytest
import torch

from stretto.codecs.int8 import Int8, split
from stretto.core.card import CODECS
from stretto.core.codec import Stored
from stretto.kernels.linear import Linear

CODEC = Int8()


def test_codes_are_the_nearest_ones() -> None:
    """In fp64: no value is farther from its own than half a step, and the largest of a row has the largest code."""
    x = torch.randn(200, 577) * torch.logspace(-30, 30, 200)[:, None]
    codes, scales = split(CODEC.encode(x))
    steps = scales.double()
    assert ((codes * steps - x.double()).abs() <= steps * (0.5 + 1e-5)).all()
    assert torch.equal(codes.abs().amax(1), torch.full((200,), 127, dtype=torch.int8))


def test_halves_go_to_the_even_code() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5]])
    assert split(CODEC.encode(x))[0].tolist() == [[127, 0, 2, 2, 0, -2, -126]]


def test_rows_of_nothing_but_zeros_or_next_to_nothing() -> None:
    x = torch.tensor([[0.0, -0.0, 0.0], [1e-45, -1e-45, 0.0], [1e-43, 3e-44, -1e-43]])
    packed = CODEC.encode(x)
    assert not packed.decode(torch.float32)[:2].any() and split(packed)[1][0] == 0
    assert (packed.decode(torch.float32)[2] - x[2]).abs().max() < 3e-44


def test_the_error_on_gaussian_rows_is_the_known_one() -> None:
    """Relative mean squares of rows of 576: 5.65e-5, a step squared over twelve with amax near 3.2 sigma."""
    x = torch.randn(4000, 576)
    error = (CODEC.encode(x).decode(torch.float32) - x).double().square().mean() / x.double().square().mean()
    assert float(error) == pytest.approx(5.65e-5, rel=0.02)


def test_any_scale_and_every_code_of_a_file_is_kept() -> None:
    codes = torch.arange(-128, 128).to(torch.int8).repeat(3, 1)
    scales = torch.tensor([1e-3, -0.5, 0.0]).to(torch.bfloat16)
    packed = CODEC.join(codes, scales)
    assert torch.equal(packed.decode(torch.float64), (codes * scales.double()[:, None]).float().double())
    back = split(packed)
    assert torch.equal(back[0], codes) and torch.equal(back[1][:, 0], scales.float())


def test_products_equal_those_of_torch() -> None:
    """`torch._weight_int8pack_mm` multiplies the integers and scales of rows itself (in bf16, widths of 16)."""
    packed = CODEC.encode(torch.randn(48, 64))
    codes, scales = split(packed)
    linear = Linear(64, {"w": 48}).to(torch.bfloat16)
    linear.load("w", packed)
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    theirs = torch._weight_int8pack_mm(x, codes, scales[:, 0].to(torch.bfloat16)).double()
    exact = x.double() @ (codes * scales.double()).T
    ours = linear(x).detach().double()
    assert (ours - exact).norm() / exact.norm() < 4e-3 and (theirs - exact).norm() / exact.norm() < 4e-3
    assert (ours - theirs).norm() / exact.norm() < 6e-3


def test_odd_rows_run_through_torch() -> None:
    packed = CODEC.encode(torch.randn(7, 33))
    linear = Linear(33, {"w": 7})
    linear.load("w", packed)
    x = torch.randn(2, 33)
    exact = x.double() @ packed.decode(torch.float64).T
    assert (linear(x).double() - exact).norm() / exact.norm() < 1e-6


def test_a_tensor_of_one_dimension_is_one_row() -> None:
    packed = CODECS.card("int8").make().encode(torch.tensor([1.0, -127.0, 3.4]))
    assert isinstance(packed, Stored) and packed.nbytes == 7 and split(packed)[1].tolist() == [1.0]
    assert packed.decode(torch.float32).tolist() == [1.0, -127.0, 3.0]
