"""What is kept of a model between runs: the same tokens with it and without it, and nothing that differs is used."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Checkpoints, tiny
from native import LEVELS, team
from starts import CALLS, answers, is_warm, process, start
from test_engine import PROMPTS, options, run_all
from test_native import GREEDY, MODELS, engine, tiled
from toy import lively_model, toy_lm

from stretto import Sampling
from stretto.cache.memory import PoolMemory
from stretto.cache.placement import Placement
from stretto.cache.pools import Pools
from stretto.convert.convert import convert
from stretto.convert.keeping import Extras, keep
from stretto.convert.kept import Wanted, find, place_of, save
from stretto.convert.load import load_model
from stretto.convert.model_file import families, open_model
from stretto.convert.program_file import unpack
from stretto.core.env import Env
from stretto.core.page_format import page_format
from stretto.core.settings import Settings
from stretto.core.state import StateSpec
from stretto.engine.engine import Engine
from stretto.kernels.native.operations import Call
from stretto.kernels.native.program import Constant, Entry, Place, Program, ProgramError, Regions, Scratch
from stretto.llm.facts import facts_of
from stretto.models.family import Family
from stretto.models.lm import LM
from stretto.runner.kept import KeptModel
from stretto.runner.recording import Recorded
from stretto.text.tokenizer import Tokenizer


def recorded(one: Engine) -> Recorded:
    assert one.runner.recorded is not None
    return one.runner.recorded


def restarted(one: Engine, model: KeptModel, **how: Any) -> Engine:
    """The engine that a later process makes of what this one recorded."""
    return Engine(model, replace(one.runner.sizes, max_rows=one.runner.max_rows), threads=team(), **how)


def of_toy(one: Engine) -> KeptModel:
    """What a toy recorded, over its own tiles."""
    known = recorded(one)
    addresses = {f"tiles.{i}": own.data.data_ptr() for i, own in enumerate(known.tiles)}
    return KeptModel(
        known.program, known.head, known.layout, one.runner.lm.abilities, one.runner.lm.token_cost, known.max_rows,
        known.context, addresses.__getitem__, one,
    )  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_program_gives_the_tokens_of_the_model_it_was_recorded_from(name: str) -> None:
    """In memory of its own, with drafts and without, for sequences that push each other out."""
    made = MODELS[name]
    lm = tiled(lively_model(made["config"]) if "config" in made else toy_lm(**made))
    cold = engine(lm, max_rows=40, max_seqs=4)
    recorded(cold).program.check(team().library)
    model, want = of_toy(cold), run_all(cold, GREEDY)
    known = {tuple(p): g for p, g in zip(PROMPTS, want, strict=True)}
    for drafter in ("none", "tree oracle", "saboteur"):
        warm = restarted(cold, model, **options(drafter, known, 5, 0, 9, 1))
        assert run_all(warm, GREEDY) == want
        warm.runner.cache.check()
    assert run_all(restarted(cold, model), GREEDY, patience=10.0) == want


@pytest.mark.parametrize("family", [f for f in families() if f.gguf], ids=lambda f: f.name)
def test_every_family_runs_from_its_files_again(family: Family, tmp_path: Path, folder: Path) -> None:
    source, _ = Checkpoints(tmp_path)(family.name, tiny(family.name))
    convert(source, tmp_path / "m.gguf", "gguf")
    tokenizer = Tokenizer.from_dir(folder)
    for path in (source, tmp_path / "m.gguf"):
        file = open_model(path)
        cold = engine(load_model(file, team=team()), kv="bf16")
        want = run_all(cold, GREEDY)
        wanted = Wanted(path, "auto", cold.runner.max_rows, "exact")
        facts = facts_of(file, Settings(), native=True)
        place = place_of(wanted, tmp_path, team().library)
        save(place, keep(wanted, cold.runner.lm, recorded(cold), tokenizer, facts, Extras()))
        found = find(wanted, tmp_path, team().library)
        assert found.kept is not None, found.why
        assert run_all(restarted(cold, found.kept.load(team())), GREEDY) == want


HOW: dict[str, tuple[dict[str, Any], Sampling]] = {
    "greedy": ({}, Sampling(temperature=0)),
    "sampled": ({}, Sampling(temperature=0.9, top_p=0.9, min_p=0.01, top_k=40)),
    "penalties": ({}, Sampling(temperature=0.7, repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2)),
    "bias and bans": ({}, Sampling(temperature=0.0, logit_bias={65: 2.5, 66: -100.0}, min_tokens=8)),
    "log-probabilities": ({}, Sampling(temperature=0.0, logprobs=5)),
    "n-grams": ({"draft": "ngram:nodes=4"}, Sampling(temperature=0)),
    "suffixes": ({"draft": "suffix"}, Sampling(temperature=0.5)),
    "jacobi": ({"draft": "jacobi"}, Sampling(temperature=0)),
    "coarse prompts": ({"prefill": "int8"}, Sampling(temperature=0)),
    "int8 pages": ({"kv": "int8"}, Sampling(temperature=0)),
}


@pytest.mark.parametrize("name", HOW)
def test_the_second_start_gives_the_answers_of_the_first(folder: Path, env: Env, name: str) -> None:
    settings, sampling = HOW[name]
    first, second = (start(folder, env, **settings) for _ in range(2))
    assert (is_warm(first), is_warm(second)) == (False, True)
    assert first.program == second.program and second.program is not None and second.why_not_kept is None
    assert answers(second, sampling) == answers(first, sampling)
    assert second.engine.runner.model.token_cost == first.engine.runner.model.token_cost
    assert second.hints == first.hints and second.tokenizer.eos_ids == first.tokenizer.eos_ids


def test_other_prompts_drafts_and_contexts_need_no_other_program(folder: Path, env: Env) -> None:
    start(folder, env, context=16)
    for settings in (
        {"draft": "suffix"},
        {"context": 100},
        {"max_seqs": 3},
        {"judge": "greedy"},
        {"order": "shortest"},
    ):
        assert is_warm(start(folder, env, **settings))


def test_what_shapes_a_program_asks_for_another(folder: Path, env: Env) -> None:
    start(folder, env)
    for settings in ({"prefill": "int8"}, {"kv": "f32"}, {"max_rows": 64}):
        assert not is_warm(start(folder, env, **settings))
    assert is_warm(start(folder, env, kv="f32"))


def test_a_small_model_that_drafts_is_kept_too(folder: Path, env: Env) -> None:
    how = {"draft": f"model:path={folder}"}
    start(folder, env)
    first, second = (start(folder, env, **how) for _ in range(2))
    assert (is_warm(first), is_warm(second)) == (False, True)
    assert isinstance(second.engine.drafting.drafter.runners[0].model, KeptModel)  # type: ignore[union-attr]
    assert answers(second, GREEDY) == answers(first, GREEDY) == answers(start(folder, env), GREEDY)
    assert second.engine.drafting.stats.accepted > 0


def test_a_tokenizer_that_was_kept_is_the_files(folder: Path, env: Env) -> None:
    first, second = (start(folder, env).tokenizer for _ in range(2))
    for text in ("", "Hello, wörld </s>", "\u2581\n\t 12345 <s>", "日本"):
        for add_bos in (None, True, False):
            for special in (True, False):
                ids = first.encode(text, add_bos=add_bos, parse_special=special)
                assert second.encode(text, add_bos=add_bos, parse_special=special) == ids
                assert second.decode(ids) == first.decode(ids)
    assert second.chat_template == first.chat_template and second.special_tokens == first.special_tokens
    assert second.vocabulary.tokens == list(first.vocabulary.tokens)


def test_a_warm_start_imports_no_torch_and_few_modules(folder: Path, env: Env) -> None:
    cold, err = process(folder, env, CALLS[0]).communicate(timeout=200)
    assert "torch" in cold.splitlines()[-1].split(), err
    warm, err = process(folder, env, CALLS[0]).communicate(timeout=200)
    count, *found = warm.splitlines()[-1].split()
    assert found == [] and int(count) <= 400, err
    assert warm.splitlines()[0] == cold.splitlines()[0]
    all_of_them, err = process(folder, env, *CALLS).communicate(timeout=200)
    assert all_of_them.splitlines()[-1].split()[1:] == [], err


def test_a_pointer_that_no_buffer_holds_is_found_when_a_program_is_made() -> None:
    library, regions = team().library, Regions()
    data = torch.zeros(64)
    regions.add(data.data_ptr(), Scratch(data.nbytes))
    args, _ = library.args("residual", {"x": data[8:], "width": 4})
    assert regions.entry(Call("residual", args)).pointers == ((struct_at(args, "x"), Place(0, 32)),)
    args, _ = library.args("residual", {"x": torch.zeros(4), "width": 4})
    with pytest.raises(AssertionError, match="what no buffer holds"):
        regions.entry(Call("residual", args))


def struct_at(args: Any, field: str) -> int:
    return int(getattr(type(args), field).offset)


def test_a_program_is_checked_before_it_runs() -> None:
    library = team().library
    good = library.args("residual", {"width": 4})[0]
    at = struct_at(good, "x")

    def program(place: Place, at: int = at, args: bytes = bytes(good)) -> Program:
        return Program((Constant(b"12345678"),), (Entry("residual", args, ((at, place),)),))

    program(Place(0, 7)).check(library)
    for bad in (
        program(Place(0, 8)),
        program(Place(1, 0)),
        program(Place(0, -1)),
        program(Place(0, 0), at + 1),
        program(Place(0, 0), args=bytes(good)[:-1]),
        program(Place(0, 0), args=bytes(good)[:at] + b"\1" + bytes(good)[at + 1 :]),
    ):
        with pytest.raises(ProgramError):
            bad.check(library)


@pytest.mark.parametrize("kv", ["f32", "bf16", "int8"])
@pytest.mark.parametrize("level", LEVELS)
def test_pools_without_tensors_move_rows_as_pools_do(kv: str, level: str) -> None:
    specs = [
        [
            StateSpec(name="k", shape=(2, 3), kind="paged", lanes=True),
            StateSpec(name="v", shape=(2, 5), kind="paged"),
            StateSpec(name="w", shape=(2, 4), kind="paged", group="window:40"),
            StateSpec(name="s", shape=(3,), kind="slot", dtype=torch.float32),
        ]
    ] * 2
    pools = Pools(specs, num_blocks=4, num_slots=3, kv=page_format(kv), state_dtype=torch.float32, lanes=True)
    memory = PoolMemory(pools.layout, pools.num_blocks, pools.num_slots, team(level))
    assert memory.nbytes == pools.nbytes and memory.room == pools.room and memory.num_pages == pools.num_pages
    assert memory.caches(Placement()).slots == []
    raw = [torch.frombuffer(own._map, dtype=torch.uint8) for own in memory._memory]
    for theirs, ours in zip(pools.tensors, raw, strict=True):
        whole = theirs.untyped_storage()
        ours[: whole.nbytes()] = torch.randint(0, 100, (whole.nbytes(),), dtype=torch.uint8)
        torch.tensor([], dtype=torch.uint8).set_(whole).copy_(ours[: whole.nbytes()])
    for group in (0, 1):
        moves = [17, 18, 40, 33], [16, 17, 18, 50]
        pools.move(group, *moves)
        memory.move(group, *moves)
        pools.clear(group, [3])
        memory.clear(group, [3])
    for theirs, ours in zip(pools.tensors, raw, strict=True):
        whole = theirs.untyped_storage()
        assert torch.equal(torch.tensor([], dtype=torch.uint8).set_(whole), ours[: whole.nbytes()])
    assert memory.address(0, 1) - memory.address(0, 0) == pools.address(0, 1) - pools.address(0, 0)
    with pytest.raises(AssertionError, match="null page"):
        memory.check()


def test_a_program_is_plain_data(folder: Path, env: Env) -> None:
    """JSON and bytes: nothing in it is executed when it is read."""
    place = start(folder, env).program
    assert place is not None
    document, _ = unpack(place.read_bytes())
    assert json.loads(json.dumps(document)) == document
    assert isinstance(start(folder, env).engine.runner.model, KeptModel) and not isinstance(LM, KeptModel)


def test_the_doctor_says_what_is_kept(folder: Path, env: Env) -> None:
    from stretto.cli.doctor import next_start

    step: dict[str, Any] = {"runs on": "native", "of these in Python": {}}
    how = Settings(draft="none", max_seqs=1)
    assert "nothing is kept yet" in next_start(str(folder), step, how, env, team())["torch"]
    program = start(folder, env).program
    assert next_start(str(folder), step, how, env, team()) == {"torch": "not needed", "kept": str(program)}
    assert program is not None
    program.write_bytes(program.read_bytes()[:-1])
    assert "checksum" in next_start(str(folder), step, how, env, team())["torch"]
    hosted = step | {"of these in Python": {"blocks.0.channel": "it computes sum"}}
    assert "Python computes blocks.0.channel" in next_start(str(folder), hosted, how, env, team())["torch"]
    unkept = replace(env, no_programs=True)
    assert "STRETTO_NO_PROGRAMS" in next_start(str(folder), step, how, unkept, team())["torch"]
    assert next_start(str(folder), {"runs on": "torch"}, how, env, None) == {"torch": "needed: it runs the model"}
