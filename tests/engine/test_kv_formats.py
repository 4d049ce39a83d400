"""Engines whose keys and values are stored in each format: drafts, batches and pieces of a prompt change no bit."""

from pathlib import Path

import pytest
import torch
from test_engine import NUM_TOKENS, PROMPTS, Moody, run_all
from test_native import engine, tiled
from toy import nodes, plain_decode, toy_engine, toy_lm

from stretto import LLM, Sampling
from stretto.core.card import CODECS, Can
from stretto.core.errors import UserError
from stretto.models.lm import LM

FORMATS = [card.name for card in CODECS.cards(Can.KV)]
GREEDY = Sampling(temperature=0, max_tokens=NUM_TOKENS)


@pytest.fixture(scope="module")
def oracle() -> LM:
    return toy_lm(["attention", "long_conv", "attention"], changes={"attention": {"window": 20}})


@pytest.mark.parametrize("backend", ["torch", "native"])
@pytest.mark.parametrize("kv", FORMATS)
def test_drafts_batches_and_memory_change_nothing(oracle: LM, kv: str, backend: str) -> None:
    lm = tiled(oracle) if backend == "native" else oracle
    make = engine if backend == "native" else toy_engine
    want = run_all(make(lm, kv=kv, max_seqs=1), GREEDY)  # type: ignore[operator]
    known = {tuple(p): tokens for p, tokens in zip(PROMPTS, want, strict=True)}
    if kv == "f32":
        assert want == [plain_decode(oracle, p, NUM_TOKENS) for p in PROMPTS]
    for sizes in ({}, {"max_seqs": 2, "max_rows": 7}):
        drafting = {"drafter": Moody(known, 3), "policies": nodes(8, 0, 5)}
        one = make(lm, kv=kv, **sizes, **drafting)  # type: ignore[operator]
        assert one.runner.recording is None or one.runner.recording.host_operations == {}
        assert run_all(one, GREEDY) == want


def test_int8_takes_half_the_memory_and_stays_near(oracle: LM) -> None:
    whole, half = (engine(tiled(oracle), kv=kv).runner.cache.pools for kv in ("bf16", "int8"))
    sizes = [sum(part.nbytes for part in pools.tensors) / pools.num_pages for pools in (whole, half)]
    assert sizes[1] < 0.8 * sizes[0]  # heads of 8 elements with a scale each


def test_what_is_approximate_is_said(folder: Path) -> None:
    for backend in ("torch", "native"):
        llm = LLM(folder, backend=backend, kv="int8", draft="none", context=64)
        (result,) = llm.generate([[1, 2, 3]], Sampling(temperature=0, max_tokens=4))
        assert result.approximate == ("kv int8",) and len(result.token_ids) == 4
        assert any(part.dtype == torch.int8 for part in llm.engine.runner.cache.pools.tensors)
    plain = LLM(folder, backend="torch", kv="bf16", draft="none", context=64)
    assert plain.generate([[1, 2, 3]], Sampling(temperature=0, max_tokens=1))[0].approximate == ()
    with pytest.raises(UserError, match="q8_0 cannot store keys and values"):
        LLM(folder, kv="q8_0")
