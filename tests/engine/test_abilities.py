"""Abilities bind: what a mixer or judge does not claim is refused by name or done without, by the engine itself."""

from collections.abc import Sequence

import pytest

from stretto.core.card import CHANNELS, JUDGES, MIXERS, Can, Card, Registry
from stretto.core.drafter import Ask, Draft, Round
from stretto.core.errors import UserError
from stretto.core.sampling import Sampling
from stretto.core.tree import Tree
from stretto.engine.judges.coupled import Coupled
from stretto.models.lm import LM
from tests.drafters import Noise, TreeOracle
from tests.toy import VOCAB, finish, nodes, plain_decode, toy_engine, toy_lm

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
NUM_TOKENS = 12
GREEDY = Sampling(temperature=0, max_tokens=NUM_TOKENS)
CARDS = MIXERS.cards(Can.CAUSAL | Can.PACKED | Can.CHAIN | Can.TREE)


def without(can: Can, name: str = "attention") -> LM:
    """A model whose second layer does not claim `can`."""
    lm = toy_lm([name, name])
    mixer = lm.blocks[1].mixer
    mixer.__class__ = type(type(mixer).__name__, (type(mixer),), {"can": mixer.can & ~can})
    return lm


class Trees(TreeOracle):
    """Keeps what it was asked and what was verified of its trees."""

    def __init__(self, lm: LM) -> None:
        super().__init__({tuple(p): plain_decode(lm, p, NUM_TOKENS) for p in PROMPTS}, VOCAB)
        self.asked, self.verified = list[Ask](), list[Draft]()

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        self.asked += asks
        return super().propose(asks)

    def observe(self, rounds: Sequence[Round]) -> None:
        self.verified += [one.draft for one in rounds]
        super().observe(rounds)


def generated(lm: LM, drafter: Trees, **options: object) -> list[list[int]]:
    engine = toy_engine(lm, drafter=drafter, policies=nodes(9), **options)
    requests = [engine.add(prompt, GREEDY.resolve()) for prompt in PROMPTS]
    outputs = finish(engine)
    return [outputs[request.rid] for request in requests]


@pytest.mark.parametrize("registry", [MIXERS, CHANNELS, JUDGES], ids=lambda r: r.socket)
def test_a_card_claims_what_its_class_can(registry: Registry) -> None:
    for card in registry.cards():
        made = card.make() if registry is JUDGES else card.tiny_module()
        assert made.can == card.can != Can(0), card.name


@pytest.mark.parametrize("card", CARDS, ids=lambda c: c.name)
def test_a_model_without_trees_is_given_chains(card: Card) -> None:
    lm = without(Can.TREE, card.name)
    drafter = Trees(lm)
    plain = [plain_decode(lm, prompt, NUM_TOKENS) for prompt in PROMPTS]
    assert generated(lm, drafter) == plain
    assert any(len(draft) > 1 for draft in drafter.verified), "chains were verified"
    assert all(draft.tree.is_chain for draft in drafter.verified)
    trees = Trees(lm)
    assert generated(toy_lm([card.name] * 2), trees) == plain
    assert any(not draft.tree.is_chain for draft in trees.verified), "and trees are, where they can be"


@pytest.mark.parametrize("card", CARDS, ids=lambda c: c.name)
def test_a_model_without_chains_is_given_no_drafts(card: Card) -> None:
    lm = without(Can.CHAIN | Can.TREE, card.name)
    drafter = Trees(lm)
    assert generated(lm, drafter) == [plain_decode(lm, prompt, NUM_TOKENS) for prompt in PROMPTS]
    assert not drafter.asked and drafter.verified, "it is told what happens, and asked for nothing"
    (note,) = toy_engine(lm, drafter=drafter, policies=nodes(9)).notes
    assert "no drafts" in note
    assert toy_engine(lm).notes == (), "nobody asked for drafts"


def test_a_model_that_is_not_causal_is_refused_by_its_layer() -> None:
    with pytest.raises(UserError, match=r"(?s)cannot generate.*layer 1 \(Attention\) is not causal"):
        toy_engine(without(Can.CAUSAL))


def test_a_model_that_takes_one_sequence_runs_one() -> None:
    lm = without(Can.PACKED)
    with pytest.raises(UserError, match=r"(?s)2 sequences at once.*layer 1 \(Attention\).*max_seqs=1"):
        toy_engine(lm, max_seqs=2)
    drafter = Trees(lm)
    assert generated(lm, drafter, max_seqs=1) == [plain_decode(lm, prompt, NUM_TOKENS) for prompt in PROMPTS]


class Limited(Coupled):
    can = Can.CHAIN


def test_a_judge_decides_what_it_can() -> None:
    engine = toy_engine(toy_lm(["attention"]), judge=Limited())
    with pytest.raises(UserError, match=r"(?s)temperature 0.5 cannot be served.*Limited decides at temperature 0 only"):
        engine.add([1], Sampling(temperature=0.5).resolve())
    assert engine.is_idle
    request = engine.add([1], GREEDY.resolve())
    assert len(finish(engine)[request.rid]) == NUM_TOKENS


class NoTrees(Coupled):
    can = Can.CHAIN | Can.SAMPLED


class Bushes(Noise):
    """Random trees of two branches, and what was verified of them."""

    def __init__(self) -> None:
        super().__init__(VOCAB)
        self.verified = list[Draft]()

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        return [
            Draft(d.tokens, Tree.drafted([max(row - 2, 0) for row in range(1, len(d) + 1)]))
            for d in super().propose(asks)
        ]

    def observe(self, rounds: Sequence[Round]) -> None:
        self.verified += [one.draft for one in rounds]


@pytest.mark.parametrize("judge", [NoTrees(), Coupled()], ids=["chains", "trees"])
def test_a_judge_without_trees_is_given_chains(judge: Coupled) -> None:
    lm, drafter = toy_lm(["attention"]), Bushes()
    sampled = Sampling(temperature=0.8, seed=1, max_tokens=NUM_TOKENS).resolve()
    engine = toy_engine(lm, drafter=drafter, policies=nodes(6), judge=judge)
    requests = [engine.add(prompt, sampled) for prompt in PROMPTS]
    outputs = finish(engine)
    assert [outputs[r.rid] for r in requests] == [plain_decode(lm, prompt, NUM_TOKENS, sampled) for prompt in PROMPTS]
    shapes = {draft.tree.is_chain for draft in drafter.verified if len(draft) > 1}
    assert shapes == {isinstance(judge, NoTrees)}


def test_the_chain_of_a_tree_follows_first_children() -> None:
    tree = Draft((5, 6, 7, 8, 9), Tree.drafted((0, 0, 1, 1, 3)))
    assert tree.chain() == Draft((5, 7, 9))
    assert Draft((5, 6)).chain() == Draft((5, 6)) and Draft().chain() == Draft()
