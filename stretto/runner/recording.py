"""A model as a tape: its forward pass recorded once, replayed for every step without Python.

The tape depends on the model, on the pools of the cache and on nothing else: rows, sequences, positions and pages are
read from the step when it runs. A runner records one when it is made. A mixer or channel that computes something
without a native kernel is one operation of the host on it.
"""

import ctypes
from array import array
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor

from stretto.cache.pools import Caches, Placement, Pools
from stretto.core.pages import PAGE_SIZE
from stretto.core.plan import StepPlan
from stretto.core.scores import Scores
from stretto.core.seqs import Seqs
from stretto.core.tree import MAX_TREE_ROWS
from stretto.kernels.native.guard import StepSeqs
from stretto.kernels.native.library import Team
from stretto.kernels.native.tape import Tape
from stretto.kernels.rowwise.native import best
from stretto.kernels.sampling import Refusals, refusals
from stretto.kernels.sampling.native import Draw, row
from stretto.models.lm import LM


class Recording:
    """`LM.forward` as a tape. Called with a plan whose caches are those of `pools`, it returns the scores of its
    `out_rows` and the hidden states [T, D] after the layers `taps`, valid until the next call.

    threads: who runs it. max_rows: most rows of a step; context: most positions of a sequence, provisional rows too;
    vocab_size: ids from here on do not count. coarse_prompts: see `Tape`.
    host_operations: parts of the model that Python computes between native ones, and why.
    """

    def __init__(
        self,
        lm: LM,
        pools: Pools,
        threads: Team,
        *,
        max_rows: int,
        context: int,
        vocab_size: int,
        taps: Sequence[int] = (),
        coarse_prompts: bool = False,
    ) -> None:
        self._vocab_size = vocab_size
        sizes = {"max_rows": max_rows, "max_out": max_rows, "context": context}
        self.tape = Tape(threads, **sizes, coarse_prompts=coarse_prompts, live=pools.tensors)
        room = StepSeqs((self.tape.room,), (0,), (0,), (None,))
        with self.tape.outside():
            plan = StepPlan((), room, (), pools.refs(Placement()))
            assert len(plan.tokens) == len(plan.out_rows) == 0
        with self.tape.recording():
            h_RD, self._features = lm.features(plan, taps)
            self._logits: Tensor = lm.logits(h_RD, len(h_RD))
            self._best = best(self._logits, vocab_size)
        values, ids = (x.data_ptr() for x in self._best)
        self._top = (ctypes.c_float * len(self._logits)).from_address(values)
        self._argmax = (ctypes.c_int32 * len(self._logits)).from_address(ids)
        self._choose, self._advance = self.tape.emit_between("choose"), self.tape.emit_between("advance")
        self.host_operations = self.tape.host_operations
        self._held: tuple[array[int], array[int], ctypes.Array[Any]]  # what the step points to

    def __call__(self, plan: StepPlan) -> tuple[Scores, tuple[Tensor, ...]]:
        assert isinstance(plan.caches, Caches)
        placement = plan.caches.placement
        self._describe(plan, placement, plan.token_ids, [own.slot_mapping for own in placement.pages])
        self.tape.plan = plan
        self.tape.run()
        rows = len(plan.wanted)
        logits = lambda: self._logits[:rows, : self._vocab_size]  # noqa: E731
        scores = Scores(logits, self._top[:rows], self._argmax[:rows], self.tape.team)
        return scores, tuple(h[: plan.seqs.num_rows] for h in self._features)

    def ahead(
        self, plan: StepPlan, how: Sequence[Draw], stops: Sequence[Collection[int]], num_steps: int
    ) -> tuple[list[list[int]], Refusals]:
        """Plain steps without Python between them: per step, the token of every sequence.

        The last step says which sequences have none, by number, and why; what stands there means nothing.

        plan: the first one, a row for each sequence; its caches have room for the rows of all steps (`num_steps` per
        sequence, side by side). how: the law and the noise of every sequence's first token; later ones differ in their
        position only. stops: tokens after which a sequence wants no more; fewer steps are run as soon as one comes, or
        a logit that is not finite.
        """
        assert isinstance(plan.caches, Caches) and plan.seqs.lens == (1,) * plan.seqs.num_seqs
        n, placement, step, a = plan.seqs.num_seqs, plan.caches.placement, self.tape.step, self._advance
        assert all(own.key_positions is None for own in placement.pages), "the keys of later steps have positions, too"
        slots = [[s for k in range(num_steps) for s in own.slot_mapping[k::num_steps]] for own in placement.pages]
        self._describe(plan, placement, [*plan.token_ids, *[0] * (num_steps * n)], slots)
        wide, *_ = self._held
        logits, argmax = self._logits.data_ptr(), ctypes.addressof(self._argmax)
        sizes = self._logits.stride(0) * self._logits.itemsize, ctypes.sizeof(ctypes.c_int32)
        library = self.tape.library
        rows = (library.struct("Row") * n)()
        for b, draw in enumerate(how):
            rows[b] = row(library, logits + b * sizes[0], argmax + b * sizes[1], self._vocab_size, draw)
        tops = (ctypes.c_float * (n * num_steps))()
        ids, starts = array("q", [t for own in stops for t in own]), array("i", (0, *accumulate(map(len, stops))))
        done, left = ctypes.c_int64(0), ctypes.c_int64(num_steps)
        self._choose.num_rows, self._choose.rows = n, ctypes.addressof(rows)
        a.step, a.rows, a.tops = ctypes.addressof(step), ctypes.addressof(rows), ctypes.addressof(self._top)
        a.tokens, a.all_tops = step.tokens, ctypes.addressof(tops)
        a.positions, a.contexts, a.state_source = step.positions, step.contexts, step.state_source
        a.stops, a.stop_starts = ids.buffer_info()[0], starts.buffer_info()[0]
        a.done, a.left = ctypes.addressof(done), ctypes.addressof(left)
        self.tape.run_while(left)
        end = n * done.value
        return [list(wide[n + k : n + k + n]) for k in range(0, end, n)], refusals(tops[end - n : end])

    def commit(self, seqs: Seqs, paths: Sequence[Sequence[int]]) -> None:
        """Advance recurrent states over the accepted rows of the last call (as in `CacheManager.commit`)."""
        kept = self.tape.accepted
        rows = [0] * (MAX_TREE_ROWS * seqs.num_seqs)
        for b, path in enumerate(paths):
            rows[b * MAX_TREE_ROWS : b * MAX_TREE_ROWS + len(path)] = [seqs.starts[b] + row for row in path]
        arrays = array("i", [len(path) for path in paths]), array("i", rows)
        kept.num_accepted, kept.accepted_rows = (values.buffer_info()[0] for values in arrays)
        self.tape.commit()

    def _describe(
        self, plan: StepPlan, placement: Placement, tokens: Sequence[int], slots: Sequence[Sequence[int]]
    ) -> None:
        """Write the rows of `plan` into the tape's step. slots: per page group, where rows go."""
        seqs, step = plan.seqs, self.tape.step
        positions: list[int] = []
        parents: list[int] = []
        for b, (context, rows) in enumerate(zip(seqs.contexts, seqs.lens, strict=True)):
            parents += seqs.tree(b).parents
            if seqs.trees[b] is None:
                positions += range(context, context + rows)
            else:
                positions += [context + depth for depth in seqs.tree(b).depths]
        groups = (self.tape.library.struct("PageGroup") * len(placement.pages))()
        step.num_rows, step.num_out = seqs.num_rows, len(plan.wanted)
        step.num_seqs, step.num_step_seqs = seqs.num_seqs, seqs.num_step
        step.groups, step.num_groups = ctypes.addressof(groups), len(groups)
        # One buffer for all integers of a width: caches are cold enough after a pass over the weights.
        wide, narrow = array("q"), array("i")
        places: list[tuple[Any, str, array[int], int]] = []

        def put(owner: Any, name: str, buffer: "array[int]", values: Iterable[int]) -> None:
            places.append((owner, name, buffer, len(buffer)))
            buffer.extend(values)

        put(step, "tokens", wide, tokens)
        put(step, "positions", narrow, positions)
        put(step, "seq_ids", narrow, [b for b, n in enumerate(seqs.lens) for _ in range(n)])
        put(step, "starts", narrow, seqs.starts)
        put(step, "contexts", narrow, seqs.contexts)
        put(step, "num_definite", narrow, seqs.definite)
        put(step, "parents", narrow, parents)
        put(step, "out_rows", narrow, plan.wanted)
        put(step, "state_source", narrow, placement.source)
        put(step, "state_destination", narrow, placement.destination)
        for group, own, mapping in zip(groups, placement.pages, slots, strict=True):
            width = max(map(len, own.tables), default=0)
            group.block_width = width
            put(group, "slot_mapping", wide, mapping)
            put(group, "block_table", narrow, _padded(own.tables, width))
            held = own.key_positions
            put(group, "num_keys", narrow, seqs.contexts if held is None else map(len, held))
            if held is not None:
                put(group, "key_positions", narrow, _padded(held, width * PAGE_SIZE))
        for owner, name, buffer, at in places:
            setattr(owner, name, buffer.buffer_info()[0] + buffer.itemsize * at)
        self._held = (wide, narrow, groups)


def _padded(rows: Sequence[Sequence[int]], width: int) -> list[int]:
    """Rows of equal width, one after the other, zeros behind."""
    return [n for row in rows for n in (*row, *[0] * (width - len(row)))]
