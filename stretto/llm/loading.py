"""From the name of a model to an engine that runs it: with what an earlier run kept, or anew. No torch here."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stretto.convert.kept import Found, Kept, Wanted, find
from stretto.core.card import CHUNKS, EVICTS, JUDGES, LENGTHS, ORDERS
from stretto.core.drafter import Target
from stretto.core.env import Env
from stretto.core.pooling import Pooling
from stretto.core.settings import Settings, read_draft
from stretto.core.tree import MAX_TREE_ROWS
from stretto.engine.engine import Engine
from stretto.engine.scheduler import Policies
from stretto.hub.models import resolve
from stretto.kernels.native.library import Team
from stretto.llm.backend import Choice, find_team
from stretto.llm.options import make_drafting, make_policy
from stretto.llm.sizes import choose_sizes, rows_of_step
from stretto.llm.step_costs import known_row_seconds
from stretto.runner.kept import KeptModel
from stretto.runner.sizes import Sizes
from stretto.runner.staircase import row_seconds
from stretto.text.plain import vocabulary_from_plain
from stretto.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from stretto.kernels.lora import LoraTable

Progress = Callable[[int, int], None]
Tell = Callable[[str], None]


class _NotKept(Exception):
    """What was kept is not enough for these settings."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready. hints: how its authors want it sampled; pooling: how its embeddings are made. program:
    where what later runs need is kept, None with the reason `why_not_kept`."""

    tokenizer: Tokenizer
    hints: Mapping[str, float]
    pooling: Pooling
    choice: Choice
    engine: Engine
    kv_is_approximate: bool
    program: Path | None = None
    why_not_kept: str | None = None


def load(
    model: str | Path, settings: Settings, env: Env, *, progress: Progress | None, note: Tell | None, tell: Tell
) -> Loaded:
    """An engine that runs the model as `settings` say.

    progress: called with (done, total) while weights are read. note: gets a line when kernels are compiled. tell: gets
    what is to be known of the file and the sizes, before any weight is read, and of the engine. Raises UserError,
    FitError if it does not fit.
    """
    path = resolve(str(model), env=env, progress=True)
    is_native = settings.backend != "torch" and settings.dtype != "float32"
    team = find_team(settings, env, note) if is_native else None
    if isinstance(team, Team) and env.cache is not None and not (_needs_torch(settings) or env.no_programs):
        kept = look_up(path, settings, env.cache, team).kept
        if kept is not None:
            with suppress(_NotKept):
                return _load_kept(kept, path, settings, env, team, progress=progress, tell=tell)
    from stretto.llm.anew import load_anew  # with torch

    loaded = load_anew(path, settings, env, team, progress=progress, tell=tell)
    for line in loaded.engine.notes:
        tell(line)
    return loaded


def look_up(path: Path, settings: Settings, cache: Path, threads: Team) -> Found:
    """What earlier runs kept of a model for such settings."""
    max_rows = rows_of_step(settings, native=True)
    return find(Wanted(path, settings.kv, max_rows, settings.prefill), cache, threads.library)


def make_engine(
    target: Target, sizes: Sizes, settings: Settings, path: Path, env: Env, *, loras: "LoraTable | None" = None
) -> Engine:
    """The engine of a loaded model, with drafter, judge and policies. path: of the model; loras: its room for
    adapters."""
    drafter, policy = make_drafting(settings.draft, target)
    engine = Engine(
        target.model,
        sizes,
        drafter=drafter,
        judge=make_policy(settings.judge, JUDGES, "judge"),
        policies=Policies(
            order=make_policy(settings.order, ORDERS, "order"),
            chunk=make_policy(settings.chunk, CHUNKS, "chunk"),
            length=make_policy(settings.length, LENGTHS, "length"),
            draft=policy,
            evict=make_policy(settings.evict, EVICTS, "evict"),
        ),
        eos_ids=target.eos_ids,
        vocab_size=target.vocab_size,
        threads=target.threads,
        loras=loras,
    )
    if policy is not None and policy.wants_costs:
        threads = target.threads
        backend = "torch" if threads is None else f"{threads.library.level} {threads.num_threads}"
        how = f"{backend} {settings.dtype} {sizes.kv}"
        policy.know(known_row_seconds(lambda: row_seconds(engine.runner), path, how, env))
    return engine


def wanted_by_drafter(path: Path, target: Target) -> Wanted:
    """The program of another model that drafts for `target`."""
    return Wanted(path, target.kv, max(target.max_rows, target.max_seqs + 1), "exact")


def _needs_torch(settings: Settings) -> bool:
    """Whether adapters may be read, or a drafter may ask for parts of the model: one that a caller made, or one that
    says so."""
    if settings.max_loras:
        return True
    if not isinstance(settings.draft, str):
        return True
    spec = read_draft(settings.draft)
    return spec is not None and spec.filler.card.reads_model


def _load_kept(
    kept: Kept,
    path: Path,
    settings: Settings,
    env: Env,
    threads: Team,
    *,
    progress: Progress | None,
    tell: Tell,
) -> Loaded:
    """Raises _NotKept where its program has no room for the context, or another model is asked for that is not kept."""
    sizes, short = choose_sizes(kept.facts, settings)
    if sizes.context + MAX_TREE_ROWS > kept.context:
        raise _NotKept
    for line in (*kept.notes, *filter(None, [short])):
        tell(line)
    tokenizer = Tokenizer(vocabulary_from_plain(dict(kept.text), kept.tokenizer_json))

    model = kept.load(threads, progress)

    def load_other(name: str) -> tuple[KeptModel, Tokenizer]:
        wanted = wanted_by_drafter(resolve(name, env=env), target)
        other = find(wanted, env.cache_dir, threads.library).kept
        if other is None or sizes.context + MAX_TREE_ROWS > other.context or other.vocab_size != target.vocab_size:
            raise _NotKept
        return other.load(threads), Tokenizer(vocabulary_from_plain(dict(other.text), other.tokenizer_json))

    target = Target(
        model=model,
        context=sizes.context,
        max_seqs=sizes.max_seqs,
        max_rows=sizes.max_rows,
        vocab_size=model.vocab_size,
        threads=threads,
        tokenizer=tokenizer,
        kv=sizes.kv,
        load=load_other,
        eos_ids=tokenizer.eos_ids,
    )
    engine = make_engine(target, sizes, settings, path, env)
    for line in engine.notes:
        tell(line)
    return Loaded(
        tokenizer, kept.hints, kept.pooling, Choice(threads, None), engine, kept.kv_is_approximate, kept.place
    )
