"""Laws of searches, over all of them and over programs that fork, join and score at random, with scripted models."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from writers import answers, instantly, writer

from stretto.core.card import SCORERS, SEARCHES, Card
from stretto.core.errors import UserError
from stretto.core.sampling import Sampling
from stretto.solve.budget import Budget
from stretto.solve.group import Group
from stretto.solve.options import SearchOptions
from stretto.solve.outcome import Choice, Outcome, choose
from stretto.solve.run import run_search
from stretto.solve.scripted import Scripted
from stretto.solve.searches.ets import ETS, balance
from stretto.solve.searches.seat import SEAT, entropy, quantile, stops
from stretto.solve.searches.squeeze import Squeeze, draw_group, route
from stretto.solve.searches.vote import Vote, is_decided
from stretto.solve.sockets import Scorer, Search
from stretto.solve.tree import Node

CARDS = SEARCHES.cards()


class Chaos(Search):
    """Forks, joins, grows, scores and leaves as its dice say."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)

    async def run(self, group: Group) -> Choice:
        dice, nodes = self._dice, [await group.ask()]
        for _ in range(dice.randint(1, 8)):
            known = [node for node in nodes if node.ending != "open"]
            match dice.choice(["grow", "grow", "leave", "join", "score", "read"]):
                case "grow":
                    new = [child for _ in range(3) for child in group.fork(dice.choice(known), dice.randint(1, 4))]
                    await group.grow(new, width=dice.randint(0, 3), max_tokens=dice.randint(1, 30), stop=("\n",))
                    nodes += new
                case "leave":
                    new = group.fork(dice.choice(known), 5)
                    async with aclosing(group.ended(new)) as ended:
                        for _ in range(dice.randint(1, 4)):
                            await anext(ended)
                    nodes += new
                case "join":
                    nodes.append(await group.join(dice.choices(known, k=3), "again", quote=dice.choice([None, 4])))
                case "score":
                    await group.score(known)
                case "read":
                    await group.read(dice.choices(known, k=2), top=1)
        assert all(node.ending != "open" for node in nodes)
        return choose(nodes)


class Random(Scorer):
    """Costs a token, and says anything."""

    async def score(self, group: Group, nodes: Sequence[Node]) -> list[float]:
        found = await group.next_tokens(nodes, "right?")
        return [hash((node.path, one is None)) % 100 / 99 for node, one in zip(nodes, found, strict=True)]


def searched(
    model: Scripted, search: Search, *, cheap: Scripted | None = None, seed: int = 0, **options: Any
) -> tuple[Outcome, float]:
    models = [model] if cheap is None else [model, cheap]
    wanted = SearchOptions(search=search, **{"extract": "regex:=(.)", **options})
    return instantly(run_search(models, "question", wanted, Sampling(seed=seed, max_tokens=24)))


def tree(outcome: Outcome) -> list[tuple[Any, ...]]:
    return [(node.path, node.token_ids, node.ending, node.score, node.answer) for node in outcome.nodes]


searches = st.one_of(
    st.integers(0, 1 << 30).map(Chaos),
    st.builds(Vote, n=st.integers(1, 12), width=st.integers(0, 4), whole=st.booleans()),
    st.builds(ETS, width=st.integers(1, 9), steps=st.integers(1, 4), step_tokens=st.integers(1, 9), by=st.just("line")),
    st.builds(SEAT, n=st.integers(1, 5), rounds=st.integers(1, 5), threshold=st.sampled_from([-1.0, 0.5])),
    st.builds(
        Squeeze, n=st.integers(3, 6), k=st.integers(2, 3), rounds=st.integers(0, 3), lite=st.sampled_from([0.0, 0.5]),
        by=st.sampled_from(["confidence", "agreement"]), heat=st.sampled_from([0.0, 0.5]), accumulate=st.booleans(),
    ),
)  # fmt: skip
scorers = st.sampled_from([Random(), *(card.make() for card in SCORERS.cards())])


