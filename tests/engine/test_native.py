"""The engine on native kernels: one answer, whatever the drafts, the batch, the memory and the threads."""

import runpy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from native import LEVELS, team
from test_engine import CONTROLS, NUM_TOKENS, PROMPTS, Moody, options, run_all
from torch import Tensor
from toy import WIRINGS, Nodes, finish, lively_model, nodes, plain_decode, tiny, toy_config, toy_lm
from toy_channels import Tenants

from stretto.cache.placement import Placement
from stretto.convert.load import tile_model
from stretto.core.card import CHANNELS, MIXERS, Can
from stretto.core.errors import RunError
from stretto.core.mixer import Mixer, MixerConfig
from stretto.core.plan import StepPlan
from stretto.core.sampling import Sampling
from stretto.core.seqs import Seqs
from stretto.core.state import LayerCache, PageRef, StateSpec
from stretto.engine.engine import Engine
from stretto.engine.scheduler import MAX_AHEAD, Policies
from stretto.models.lm import LM, Layer
from stretto.runner.runner import Sizes

GREEDY = Sampling(temperature=0, max_tokens=NUM_TOKENS)


def tiled(lm: LM) -> LM:
    """A copy of a toy in fp32 whose matrices lie in native tiles."""
    copy = lm.config.build()
    copy.load_state_dict(lm.state_dict())
    return tile_model(copy.cast(torch.float32).eval().requires_grad_(False), team())


MODELS: dict[str, dict[str, Any]] = {
    **{card.name: {"mixers": [card.name] * 2} for card in MIXERS.cards(Can.CAUSAL)},
    **{
        f"{card.name} {variant}": {"mixers": [card.name] * 2, "changes": {card.name: changes}}
        for card in MIXERS.cards(Can.CAUSAL)
        for variant, changes in card.variants.items()
    },
    **{f"{card.name} channels": {"mixers": ["attention"] * 3, "channel": card.name} for card in CHANNELS.cards()},
    **{name: {"config": config} for name, config in WIRINGS.items()},
    "hybrid": {"mixers": ["gated_delta", "attention", "mamba2"]},
    "mamba": {"mixers": ["mamba", "attention", "mamba"]},
    "hybrid with other options": {
        "mixers": ["mamba2", "gated_delta", "attention"],
        "changes": {
            "mamba2": {"norm": False, "time_step_limit": (0.05, 1.0)},
            "gated_delta": {"allow_neg_eigval": True, "tiled": True},
        },
    },
}


@pytest.fixture(scope="module", params=MODELS)
def oracle(request: pytest.FixtureRequest) -> LM:
    made = MODELS[request.param]
    return lively_model(made["config"]) if "config" in made else toy_lm(**made)


@pytest.fixture(scope="module")
def lm(oracle: LM) -> LM:
    return tiled(oracle)


@pytest.fixture(scope="module")
def greedy(oracle: LM) -> list[list[int]]:
    return [plain_decode(oracle, prompt, NUM_TOKENS) for prompt in PROMPTS]


def engine(lm: LM, *, level: str = LEVELS[0], threads: int = 2, **sizes: object) -> Engine:
    names = ("max_seqs", "max_rows", "memory_bytes", "kv", "prefix_bytes")
    config = Sizes(context=128, **{n: sizes.pop(n) for n in names if n in sizes})  # type: ignore[arg-type]
    return Engine(lm, config, threads=team(level, threads), **sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CONTROLS)
@pytest.mark.parametrize("sizes", [{}, {"max_seqs": 2, "max_rows": 7}])
def test_greedy_equals_plain_decoding(lm: LM, greedy: list[list[int]], name: str, sizes: dict[str, int]) -> None:
    known = {tuple(p): g for p, g in zip(PROMPTS, greedy, strict=True)}
    assert run_all(engine(lm, **sizes, **options(name, known, 5, 0, 9, 1)), GREEDY) == greedy


@pytest.mark.parametrize("name", ["none", "tree oracle"])
def test_what_pages_held_before_does_not_matter(lm: LM, greedy: list[list[int]], name: str) -> None:
    """Native engines do not clear pages: NaN there, of another request or of nobody, is never read."""
    known = {tuple(p): g for p, g in zip(PROMPTS, greedy, strict=True)}
    poisoned = engine(lm, max_rows=7, **options(name, known, 5, 0, 9, 1))
    for layer in poisoned.runner.cache.pools.refs(Placement()):
        for ref in layer.values():
            if isinstance(ref, PageRef):
                ref.pages[1:] = torch.nan  # page 0 is nobody's
    assert run_all(poisoned, GREEDY) == greedy


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("threads", [1, 3])
def test_levels_and_threads_give_the_same_answer(lm: LM, greedy: list[list[int]], level: str, threads: int) -> None:
    assert run_all(engine(lm, level=level, threads=threads), GREEDY) == greedy


