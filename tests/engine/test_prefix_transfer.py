"""What a text left in one cache, put into another: the same tokens and log-probabilities to the bit as from cold."""

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_model import continuation
from test_engine import options
from test_kept import of_toy, restarted
from test_native import MODELS, tiled
from test_no_leaks import CASES, CONTEXT, engine_of, texts
from test_prefix_cache import GREEDY, MUCH, make, run, text
from toy import finish, lively_model, plain_decode, toy_lm

from stretto.cache.evict.lru import LRU
from stretto.cache.memory import PoolMemory
from stretto.cache.pools import Pools
from stretto.cache.transfer import Extent, Prefix, put_in, read_out
from stretto.core.errors import FitError
from stretto.core.page_format import page_format
from stretto.core.sampling import Sampling
from stretto.core.state import StateSpec
from stretto.engine.engine import Engine
from stretto.engine.scheduler import Policies
from stretto.models.lm import LM
from stretto.runner.sizes import Sizes

ONE = Sampling(temperature=0, max_tokens=1)


@pytest.fixture(scope="module", params=MODELS)
def lm(request: pytest.FixtureRequest) -> LM:
    made = MODELS[request.param]
    return tiled(lively_model(made["config"]) if "config" in made else toy_lm(**made))


@pytest.fixture(scope="module")
def hybrid() -> LM:
    return tiled(toy_lm(["gated_delta", "attention", "mamba2"]))


def take(engine: Engine, tokens: list[int], space: str = "") -> Prefix:
    """What an engine has of a text that it reads first."""
    engine.add(tokens, ONE.resolve(), space=space)
    finish(engine)
    found = read_out(engine.runner.cache.ledger, engine.runner.cache.pools, tokens, space)
    assert found is not None
    assert found.extent.is_sound(engine.runner.cache.pools.layout)
    engine.runner.cache.check()
    return found


def leave(engine: Engine, prefix: Prefix, space: str = "") -> None:
    try:
        put_in(engine.runner.cache.ledger, engine.runner.cache.pools, prefix, space)
    finally:
        engine.runner.cache.check()


def test_what_was_put_in_gives_the_bits_of_a_cold_start(lm: LM) -> None:
    transfer(lm, "auto")


@pytest.mark.parametrize("name", ["hybrid", "attention with a window and sinks"])
def test_so_it_does_in_eight_bits(name: str) -> None:
    transfer(tiled(toy_lm(**MODELS[name])), "int8")


def transfer(lm: LM, kv: str) -> None:
    """Into pools of torch and into those of a kept program; the same prompt, and longer ones, with drafts and none."""
    prompt = text(1, 150)
    prompts = [prompt, [*prompt, *text(2, 30)], [*prompt[:100], *text(3, 30)]]
    cold = make(lm, prefix_bytes=0, kv=kv)
    want = [run(cold, [one])[0] for one in prompts]
    first = make(lm, kv=kv)
    prefix = take(first, prompt)
    assert prefix.tokens == tuple(prompt)
    known = {tuple(one): list(found[0]) for one, found in zip(prompts, want, strict=True)}
    others = [make(lm, kv=kv, **options("tree oracle", known, 5, 0, 3))]
    others.append(restarted(first, of_toy(first), policies=Policies(evict=LRU())))
    assert isinstance(others[-1].runner.cache.pools, PoolMemory)
    for warm in others:
        leave(warm, prefix)
        found = [run(warm, [one])[0] for one in prompts]
        assert [one[:2] for one in found] == [one[:2] for one in want]
        assert found[0][2] == 144 and found[1][2] == 150
    assert take(others[-1], prompt) == take(first, prompt)


@pytest.mark.parametrize("mixers", [["attention"], ["gated_delta", "attention", "mamba2"]])
def test_through_torch_whole_chunks_are_transferred(mixers: list[str]) -> None:
    lm, prompt = toy_lm(mixers), text(7, 150)
    first, warm = (
        Engine(lm, Sizes(context=512, max_seqs=4, prefix_bytes=MUCH), policies=Policies(evict=LRU())) for _ in range(2)
    )
    prefix = take(first, prompt)
    assert len(prefix.tokens) in (128, 144)
    leave(warm, prefix)
    request = warm.add(prompt, GREEDY.resolve())
    assert finish(warm)[request.rid] == plain_decode(lm, prompt, 20)
    assert request.job.cached == 128


@pytest.mark.parametrize("format", ["f32", "bf16", "int8"])
def test_bytes_lie_token_by_token_in_every_memory(format: str) -> None:
    """Against the tensors' own indexing: pages lane by lane or not, payload and scales, and states."""
    specs = [
        [StateSpec(name="k", shape=(2, 3), kind="paged", lanes=True), StateSpec(name="s", shape=(5,), kind="slot")]
    ] * 2
    kinds = [Pools(specs, num_blocks=4, num_slots=3, kv=page_format(format), state_dtype=torch.float32, lanes=lanes)
             for lanes in (True, False)]  # fmt: skip
    pools = [*kinds, PoolMemory(kinds[0].layout, (4,), 3, None)]  # type: ignore[arg-type]
    rng = random.Random(4)
    for number, a in enumerate(kinds[0].layout.arrays):
        units = [2, 1] if a.group is None else [3, 1]
        data = rng.randbytes(a.layers * len(units) * a.unit_bytes)
        for one in pools:
            one.write_units(number, units, data)
            assert one.read_units(number, units) == data
            one.check()
        for one in kinds:
            tensor = one.tensors[number]
            for layer, place in ((0, 0), (1, 1)):
                got = tensor[layer, units[place]].contiguous().flatten().view(torch.uint8).tolist()
                start = (layer * len(units) + place) * a.unit_bytes
                assert bytes(got) == data[start : start + a.unit_bytes]
        lanes = kinds[0].tensors[number].movedim(2, -1).contiguous() if a.by_lanes else kinds[0].tensors[number]
        raw = b"".join(
            pools[2]._memory[number].read(layer * pools[2]._layer_bytes[number] + unit * a.unit_bytes, a.unit_bytes)  # type: ignore[attr-defined]
            for layer in range(a.layers)
            for unit in units
        )
        assert raw == lanes[:, units].contiguous().flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize(("states", "window", "drafts"), CASES)
