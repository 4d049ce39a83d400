"""The laws of `PageFormat` (stretto/core/page_format.py), over every codec that can store keys and values."""

import numpy as np
import pytest
import torch
from torch import Tensor

from stretto.core.card import CODECS, Can, Card
from stretto.core.errors import UserError
from stretto.core.page_format import Plain, page_format

CARDS = CODECS.cards(Can.KV)
over_all = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
SHAPES = [(3, 64), (1, 5), (2, 37), (16,)]


def bytes_of(parts: tuple[Tensor, ...]) -> list[bytes]:
    return [part.contiguous().view(torch.uint8).numpy().tobytes() for part in parts]


@over_all
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_tokens_are_independent_and_take_the_declared_bytes(
    card: Card, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    form, x = page_format(card.name), torch.randn(9, *shape, dtype=dtype) * torch.rand(9, *[1] * len(shape)) * 40
    parts = form.encode(x)
    assert form.name == card.name and parts[0].dtype == form.dtype and len(parts) == 1 + form.sides
    assert parts[0].shape == x.shape and all(part.shape == x.shape[:-1] for part in parts[1:])
    assert sum(part.nbytes for part in parts) == 9 * form.nbytes(shape)
    for t in range(9):
        assert bytes_of(form.encode(x[t : t + 1])) == bytes_of(tuple(part[t : t + 1] for part in parts))
    order = torch.randperm(9)
    assert torch.equal(form.decode(*(part[order] for part in parts)), form.decode(*parts)[order])
    assert not form.decode(*(torch.zeros_like(part) for part in parts)).any()


@over_all
def test_numbers_that_are_not_finite_are_not_lost(card: Card) -> None:
    form, x = page_format(card.name), torch.randn(4, 2, 16)
    x[1, 0, 3], x[2, 1, 0], x[3, 1, 15] = torch.nan, torch.inf, -torch.inf
    found = form.decode(*form.encode(x))
    sick = ~x.isfinite()
    assert not found[sick].isfinite().any()
    assert found[~sick.any(-1)].isfinite().all(), "other heads and tokens are untouched"


def test_floats_are_rounded_once() -> None:
    x = torch.randn(50, 3, 8, dtype=torch.float64)
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        assert page_format(name) == Plain(dtype)
        assert torch.equal(page_format(name).decode(*page_format(name).encode(x)), x.to(dtype))


def test_int8_is_within_half_a_step_of_every_number() -> None:
    """Against numpy in fp64: the step of a head is its largest magnitude / 127."""
    x = torch.randn(200, 3, 64) * torch.logspace(-30, 30, 200)[:, None, None]
    x[0], x[1, 0, 1:] = 0.0, 0.0
    payload, scales = page_format("int8").encode(x)
    wide = x.numpy().astype(np.float64)
    step = np.abs(wide).max(-1) / 127
    np.testing.assert_allclose(scales.numpy(), step, rtol=2**-23)
    error = np.abs(page_format("int8").decode(payload, scales).numpy().astype(np.float64) - wide)
    assert (error <= step[..., None] * (0.5 + 1e-4)).all()
    assert payload.abs().amax(-1)[1:].eq(127).all()


def test_a_codec_of_weights_has_no_pages() -> None:
    for card in CODECS.cards():
        if Can.KV not in card.can:
            with pytest.raises(UserError, match="cannot store keys and values"):
                card.make().pages()