def test_random_rounds_with_preemption(oracle: LM, lm: LM) -> None:
    length = 60
    want = {tuple(p): plain_decode(oracle, p, length) for p in PROMPTS}
    states = [(s.kind, s.nbytes(torch.float32)) for specs in lm.state_specs for s in specs]
    per_token, per_seq = (sum(size for kind, size in states if kind == wanted) for wanted in ("paged", "slot"))
    # one sequence and a few pages more: requests push each other out
    memory = 14 * 16 * per_token + 5 * per_seq
    tight = engine(lm, memory_bytes=memory, max_seqs=4, max_rows=40, drafter=Moody(want, 3), policies=nodes(8, 0, 5))
    assert run_all(tight, Sampling(temperature=0, max_tokens=length)) == list(want.values())


def test_the_same_seed_gives_the_same_text(oracle: LM, lm: LM) -> None:
    sampling = Sampling(temperature=0.8, seed=3, max_tokens=NUM_TOKENS)
    want = [plain_decode(oracle, p, NUM_TOKENS, sampling) for p in PROMPTS]
    known = {tuple(p): g for p, g in zip(PROMPTS, want, strict=True)}
    for name in ("none", "saboteur", "tree oracle"):
        assert run_all(engine(lm, **options(name, known, 6)), sampling) == want


def test_two_engines_share_threads(lm: LM, greedy: list[list[int]]) -> None:
    first, second = engine(lm), engine(lm, max_seqs=2)
    for prompt in PROMPTS:
        first.add(prompt, GREEDY.resolve())
        second.add(prompt, GREEDY.resolve())
    found: list[dict[int, list[int]]] = [{}, {}]
    while not (first.is_idle and second.is_idle):
        for one, outputs in zip((first, second), found, strict=True):
            for event in one.step():
                outputs.setdefault(event.rid, []).extend(event.token_ids)
    for outputs in found:
        assert [outputs[rid] for rid in sorted(outputs)] == greedy


class Centred(Mixer):
    """Another mixer whose rows lose their mean: a sum over a row has no native kernel."""

    can = Can.CAUSAL | Can.PACKED | Can.SNAPSHOT | Can.CHAIN | Can.TREE

    def __init__(self, inner: Mixer) -> None:
        super().__init__()
        self.d_model, self.inner = inner.d_model, inner

    @property
    def state_specs(self) -> tuple[StateSpec, ...]:
        return self.inner.state_specs

    def forward(self, x_TD: Tensor, seqs: Seqs, cache: LayerCache | None = None) -> Tensor:
        y_TD = self.inner(x_TD, seqs, cache)
        return y_TD - y_TD.sum(-1, keepdim=True) / self.d_model  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True, slots=True)
class CentredConfig:
    inner: MixerConfig

    def build(self) -> Mixer:
        return Centred(self.inner.build())


@pytest.mark.parametrize("sizes", [{}, {"max_seqs": 2, "max_rows": 7}], ids=str)
@pytest.mark.parametrize("drafter", CONTROLS)
def test_a_mixer_without_native_kernels_is_one_operation_of_the_host(sizes: dict[str, int], drafter: str) -> None:
    """Whatever it wraps, with drafts, in a batch: tokens are those of plain decoding, and other layers stay native."""
    torch.manual_seed(3)
    plain = toy_lm(["attention", "gated_delta", "mamba2", "long_conv", "mamba"], seed=3)
    layers = tuple(replace(layer, mixer=CentredConfig(inner=layer.mixer)) for layer in plain.config.layers[:-1])
    oracle = replace(plain.config, layers=(*layers, plain.config.layers[-1])).build()
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    oracle.cast(torch.float64).eval().requires_grad_(False)
    want = [plain_decode(oracle, prompt, NUM_TOKENS) for prompt in PROMPTS]
    known = {tuple(p): g for p, g in zip(PROMPTS, want, strict=True)}
    hosted = engine(tiled(oracle), **sizes, **options(drafter, known, 5, 0, 9, 1))
    assert hosted.runner.recording is not None
    assert list(hosted.runner.recording.host_operations) == [f"blocks.{i}.mixer" for i in range(4)]
    assert all("sum" in why for why in hosted.runner.recording.host_operations.values())
    assert run_all(hosted, GREEDY) == want


