"""Adapters in an engine: a batch of several gives each request what it has alone, in every mode of decoding."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from checkpoints import IDS, Checkpoints, tiny
from native import team
from test_engine import PROMPTS, Moody, options
from test_native import tiled
from toy import finish, nodes, plain_decode, toy_engine, toy_lm

from stretto.cache.evict.lru import LRU
from stretto.convert.convert import convert
from stretto.convert.load import load_model
from stretto.convert.model_file import open_model
from stretto.core.errors import UserError
from stretto.core.sampling import Sampling
from stretto.engine.engine import Engine
from stretto.engine.scheduler import Policies
from stretto.kernels.lora import Factors
from stretto.kernels.native.library import Team
from stretto.models.lm import LM
from stretto.models.lora import make_room, matrices
from stretto.runner.runner import Sizes

NUM_TOKENS, RANK = 16, 3
GREEDY = Sampling(temperature=0, max_tokens=NUM_TOKENS).resolve()
NAMES = (None, "a", "b")
MIXERS = {"attention": ("attention", "attention"), "hybrid": ("gated_delta", "attention", "mamba2")}
KEYS = [(name, i) for i in range(2) for name in NAMES]
Adapter = Mapping[str, Factors]


def prompt_of(name: str | None, i: int) -> list[int]:
    """Of its own for every adapter, so that drafters that know the answers know whose it is."""
    return [*PROMPTS[i], NAMES.index(name) + 1]


def adapter(lm: LM, seed: int) -> dict[str, Factors]:
    """Terms large enough that texts change; of two segments of three."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for path, linear in matrices(lm):
        for number, (segment, width) in enumerate(linear.segments.items()):
            if (number + seed) % 3:
                a = torch.randn(RANK, linear.d_in, generator=random)
                found[f"{path}.{segment}"] = Factors(a, torch.randn(RANK, width, generator=random), 0.3)
    return found


def merged(lm: LM, changes: Adapter) -> LM:
    """A copy of a model in fp64 whose weights hold the adapter."""
    copy = lm.config.build().to(torch.float64)
    copy.load_state_dict(lm.state_dict())
    for path, linear in matrices(copy):
        for segment in linear.segments:
            if (own := changes.get(f"{path}.{segment}")) is not None:
                with torch.no_grad():
                    linear.weight[linear.rows(segment)] += own.scale * own.b.double().T @ own.a.double()
    return copy.eval().requires_grad_(False)


class Case:
    """A toy in fp64, with two adapters; what their texts are by merging them into the weights."""

    def __init__(self, mixers: tuple[str, ...]) -> None:
        self.lm = toy_lm(mixers)
        self.adapters = {"a": adapter(self.lm, 1), "b": adapter(self.lm, 2)}
        models = {None: self.lm, **{name: merged(self.lm, own) for name, own in self.adapters.items()}}
        self.want = {key: plain_decode(models[key[0]], prompt_of(*key), NUM_TOKENS) for key in KEYS}
        bare = [plain_decode(self.lm, prompt_of(*key), NUM_TOKENS) for key in KEYS if key[0]]
        assert not set(map(tuple, bare)) & set(map(tuple, self.want.values())), "adapters change the text"
        self.known = {tuple(prompt_of(*key)): text for key, text in self.want.items()}
        self.models = models

    def engine(self, threads: Team | None, **how: object) -> Engine:
        """With both adapters loaded, and room for one more."""
        if threads is None:
            made = toy_engine(self.lm, loras=make_room(self.lm, 3, RANK, None), **how)
        else:
            lm = tiled(self.lm)
            names = ("max_seqs", "max_rows", "memory_bytes", "prefix_bytes")
            sizes = Sizes(context=128, **{n: how.pop(n) for n in names if n in how})  # type: ignore[arg-type]
            made = Engine(lm, sizes, threads=threads, loras=make_room(lm, 3, RANK, threads.library), **how)  # type: ignore[arg-type]
        for name, own in self.adapters.items():
            made.loras.load(name, own)
        return made