@settings(max_examples=150, deadline=None)
@given(
    search=searches,
    scorer=scorers,
    tokens=st.one_of(st.none(), st.integers(1, 400)),
    seconds=st.one_of(st.none(), st.floats(0.01, 60)),
    delays=st.integers(0, 5),
    two=st.booleans(),
)
def test_a_budget_is_never_exceeded_and_nothing_runs_on(search, scorer, tokens, seconds, delays, two):
    model, cheap = (writer(answers(*"123"), delays=delays) for _ in range(2))
    found, took = searched(
        model, search, cheap=cheap if two else None, scorer=scorer, budget_tokens=tokens, budget_seconds=seconds
    )
    written = model.written + cheap.written
    assert tokens is None or written <= tokens
    assert seconds is None or took <= seconds + 1e-9
    assert model.running == cheap.running == 0
    assert found.spent.tokens <= written and found.spent.requests == len(model.requests) + len(cheap.requests)
    assert found.spent.seconds == pytest.approx(took)
    assert all(node.ending != "open" for node in found.nodes)
    assert (found.answer is None) == (not found.weights)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
@pytest.mark.parametrize("tokens", [None, 150, 60, 33])
def test_the_seed_decides_whatever_ends_first(card: Card, tokens: int | None) -> None:
    """Times change; texts, scores and the answer do not. (A vote that stops early reads other texts as far as it
    needs them, and gives the same answer.)"""
    changes = {"whole": True} if card.name == "vote" else {}
    trees, taken = set(), set()
    for delays in range(6):
        model = writer(answers(*"1234"), delays=delays, prompts=2.0)
        outcome, _ = searched(model, card.make(**card.tiny, **changes), seed=5, scorer="self", budget_tokens=tokens)
        trees.add(str(tree(outcome)))
        taken.add((outcome.answer, outcome.text, outcome.stopped, outcome.spent.tokens))
    assert len(trees) == len(taken) == 1
    others, _ = searched(writer(answers(*"1234")), card.make(**card.tiny, **changes), seed=6, scorer="self")
    assert str(tree(others)) not in trees


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_a_search_that_is_cancelled_leaves_nothing(card: Card) -> None:
    """At every moment of it, also in the middle of another cancellation."""
    alone = writer(answers(*"12"), delays=1)
    _, whole = searched(alone, card.make(**card.tiny), scorer="self")

    async def leave(after: float) -> None:
        model = writer(answers(*"12"), delays=1)
        options = SearchOptions(search=card.make(**card.tiny), scorer="self", extract="regex:=(.)")
        task = asyncio.ensure_future(run_search([model], "question", options, Sampling(seed=0, max_tokens=24)))
        await asyncio.sleep(after)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asyncio.get_running_loop().time() == pytest.approx(after), "at once"
        assert model.running == 0
        assert len(asyncio.all_tasks()) == 1

    for share in range(20):
        instantly(leave(whole * share / 20))


def test_what_a_watcher_raises_ends_the_search() -> None:
    """A stream that was closed, for example: nothing runs on, and its error comes out."""
    model = writer(answers(*"12"))

    def watch(group: Group) -> None:
        if group.requests.budget.seconds > 3:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        instantly(run_search([model], "question", SearchOptions(), Sampling(seed=0, max_tokens=24), watch=watch))
    assert model.running == 0


# -- vote --------------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    n=st.integers(1, 14),
    width=st.integers(0, 5),
    words=st.sampled_from(["1", "112", "1123", "111111112", ["1", "2", "", "", ""]]),
    tokens=st.one_of(st.none(), st.integers(1, 250)),
    seed=st.integers(0, 1 << 30),
    delays=st.integers(0, 1 << 30),
)
def test_a_vote_that_stops_early_has_the_winner_of_the_whole_one(n, width, words, tokens, seed, delays):
    def vote(**how: Any) -> Outcome:
        model = writer(answers(*words), delays=how.pop("delays"))
        return searched(model, Vote(n=n, **how), seed=seed, budget_tokens=tokens)[0]

    early, whole = vote(width=width, delays=delays), vote(whole=True, delays=0)
    assert early.answer == whole.answer
    assert early.stopped != "decided" or early.spent.tokens <= whole.spent.tokens


