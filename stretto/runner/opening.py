"""An `LM` made ready to run: its pools, and who computes its forward pass."""

from collections.abc import Sequence

import torch

from stretto.cache.pools import Pools, layout_of
from stretto.cache.sizes import size_pools
from stretto.core.page_format import Plain, page_format
from stretto.core.plan import StepPlan
from stretto.core.scores import Outputs, Scores
from stretto.core.tree import MAX_TREE_ROWS
from stretto.kernels.native.library import Team
from stretto.models.lm import LM
from stretto.runner.kept import Opened
from stretto.runner.recording import record
from stretto.runner.sizes import Sizes


def open_lm(
    lm: LM, sizes: Sizes, threads: Team | None, *, taps: Sequence[int], max_rows: int, vocab_size: int
) -> Opened:
    """Its arguments are those of `Runner`. Raises FitError."""
    specs, dtype, context = lm.state_specs, lm.dtype, sizes.context + MAX_TREE_ROWS
    kv = Plain(dtype) if sizes.kv == "auto" else page_format(sizes.kv)
    memory = {"context": context, "max_seqs": sizes.max_seqs, "memory_bytes": sizes.memory_bytes}
    found = size_pools(layout_of(specs, kv, dtype), max_rows=max_rows, prefix_bytes=sizes.prefix_bytes, **memory)
    pools = Pools(
        specs,
        num_blocks=found.num_blocks,
        num_slots=found.num_slots,
        kv=kv,
        state_dtype=dtype,
        lanes=threads is not None,
    )
    if threads is not None:
        how = {"max_rows": max_rows, "context": max(context, sizes.room + MAX_TREE_ROWS), "vocab_size": vocab_size}
        made = record(lm, pools, threads, **how, taps=taps, coarse_prompts=sizes.coarse_prompts)
        return Opened(pools, made.replay, made.replay, made.replay.scope, made)

    def compute(plan: StepPlan) -> Outputs:
        with torch.inference_mode():
            h_RD, features = lm.features(plan, taps)
            logits = lm.logits(h_RD, len(h_RD))[:, :vocab_size]
        return Outputs(Scores(lambda: logits), features, lambda row: h_RD[row].double().tolist())

    return Opened(pools, None, compute, torch.inference_mode)