def test_what_asks_for_tags_is_computed_by_the_host() -> None:
    """They change from step to step. A channel asks in two layers, of which the last one has the wanted rows alone."""
    layers = [Layer(mixer=tiny(MIXERS, "attention"), channel=Tenants())] * 2
    oracle = lively_model(toy_config(layers))
    one = engine(tiled(oracle))
    assert one.runner.recording is not None
    assert list(one.runner.recording.host_operations) == ["blocks.0.channel", "blocks.1.channel"]
    assert all("reads the adapter of rows" in why for why in one.runner.recording.host_operations.values())
    assert run_all(one, GREEDY) == [plain_decode(oracle, prompt, NUM_TOKENS) for prompt in PROMPTS]
    tokens, wanted, tags = [*PROMPTS[0], *PROMPTS[3]], [2, 7, 13], {"adapter": [1] * 8 + [2] * 6}
    plan = StepPlan(tokens, Seqs.of([8, 6], tags=tags), wanted)
    for rid, rows in ((-1, 8), (-2, 6)):
        one.runner.cache.admit(rid)
        assert one.runner.cache.reserve(rid, rows)
    scores = one.runner.recording(replace(plan, caches=one.runner.cache.pack([-1, -2], plan.seqs))).scores
    torch.testing.assert_close(scores.logits.double(), oracle(plan), rtol=0, atol=2e-5)


@pytest.mark.parametrize("drafter", ["none", "ngram", "tree oracle"])
def test_the_mixer_of_the_example_runs_natively(drafter: str) -> None:
    """Its decays are made in `forward`, and depend on nothing that a step changes."""
    path = Path(__file__).parents[2] / "examples" / "add_a_mixer.py"
    example = runpy.run_path(str(path))
    torch.manual_seed(1)
    plain = toy_lm(["attention", "attention"], seed=5)
    mixer = example["Retention"].Config(d_model=16, num_heads=4)
    layers = (replace(plain.config.layers[0], mixer=mixer), plain.config.layers[1])
    oracle = replace(plain.config, layers=layers).build()
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    oracle.cast(torch.float64).eval().requires_grad_(False)
    want = [plain_decode(oracle, prompt, NUM_TOKENS) for prompt in PROMPTS]
    known = {tuple(p): g for p, g in zip(PROMPTS, want, strict=True)}
    one = engine(tiled(oracle), **options(drafter, known, 5, 0, 9, 1))
    assert one.runner.recording is not None and one.runner.recording.host_operations == {}
    assert run_all(one, GREEDY) == want


def test_nothing_in_the_registries_needs_the_host(lm: LM) -> None:
    one = engine(lm)
    assert one.runner.recording is not None and one.runner.recording.host_operations == {}


@pytest.mark.parametrize("options", [{"norm_before_gate": True}, {"num_groups": 4, "conv_bias": False}], ids=str)
def test_recurrent_layers_alone(options: dict[str, object]) -> None:
    oracle = toy_lm(["mamba2"] * 2, seed=2, changes={"mamba2": options})  # no layer has pages
    want = [plain_decode(oracle, prompt, 12) for prompt in PROMPTS]
    short = Sampling(temperature=0, max_tokens=12)
    assert run_all(engine(tiled(oracle)), short) == want


# -- several steps without Python between them -------------------------------------------------------------------------

PATIENT = 1e9  # seconds: as many steps as the engine can


DRAWN, CUT, SMALL = {"temperature": 0.9}, {"temperature": 0.9, "top_k": 5, "top_p": 0.8}, {"max_seqs": 2, "max_rows": 7}


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({}, {}),
        (DRAWN, SMALL),
        (CUT, SMALL),
        *(pytest.param(*pair, marks=pytest.mark.full) for pair in (({}, SMALL), (DRAWN, {}), (CUT, {}))),
    ],
    ids=str,
)
def test_steps_in_a_row_give_what_single_steps_give(
    oracle: LM, lm: LM, changes: dict[str, float], sizes: dict[str, int]
) -> None:
    sampling = Sampling(**{"temperature": 0, "seed": 3, "max_tokens": NUM_TOKENS, **changes})  # type: ignore[arg-type]
    want = [plain_decode(oracle, prompt, NUM_TOKENS, sampling) for prompt in PROMPTS]
    assert run_all(engine(lm, **sizes), sampling, patience=PATIENT) == want


