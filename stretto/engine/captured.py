"""A model as a tape: its forward pass recorded once, replayed for every step without Python.

The tape depends on the model, on the pools of the cache and on nothing else: rows, sequences, positions and pages are
read from the step when it runs. An engine records one when it is made; a model that computes something without a
native kernel cannot be recorded, and runs through torch (`why_not` says so before its weights are loaded).
"""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from stretto.cache.pools import Caches, Placement, Pools
from stretto.core.plan import StepPlan
from stretto.core.seqs import MAX_TREE_ROWS, Seqs
from stretto.engine.verify import Scores
from stretto.kernels.linear import Linear
from stretto.kernels.native.library import Pool
from stretto.kernels.native.tape import NotRecordable, Tape
from stretto.kernels.rowwise.native import best
from stretto.models.lm import LM, LMConfig


class Captured:
    """`LM.forward` as a tape. Called with a plan whose caches are those of `pools`, it returns the scores of its
    `out_rows`, valid until the next call.

    threads: who runs it. max_rows: most rows of a step; context: most positions of a sequence, provisional rows too;
    vocab_size: ids from here on do not count. coarse_prompts: see `Tape`.
    """

    def __init__(
        self,
        lm: LM,
        pools: Pools,
        threads: Pool,
        *,
        max_rows: int,
        context: int,
        vocab_size: int,
        coarse_prompts: bool = False,
    ) -> None:
        self._vocab_size = vocab_size
        self.tape = Tape(threads, max_rows=max_rows, max_out=max_rows, context=context, coarse_prompts=coarse_prompts)
        with self.tape.outside():
            nothing = torch.zeros(0, dtype=torch.int64)
            room = Seqs.of([self.tape.room])  # a placeholder: rows are those of the step
            plan = StepPlan(nothing, room, nothing, pools.refs(Placement()))
        with self.tape.recording():
            self._logits: Tensor = lm(plan)
            self._best = best(self._logits, vocab_size)
        self._held: object = None  # what the step points to

    def __call__(self, plan: StepPlan) -> Scores:
        assert isinstance(plan.caches, Caches)
        self._describe(plan, plan.caches.placement)
        self.tape.run()
        rows = len(plan.out_rows)
        values, ids = self._best
        logits = self._logits[:rows, : self._vocab_size]
        return Scores(logits, values[:rows].tolist(), ids[:rows].tolist(), self.tape.pool)

    def commit(self, seqs: Seqs, paths: Sequence[Sequence[int]]) -> None:
        """Advance recurrent states over the accepted rows of the last call (as in `CacheManager.commit`)."""
        kept = self.tape.accepted
        rows = [0] * (MAX_TREE_ROWS * seqs.num_seqs)
        for b, path in enumerate(paths):
            rows[b * MAX_TREE_ROWS : b * MAX_TREE_ROWS + len(path)] = [seqs.starts[b] + row for row in path]
        arrays = _ints([len(path) for path in paths]), _ints(rows)
        kept.num_accepted, kept.accepted_rows = (ctypes.addressof(values) for values in arrays)
        self.tape.commit()

    def _describe(self, plan: StepPlan, placement: Placement) -> None:
        """Write the rows of `plan` into the tape's step."""
        seqs, step = plan.seqs, self.tape.step
        positions: list[int] = []
        parents: list[int] = []
        for b, (context, rows) in enumerate(zip(seqs.contexts, seqs.lens, strict=True)):
            parents += seqs.row_parents(b)
            if seqs.parents[b] is None:
                positions += range(context, context + rows)
            else:
                positions += (context + depth for depth in seqs.depths(b))
        width = max(map(len, placement.tables), default=0)
        arrays: dict[str, ctypes.Array[Any]] = {
            "positions": _ints(positions),
            "seq_ids": _ints([b for b, n in enumerate(seqs.lens) for _ in range(n)]),
            "starts": _ints(seqs.starts),
            "contexts": _ints(seqs.contexts),
            "num_definite": _ints(seqs.definite),
            "parents": _ints(parents),
            "out_rows": _ints(plan.out_rows.tolist()),
            "slot_mapping": (ctypes.c_int64 * len(placement.slot_mapping))(*placement.slot_mapping),
            "block_table": _ints([n for table in placement.tables for n in (*table, *[0] * (width - len(table)))]),
            "state_source": _ints(placement.source),
            "state_destination": _ints(placement.destination),
        }
        step.num_rows, step.num_out = seqs.num_rows, len(plan.out_rows)
        step.num_seqs, step.num_step_seqs, step.block_width = seqs.num_seqs, seqs.num_step, width
        step.tokens = plan.tokens.data_ptr()
        for name, values in arrays.items():
            setattr(step, name, ctypes.addressof(values))
        self._held = (plan.tokens, arrays)


def why_not(config: LMConfig, kv_dtype: torch.dtype, threads: Pool) -> str | None:
    """Why a model of this shape cannot be captured, None if it can: recorded without weights or memory."""
    with torch.device("meta"):
        lm = LM(config)
    for module in lm.modules():
        if isinstance(module, Linear):
            module.pretend()
    pools = Pools(
        lm.state_specs, num_blocks=1, num_slots=1, kv_dtype=kv_dtype, state_dtype=torch.float32, device="meta"
    )
    try:
        Captured(lm, pools, threads, max_rows=1, context=1, vocab_size=1)
    except NotRecordable as problem:
        return problem.why
    return None


def _ints(values: Sequence[int]) -> ctypes.Array[ctypes.c_int32]:
    return (ctypes.c_int32 * len(values))(*values)
