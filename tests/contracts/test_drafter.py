"""Laws of the `Drafter` socket that need no engine: bookkeeping of requests, size of proposals, n-gram matching."""

import gc
import random
import sys
from itertools import pairwise

import pytest
from drafters import Oracle, Saboteur, TreeOracle, toy_target
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import toy_lm

from stretto.core.card import DRAFTERS, Can
from stretto.core.drafter import Ask, Draft, Round, Verdict
from stretto.core.errors import UserError
from stretto.core.sampling import Noise
from stretto.core.tree import Tree
from stretto.drafters.ngram import Config
from stretto.engine.judges.greedy import Greedy

VOCAB = 5
TARGET = toy_target(toy_lm(["attention"]))
_text = st.lists(st.integers(0, VOCAB - 1), max_size=40)
every_drafter = pytest.mark.parametrize("card", DRAFTERS.cards(), ids=lambda c: c.name)


def verify(draft, truth):
    """The greedy verdict if the model continues with `truth` on the right path (and with token 0 elsewhere)."""
    texts = [tuple(draft.token(row) for row in path[1:]) for path in draft.tree.paths]
    picks = [truth[len(text)] if text == tuple(truth[: len(text)]) else 0 for text in texts]
    return Greedy().judge(draft, picks, 0, Noise(0))


def check_shape(draft, max_tokens, card=None):
    assert len(draft) <= max_tokens
    assert all(isinstance(t, int) and t >= 0 for t in draft.tokens)
    assert draft.tree.is_chain or card is None or Can.TREE in card.can
    assert draft.probs is None or len(draft.probs) == len(draft)


@every_drafter
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_order_of_calls_keeps_requests_apart(card, data):
    """A request proposes as if it were alone, whatever the others do, and re-admission continues where it stood."""
    together, alone, texts, next_rid = card.make(**card.tiny).build(TARGET), {}, {}, 0
    for _ in range(data.draw(st.integers(0, 25))):
        action = data.draw(st.sampled_from(["admit", "step", "plain", "again", "release"]))
        if action == "admit" or not texts:
            tokens = data.draw(_text)
            texts[next_rid], alone[next_rid] = list(tokens), card.make(**card.tiny).build(TARGET)
            together.admit(next_rid, tokens)
            alone[next_rid].admit(next_rid, tokens)
            next_rid += 1
            continue
        rid = data.draw(st.sampled_from(sorted(texts)))
        if action == "step":
            asks = [Ask(r, data.draw(st.integers(0, 9))) for r in sorted(texts)]
            drafts = together.propose(asks)
            assert len(drafts) == len(asks)
            for ask, draft in zip(asks, drafts, strict=True):
                check_shape(draft, ask.max_tokens, card)
                assert draft.tokens == alone[ask.rid].propose([ask])[0].tokens
                verdict = verify(draft, data.draw(st.lists(st.integers(0, 4), min_size=10, max_size=10)))
                together.observe([Round(ask.rid, draft, verdict)])
                alone[ask.rid].observe([Round(ask.rid, draft, verdict)])
                texts[ask.rid] += verdict.emitted
        elif action == "plain":  # a step without a proposal, perhaps of a cut run
            verdict = Verdict((), tuple(data.draw(_text)[:3]))
            together.observe([Round(rid, Draft(), verdict)])
            alone[rid].observe([Round(rid, Draft(), verdict)])
            texts[rid] += verdict.emitted
        else:
            together.release(rid)
            alone[rid].release(rid)
            if action == "again":  # preempted and resumed
                together.admit(rid, texts[rid])
                alone[rid].admit(rid, texts[rid])
            else:
                del texts[rid], alone[rid]
    assert together.propose([]) == []


def _size(thing):
    """Bytes reachable from an object, without modules and classes."""
    seen, queue, total = set(), [thing], 0
    while queue:
        item = queue.pop()
        if id(item) in seen or isinstance(item, type | type(sys)):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        queue += gc.get_referents(item)
    return total


@every_drafter
def test_released_requests_leave_nothing(card):
    drafter, left = card.make(**card.tiny).build(TARGET), []
    for length in (40, 2, 40, 3):  # what is left does not depend on what was there; emptied tables keep their slots
        for rid in range(5):
            drafter.admit(rid, [7, 8, 9] * length)
            (draft,) = drafter.propose([Ask(rid, 4)])
            drafter.observe([Round(rid, draft, Verdict((), (7,)))])
        for rid in range(5):
            drafter.release(rid)
        left.append(_size(drafter))
    assert len(set(left[1:])) == 1


# -- ngram -----------------------------------------------------------------------------------------------------------


def ngram(**settings):
    return Config(**settings).build(TARGET)


def lookup(text, max_n, min_n, num_nodes):
    """What n-gram lookup means: longest n, most recent occurrence that is not the end itself."""
    for n in range(max_n, min_n - 1, -1):
        for end in range(len(text) - 1, n - 1, -1):
            if n <= len(text) and text[end - n : end] == text[len(text) - n :]:
                return tuple(text[end : end + num_nodes])
    return ()


@settings(max_examples=300, deadline=None)
@given(_text, st.lists(_text, max_size=5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 8))
def test_ngram_equals_a_search_of_the_whole_text(prompt, pieces, low, more, max_tokens):
    drafter, text = ngram(max_n=low + more - 1, min_n=low), list(prompt)
    drafter.admit(3, prompt)
    for piece in [[], *pieces]:
        drafter.observe([Round(3, Draft(), Verdict((), tuple(piece)))])
        text += piece
        want = lookup(text, low + more - 1, low, max_tokens)
        assert [draft.tokens for draft in drafter.propose([Ask(3, max_tokens)])] == [want]


