"""The laws of the `Channel` socket, over every card; notes and tags, shown by channels of toys.

Channels with a state are in tests/contracts/test_mixer.py, too.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from laws import close, lively
from torch import Tensor
from toy import TOKENS, lively_model, tiny, toy_config
from toy_channels import Routed, Router, Tenants

from stretto.core.card import CHANNELS, MIXERS, Card, Exactness
from stretto.core.plan import StepPlan
from stretto.core.seqs import Seqs
from stretto.models.lm import LM, Layer

CARDS = CHANNELS.cards()
ALONE = [card for card in CARDS if card.exactness is not Exactness.APPROXIMATE and not card.tiny_module().state_specs]


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


def test_rwkv_cmix_is_the_formula() -> None:
    channel = lively(CHANNELS.card("rwkv_cmix"))
    x = torch.randn(5, channel.d_model, dtype=torch.float64)
    before, rows = torch.zeros(channel.d_model, dtype=torch.float64), []
    for row in x:
        mixed_k, mixed_r = (mu * before + (1 - mu) * row for mu in (channel.mu_k, channel.mu_r))
        k = (channel.key.weight @ mixed_k).clamp(min=0) ** 2
        rows.append((channel.value.weight @ k) / (1 + (-(channel.receptance.weight @ mixed_r)).exp()))
        before = row
    close(channel(x, Seqs.of([5])), torch.stack(rows))
    x_and_x = channel(torch.cat([x, x]), Seqs.of([5, 5]))
    close(x_and_x, torch.stack(rows * 2))


# -- notes -------------------------------------------------------------------------------------------------------------


def model(*channels: Callable[[], object]) -> LM:
    return lively_model(toy_config([Layer(mixer=tiny(MIXERS, "attention"), channel=make()) for make in channels]))


def test_a_channel_writes_what_it_declares_where_somebody_reads() -> None:
    lm = model(Routed, Routed)
    plan = StepPlan.of([TOKENS, TOKENS[:3]], notes={})
    logits = lm(plan)
    assert plan.notes is not None and set(plan.notes) == {"blocks.0.channel", "blocks.1.channel"}
    for notes in plan.notes.values():
        assert set(notes) == set(Router.notes) and len(notes["experts"]) == len(TOKENS) + 3
    silent = lm(replace(plan, notes=None))
    assert torch.equal(silent, logits), "notes change nothing"


def test_a_loss_among_the_notes_trains() -> None:
    lm = model(Routed).requires_grad_()
    plan = StepPlan.of([TOKENS], notes={})
    lm(plan)
    assert plan.notes is not None
    plan.notes["blocks.0.channel"]["router_loss"].backward()
    router = lm.blocks[0].channel
    assert router.gate.weight.grad.abs().max() > 0 and router.experts.weight.grad is None


# -- tags --------------------------------------------------------------------------------------------------------------


def tagged(adapters: list[int], wanted: list[int] | None = None) -> StepPlan:
    """Two sequences whose rows have these adapters."""
    seqs = Seqs.of([5, 3], tags={"adapter": adapters})
    return StepPlan(TOKENS, seqs, range(8) if wanted is None else wanted)


def test_rows_bring_their_tags_to_every_part() -> None:
    lm = model(Tenants, Tenants)
    one, two = (lm(replace(tagged([n] * 8), seqs=Seqs.of([5, 3], tags={"adapter": n}))) for n in (1, 2))
    mixed = lm(tagged([1] * 5 + [2] * 3))
    close(mixed, torch.cat([one[:5], two[5:]]))
    close(lm(tagged([1] * 5 + [2] * 3, [0, 4, 6])), mixed[[0, 4, 6]])
    assert not torch.allclose(one, two) and not torch.allclose(one, lm(StepPlan(TOKENS, Seqs.of([5, 3]), range(8))))


def test_tags_follow_their_rows() -> None:
    seqs = Seqs.of([1, 0, 3, 2], num_step=2, tags={"adapter": [5, 6, 7, 8, 9, 10], "use": 4})
    assert seqs.chunk_part.tags == {"adapter": (6, 7, 8, 9, 10), "use": 4} and seqs.step_part.tags["adapter"] == (5,)
    assert seqs.select([0, 2, 5]).tags["adapter"] == (5, 7, 10) and seqs.select([0, 2, 5]).lens == (1, 0, 1, 1)
    tag = seqs.tag("adapter")
    assert isinstance(tag, Tensor) and tag.tolist() == [5, 6, 7, 8, 9, 10]
    assert seqs.tag("use") == 4 and seqs.tag("tenant") is None
    again = seqs.tagged("use", 1)
    assert again.tag("use") == 1 and again.lens == seqs.lens and seqs.tag("use") == 4
    assert again.step_part.tag("use") == 1 and seqs.step_part.tag("use") == 4
    with pytest.raises(AssertionError, match="one number for each row"):
        Seqs.of([2], tags={"adapter": [1]})