def test_random_service_with_prefixes_put_in_and_taken_out(states: bool, window: int | None, drafts: bool) -> None:
    """Over a model that compares what it reads, in little memory: every request gets its answer, nothing leaks, and
    nobody who runs loses a page."""
    put = 0
    for seed in range(4):
        rng = random.Random(100 + seed)
        source, engine = (
            engine_of(rng, rng.randint(9, 40), states=states, window=window, drafts=drafts) for _ in range(2)
        )
        held: list[Prefix] = []
        want: dict[int, list[int]] = {}
        found: dict[int, list[int]] = {}
        for _ in range(60):
            prompt = texts(rng)[: CONTEXT - 42]
            match rng.randrange(4):
                case 0:
                    source.add(prompt, ONE.resolve())
                    while not source.is_idle:
                        source.step()
                    if (one := read_out(source.runner.cache.ledger, source.runner.cache.pools, prompt)) is not None:
                        assert one.extent.is_sound(source.runner.cache.pools.layout)
                        held.append(one)
                    source.runner.cache.check()
                case 1 if held:
                    running = {rid: [list(t.owned) for t in h.tables]
                               for rid, h in engine.runner.cache.ledger.holdings.items()}  # fmt: skip
                    try:
                        leave(engine, rng.choice(held), rng.choice(("", "", "other")))
                        put += 1
                    except FitError:
                        pass
                    ledger = engine.runner.cache.ledger
                    assert running == {rid: [list(t.owned) for t in h.tables] for rid, h in ledger.holdings.items()}
                case _:
                    start = [*rng.choice(held).tokens, *prompt][: CONTEXT - 42] if held else prompt
                    request = engine.add(start, replace(ONE, max_tokens=rng.choice((1, 9, 40))).resolve())
                    want[request.rid], found[request.rid] = continuation(start, request.job.limit), []
            for _ in range(rng.randrange(4)):
                for event in engine.step():
                    assert event.error is None, event.error
                    found[event.rid] += event.token_ids
                engine.runner.cache.check()
        while not engine.is_idle:
            for event in engine.step():
                found[event.rid] += event.token_ids
        assert found == want
        engine.runner.cache.check()
    assert put


def test_nothing_is_taken_from_requests_that_run(hybrid: LM) -> None:
    layout = make(hybrid).runner.cache.pools.layout
    memory = 24 * sum(layout.page_bytes.values()) + 8 * layout.slot_bytes
    prefix = take(make(hybrid), text(20, 240))
    engine = make(hybrid, memory_bytes=memory, prefix_bytes=memory, context=300)
    prompt = text(21, 200)
    want = run(make(hybrid, prefix_bytes=0), [prompt])[0]
    request = engine.add(prompt, GREEDY.resolve())
    engine.step()
    with pytest.raises(FitError, match="does not fit"):
        leave(engine, prefix)
    assert tuple(finish(engine)[request.rid]) == want[0]
    leave(engine, prefix)  # what the request left may go


def test_a_prefix_is_for_its_space_alone(hybrid: LM) -> None:
    prefix, engine = take(make(hybrid), text(22, 100)), make(hybrid)
    leave(engine, prefix, "a")
    found = {}
    for space in ("a", "b"):
        request = engine.add([*prefix.tokens, 1], GREEDY.resolve(), space=space)
        finish(engine)
        found[space] = request.job.cached
    assert found == {"a": 100, "b": 0}


def test_putting_in_again_adds_nothing(hybrid: LM) -> None:
    prefix, engine = take(make(hybrid), text(23, 100)), make(hybrid)
    leave(engine, prefix)
    ledger = engine.runner.cache.ledger
    before = [pool.num_idle for pool in ledger.blocks], ledger.slots.used
    leave(engine, prefix)
    assert before == ([pool.num_idle for pool in ledger.blocks], ledger.slots.used)
    assert read_out(ledger, engine.runner.cache.pools, text(24, 50)) is None


BAD: list[dict[str, Any]] = [
    {"num_tokens": 0}, {"firsts": ()}, {"firsts": (16,)}, {"firsts": (-16,)}, {"ends": ()}, {"ends": (64,)},
    {"ends": (0, 100)}, {"ends": (50, 100)}, {"ends": (112, 100)}, {"ends": (32, 64, 100)},
]  # fmt: skip


@pytest.mark.parametrize("change", BAD, ids=str)
def test_extents_that_cannot_be(hybrid: LM, change: dict[str, Any]) -> None:
    layout, sound = make(hybrid).runner.cache.pools.layout, Extent(100, (0,), (64, 100))
    assert sound.is_sound(layout) and not replace(sound, **change).is_sound(layout)