def test_a_vote_is_decided_exactly_when_nothing_can_change_it() -> None:
    n = 6
    for votes in itertools.product(["a", "b", "c", None], repeat=3):
        counted = Counter(one for one in votes if one is not None)
        ends = []
        for rest in itertools.product(["a", "b", "c", "d", None], repeat=n - 3):
            last = counted + Counter(one for one in rest if one is not None)
            most = max(last.values(), default=0)
            ends.append({one for one, count in last.items() if count == most})
        certain = len({frozenset(one) for one in ends}) == 1 and len(ends[0]) == 1
        assert is_decided(counted, n - 3) == certain, votes


def test_equal_votes_go_to_the_first_text() -> None:
    def node(path: tuple[int, ...], answer: str | None, score: float = 0.0) -> Node:
        return Node(path=path, prompt=(), token_ids=path, answer=answer, score=score)

    nodes = [node((0, 3), "b"), node((0, 1, 0), "a"), node((0, 2), "b"), node((0, 0), None), node((0, 4), "a")]
    assert choose(nodes).node is nodes[1] and dict(choose(nodes).weights) == {"a": 2, "b": 2}
    heavy = [*nodes, node((0, 5), "b", 0.9), node((0, 6), "a", 0.8)]
    assert choose(heavy, weighted=True).node is heavy[5]
    assert choose([]).node is None


def test_what_a_vote_does_not_need_is_not_written() -> None:
    def same(ids: Sequence[int], noise: random.Random) -> str:
        return "a" * noise.randrange(20) + "=1"

    model, all_of_it = writer(same), writer(same)
    outcome, _ = searched(model, Vote(n=9))
    searched(all_of_it, Vote(n=9, whole=True))
    assert outcome.stopped == "decided" and dict(outcome.weights) == {"1": 5}
    assert Counter(node.ending for node in outcome.roots[0].children) == {"end": 5, "cut": 4}
    assert model.written < all_of_it.written
    narrow = writer(same)
    searched(narrow, Vote(n=9, width=1))
    assert len(narrow.requests) == 5, "the others are not begun"


# -- budgets -----------------------------------------------------------------------------------------------------------


def test_how_texts_end() -> None:
    """At their end, at their limit, or because of the budget: of a text that was cut, nobody knows the answer."""

    def letters(ids: Sequence[int], noise: random.Random) -> str:
        return "abcdefgh"

    ends = {}
    for tokens in (8, 11):
        outcome, _ = searched(writer(letters), Vote(n=2, width=1), extract="regex:[a-z]", budget_tokens=tokens)
        ends[tokens] = [(node.text, node.ending, node.answer) for node in outcome.roots[0].children], outcome.stopped
    assert ends[8] == ([("abcdefgh", "end", "h"), ("", "cut", None)], "tokens")
    assert ends[11] == ([("abcdefgh", "end", "h"), ("abc", "cut", None)], "tokens")
    options = SearchOptions(search=Vote(n=1), extract="regex:[a-z]")
    outcome, _ = instantly(run_search([writer(letters)], "q", options, Sampling(seed=1, max_tokens=3)))
    (node,) = outcome.roots[0].children
    assert (node.text, node.ending, outcome.answer, outcome.stopped) == ("abc", "length", "c", "done")
    outcome, took = searched(writer(letters), Vote(n=2), budget_seconds=1.0)
    assert took == 1.0 and outcome.stopped == "seconds" and outcome.answer is None


def test_tokens_of_texts_that_were_cut_are_not_given_again() -> None:
    """They may be on their way: an engine computes some that nobody reads any more."""

    class Leaves(Search):
        async def run(self, group: Group) -> Choice:
            root = await group.ask()
            for _ in range(40):
                async with aclosing(group.ended(group.fork(root, 3))) as ended:
                    await anext(ended)
            return choose(root.children)

    for tokens in (50, 100, 200):
        model = writer(answers("1"))
        outcome, _ = searched(model, Leaves(), budget_tokens=tokens)
        assert outcome.stopped == "tokens" and outcome.spent.tokens < model.written <= tokens


