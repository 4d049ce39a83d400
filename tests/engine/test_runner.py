"""Runners: one model over its own cache, whatever else runs it; taps and first layers against the torch module."""

import pytest
import torch
from native import team
from test_native import tiled
from torch import Tensor
from toy import HYBRID, VOCAB, toy_lm

from stretto.core.plan import StepPlan
from stretto.core.tree import Tree
from stretto.models.lm import LM
from stretto.runner.runner import Outputs, Rows, Runner, Sizes

TEXT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
TAPS = (0, 2, -1)


def runner(lm: LM, natively: bool, **options: object) -> Runner:
    sizes = Sizes(context=64, max_seqs=4, max_rows=16)
    return Runner(tiled(lm) if natively else lm, sizes, team() if natively else None, **options)  # type: ignore[arg-type]


def step(one: Runner, *parts: Rows, paths: list[list[int]] | None = None) -> Outputs:
    """One step; scores and features as copies, since they are valid until the next one."""
    for part in parts:
        assert one.cache.reserve(part.rid, len(part.tokens))
    packed = one.pack(parts)
    outputs = one.forward(packed)
    logits, features = outputs.scores.logits.clone(), tuple(h.clone() for h in outputs.features)
    one.commit(packed, paths or [[]] * len(parts))
    outputs.scores.logits = logits
    return Outputs(outputs.scores, features)


def close(got: Tensor, want: Tensor, natively: bool) -> None:
    tolerance = 2e-3 if natively else 1e-10
    torch.testing.assert_close(got.double(), want.double(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("natively", [False, True], ids=["torch", "native"])
def test_taps_are_the_hidden_rows_of_the_module(natively: bool) -> None:
    """Of prompts in pieces, decoded rows and draft trees, in a batch."""
    lm = toy_lm(HYBRID)
    one = runner(lm, natively, taps=TAPS)
    for rid in (0, 1):
        one.cache.admit(rid)
    _, want = lm.features(StepPlan.of([TEXT]), TAPS)
    first = step(one, Rows(0, TEXT[:6], is_step=False, wants=1), Rows(1, TEXT[:2], is_step=False, wants=1))
    for got, whole in zip(first.features, want, strict=True):
        close(got, torch.cat([whole[:6], whole[:2]]), natively)
    tree = Tree((-1, 0, 0, 1, 3))  # row 2 is a wrong branch
    tokens = [TEXT[6], TEXT[7], 0, TEXT[8], TEXT[9]]
    parts = Rows(0, tokens, num_draft=4, tree=tree, wants=5), Rows(1, TEXT[2:3], wants=1)
    second = step(one, *parts, paths=[[1, 3], []])
    for got, whole in zip(second.features, want, strict=True):
        close(got[[0, 1, 3, 4, 5]], whole[[6, 7, 8, 9, 2]], natively)
    assert one.cache.length(0) == 9 and one.cache.length(1) == 3
    third = step(one, Rows(0, TEXT[9:11], wants=1))
    for got, whole in zip(third.features, want, strict=True):
        close(got, whole[9:11], natively)
    close(third.scores.logits, lm(StepPlan.of([TEXT]))[-1:], natively)


@pytest.mark.parametrize("natively", [False, True], ids=["torch", "native"])
def test_two_runners_over_one_model_do_not_see_each_other(natively: bool) -> None:
    """The same numbers of sequences, steps taken in turn, and a third runner that uses the first layers only."""
    lm = toy_lm(HYBRID)
    shared = tiled(lm) if natively else lm
    sizes = Sizes(context=64, max_seqs=4, max_rows=16)
    threads = team() if natively else None
    runners = [Runner(shared, sizes, threads), Runner(shared, sizes, threads), Runner(shared, sizes, threads, blocks=2)]
    texts = [TEXT, TEXT[::-1], TEXT[3:] + TEXT[:3]]
    for one in runners:
        one.cache.admit(0)
    found: list[list[Tensor]] = [[], [], []]
    for at in range(len(TEXT)):
        for one, text, rows in zip(runners, texts, found, strict=True):
            rows.append(step(one, Rows(0, text[at : at + 1], wants=1)).scores.logits)
    models = lm, lm, lm.first(2)
    for rows, text, model in zip(found, texts, models, strict=True):
        close(torch.cat(rows), model(StepPlan.of([text])), natively)
    for one in runners:
        one.cache.release(0)
        one.cache.check()


def test_the_first_layers_are_a_model_of_the_same_parameters() -> None:
    lm = toy_lm(HYBRID)
    part = lm.first(2)
    assert {id(p) for p in part.parameters()} < {id(p) for p in lm.parameters()}
    assert len(part.blocks) == 2 and part.state_specs == lm.state_specs[:2]
    plan = StepPlan.of([TEXT])
    hidden, (after_two,) = lm.features(plan, (2,))
    close(part(plan), lm.logits(lm.norm(after_two), 0), False)
    assert hidden.shape == (len(TEXT), 16) and part(plan).shape == (len(TEXT), VOCAB)
    with pytest.raises(AssertionError, match="no layer"):
        lm.features(plan, (5,))
