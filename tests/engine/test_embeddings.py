"""Embeddings: pooled hidden states of the model over the whole text, however it is read, whoever shares it, to the bit
on native kernels; nobody beside them notices."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command import write_tiny
from starts import TEXTS, is_warm, start
from test_engine import options
from test_kept import of_toy, restarted
from test_native import tiled
from test_prefix_cache import make, text
from toy import finish, toy_engine, toy_lm

from stretto import UserError
from stretto.convert.convert import convert
from stretto.convert.model_file import open_model
from stretto.convert.pooling import pooling_of
from stretto.core.env import Env
from stretto.core.plan import StepPlan
from stretto.core.pooling import Kind, Pooling
from stretto.core.sampling import Sampling
from stretto.engine.engine import Engine
from stretto.engine.request import Request
from stretto.models.lm import LM
from stretto.runner.runner import Step

MIXERS = ["gated_delta", "attention", "mamba2"]
NOTHING, GREEDY = Sampling().resolve(), Sampling(temperature=0, max_tokens=9).resolve()
PROMPTS = [text(1, 90), text(2, 1), text(3, 2), text(4, 33), [*text(1, 80), *text(5, 20)]]
KINDS: list[Kind] = ["last", "mean", "cls"]


@pytest.fixture(scope="module")
def oracle() -> LM:
    return toy_lm(MIXERS)


def expected(oracle: LM, prompt: list[int], kind: Kind) -> list[float]:
    """Over the whole prompt at once, in double precision."""
    hidden = oracle.hidden(StepPlan.of([prompt]))
    row = {"last": hidden[-1], "cls": hidden[0], "mean": hidden.mean(0)}[kind]
    return (row / row.square().sum().sqrt()).tolist()  # type: ignore[no-any-return]


def embed(engine: Engine, kind: Kind, prompts: list[list[int]] = PROMPTS) -> list[Request]:
    requests = [engine.add(prompt, NOTHING, pooling=kind) for prompt in prompts]
    finish(engine)
    assert not any(request.output for request in requests)
    return requests


def vectors(requests: list[Request]) -> list[tuple[float, ...]]:
    assert all(request.embedding is not None for request in requests)
    return [request.embedding or () for request in requests]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [{}, {"max_seqs": 2, "max_rows": 7}, {"pages": 12, "max_rows": 40}])
def test_through_torch(oracle: LM, kind: Kind, sizes: dict[str, int]) -> None:
    for found, prompt in zip(vectors(embed(toy_engine(oracle, **sizes), kind)), PROMPTS, strict=True):
        assert found == pytest.approx(expected(oracle, prompt, kind), abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_natively_in_pieces_beside_others_and_from_the_cache_to_the_bit(oracle: LM, kind: Kind) -> None:
    lm = tiled(oracle)
    alone = [vectors(embed(make(lm, prefix_bytes=0), kind, [prompt]))[0] for prompt in PROMPTS]
    for found, prompt in zip(alone, PROMPTS, strict=True):
        assert found == pytest.approx(expected(oracle, prompt, kind), abs=5e-4)
        assert math.fsum(x * x for x in found) == pytest.approx(1, abs=1e-12)
    for engine in (make(lm), make(lm, max_rows=7, max_seqs=3)):
        for again in range(2):
            requests = embed(engine, kind)
            assert vectors(requests) == alone
            cached = requests[0].job.cached or 0
            assert cached > 0 if kind == "last" and again else kind == "last" or cached == 0
        plain = engine.add(PROMPTS[0], GREEDY)
        finish(engine)
        assert plain.job.cached, "what was read is left to others"
        engine.runner.cache.check()


@pytest.mark.parametrize("kind", KINDS)
def test_those_who_generate_beside_them_do_not_notice(oracle: LM, kind: Kind) -> None:
    """With drafts and without, and with so few pages that requests push each other out."""
    lm = tiled(oracle)

    def serve(engine: Engine, with_others: bool) -> tuple[list[list[int]], list[tuple[float, ...]]]:
        writers, readers = [], []
        for prompt in PROMPTS:
            writers.append(engine.add(prompt, GREEDY))
            readers += [engine.add(prompt, NOTHING, pooling=kind)] if with_others else []
        finish(engine)
        engine.runner.cache.check()
        return [request.output for request in writers], vectors(readers)

    want, _ = serve(make(lm, prefix_bytes=0), False)
    alone = vectors(embed(make(lm, prefix_bytes=0), kind))
    known = {tuple(p): g for p, g in zip(PROMPTS, want, strict=True)}
    pages = make(lm).runner.cache.pools.layout
    memory = 14 * sum(pages.page_bytes.values()) + 9 * pages.slot_bytes
    tight = {"memory_bytes": memory, "prefix_bytes": memory // 4, "context": 110, "max_rows": 40}
    for how in ({}, tight, options("tree oracle", known, 5, 0, 9, 1)):
        assert serve(make(lm, **how), True) == (want, alone)


def test_a_kept_program_gives_the_same_bits(oracle: LM) -> None:
    cold = make(tiled(oracle), prefix_bytes=0)
    model = of_toy(cold)
    for kind in KINDS:
        assert vectors(embed(restarted(cold, model), kind)) == vectors(embed(cold, kind))


def test_a_text_that_is_no_number_fails_alone(oracle: LM) -> None:
    engine = make(tiled(oracle))
    broken, whole = engine.add(PROMPTS[1], NOTHING, pooling="last"), engine.add(PROMPTS[3], NOTHING, pooling="last")
    forward = engine.runner.forward

    def spoiled(step: Step):  # type: ignore[no-untyped-def]
        outputs = forward(step)
        place = [rid for rid in step.rids if rid in (broken.rid, whole.rid)].index(broken.rid)
        return replace(outputs, hidden=lambda row: [math.nan] if row == place else outputs.hidden(row))

    engine.runner.forward = spoiled  # type: ignore[method-assign]
    events = {event.rid: event for event in engine.step()}
    assert events[broken.rid].finish_reason == "error" and isinstance(events[broken.rid].error, UserError)
    assert events[whole.rid].finish_reason == "embedded" and whole.embedding and broken.embedding is None
    assert engine.is_idle


def test_a_text_may_fill_the_context_and_no_more(oracle: LM) -> None:
    engine = toy_engine(oracle)
    context = engine.runner.sizes.context
    (request,) = embed(engine, "last", [text(8, context)])
    assert request.embedding is not None
    with pytest.raises(UserError, match="the context is"):
        engine.add(text(8, context + 1), NOTHING, pooling="last")
    with pytest.raises(UserError, match="empty"):
        engine.add([], NOTHING, pooling="last")


# What files say -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, want",
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, Pooling("mean")),
        ({"pooling_mode_lasttoken": True}, Pooling("last")),
        ({"pooling_mode": "cls"}, Pooling("cls")),
        ({"pooling_mode_max_tokens": True}, Pooling(refused="1_Pooling/config.json asks for max")),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": True},
            Pooling(refused="1_Pooling/config.json asks for mean and lasttoken"),
        ),
    ],
)
def test_folders_say_it_as_sentence_transformers_does(tmp_path: Path, config: dict[str, object], want: Pooling) -> None:
    folder = write_tiny(tmp_path)
    assert pooling_of(open_model(folder)) == Pooling("last")
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert pooling_of(open_model(folder)) == want
    modules.append({"path": "3_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    assert pooling_of(open_model(folder)).refused == "modules.json names a module Dense"


def test_gguf_files_say_it_by_number(tmp_path: Path) -> None:
    source = write_tiny(tmp_path)
    convert(source, tmp_path / "a.gguf", "gguf")
    plain = open_model(tmp_path / "a.gguf")
    key = f"{plain.metadata['general.architecture']}.pooling_type"
    kinds = [pooling_of(replace(plain, metadata={**plain.metadata, key: n})).kind for n in range(4)]
    assert kinds == ["last", "mean", "cls", "last"] and pooling_of(plain).kind == "last"


def test_a_later_start_embeds_without_torch(folder: Path, env: Env) -> None:
    """From its kept program, with the same bits."""
    cold = start(folder, env).embed(TEXTS)
    warm = start(folder, env)
    assert is_warm(warm) and warm.embed(TEXTS) == cold
    call = f"LLM({str(folder)!r}, backend='native').embed('abc')"
    script = f"import sys\nfrom stretto import LLM\n{call}\nprint('torch' in sys.modules)"
    environ = {k: v for k, v in os.environ.items() if not k.startswith("STRETTO_")} | {"STRETTO_CACHE": str(env.cache)}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False"], done.stderr