def test_who_gets_the_rest_is_not_decided_by_who_is_quick() -> None:
    """The first nodes do, however long their prompts take to be made."""

    class Asks(Search):
        async def run(self, group: Group) -> Choice:
            nodes = group.fork(await group.ask(), 5)
            await group.grow(nodes, max_tokens=2)
            asked = [one is not None for one in await group.next_tokens(nodes, "right?")]
            assert asked == [True] * 3 + [False] * 2
            assert await group.read(nodes) == [()] * 5
            return choose(nodes)

    for delays in range(5):
        searched(writer(lambda ids, noise: "abc", delays=delays, prompts=3.0), Asks(), budget_tokens=13)


def test_a_reservation_that_nobody_takes_is_given_back() -> None:
    async def main() -> None:
        budget = Budget(10)
        first = await budget.reserve(8)
        waiting = asyncio.ensure_future(budget.reserve(8))
        await asyncio.sleep(0)
        assert first == 8 and not waiting.done()
        budget.settle(8, 1, is_whole=True)  # the next one gets its tokens, and is cancelled before it hears of it
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await budget.reserve(20) == 9 and budget.spent == 1

    instantly(main())


# -- seat --------------------------------------------------------------------------------------------------------------


def test_rounds_end_when_they_agree() -> None:
    """The entropy falls from round to round, since a text that reads answers repeats the last one."""

    def write(ids: Sequence[int], noise: random.Random) -> str:
        said = [chr(b) for a, b in itertools.pairwise(ids) if a == ord("=")]
        return "=" + (noise.choice("123456") if not said or noise.random() < 0.3 else said[-1])

    outcome, _ = searched(writer(write), SEAT(n=6, rounds=9), seed=3)
    rounds = [[node.answer for node in root.children] for root in outcome.roots]
    entropies = [entropy(one) for one in rounds]
    assert outcome.stopped == "decided" and 1 < len(rounds) < 9
    assert [stops(entropies[:i], 9, None) for i in range(1, len(entropies) + 1)] == [*[False] * (len(rounds) - 1), True]
    assert outcome.answer == Counter(rounds[-1]).most_common(1)[0][0]
    assert [root.sources for root in outcome.roots[1:]] == [tuple(root.children) for root in outcome.roots[:-1]]


def test_when_rounds_stop() -> None:
    assert entropy(["a", "a"]) == 0 and entropy(["a", "b"]) == pytest.approx(0.6931471805599453)
    assert entropy([None, None, "a"]) == pytest.approx(1.0986122886681098), "what cannot be read agrees with nothing"
    assert stops([0.0], 9, None) and stops([0.5], 9, 0.5) and not stops([0.51], 9, 0.5)
    # of 8 rounds 3 are looked at; then the first below all of them
    assert not stops([1.0, 0.9, 0.8], 8, None) and not stops([1.0, 0.9, 0.8, 0.8], 8, None)
    assert stops([1.0, 0.9, 0.8, 0.8, 0.7], 8, None) and stops([1.0] * 8, 8, None)
    assert quantile([3.0, 1.0, 2.0, 5.0, 4.0]) == 1.0 and quantile([3.0, 1.0, 2.0, 5.0, 4.0], 0.5) == 3.0


# -- squeeze -----------------------------------------------------------------------------------------------------------


def test_the_strongest_model_takes_the_groups_that_are_least_sure() -> None:
    strong, cheap = writer(answers("7")), writer(answers("1"))
    outcome, _ = searched(strong, Squeeze(n=8, k=3, rounds=1, percentile=25), cheap=cheap, seed=1)
    models = Counter(root.model for root in outcome.roots[1:])
    assert models == {0: 2, 1: 6}, "the percentile says how many"
    assert route([3.0, 1.0, 2.0, 0.0], 50, 0.5) == ([3, 1], [2], [0])
    assert all(node.answer == "7" for node in outcome.roots[0].children)
    assert dict(outcome.weights) == {"1": 6, "7": 2}


def test_groups_that_disagree_are_hard() -> None:
    strong, cheap = writer(answers(*"12345")), writer(answers(*"12345"))
    outcome, _ = searched(strong, Squeeze(n=8, k=3, rounds=1, by="agreement"), cheap=cheap, seed=2)
    different = [(len({node.answer for node in root.sources}), root.model) for root in outcome.roots[1:]]
    assert min(n for n, model in different if model == 0) >= max(n for n, model in different if model == 1)
    assert len(set(different)) > 1


