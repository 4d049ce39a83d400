"""The real model: SmolLM2-135M from its GGUF file against transformers on the dequantized weights.

smollm2_greedy.json holds ten prompts, raw and chat-formatted, with the oracle's 64 greedy ids and its top-2 gaps
(made by tests/golden/make_greedy.py). In fp32 every id must agree. In bf16 a divergence counts as numeric only where
the oracle's gap is below the measured noise of bf16, and such places are counted and printed.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drafters import Noise, Oracle, Saboteur, TreeOracle
from test_engine import drafter_named
from torch import Tensor
from toy import finish, nodes

from stretto import LLM, Sampling
from stretto.core.plan import StepPlan
from stretto.engine.engine import Engine
from stretto.models.lm import LM
from stretto.runner.runner import Sizes

GOLDEN = Path(__file__).parents[1] / "golden" / "smollm2_greedy.json"
CASES: list[dict[str, Any]] = json.loads(GOLDEN.read_text())
FEW = CASES[2:4]  # one prompt, raw and chat-formatted
SIZES = ("max_rows", "max_seqs", "memory_bytes", "coarse_prompts")

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def llm(smollm2_path: Path) -> LLM:
    return LLM(smollm2_path, draft="none", dtype="float32", context=512)


def test_prompts_are_tokenized_as_by_the_oracle(llm: LLM) -> None:
    for case in CASES:
        if case["chat"]:
            ids = llm.encode_chat([{"role": "user", "content": case["prompt"]}])
        else:
            ids = llm.encode(case["prompt"])
        assert ids == case["prompt_ids"]


def outputs(llm: LLM, cases: list[dict[str, Any]], num_tokens: int, **options: Any) -> list[list[int]]:
    """Greedy ids through an engine of its own over the model of `llm`; end-of-text tokens do not stop it."""
    sizes = {"context": 512, "kv": llm.engine.runner.sizes.kv}
    sizes |= {key: options.pop(key) for key in SIZES if key in options}
    engine = Engine(llm.engine.runner.model, Sizes(**sizes), threads=llm.backend_choice.threads, **options)
    sampling = Sampling(temperature=0, max_tokens=num_tokens, ignore_eos=True).resolve()
    requests = [engine.add(case["prompt_ids"], sampling) for case in cases]
    found = finish(engine)
    return [found[request.rid] for request in requests]


def variants(cases: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Everything that must not change a greedy answer."""
    known = {tuple(case["prompt_ids"]): case["output_ids"] for case in cases}
    return {
        "alone": {"max_seqs": 1},
        "together": {},
        "split prefill": {"max_rows": 7, "max_seqs": 3},
        "ngram": {"drafter": drafter_named("ngram", {}), "policies": nodes(8)},
        "oracle": {"drafter": Oracle(known), "policies": nodes(8, 0, 3)},
        "saboteur": {"drafter": Saboteur(known, 49152), "policies": nodes(8)},
        "trees": {"drafter": TreeOracle(known, 49152), "policies": nodes(12)},
    }


@pytest.mark.parametrize("name", variants(FEW))
def test_greedy_in_fp32_equals_transformers(llm: LLM, name: str) -> None:
    num_tokens = 24
    got = outputs(llm, FEW, num_tokens, **variants(FEW)[name])
    assert got == [case["output_ids"][:num_tokens] for case in FEW]


@pytest.mark.full
@pytest.mark.parametrize("name", variants(CASES))
def test_all_prompts_in_fp32_equal_transformers(llm: LLM, name: str) -> None:
    got = outputs(llm, CASES, 64, **variants(CASES)[name])
    assert got == [case["output_ids"] for case in CASES]


def divergences(got: list[list[int]], cases: list[dict[str, Any]]) -> list[float]:
    """The oracle's gap at the first place where each answer differs."""
    gaps = []
    for output, case in zip(got, cases, strict=True):
        differs = [i for i, (a, b) in enumerate(zip(output, case["output_ids"], strict=False)) if a != b]
        gaps += [case["gaps"][differs[0]]] if differs else []
    return gaps


