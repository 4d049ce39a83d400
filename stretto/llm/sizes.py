"""The sizes of an engine from what the machine has: how much memory its cache gets, and how long a text can be."""

from collections.abc import Mapping
from math import prod

import torch

from stretto.cache.sizes import longest_context, sequence_bytes
from stretto.convert.load import value_shape
from stretto.convert.model_file import ModelFile
from stretto.core.errors import FitError, UserError
from stretto.core.memory import available_memory, show_size
from stretto.core.page_format import Plain, page_format
from stretto.core.settings import Settings
from stretto.core.tree import MAX_TREE_ROWS
from stretto.kernels.linear import Linear
from stretto.models.lm import LM
from stretto.runner.runner import Sizes

DTYPES: Mapping[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}
NATIVE_ROWS, TORCH_ROWS = 128, 512
SHARE = 0.9  # of the memory that is there: the rest is for what a step needs besides its buffers, and for others


def choose_sizes(file: ModelFile, settings: Settings, *, native: bool) -> tuple[Sizes, str | None]:
    """Sizes that fit, before any weight is loaded, and what a user should know about them, if anything.

    Without a context: what the model was made for, or as much of it as one sequence can fill. Without a memory: what
    `SHARE` of the memory that is there leaves beside weights and buffers. Sequences share the cache, and one may use
    all of it. Raises UserError for a context that the model was not made for, FitError if it does not fit.
    """
    limit, asked, memory_bytes = file.config.context, settings.context, settings.memory_bytes
    dtype, max_rows = DTYPES[settings.dtype], settings.max_rows or (NATIVE_ROWS if native else TORCH_ROWS)
    max_rows = max(max_rows, settings.max_seqs + 1)
    if asked is not None and not 1 < asked <= limit:
        raise UserError(f"context is {asked}", why=f"this model was made for 2 to {limit:,} tokens")
    with torch.device("meta"):
        lm = LM(file.config)
    kv = Plain(dtype) if settings.kv == "auto" else page_format(settings.kv)
    kinds = lm.state_specs, kv, torch.float32 if native else dtype
    why = None
    if memory_bytes is None:
        there, weights = available_memory(), weight_bytes(file, lm, dtype, native=native)
        rest = weights + 4 * max_rows * (lm.config.vocab_size + 16 * lm.config.d_model)
        memory_bytes = max(0, int(SHARE * there) - rest)
        why = f"of {show_size(there)} that are free {SHARE:.0%} are used; weights and buffers take {show_size(rest)}"
    fits = longest_context(*kinds, max_rows, memory_bytes) - MAX_TREE_ROWS
    chosen = min(limit, fits) if asked is None else asked
    if chosen < 2 or chosen > fits:
        raise _does_not_fit(
            max(2, chosen), fits, memory_bytes, sequence_bytes(*kinds, max(2, chosen) + MAX_TREE_ROWS, max_rows), why
        )
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
        kv=kv.name,
        coarse_prompts=settings.prefill == "int8",
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


def weight_bytes(file: ModelFile, lm: LM, dtype: torch.dtype, *, native: bool) -> int:
    """What the weights take when they are loaded: native kernels keep the bytes of the file's matrices, torch decodes
    them to `dtype` and keeps the head in a second layout."""
    total = 0
    for name, module, leaf in lm.targets():
        count = prod(value_shape(name, module, leaf))
        if not native:
            total += count * dtype.itemsize
        elif isinstance(module, Linear) and not name.endswith(".bias"):
            held = file.held(file.names[name].name)
            total += held.nbytes * count // max(1, prod(held.shape))
        else:
            total += count * 4
    return total if native else total + (lm.head or lm.embed).num_weights * dtype.itemsize
