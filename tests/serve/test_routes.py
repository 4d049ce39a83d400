"""Which replica answers: laws of the policies, by simulation and without a server."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stretto.core.card import ROUTES, Card
from stretto.core.errors import UserError
from stretto.core.spec import read_spec
from stretto.serve.router.index import BLOCK, TOKENS, PrefixIndex, chain
from stretto.serve.router.policies.prefix import Prefix
from stretto.serve.router.policy import Ask, Load, RoutePolicy
from stretto.serve.router.work import OUTPUT, ask_of

_loads = st.lists(
    st.builds(Load, number=st.integers(0, 9), work=st.integers(0, 20_000), turn=st.integers(0, 99)),
    min_size=1,
    unique_by=(lambda load: load.number, lambda load: load.turn),
)
_texts = st.binary(max_size=12).map(lambda seed: b"".join(bytes([one]) * BLOCK for one in seed))


def asked(text: bytes, output: int = 0) -> Ask:
    return Ask(chain(text, ""), len(text) // 4, output)


class Fleet:
    """Replicas whose requests end when a test says so."""

    def __init__(self, policy: RoutePolicy, count: int) -> None:
        self.policy, self.loads = policy, [Load(n) for n in range(count)]
        self.runs: list[tuple[int, int]] = []
        self.turn = 0

    def send(self, ask: Ask) -> int:
        number = self.policy.choose(ask, self.loads)
        cost = self.policy.unread(ask, number) + ask.output
        self.policy.sent(ask, number)
        self.turn += 1
        self.loads[number] = Load(number, self.loads[number].work + cost, self.turn)
        self.runs.append((number, cost))
        return number

    def end(self, which: int) -> None:
        number, cost = self.runs.pop(which)
        self.loads[number] = replace(self.loads[number], work=self.loads[number].work - cost)


@pytest.mark.parametrize("card", ROUTES.cards(), ids=lambda card: card.name)
@given(loads=_loads, text=_texts, before=st.lists(st.tuples(_texts, st.integers(0, 9)), max_size=5))
def test_a_choice_is_one_of_the_offered_and_a_function(
    card: Card, loads: list[Load], text: bytes, before: list[tuple[bytes, int]]
) -> None:
    policies = [card.make(), card.make()]
    for policy in policies:
        for earlier, number in before:
            policy.sent(asked(earlier), number)
    found = [policy.choose(asked(text), loads) for policy in policies]
    found.append(policies[0].choose(asked(text), loads[::-1]))
    assert len(set(found)) == 1 and found[0] in {load.number for load in loads}
    assert all(0 <= policies[0].unread(asked(text), load.number) <= len(text) // 4 for load in loads)


@given(loads=_loads, text=_texts, before=st.lists(st.tuples(_texts, st.integers(0, 9)), max_size=5))
def test_no_prefix_is_worth_more_than_the_bound(
    loads: list[Load], text: bytes, before: list[tuple[bytes, int]]
) -> None:
    policy = Prefix(slack=100, ratio=2.0)
    for earlier, number in before:
        policy.sent(asked(earlier), number)
    chosen = policy.choose(asked(text), loads)
    work = {load.number: load.work for load in loads}
    assert work[chosen] <= 100 + 2 * min(work.values())


@pytest.mark.parametrize("card", ROUTES.cards(), ids=lambda card: card.name)
@given(seed=st.integers(0, 1 << 16), count=st.integers(1, 5))
def test_random_traffic_starves_no_replica(card: Card, seed: int, count: int) -> None:
    """One text for all: the strongest pull to one replica. Each gets work, as long as requests do not end faster than
    they come."""
    rng, fleet = random.Random(seed), Fleet(card.make(), count)
    got: Counter[int] = Counter()
    for _ in range(60 * count):
        got[fleet.send(asked(b"x" * BLOCK, output=500))] += 1
        if fleet.runs and rng.random() < 0.3:
            fleet.end(rng.randrange(len(fleet.runs)))
    assert set(got) == set(range(count)) and min(got.values()) > 5


def test_conversations_stick() -> None:
    """Eight of them, turn by turn in random order, up to three at once, over three replicas: each stays where it
    began, for what is queued there is less than what another replica would have to read anew."""
    rng, fleet = random.Random(1), Fleet(Prefix(), 3)
    texts = {i: rng.randbytes(40 * BLOCK) for i in range(8)}
    homes: dict[int, set[int]] = {i: set() for i in texts}
    for number, one in enumerate([*texts, *rng.choices(list(texts), k=100)]):
        homes[one].add(fleet.send(asked(texts[one], output=50)))
        texts[one] += rng.randbytes(BLOCK)
        while len(fleet.runs) > (2 if number >= len(texts) else 0):
            fleet.end(0)
    assert all(len(found) == 1 for found in homes.values())
    assert {next(iter(found)) for found in homes.values()} == {0, 1, 2}, "they began on different ones"


def test_an_overloaded_home_is_left() -> None:
    policy, text = Prefix(slack=1000, ratio=1.5), b"a" * BLOCK * 400
    policy.sent(asked(text), 1)
    cached = 400 * TOKENS
    assert policy.choose(asked(text), [Load(0), Load(1, work=1000)]) == 1 and cached > 1000
    assert policy.choose(asked(text), [Load(0), Load(1, work=1001)]) == 0
    policy.lost(1)
    assert policy.choose(asked(text), [Load(0), Load(1, turn=1)]) == 0
    assert policy.unread(asked(text), 1) == cached


def test_the_simple_ones() -> None:
    loads = [Load(0, 5, 1), Load(1, 3, 9), Load(2, 3, 8), Load(3, 70, 0)]
    assert read_spec("least", ROUTES, "route").make().choose(Ask(), loads) == 2
    assert read_spec("round", ROUTES, "route").make().choose(Ask(), loads) == 3
    with pytest.raises(UserError, match="ratio"):
        read_spec("prefix:ratio=0.5", ROUTES, "route")


# -- the index ---------------------------------------------------------------------------------------------------------


@given(sent=st.lists(st.tuples(_texts, st.integers(0, 2)), max_size=8), text=_texts)
def test_the_index_knows_the_longest_common_beginning(sent: list[tuple[bytes, int]], text: bytes) -> None:
    index = PrefixIndex(1000)
    for earlier, number in sent:
        index.add(chain(earlier, ""), number)
    for number in range(3):
        found = [common(text, earlier) for earlier, where in sent if where == number]
        assert index.known(chain(text, ""), number) == max(found, default=0)


def common(a: bytes, b: bytes) -> int:
    """Whole blocks that two texts have in common at their beginning."""
    size = 0
    while size < min(len(a), len(b)) and a[size] == b[size]:
        size += 1
    return size // BLOCK


@given(sent=st.lists(_texts, max_size=20), most=st.integers(1, 8))
def test_the_index_is_bounded_and_forgets_from_the_end(sent: Sequence[bytes], most: int) -> None:
    index = PrefixIndex(most)
    for text in sent:
        index.add(chain(text, ""), 0)
        assert len(index._known[0]) <= most
        assert index.known(chain(text, ""), 0) == min(most, len(text) // BLOCK)


def test_spaces_have_nothing_in_common() -> None:
    text = b"x" * 5 * BLOCK
    assert len(chain(text, "a")) == 5 and not set(chain(text, "a")) & set(chain(text, "b"))
    assert len(chain(text[:-1], "a")) == 4


# -- estimates ---------------------------------------------------------------------------------------------------------

TURN = b'{"role":"user","content":"%s"}'


def test_the_next_turn_begins_as_the_last_one_whatever_stands_before_it() -> None:
    first, second = TURN % (b"a" * 1000), TURN % (b"b" * 1000)
    one = ask_of(b'{"seed":17,"messages":[%s],"max_tokens":5}' % first, "key-1")
    two = ask_of(b'{"max_tokens":9,"seed":123456,"messages":[%s,%s]}' % (first, second), "key-1")
    assert len(one.blocks) == 8 and two.blocks[:8] == one.blocks and (one.output, two.output) == (5, 9)
    other = ask_of(b'{"messages":[%s]}' % first, "key-2")
    salted = ask_of(b'{"messages":[%s],"cache_salt":"s"}' % first, "key-1")
    assert not set(one.blocks) & (set(other.blocks) | set(salted.blocks)) and other.output == OUTPUT


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b'{"options":3}', b"[" * 100_000])
def test_what_cannot_be_read_has_no_estimate(body: bytes) -> None:
    assert ask_of(body, "") == Ask()


@pytest.mark.parametrize("body", [b'{"max_tokens":-1}', b'{"max_tokens":"x"}', b'{"max_tokens":1e99}'])
def test_a_limit_that_is_none(body: bytes) -> None:
    assert ask_of(body, "").output == OUTPUT
