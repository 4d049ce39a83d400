"""A model as a program that native threads run: no torch, whoever recorded it, in whatever process.

The program depends on the model, on the layout of the pools and on nothing else: rows, sequences, positions and pages
are read from the step when it runs.
"""

import ctypes
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from ctypes import c_float
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from stretto.cache.placement import Placed, Placement
from stretto.core.pages import PAGE_SIZE
from stretto.core.plan import StepPlan
from stretto.core.scores import Outputs, Scores
from stretto.core.seqs import LORA, Seqs
from stretto.core.tree import MAX_TREE_ROWS
from stretto.kernels.native.operations import Operations
from stretto.kernels.sampling.native import Draw, LogitRows, row
from stretto.kernels.sampling.rows import Refusals, refusals

if TYPE_CHECKING:
    from torch import Tensor

LOGITS, TOP, ARGMAX, HIDDEN = "logits", "top", "argmax", "hidden"
"""Outputs of a program: [rows, W] fp32, of every row the largest fp32 and its lowest id, int32, and the hidden states
that the head was given, [rows, D] fp32."""


@dataclass(frozen=True, slots=True)
class Head:
    """num_rows: room of the outputs; stride: numbers from one row of logits to the next; vocab_size: ids from here on
    do not count. d_model, hidden_stride: numbers of a hidden state, and from one to the next."""

    num_rows: int
    stride: int
    vocab_size: int
    d_model: int
    hidden_stride: int


class Replay:
    """Called with a plan whose caches lie in the pools of the program, it returns the scores of its wanted rows, valid
    until the next call.

    outputs: addresses by name (`LOGITS`, ...). features: of a process with torch, the hidden states [T, D] that were
    asked for, for a number of rows. scope: around what operations of the host leave to be committed. memory: what the
    operations point to.
    """

    def __init__(
        self,
        operations: Operations,
        outputs: Mapping[str, int],
        head: Head,
        *,
        features: "Callable[[int], tuple[Tensor, ...]]" = lambda rows: (),
        scope: Callable[[], AbstractContextManager[object]] = nullcontext,
        memory: object = None,
    ) -> None:
        self.operations, self.head, self.scope = operations, head, scope
        self._logits, self._memory, self._features = outputs[LOGITS], memory, features
        self._hidden_states = outputs[HIDDEN]
        self._top = (ctypes.c_float * head.num_rows).from_address(outputs[TOP])
        self._argmax = (ctypes.c_int32 * head.num_rows).from_address(outputs[ARGMAX])
        self._choose, self._advance = (call.args for call in operations.between)
        self.host_operations = operations.host_operations
        self._held: tuple[array[int], array[int], ctypes.Array[Any]]  # what the step points to

    def __call__(self, plan: StepPlan) -> Outputs:
        assert isinstance(plan.caches, Placed)
        placement = plan.caches.placement
        self._describe(plan, placement, plan.token_ids, [own.slot_mapping for own in placement.pages])
        self.operations.plan = plan
        self.operations.run()
        rows = len(plan.wanted)
        held = LogitRows(self._logits, rows, self.head.vocab_size, 4 * self.head.stride, self.operations.team)
        scores = Scores(held.tensor, self._top[:rows], self._argmax[:rows], held)
        return Outputs(scores, self._features(plan.seqs.num_rows), self._hidden)

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
        assert isinstance(plan.caches, Placed) and plan.seqs.lens == (1,) * plan.seqs.num_seqs
        step: Any = self.operations.step
        a: Any = self._advance
        n, placement = plan.seqs.num_seqs, plan.caches.placement
        assert all(own.key_positions is None for own in placement.pages), "the keys of later steps have positions, too"
        slots = [[s for k in range(num_steps) for s in own.slot_mapping[k::num_steps]] for own in placement.pages]
        self._describe(plan, placement, [*plan.token_ids, *[0] * (num_steps * n)], slots)
        wide, *_ = self._held
        logits, argmax = self._logits, ctypes.addressof(self._argmax)
        sizes = 4 * self.head.stride, ctypes.sizeof(ctypes.c_int32)
        library = self.operations.library
        rows = (library.struct("Row") * n)()
        for b, draw in enumerate(how):
            rows[b] = row(library, logits + b * sizes[0], argmax + b * sizes[1], self.head.vocab_size, draw)
        tops = (ctypes.c_float * (n * num_steps))()
        ids, starts = array("q", [t for own in stops for t in own]), array("i", (0, *accumulate(map(len, stops))))
        done, left = ctypes.c_int64(0), ctypes.c_int64(num_steps)
        choose: Any = self._choose
        choose.num_rows, choose.rows = n, ctypes.addressof(rows)
        a.step, a.rows, a.tops = ctypes.addressof(step), ctypes.addressof(rows), ctypes.addressof(self._top)
        a.tokens, a.all_tops = step.tokens, ctypes.addressof(tops)
        a.positions, a.contexts, a.state_source = step.positions, step.contexts, step.state_source
        a.stops, a.stop_starts = ids.buffer_info()[0], starts.buffer_info()[0]
        a.done, a.left = ctypes.addressof(done), ctypes.addressof(left)
        self.operations.run_while(left)
        end = n * done.value
        return [list(wide[n + k : n + k + n]) for k in range(0, end, n)], refusals(tops[end - n : end])

    def commit(self, seqs: Seqs, paths: Sequence[Sequence[int]]) -> None:
        """Advance recurrent states over the accepted rows of the last call (as in `CacheManager.commit`)."""
        kept = self.operations.accepted
        rows = [0] * (MAX_TREE_ROWS * seqs.num_seqs)
        for b, path in enumerate(paths):
            rows[b * MAX_TREE_ROWS : b * MAX_TREE_ROWS + len(path)] = [seqs.starts[b] + row for row in path]
        arrays = array("i", [len(path) for path in paths]), array("i", rows)
        kept.num_accepted, kept.accepted_rows = (values.buffer_info()[0] for values in arrays)
        self.operations.commit()

    def _hidden(self, row: int) -> Sequence[float]:
        assert 0 <= row < self.head.num_rows
        found = (c_float * self.head.d_model).from_address(self._hidden_states + 4 * self.head.hidden_stride * row)
        return memoryview(found).cast("B").cast("f")

    def _describe(
        self, plan: StepPlan, placement: Placement, tokens: Sequence[int], slots: Sequence[Sequence[int]]
    ) -> None:
        """Write the rows of `plan` into the tape's step. slots: per page group, where rows go."""
        seqs, step = plan.seqs, self.operations.step
        positions: list[int] = []
        parents: list[int] = []
        for b, (context, rows) in enumerate(zip(seqs.contexts, seqs.lens, strict=True)):
            parents += seqs.tree(b).parents
            if seqs.trees[b] is None:
                positions += range(context, context + rows)
            else:
                positions += [context + depth for depth in seqs.tree(b).depths]
        groups = (self.operations.library.struct("PageGroup") * len(placement.pages))()
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
        step.loras = None
        if isinstance(loras := seqs.tags.get(LORA), tuple) and any(loras):
            put(step, "loras", narrow, loras)
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
            if own.num_shared is not None:
                put(group, "num_shared", narrow, own.num_shared)
        for owner, name, buffer, at in places:
            setattr(owner, name, buffer.buffer_info()[0] + buffer.itemsize * at)
        self._held = (wide, narrow, groups)


def _padded(rows: Sequence[Sequence[int]], width: int) -> list[int]:
    """Rows of equal width, one after the other, zeros behind."""
    return [n for row in rows for n in (*row, *[0] * (width - len(row)))]