def gap_noise(exact: Callable[[StepPlan], Tensor], rounded: Callable[[StepPlan], Tensor]) -> float:
    """How far the gap between fp32's two likeliest tokens moves, at most, over the texts of a few cases."""
    furthest = 0.0
    for case in FEW:
        plan = StepPlan.of([[*case["prompt_ids"], *case["output_ids"]]])
        want, got = exact(plan), rounded(plan)
        top = want.topk(2).indices
        gaps = [logits.gather(1, top).diff(dim=1) for logits in (want, got)]
        furthest = max(furthest, float((gaps[0] - gaps[1]).abs().max()))
    return furthest


def served_logits(lm: LM, plan: StepPlan) -> Tensor:
    """Logits of every row of a plan without caches, computed as a step does."""
    h_RD = lm.hidden(plan)
    return lm.logits(h_RD, num_step_rows=len(h_RD))


@pytest.mark.parametrize("cases", [pytest.param(FEW, id="few"), pytest.param(CASES, id="all", marks=pytest.mark.full)])
def test_bf16_differs_only_at_near_ties(smollm2_path: Path, llm: LLM, cases: list[dict[str, Any]]) -> None:
    exact, llm = llm, LLM(smollm2_path, draft="none", context=512, backend="torch")
    noise = gap_noise(exact.engine.runner.model, lambda plan: served_logits(llm.engine.runner.model, plan))
    num_tokens = 12 if cases is FEW else 64  # torch emulates bf16 where the CPU has none, and takes a second a token
    plain = outputs(llm, cases, num_tokens)
    modes = {
        "together": {},
        "alone": {"max_seqs": 1},
        "split prefill": {"max_rows": 7, "max_seqs": 3},
        "ngram": {"drafter": drafter_named("ngram", {}), "policies": nodes(8)},
        "noise": {"drafter": Noise(49152), "policies": nodes(8)},
    }
    for name, options in modes.items():
        got = plain if name == "together" else outputs(llm, cases, num_tokens, **options)
        gaps = divergences(got, cases)
        print(f"\n{name}: {len(gaps)} of {len(cases)} answers leave fp32, at gaps {sorted(gaps)}, noise {noise:.3f}")
        assert all(gap < noise for gap in gaps)


@pytest.fixture(scope="module")
def native(smollm2_path: Path) -> LLM:
    return LLM(smollm2_path, draft="none", context=512, backend="native")


def native_logits(engine: Engine, plan: StepPlan) -> Tensor:
    """Logits of every row of a plan without caches, through the engine's tape."""
    assert engine.runner.recording is not None
    engine.runner.cache.admit(-1)
    assert engine.runner.cache.reserve(-1, plan.seqs.num_rows)
    caches = engine.runner.cache.pack([-1], plan.seqs)
    scores = engine.runner.recording(replace(plan, caches=caches)).scores
    logits = scores.logits.clone()
    engine.runner.cache.release(-1)
    return logits


def own(cases: list[dict[str, Any]], outputs: list[list[int]]) -> list[dict[str, Any]]:
    """The cases with these outputs in place of the oracle's, for drafters that know the text."""
    return [{**case, "output_ids": ids + [0] * 64} for case, ids in zip(cases, outputs, strict=True)]


@pytest.mark.parametrize("cases", [pytest.param(FEW, id="few"), pytest.param(CASES, id="all", marks=pytest.mark.full)])
def test_native_answers_are_one_answer(llm: LLM, native: LLM, cases: list[dict[str, Any]]) -> None:
    """Bit for bit the same with any batch, split and draft, trees too; beside fp32 they differ at near ties only."""
    num_tokens = 24 if cases is FEW else 64
    noise = gap_noise(llm.engine.runner.model, lambda plan: native_logits(native.engine, plan))
    plain = outputs(native, cases, num_tokens)
    gaps = divergences(plain, cases)
    print(f"\nnative: {len(gaps)} of {len(cases)} answers leave fp32, at gaps {sorted(gaps)}, noise {noise:.3f}")
    assert all(gap < noise for gap in gaps)
    for name, options in variants(own(cases, plain)).items():
        assert outputs(native, cases, num_tokens, **options) == plain, name