def test_steps_in_a_row_are_reported_together(lm: LM, greedy: list[list[int]]) -> None:
    one = engine(lm)
    request = one.add(PROMPTS[0], Sampling(temperature=0, max_tokens=NUM_TOKENS).resolve())
    events = []
    while not one.is_idle:
        events += one.step(PATIENT)
    # the prompt and a plain step, which says how long one takes; then all that the request wants
    rest = NUM_TOKENS - 2
    sizes = [1, 1, *[MAX_AHEAD] * (rest // MAX_AHEAD), *([rest % MAX_AHEAD] if rest % MAX_AHEAD else [])]
    assert [len(event.token_ids) for event in events] == sizes
    assert [t for event in events for t in event.token_ids] == greedy[0]
    assert request.timeline.steps == NUM_TOKENS


def test_an_engine_without_requests_has_nothing_to_do(lm: LM) -> None:
    one = engine(lm)
    assert one.step(PATIENT) == []
    one.add(PROMPTS[0], GREEDY.resolve())
    while not one.is_idle:
        one.step(PATIENT)
    assert one.step(PATIENT) == []


def test_without_patience_every_step_is_heard_of(lm: LM) -> None:
    one = engine(lm, clock=lambda: 0.0)  # steps seem to take no time
    one.add(PROMPTS[0], GREEDY.resolve())
    while not one.is_idle:
        assert [len(event.token_ids) for event in one.step()] == [1]


@pytest.mark.parametrize("at", [2, 3, 5, NUM_TOKENS - 1])
def test_a_stop_token_ends_steps_in_a_row(lm: LM, greedy: list[list[int]], at: int) -> None:
    """The others go on, and nothing is computed for the one that has ended."""
    one = engine(lm)
    stop = greedy[0][at]
    requests = [one.add(PROMPTS[0], Sampling(temperature=0, max_tokens=NUM_TOKENS, stop_token_ids=[stop]).resolve())]
    requests += [one.add(prompt, GREEDY.resolve()) for prompt in PROMPTS[1:]]
    outputs = finish(one, PATIENT)
    assert outputs[requests[0].rid] == greedy[0][: greedy[0].index(stop) + 1]
    assert [outputs[r.rid] for r in requests[1:]] == greedy[1:]


def test_who_needs_a_look_between_steps_gets_it(lm: LM, greedy: list[list[int]]) -> None:
    """Penalties, log-probabilities, tokens that are banned for a while: one step at a time."""
    for sampling in (
        Sampling(temperature=0, max_tokens=6, repetition_penalty=1.3),
        Sampling(temperature=0, max_tokens=6, logprobs=2),
        Sampling(temperature=0, max_tokens=6, min_tokens=6, stop_token_ids=[0]),
    ):
        one = engine(lm)
        one.add(PROMPTS[0], sampling.resolve())
        while not one.is_idle:
            assert all(len(event.token_ids) == 1 for event in one.step(PATIENT))


def test_steps_in_a_row_with_little_memory(oracle: LM, lm: LM) -> None:
    length = 60
    want = [plain_decode(oracle, prompt, length) for prompt in PROMPTS]
    states = [(s.kind, s.nbytes(torch.float32)) for specs in lm.state_specs for s in specs]
    per_token, per_seq = (sum(size for kind, size in states if kind == wanted) for wanted in ("paged", "slot"))
    tight = engine(lm, memory_bytes=14 * 16 * per_token + 5 * per_seq, max_seqs=4, max_rows=40)
    assert run_all(tight, Sampling(temperature=0, max_tokens=length), patience=PATIENT) == want


def test_drafting_that_pauses_leaves_room_for_steps_in_a_row(lm: LM, greedy: list[list[int]]) -> None:
    """A policy that says how long it will not ask; the drafter hears of every token."""

    class Pausing(Nodes):
        def plain_steps(self, num_seqs: int) -> int:
            return 3 if self.schedule[self.step % len(self.schedule)] == 0 else 1

    known = {tuple(p): g for p, g in zip(PROMPTS, greedy, strict=True)}
    one = engine(lm, **{**options("oracle", known, 5), "policies": Policies(draft=Pausing(0, 4))})
    assert run_all(one, GREEDY, patience=PATIENT) == greedy
    assert one.drafting.stats.accepted == one.drafting.stats.drafted > 0


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=0.8, top_p=0.9, max_tokens=NUM_TOKENS)], ids=str)
def test_logits_that_are_not_finite_are_refused_in_the_middle(lm: LM, sampling: Sampling) -> None:
    one = engine(lm)
    one.add(PROMPTS[0], sampling.resolve())
    one.step()
    one.step()
    assert one.runner.recording is not None
    for layer in one.runner.cache.pools.refs(Placement()):
        for ref in layer.values():
            (ref.pages if isinstance(ref, PageRef) else ref.states)[1:] = torch.nan
    (event,) = one.step(PATIENT)
    assert event.finish_reason == "error" and event.token_ids == ()
    assert isinstance(event.error, RunError) and "a logit is NaN" in str(event.error)
