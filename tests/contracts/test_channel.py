"""The laws of the `Channel` socket, over every card."""

import pytest
import torch
from laws import lively

from stretto.core.card import CHANNELS, Card, Exactness
from stretto.core.seqs import Seqs

CARDS = CHANNELS.cards()
ALONE = [card for card in CARDS if card.exactness is not Exactness.APPROXIMATE]


@pytest.mark.parametrize("card", ALONE, ids=lambda card: card.name)
@pytest.mark.parametrize("num_step", [0, 2])
def test_a_row_does_not_depend_on_the_other_rows(card: Card, num_step: int) -> None:
    channel = lively(card)
    x = torch.randn(9, channel.d_model, dtype=torch.float64)
    whole = channel(x, Seqs.of([1, 3, 5], num_step=num_step))
    for i, row in enumerate(x):
        torch.testing.assert_close(channel(row[None], Seqs.of([1], num_step=1))[0], whole[i], rtol=0, atol=1e-10)
    torch.testing.assert_close(channel(x, Seqs.of([9])), whole, rtol=0, atol=1e-10)
    assert channel(x[:0], Seqs.of([0])).shape == (0, channel.d_model)


@pytest.mark.parametrize("card", ALONE, ids=lambda card: card.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_step_row_keeps_its_bits(card: Card, dtype: torch.dtype) -> None:
    channel = lively(card, dtype)
    x = torch.randn(20, channel.d_model, dtype=dtype)
    alone = torch.cat([channel(row[None], Seqs.of([1], num_step=1)) for row in x])
    for n in (2, 16, 20):
        assert torch.equal(channel(x[:n], Seqs.of([n], num_step=1)), alone[:n])
    mixed = channel(x, Seqs.of([3, 17], num_step=1))
    assert torch.equal(mixed[:3], alone[:3])


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_gradients(card: Card) -> None:
    channel = lively(card)
    x = torch.randn(3, channel.d_model, dtype=torch.float64, requires_grad=True)
    names, values = zip(*channel.named_parameters(), strict=True)
    parameters = [value.detach().requires_grad_() for value in values]

    def call(x: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.func.functional_call(
            channel, dict(zip(names, given, strict=True)), (x, Seqs.of([3]))
        )
        return found

    assert torch.autograd.gradcheck(call, (x, *parameters))


def test_dense_is_the_formula() -> None:
    channel = lively(CHANNELS.card("dense"))
    x = torch.randn(4, channel.d_model, dtype=torch.float64)
    gate, up = (x @ w.T for w in channel.gate_up.weight.chunk(2))
    want = (gate * torch.sigmoid(gate) * up) @ channel.down.weight.T
    torch.testing.assert_close(channel(x, Seqs.of([4])), want, rtol=0, atol=1e-10)