def test_ngram_prefers_long_then_recent_and_stops_at_the_end():
    drafter = ngram(max_n=2, min_n=1)
    drafter.admit(0, [1, 2, 7, 5, 2, 8, 1, 2])
    assert drafter.propose([Ask(0, 3)])[0].tokens == (7, 5, 2)  # "1 2" is older than "2" but longer
    drafter.admit(0, [2, 7, 2, 8, 2])
    assert drafter.propose([Ask(0, 9)])[0].tokens == (8, 2)
    drafter.admit(0, [1, 2, 3])
    assert not drafter.propose([Ask(0, 9)])[0]


def test_ngram_is_as_sure_as_it_is_right():
    """A text in which every third token is drawn: what is proposed after a match of the last two tokens is right in two
    of three cases, and its scores say so, for the first token and for those after it."""
    rng, drafter = random.Random(3), ngram(max_n=3)
    drafter.admit(0, [])
    promised, right, count = [0.0] * 3, [0] * 3, 0
    text = list[int]()
    while len(text) < 6000:
        text += [rng.randrange(2), 7, 8]
    for at, token in enumerate(text[:-3]):
        (draft,) = drafter.propose([Ask(0, 3)])
        if at > 1000 and len(draft) == 3:
            count += 1
            for i, chance in enumerate(draft.acceptance):
                promised[i] += chance
                right[i] += draft.tokens[: i + 1] == tuple(text[at : at + i + 1])
        drafter.observe([Round(0, Draft(), Verdict((), (token,)))])
    assert count > 3000
    assert promised[0] / count == pytest.approx(right[0] / count, abs=0.02)
    assert all(p / count == pytest.approx(r / count, abs=0.12) for p, r in zip(promised, right, strict=True))


def test_long_matches_are_surer_than_short_ones_and_a_text_counts_for_itself():
    drafter = ngram(max_n=3)
    repeating, drawn, rng = [1, 2, 3, 4, 5] * 40, [], random.Random(1)
    drawn = [rng.randrange(6) for _ in range(200)]
    for rid, text in enumerate((repeating, drawn)):
        drafter.admit(rid, [])
        drafter.observe([Round(rid, Draft(), Verdict((), tuple(text)))])
    sure, unsure = (draft.acceptance for draft in drafter.propose([Ask(0, 4), Ask(1, 4)]))
    assert min(sure) > 0.8 and max(unsure) < 0.5
    assert all(a >= b for chances in (sure, unsure) for a, b in pairwise(chances))


def test_what_a_draft_says_of_a_tree_is_a_product_along_paths():
    draft = Draft((5, 6, 7), Tree.drafted((0, 1, 0)), scores=(0.5, 0.4, 0.3))
    assert draft.acceptance == pytest.approx((0.5, 0.2, 0.3))
    assert Draft((1,)).acceptance is None and Draft().acceptance is None and Draft(scores=()).acceptance == ()


@every_drafter
def test_a_lookup_may_be_asked_at_any_time(card):
    """It says the same again, changes nothing, and says how sure it is."""
    drafter, beside = (card.make(**card.tiny).build(TARGET) for _ in range(2))
    if not drafter.is_lookup:
        return
    rng, text = random.Random(5), [1, 2, 3, 1, 2]
    for one in (drafter, beside):
        one.admit(0, text)
    for _ in range(60):
        first, again = (drafter.propose([Ask(0, 8)])[0] for _ in range(2))
        assert first == again == beside.propose([Ask(0, 8)])[0]
        assert first.scores is not None or not len(first)
        step = [Round(0, Draft(), Verdict((), tuple(rng.randrange(3) for _ in range(rng.randint(1, 4)))))]
        for one in (drafter, beside):
            one.observe(step)
        drafter.propose([Ask(0, 3)])


@pytest.mark.parametrize("fields", [{"max_n": 0}, {"min_n": 0}, {"max_n": 2, "min_n": 3}], ids=str)
def test_ngram_refuses_settings_out_of_range(fields):
    with pytest.raises(UserError, match="ngram"):
        ngram(**fields)


# -- the controls ----------------------------------------------------------------------------------------------------

OUTPUT = tuple(int(c) for c in "31415926535897932384626433832795028841971693993751")


@pytest.mark.parametrize(
    ("control", "rate"),
    [
        (Oracle({(1, 2): OUTPUT}), (1, 1)),
        (TreeOracle({(1, 2): OUTPUT}, 10), (0.2, 0.8)),
        (Saboteur({(1, 2): OUTPUT}, 10), (0, 0)),
        (Saboteur({(1, 2): OUTPUT}, 10, tree=True), (0, 0)),
    ],
    ids=["oracle", "tree-oracle", "saboteur", "saboteur-tree"],
)
def test_controls_are_right_or_wrong_as_they_claim(control, rate):
    branched, emitted = False, ()
    control.admit(0, (1, 2))
    while len(emitted) < len(OUTPUT):
        (draft,) = control.propose([Ask(0, min(8, len(OUTPUT) - len(emitted) - 1))])
        check_shape(draft, 8)
        branched |= any(len(kids) > 1 for kids in draft.tree.children)
        verdict = verify(draft, (*OUTPUT[len(emitted) :], *[0] * 9))
        control.observe([Round(0, draft, verdict)])
        emitted += verdict.emitted
        if len(emitted) == 20:
            control.release(0)
            control.admit(0, (1, 2, *emitted))
    assert emitted == OUTPUT
    assert branched == ("Tree" in type(control).__name__ or getattr(control, "_tree", False))
    assert rate[0] <= control.accepted / control.proposed <= rate[1]
    control.release(0)
    assert control.held == {}
