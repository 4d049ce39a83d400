"""What a token of a prompt costs, against the operations that torch counts while it is computed."""

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from toy import toy_lm

from stretto.core.plan import StepPlan
from stretto.core.seqs import Seqs


def counted(run, *args, **named) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(*args, **named)
    return counter.get_total_flops()


@pytest.mark.parametrize("mixers", [["attention"], ["gated_attention", "attention", "attention"]])
def test_products_with_weights_are_counted_once(mixers: list[str]) -> None:
    """Torch counts no fused attention on a CPU, so what is left are the products."""
    lm = toy_lm(mixers)
    plan = StepPlan([1] * 48, Seqs.of([48], [0]), range(48), None)
    assert counted(lm.hidden, plan) == 48 * lm.token_cost.per_token


def test_pairs_of_tokens_are_those_of_transformers() -> None:
    """Its eager attention multiplies all T x T pairs: the part of the count that grows with the square."""
    shape = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16, "num_hidden_layers": 3}
    config = transformers.LlamaConfig(**shape, head_dim=8, intermediate_size=32, vocab_size=23)
    config._attn_implementation = "eager"
    theirs = transformers.LlamaModel(config)
    short, long = (counted(theirs, input_ids=torch.ones(1, n, dtype=torch.long), use_cache=False) for n in (64, 128))
    square = (long - 2 * short) / (2 * 64**2)
    assert square == toy_lm(["attention"] * 3).token_cost.per_pair == 3 * 4 * 4 * 8


def test_a_window_and_a_state_cost_the_same_for_every_token() -> None:
    plain, windowed = (
        toy_lm(["attention", "mamba2"], changes={"attention": {"window": window}}).token_cost for window in (None, 32)
    )
    assert plain.per_pair == 4 * 4 * 8 and windowed.per_pair == 0
    assert windowed.per_token == plain.per_token + 32 * plain.per_pair