def test_coarse_prompts_differ_at_near_ties_only_and_drafts_change_nothing(llm: LLM, native: LLM) -> None:
    """`--prefill int8`: the noise is that of 8-bit activations, and decoding is as exact as ever."""
    config = Sizes(context=512, kv=native.engine.runner.sizes.kv, coarse_prompts=True)
    engine = Engine(native.engine.runner.model, config, threads=native.backend_choice.threads)
    exact, noise = (
        gap_noise(llm.engine.runner.model, lambda p, e=e: native_logits(e, p)) for e in (native.engine, engine)
    )
    plain = outputs(native, FEW, 24, coarse_prompts=True)
    gaps = divergences(plain, FEW)
    print(
        f"\nint8 prompts: {len(gaps)} of {len(FEW)} answers leave fp32, at gaps {gaps}, noise {noise:.3f} ({exact:.3f})"
    )
    assert all(gap < noise for gap in gaps) and noise > exact
    options = variants(own(FEW, plain))
    for name in ("alone", "ngram", "saboteur", "trees"):
        assert outputs(native, FEW, 24, coarse_prompts=True, **options[name]) == plain, name


@pytest.mark.parametrize("backend", ["llm", "native"])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_same_seed_gives_the_same_text_with_and_without_drafts(
    request: pytest.FixtureRequest, backend: str, top_p: float
) -> None:
    llm, case = request.getfixturevalue(backend), FEW[1]
    sampling = Sampling(temperature=0.8, top_p=top_p, seed=7, max_tokens=24, ignore_eos=True).resolve()
    found = []
    for options in ({}, {"drafter": drafter_named("ngram", {}), "policies": nodes(8)}):
        config = Sizes(context=512, kv=llm.engine.runner.sizes.kv)
        engine = Engine(llm.engine.runner.model, config, threads=llm.backend_choice.threads, **options)
        engine.add(case["prompt_ids"], sampling)
        found.append(finish(engine))
    assert found[0] == found[1]
    greedy = case["output_ids"][:24]
    assert found[0][0] != greedy


def test_the_python_api(llm: LLM) -> None:
    """Strings and ids, one result per prompt, streams, chat, stop strings, logprobs."""
    case = FEW[0]
    sampling = Sampling(temperature=0, max_tokens=12)
    by_text, by_ids = llm.generate([case["prompt"], case["prompt_ids"]], sampling)
    assert by_text.token_ids == by_ids.token_ids == tuple(case["output_ids"][:12])
    assert by_text.text == llm.tokenizer.decode(by_text.token_ids) and by_text.finish_reason == "length"
    assert by_text.usage.total_tokens == len(case["prompt_ids"]) + 12
    chunks = list(llm.stream(case["prompt"], sampling))
    assert "".join(chunk.text for chunk in chunks) == by_text.text
    assert chunks[-1].result is not None and chunks[-1].result.token_ids == by_text.token_ids
    word = by_text.text.split()[3]
    cut = llm.generate(case["prompt"], Sampling(temperature=0, max_tokens=12, stop=word))[0]
    assert cut.text == by_text.text[: by_text.text.index(word)] and cut.finish_reason == "stop"
    answer = llm.chat([{"role": "user", "content": "What is the capital of France?"}], Sampling(temperature=0))
    assert answer.text == "The capital of France is Paris." and answer.finish_reason == "stop"
    assert llm.engine.is_idle


async def _gather(llm: LLM) -> list[str]:
    from stretto import AsyncLLM

    async with AsyncLLM(llm) as several:
        results = await several.generate(
            ["The capital of France is", "In 1969, humans first"], Sampling(temperature=0, max_tokens=8)
        )
        stream = several.stream("Once upon a time")
        await anext(stream)
        await stream.aclose()  # an abandoned stream is cancelled
        return [result.text for result in results]


def test_the_asynchronous_api_gives_the_same_texts(llm: LLM) -> None:
    import asyncio

    want = llm.generate(["The capital of France is", "In 1969, humans first"], Sampling(temperature=0, max_tokens=8))
    assert asyncio.run(_gather(llm)) == [result.text for result in want]
    assert llm.engine.is_idle
