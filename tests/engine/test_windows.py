"""Sliding windows through the engine: pages for the window only, and the same bits as with every page kept."""

from dataclasses import replace

import pytest
import torch
from native import team
from test_engine import Moody
from test_native import tiled
from toy import finish, nodes, plain_decode, toy_lm

from stretto.cache.pools import layout_of
from stretto.cache.sizes import sequence_bytes
from stretto.core.page_format import Plain
from stretto.core.pages import PAGE_SIZE, PageGroup
from stretto.core.sampling import Sampling
from stretto.core.tree import MAX_TREE_ROWS
from stretto.engine.engine import Engine
from stretto.models.lm import LM
from stretto.runner.runner import Sizes

LENGTH, CONTEXT = 150, 256
PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [7], [(7 * i) % 23 for i in range(90)]]
WINDOWS = {"one": (20, 20), "beside all": (20, None, 5), "within a page": (1, 3)}
GREEDY = Sampling(temperature=0, max_tokens=LENGTH, logprobs=1)


def windowed(windows: tuple[int | None, ...]) -> LM:
    """A toy of attention layers, each with its window."""
    plain = toy_lm(["attention"] * len(windows), seed=4)
    layers = tuple(
        replace(layer, mixer=replace(layer.mixer, window=window))  # type: ignore[type-var]
        for layer, window in zip(plain.config.layers, windows, strict=True)
    )
    lm = replace(plain.config, layers=layers).build()
    lm.load_state_dict(plain.state_dict())
    return lm.cast(torch.float64).eval().requires_grad_(False)


@pytest.fixture(scope="module", params=WINDOWS)
def oracle(request: pytest.FixtureRequest) -> LM:
    return windowed(WINDOWS[request.param])


@pytest.fixture(scope="module")
def want(oracle: LM) -> dict[tuple[int, ...], list[int]]:
    return {tuple(p): plain_decode(oracle, p, LENGTH) for p in PROMPTS}


@pytest.fixture(scope="module", params=["torch", "native"])
def lm(request: pytest.FixtureRequest, oracle: LM) -> LM:
    return tiled(oracle) if request.param == "native" else oracle


def engine(lm: LM, **options: object) -> Engine:
    sizes = {key: options.pop(key) for key in ("max_seqs", "max_rows", "memory_bytes") if key in options}
    threads = team() if lm.dtype == torch.float32 else None
    return Engine(lm, Sizes(context=CONTEXT, **sizes), threads=threads, **options)  # type: ignore[arg-type]


def run(one: Engine) -> list[tuple[list[int], list[float]]]:
    """Tokens and log-probabilities of every prompt; the cache is checked after every step."""
    rids = [one.add(prompt, GREEDY.resolve()).rid for prompt in PROMPTS]
    found: dict[int, tuple[list[int], list[float]]] = {rid: ([], []) for rid in rids}
    while not one.is_idle:
        for event in one.step():
            assert event.error is None
            found[event.rid][0].extend(event.token_ids)
            found[event.rid][1].extend(x.logprob for x in event.logprobs)
        one.runner.cache.check()
    return [found[rid] for rid in rids]


@pytest.mark.parametrize("sizes", [{}, {"max_seqs": 2, "max_rows": 20}], ids=str)
@pytest.mark.parametrize("drafts", [False, True])
def test_the_same_bits_as_with_every_page_kept(
    lm: LM,
    want: dict[tuple[int, ...], list[int]],
    drafts: bool,
    sizes: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def options() -> dict[str, object]:
        return {"drafter": Moody(want, 3), "policies": nodes(8, 0, 5)} if drafts else {}

    freed = run(engine(lm, **sizes, **options()))
    assert [tokens for tokens, _ in freed] == list(want.values())
    monkeypatch.setattr(PageGroup, "first_page", lambda group, num_tokens: 0)
    monkeypatch.setattr(PageGroup, "most_pages", lambda group, num_tokens, max_rows: -(-num_tokens // PAGE_SIZE))
    assert run(engine(lm, **sizes, **options())) == freed


@pytest.mark.parametrize("room", [1.1, 1.7])
def test_requests_that_push_each_other_out(lm: LM, want: dict[tuple[int, ...], list[int]], room: float) -> None:
    one = sequence_bytes(layout_of(lm.state_specs, Plain(lm.dtype), lm.dtype), CONTEXT + MAX_TREE_ROWS, 40)
    tight = engine(
        lm,
        memory_bytes=int(room * one),
        max_seqs=3,
        max_rows=40,
        drafter=Moody(want, 3),
        policies=nodes(8, 0, 5),
    )
    assert [tokens for tokens, _ in run(tight)] == list(want.values())


def test_pages_follow_the_window(lm: LM, want: dict[tuple[int, ...], list[int]]) -> None:
    one = engine(lm, max_seqs=1, max_rows=16)
    one.add(PROMPTS[2], GREEDY.resolve())
    most = [0] * len(one.runner.cache.pools.groups)
    while not one.is_idle:
        one.step()
        for group, pool in enumerate(one.runner.cache.ledger.blocks):
            most[group] = max(most[group], pool.num_blocks - 1 - pool.num_free)
    for group, pages in zip(one.runner.cache.pools.groups, most, strict=True):
        whole = -(-(len(PROMPTS[2]) + LENGTH - 1) // PAGE_SIZE)
        assert pages == whole if group.window is None else pages <= -(-(group.window - 1) // PAGE_SIZE) + 1 < whole


def test_steps_in_a_row(lm: LM, want: dict[tuple[int, ...], list[int]]) -> None:
    """Run-ahead of native engines writes rows whose pages no step in between could ask for."""
    one = engine(lm)
    rids = [one.add(prompt, Sampling(temperature=0, max_tokens=LENGTH).resolve()).rid for prompt in PROMPTS]
    outputs = finish(one, 1e9)
    assert [outputs[rid] for rid in rids] == list(want.values())