@pytest.fixture(scope="module", params=MIXERS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(MIXERS[request.param])


@pytest.fixture(params=["torch", "native"])
def threads(request: pytest.FixtureRequest) -> Team | None:
    return None if request.param == "torch" else team()


def run_mixed(engine: Engine) -> dict[tuple[str | None, int], list[int]]:
    """Prompts with every adapter and without one, all at once."""
    requests = {key: engine.add(prompt_of(*key), GREEDY, lora=key[0]) for key in KEYS}
    outputs = finish(engine)
    engine.runner.cache.check()
    return {key: outputs[one.rid] for key, one in requests.items()}


@pytest.mark.parametrize("name", ["none", "tree oracle", "saboteur"])
@pytest.mark.parametrize("sizes", [{}, {"max_seqs": 4, "max_rows": 9}])
def test_a_mixed_batch_is_each_with_merged_weights(
    case: Case, threads: Team | None, name: str, sizes: dict[str, int]
) -> None:
    how = options(name, case.known, 5, 0, 3)
    assert run_mixed(case.engine(threads, **sizes, **how)) == case.want


def test_steps_that_run_as_one_use_the_adapters(case: Case) -> None:
    engine = case.engine(team())
    requests = {name: engine.add(prompt_of(name, 0), GREEDY, lora=name) for name in NAMES}
    outputs: dict[int, list[int]] = {}
    steps = 0
    while not engine.is_idle:
        steps += 1
        for event in engine.step(60.0):
            outputs.setdefault(event.rid, []).extend(event.token_ids)
    assert {name: outputs[one.rid] for name, one in requests.items()} == {n: case.want[n, 0] for n in NAMES}
    assert steps < NUM_TOKENS, "several plain steps ran as one"


def test_requests_without_an_adapter_have_the_bits_of_an_engine_without(case: Case, threads: Team | None) -> None:
    sampling = Sampling(temperature=0, max_tokens=6, logprobs=3).resolve()

    def logprobs(engine: Engine, lora: str | None) -> list[float]:
        mine = engine.add(PROMPTS[1], sampling)
        others = [engine.add(PROMPTS[0], sampling, lora=lora)] if lora else []
        found = []
        while not engine.is_idle:
            for event in engine.step():
                found += [one.logprob for one in event.logprobs if event.rid == mine.rid]
        assert len(found) == 6 and len(others) == (lora is not None)
        return found

    bare_lm = toy_lm(MIXERS["attention"] if len(case.lm.blocks) == 2 else MIXERS["hybrid"])
    bare = toy_engine(bare_lm) if threads is None else Engine(tiled(bare_lm), Sizes(context=128), threads=threads)
    assert logprobs(bare, None) == logprobs(case.engine(threads), "a")


def test_preempted_requests_keep_their_adapters(case: Case, threads: Team | None) -> None:
    states = [(s.kind, s.nbytes(torch.float32)) for specs in case.lm.state_specs for s in specs]
    per_token, per_seq = (sum(size for kind, size in states if kind == wanted) for wanted in ("paged", "slot"))
    known = {tuple(prompt_of(*key)): plain_decode(case.models[key[0]], prompt_of(*key), 60) for key in KEYS}
    how = {"max_seqs": 4, "max_rows": 40, "drafter": Moody(known, 3), "policies": nodes(8, 0, 5)}
    size = {"pages": 13, "context": 128} if threads is None else {"memory_bytes": 14 * 16 * per_token + 5 * per_seq}
    engine = case.engine(threads, **size, **how)
    sampling = Sampling(temperature=0, max_tokens=60).resolve()
    requests = {key: engine.add(prompt_of(*key), sampling, lora=key[0]) for key in KEYS}
    outputs = finish(engine)
    engine.runner.cache.check()
    assert {tuple(prompt_of(*key)): outputs[one.rid] for key, one in requests.items()} == known
    assert any(one.job.num_preemptions for one in requests.values() if one.lora is not None)


def with_cache(case: Case, threads: Team | None) -> Engine:
    policies = Policies(evict=LRU())
    if threads is not None:
        return case.engine(threads, prefix_bytes=1 << 20, policies=policies)
    lm = case.lm
    made = Engine(lm, Sizes(context=256, prefix_bytes=1 << 20), policies=policies, loras=make_room(lm, 3, RANK, None))
    for name, own in case.adapters.items():
        made.loras.load(name, own)
    return made


def test_a_warm_prefix_is_used_by_its_own_adapter_alone(case: Case, threads: Team | None) -> None:
    """Each text twice, then the same name with other contents: what the old one left is not read."""
    engine = with_cache(case, threads)
    prompt = [(7 * i + 3) % 20 for i in range(100)]
    sampling = Sampling(temperature=0, max_tokens=5).resolve()

    def ask(lora: str | None) -> tuple[int, list[int]]:
        request = engine.add(prompt, sampling, lora=lora)
        output = finish(engine)[request.rid]
        return request.job.cached or 0, output

    cold = {name: ask(name) for name in NAMES}
    assert [cached for cached, _ in cold.values()] == [0, 0, 0]
    warm = {name: ask(name) for name in NAMES}
    assert all(cached >= 64 for cached, _ in warm.values())
    assert [text for _, text in warm.values()] == [text for _, text in cold.values()]
    engine.loras.unload("a")
    engine.loras.load("a", case.adapters["b"])
    assert ask("a") == (0, cold["b"][1])
    engine.runner.cache.check()


def test_an_adapter_that_is_unloaded_serves_those_that_run_with_it(case: Case, threads: Team | None) -> None:
    engine = case.engine(threads)
    mine = engine.add(prompt_of("a", 0), GREEDY, lora="a")
    outputs: dict[int, list[int]] = {mine.rid: []}
    for _ in range(4):
        for event in engine.step():
            outputs[event.rid].extend(event.token_ids)
    assert engine.loras.unload("a") == 1
    with pytest.raises(UserError, match="there is no adapter 'a'"):
        engine.add(PROMPTS[0], GREEDY, lora="a")
    engine.loras.load("a", case.adapters["b"])  # its name is free, its place is not
    assert engine.loras.find("a").number == 3
    with pytest.raises(UserError, match="no room"):
        engine.loras.load("c", case.adapters["b"])
    other = engine.add(prompt_of("b", 0), GREEDY, lora="a")
    outputs[other.rid] = []
    while not engine.is_idle:
        for event in engine.step():
            outputs[event.rid].extend(event.token_ids)
    assert outputs[mine.rid] == case.want["a", 0] and outputs[other.rid] == case.want["b", 0]
    engine.loras.load("c", case.adapters["a"])  # the last request gave the place back
    assert engine.loras.find("c").number == 1
    for name in engine.loras.names:
        assert engine.loras.unload(name) == 0
    assert engine.loras.table is not None and engine.loras.table.nbytes == 0


def test_an_engine_without_room_says_so() -> None:
    engine = toy_engine(toy_lm(("attention",)))
    with pytest.raises(UserError, match="no room"):
        engine.loras.load("a", {})
    with pytest.raises(UserError, match="there is no adapter"):
        engine.add([1, 2], GREEDY, lora="a")
    assert not engine._requests


def logprobs(engine: Engine, *loras: str | None) -> list[list[float]]:
    """Of the tokens of one prompt, once for each of `loras`, all in one batch."""
    sampling = Sampling(temperature=0, max_tokens=6, logprobs=0).resolve()
    requests = [engine.add([*IDS, i], sampling, lora=lora) for i, lora in enumerate(loras)]
    found: dict[int, list[float]] = {request.rid: [] for request in requests}
    while not engine.is_idle:
        for event in engine.step():
            assert event.error is None
            found[event.rid] += [one.logprob for one in event.logprobs]
    return [found[request.rid] for request in requests]


def test_quantized_weights_keep_their_bits_beside_adapters(tmp_path: Path) -> None:
    """Without room, gate and up are one operation there; with it, they are three."""
    source, _ = Checkpoints(tmp_path)("wide", tiny("llama") | {"intermediate_size": 64})
    convert(source, tmp_path / "model.gguf", "gguf", "q8_0")

    def engine(room: int) -> Engine:
        lm = load_model(open_model(tmp_path / "model.gguf"), team=team())
        table = make_room(lm, room, RANK, team().library) if room else None
        made = Engine(lm, Sizes(context=64), threads=team(), loras=table)
        names = made.runner.recording.operations.names if made.runner.recording is not None else []
        assert ("gated" in names, "lora_up" in names) == (not room, bool(room))
        for number, name in enumerate(("a", "b")[:room]):
            made.loras.load(name, adapter(lm, number))
        return made

    alone = [logprobs(engine(2), *(None,) * i, lora)[i] for i, lora in enumerate((None, "a", "b"))]
    assert logprobs(engine(2), None, "a", "b") == alone
    assert logprobs(engine(0), None)[0] == alone[0] != alone[1]
