"""From an opened model to an engine that runs it: backend, sizes, weights, drafter, judge and policies."""

from collections.abc import Callable
from pathlib import Path

import torch

from stretto.convert.load import Progress, load_model
from stretto.convert.model_file import ModelFile, open_model
from stretto.convert.show import ignored_hints
from stretto.core.drafter import Target
from stretto.core.env import Env
from stretto.core.settings import Settings
from stretto.engine.engine import Engine
from stretto.engine.scheduler import Policies
from stretto.hub.models import resolve
from stretto.kernels.native.library import Team
from stretto.llm.options import make_drafting, make_judge, make_order
from stretto.llm.sizes import DTYPES, choose_sizes
from stretto.llm.step_costs import known_row_seconds
from stretto.models.lm import LM
from stretto.runner.staircase import row_seconds
from stretto.text.tokenizer import Tokenizer


def open_file(model: str | Path, env: Env) -> ModelFile:
    """The files of a model: an alias, a .gguf file or a checkpoint directory."""
    return open_model(resolve(str(model), env=env, progress=True))


def open_tokenizer(file: ModelFile) -> Tokenizer:
    """The tokenizer that belongs to an opened model."""
    return Tokenizer.from_gguf(file.metadata) if file.is_gguf else Tokenizer.from_dir(file.path)


def load_engine(
    file: ModelFile,
    tokenizer: Tokenizer,
    settings: Settings,
    threads: Team | None,
    env: Env,
    *,
    progress: Progress | None,
    tell: Callable[[str], None],
) -> Engine:
    """An engine that runs the model as `settings` say.

    threads: native ones; None = torch. progress: called with (done, total) while weights are read. tell: gets what is
    to be known of the file and the sizes, before any weight is read, and of the engine. Raises FitError if it does not
    fit.
    """
    sizes, short = choose_sizes(file, settings, native=threads is not None)
    for note in (*file.notes, *ignored_hints(file), *filter(None, [short])):
        tell(note)
    lm = _load(file, settings, threads, progress)

    def load_other(path: str) -> tuple[LM, Tokenizer]:
        other = open_file(path, env)
        return _load(other, settings, threads), open_tokenizer(other)

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
    drafter, policy = make_drafting(settings.draft, target)
    engine = Engine(
        lm,
        sizes,
        drafter=drafter,
        judge=make_judge(settings.judge),
        policies=Policies(order=make_order(settings.order), draft=policy),
        eos_ids=tokenizer.eos_ids,
        vocab_size=tokenizer.vocab_size,
        threads=threads,
    )
    if policy is not None and policy.wants_costs:
        backend = "torch" if threads is None else f"{threads.library.level} {threads.num_threads}"
        how = f"{backend} {settings.dtype} {sizes.kv}"
        policy.know(known_row_seconds(lambda: row_seconds(engine.runner), file.path, how, env))
    for note in engine.notes:
        tell(note)
    return engine


def _load(file: ModelFile, settings: Settings, threads: Team | None, progress: Progress | None = None) -> LM:
    if threads is None:
        return load_model(file, DTYPES[settings.dtype], progress).prepack()
    return load_model(file, torch.float32, progress, team=threads)
