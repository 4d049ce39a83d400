"""The sizes of an engine from what the machine has: how much memory its cache gets, and how long a text can be."""

from stretto.cache.sizes import longest_context, sequence_bytes
from stretto.core.errors import FitError, UserError
from stretto.core.memory import available_memory, show_size
from stretto.core.settings import Settings
from stretto.core.tree import MAX_TREE_ROWS
from stretto.runner.sizes import Facts, Sizes

NATIVE_ROWS, TORCH_ROWS = 128, 512
SHARE = 0.9  # of the memory that is there: the rest is for what a step needs besides its buffers, and for others


def rows_of_step(settings: Settings, *, native: bool) -> int:
    """Most rows of a step."""
    return max(settings.max_rows or (NATIVE_ROWS if native else TORCH_ROWS), settings.max_seqs + 1)


def choose_sizes(facts: Facts, settings: Settings) -> tuple[Sizes, str | None]:
    """Sizes that fit, before any weight is loaded, and what a user should know about them, if anything.

    Without a context: what the model was made for, or as much of it as one sequence can fill. Without a memory: what
    `SHARE` of the memory that is there leaves beside weights and buffers. Sequences share the cache, and one may use
    all of it. Raises UserError for a context that the model was not made for, FitError if it does not fit.
    """
    limit, asked, memory_bytes = facts.context, settings.context, settings.memory_bytes
    max_rows = rows_of_step(settings, native=facts.native)
    if asked is not None and not 1 < asked <= limit:
        raise UserError(f"context is {asked}", why=f"this model was made for 2 to {limit:,} tokens")
    why = None
    if memory_bytes is None:
        there = available_memory()
        rest = facts.weight_bytes + 4 * max_rows * (facts.vocab_size + 16 * facts.d_model)
        memory_bytes = max(0, int(SHARE * there) - rest)
        why = f"of {show_size(there)} that are free {SHARE:.0%} are used; weights and buffers take {show_size(rest)}"
    fits = longest_context(facts.layout, max_rows, memory_bytes) - MAX_TREE_ROWS
    chosen = min(limit, fits) if asked is None else asked
    if chosen < 2 or chosen > fits:
        need = sequence_bytes(facts.layout, max(2, chosen) + MAX_TREE_ROWS, max_rows)
        raise _does_not_fit(max(2, chosen), fits, memory_bytes, need, why)
    short = asked is None and chosen < limit
    note = (
        f"context: {chosen:,} tokens of the {limit:,} that the model was made for, which is what"
        f" {show_size(memory_bytes)} of cache hold (--ctx N and --mem SIZE change it)"
    )
    sizes = Sizes(
        context=chosen,
        max_seqs=settings.max_seqs,
        max_rows=max_rows,
        memory_bytes=memory_bytes,
        kv=facts.kv,
        coarse_prompts=settings.prefill == "int8",
        prefix_bytes=min(settings.prefix_bytes, memory_bytes // 2),
    )
    return sizes, note if short else None


def _does_not_fit(context: int, fits: int, memory_bytes: int, need: int, why: str | None) -> FitError:
    """need: bytes of one sequence of `context` tokens; fits: the longest one that `memory_bytes` hold."""
    instead = f"--ctx {fits}" if fits > 1 else "a smaller model (not even --ctx 2 fits)"
    return FitError(
        f"a context of {context:,} tokens needs {show_size(need)} of cache; {show_size(memory_bytes)} is there for it",
        why=why or "a sequence must fit into the cache at its full length",
        try_=f"{instead}, or --mem {-(-need >> 20)}MiB of cache",
    )