def test_a_group_is_drawn_without_replacement_and_by_fitness() -> None:
    noise = random.Random(0)
    for heat in (0.0, 0.1):
        assert all(len(set(draw_group([1.0, 2.0, 3.0, 4.0], 3, heat, noise))) == 3 for _ in range(200))
    drawn = Counter(draw_group([0.0, 1.0], 2, 1.0, noise)[0] for _ in range(4000))
    expected = 4000 / (1 + 2.718281828)  # softmax of 0 and 1
    assert abs(drawn[0] - expected) < 5 * (expected * 0.73) ** 0.5


# -- ets ---------------------------------------------------------------------------------------------------------------


def test_balance_gives_places_by_reward() -> None:
    assert balance([0.5, 0.5], 4) == [2, 2] and balance([1.0, 0.0], 4) == [4, 0]
    assert balance([0.0, 0.0, 0.0], 2) == [1, 1, 0], "the best first, while there are places"
    noise = random.Random(1)
    for _ in range(200):
        scores, places = [noise.random() for _ in range(noise.randint(1, 9))], noise.randint(1, 20)
        assert sum(balance(scores, places)) == places


def test_a_tree_is_forked_at_what_is_kept() -> None:
    """Texts of three lines; whoever says x first is right, and the verifier sees it."""

    def write(ids: Sequence[int], noise: random.Random) -> str:
        done = sum(one == ord("\n") for one in ids)
        return noise.choice("xyz") + ("\n" if done < 2 else "=" + chr(ids[8] if len(ids) > 8 else ord("q")))

    class FirstIsX(Scorer):
        async def score(self, group: Group, nodes: Sequence[Node]) -> list[float]:
            return [float(node.solution.startswith("x")) for node in nodes]

    outcome, _ = searched(writer(write), ETS(width=6, steps=3, by="line"), scorer=FirstIsX(), seed=1)
    assert outcome.answer == "x" and set(outcome.weights) == {"x"}
    forked = [node for node in outcome.roots[0].children if node.children]
    assert forked and all(node.solution == "x\n" for node in forked)
    assert sum(len(node.children) for node in forked) == 6, "all places are given to what is kept"
    assert all(node.score == 1.0 for node in outcome.roots[0].walk() if node.solution.startswith("x"))


def test_texts_that_ended_give_their_places_back() -> None:
    """Half of the first steps are whole texts; so many fewer are written in the next round."""

    def write(ids: Sequence[int], noise: random.Random) -> str:
        return noise.choice(["a=1", "b\n"]) if ids[-1] != ord("\n") else "c=2"

    outcome, _ = searched(writer(write), ETS(width=8, steps=3, by="line"), scorer=Random(), seed=4)
    first = outcome.roots[0].children
    done = sum(node.ending == "end" for node in first)
    assert 0 < done < 8 and sum(len(node.children) for node in first) == 8 - done
    assert set(outcome.weights) == {"1", "2"}


# -- names -------------------------------------------------------------------------------------------------------------


WRONG = (
    "vote:n=0 vote:n=1025 vote:size=2 ets:width=65 ets:by=word ets:cost=nan seat:rounds=0 seat:threshold=-2"
    " squeeze:k=1 squeeze:n=4,k=5 squeeze:lite=2 squeeze:by=luck beam"
)


@pytest.mark.parametrize("wrong", WRONG.split())
def test_settings_of_searches_are_checked(wrong: str) -> None:
    with pytest.raises(UserError):
        SearchOptions(search=wrong)


def test_objects_stand_for_names() -> None:
    options = SearchOptions(search=Vote(n=3), scorer=Random(), extract=lambda text: "always")
    assert isinstance(options.make_search(), Vote) and isinstance(options.make_scorer(), Random)
    outcome, _ = instantly(run_search([writer(answers("1"))], "question", options, Sampling(seed=1)))
    assert outcome.answer == "always"
    for changes in (
        {"extract": "words"},
        {"extract": 5},
        {"search": Random()},
        {"scorer": "luck"},
        {"scorer": 5},
        {"budget_tokens": 0},
        {"budget_seconds": 0.0},
    ):
        with pytest.raises(UserError):
            replace(options, **changes)
