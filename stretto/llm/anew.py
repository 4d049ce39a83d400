"""A model from its files to an engine that runs it, with torch: what a first run does, and every run through torch.

On native kernels, what a later run needs is kept (`convert/keeping.py`).
"""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from stretto.convert.keeping import Extras, keep, why_not
from stretto.convert.kept import Wanted, place_of, save
from stretto.convert.load import Progress, load_model, matrix_codecs
from stretto.convert.model_file import ModelFile, open_model
from stretto.convert.pooling import pooling_of
from stretto.convert.show import generation_hints, ignored_hints
from stretto.core.card import CODECS, Exactness
from stretto.core.drafter import Target
from stretto.core.env import Env
from stretto.core.errors import RunError
from stretto.core.settings import Settings
from stretto.hub.models import resolve
from stretto.kernels.native.library import Team
from stretto.llm.backend import choose
from stretto.llm.facts import DTYPES, facts_of
from stretto.llm.loading import Loaded, Tell, make_engine, wanted_by_drafter
from stretto.llm.sizes import choose_sizes
from stretto.models.lm import LM
from stretto.models.lora import make_room
from stretto.runner.runner import Runner
from stretto.runner.sizes import Facts
from stretto.text.tokenizer import Tokenizer

ROOM = 8192
"""Positions that a program has room for at least, where the model was made for so many: later runs may ask for more
context than the first did."""
_log = logging.getLogger(__name__)


def open_file(model: str | Path, env: Env) -> ModelFile:
    """The files of a model: an alias, a .gguf file or a checkpoint directory."""
    return open_model(resolve(str(model), env=env, progress=True))


def open_tokenizer(file: ModelFile) -> Tokenizer:
    """The tokenizer that belongs to an opened model."""
    return Tokenizer.from_gguf(file.metadata) if file.is_gguf else Tokenizer.from_dir(file.path)


def load_anew(
    path: Path, settings: Settings, env: Env, team: Team | RunError | None, *, progress: Progress | None, tell: Tell
) -> Loaded:
    """An engine that runs the model as `settings` say. team: what `find_team` found, if it was asked; the other
    arguments are those of `load`."""
    file = open_model(path)
    tokenizer = open_tokenizer(file)
    hints, pooling = generation_hints(file), pooling_of(file)
    choice = choose(settings, matrix_codecs(file), env, team)
    threads = choice.threads
    facts = facts_of(file, settings, native=threads is not None)
    sizes, short = choose_sizes(facts, settings)
    notes = (*file.notes, *ignored_hints(file))
    for line in (*notes, *filter(None, [short])):
        tell(line)
    lm, loras = _load(file, settings, threads, progress), None
    if settings.max_loras:
        loras = make_room(lm, settings.max_loras, settings.max_lora_rank, threads.library if threads else None)

    others: list[tuple[Path, ModelFile, Tokenizer, LM]] = []

    def load_other(name: str) -> tuple[LM, Tokenizer]:
        other = open_file(name, env)
        others.append((resolve(name, env=env), other, open_tokenizer(other), _load(other, settings, threads)))
        return others[-1][3], others[-1][2]

    target = Target(
        model=lm,
        context=sizes.context,
        max_seqs=sizes.max_seqs,
        max_rows=sizes.max_rows,
        vocab_size=min(tokenizer.vocab_size, lm.config.vocab_size),
        threads=threads,
        tokenizer=tokenizer,
        kv=sizes.kv,
        load=load_other,
        eos_ids=tokenizer.eos_ids,
    )
    sizes = replace(sizes, room=min(facts.context, ROOM))
    engine = make_engine(target, sizes, settings, path, env, loras=loras)
    kv_is_approximate = settings.kv != "auto" and CODECS.card(settings.kv).exactness is Exactness.APPROXIMATE
    extras = Extras(hints, pooling, notes, kv_is_approximate)
    wanted = Wanted(path, settings.kv, engine.runner.max_rows, settings.prefill)
    place, why = _keep(wanted, engine.runner, tokenizer, facts, extras, env)
    for runner in engine.drafting.drafter.runners if engine.drafting.drafter is not None and why is None else ():
        for other_path, other, other_tokenizer, other_lm in others:
            if runner.model is other_lm:
                own = facts_of(other, settings.replace(kv=sizes.kv), native=True)
                _keep(wanted_by_drafter(other_path, target), runner, other_tokenizer, own, Extras(), env)
    return Loaded(tokenizer, hints, pooling, choice, engine, kv_is_approximate, place, why)


def _keep(
    wanted: Wanted, runner: Runner, tokenizer: Tokenizer, facts: Facts, extras: Extras, env: Env
) -> tuple[Path | None, str | None]:
    """Where the program of a runner is kept now, or why it is not."""
    why = "STRETTO_NO_PROGRAMS is set" if env.no_programs else why_not(runner.recorded, runner.taps)
    if why is not None or runner.recorded is None or env.cache is None:
        return None, why or "there is no folder for a cache"
    try:
        place = place_of(wanted, env.cache, runner.recorded.replay.operations.library)
        save(place, keep(wanted, runner.lm, runner.recorded, tokenizer, facts, extras))
    except OSError as problem:  # the next start is as slow as this one
        _log.info("the program of %s is not kept: %s", wanted.path, problem)
        return None, f"it cannot be written: {problem}"
    return place, None


def _load(file: ModelFile, settings: Settings, threads: Team | None, progress: Progress | None = None) -> LM:
    if threads is None:
        return load_model(file, DTYPES[settings.dtype], progress).prepack()
    return load_model(file, torch.float32, progress, team=threads)
