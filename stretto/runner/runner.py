"""`Runner`: one model over its own pages and slots. It knows sequences by number and nothing of requests.

    reserve -> pack -> forward -> commit        (CacheManager says what each step of this means)

The engine runs its model through one, a draft model has one of its own, and so has the first half of a model that
drafts for the whole. On native threads the forward pass was recorded when the runner was made (`recording.py`), or by
an earlier process (`kept.py`).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stretto.cache.layout import PoolLayout
from stretto.cache.manager import CacheManager
from stretto.cache.prefix_cache import Reuse
from stretto.core.plan import StepPlan
from stretto.core.policy import EvictPolicy, Worth
from stretto.core.scores import Outputs
from stretto.core.seqs import Seqs
from stretto.core.tree import Tree
from stretto.kernels.native.library import Team
from stretto.kernels.sampling.native import Draw
from stretto.kernels.sampling.rows import Refusals
from stretto.runner.kept import KeptModel
from stretto.runner.sizes import Sizes

if TYPE_CHECKING:
    from stretto.models.lm import LM

__all__ = ["Outputs", "Rows", "Runner", "Sizes", "Step"]


@dataclass(frozen=True, slots=True)
class Rows:
    """What one sequence brings to a step.

    tokens: those that are certain, then `num_draft` provisional ones. tree: of all these rows; None = a chain.
    is_step: in step form, which provisional rows need; such sequences come first. wants: scores of so many rows at the
    end. scored: scores of these of its rows, too; they come behind those of all sequences. tags: integers that parts of
    the model may ask for (`Seqs.tag`).
    """

    rid: int
    tokens: Sequence[int]
    num_draft: int = 0
    tree: Tree | None = None
    is_step: bool = True
    wants: int = 0
    scored: range = range(0)
    tags: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """A packed step: its sequences, the arguments of the forward pass, and the order of its scores, if that is another
    one than that of the rows."""

    rids: tuple[int, ...]
    plan: StepPlan
    order: Sequence[int] | None = None

    @property
    def seqs(self) -> Seqs:
        return self.plan.seqs


class Runner:
    """model: an `LM`, or what was kept of one, which needs no torch. threads: native ones that run it (its matrices are
    in their layout); None = torch. taps: layers whose hidden states are wanted (`LM.features`). vocab_size: ids from
    here on have no scores. blocks: run the first so many blocks only, then norm and head. evict: what leaves the prefix
    cache first; None = there is none.

    Raises FitError if not even one sequence of `sizes.context` tokens fits into the memory.
    """

    def __init__(
        self,
        model: "LM | KeptModel",
        sizes: Sizes,
        threads: Team | None = None,
        *,
        taps: Sequence[int] = (),
        vocab_size: int | None = None,
        blocks: int | None = None,
        evict: EvictPolicy | None = None,
    ) -> None:
        self.sizes, self.taps = sizes, tuple(taps)
        self.vocab_size = min(vocab_size or model.vocab_size, model.vocab_size)
        self.max_rows = max(sizes.max_rows, sizes.max_seqs + 1)
        if isinstance(model, KeptModel):
            assert threads is not None and not taps and blocks is None, "a program computes what was recorded"
            opened = model.open(sizes, threads, max_rows=self.max_rows, vocab_size=self.vocab_size)
        else:
            from stretto.runner.opening import open_lm  # with torch

            model = model if blocks is None else model.first(blocks)
            how = {"max_rows": self.max_rows, "vocab_size": self.vocab_size}
            opened = open_lm(model, sizes, threads, taps=self.taps, **how)
        self.model, self.recorded = model, opened.recorded
        self.recording, self._compute, self._scope = opened.replay, opened.compute, opened.scope
        # Native attention reads what a row sees and no more.
        clears = self.recording is None or bool(self.host_operations)
        self.cache = CacheManager(opened.pools, clears=clears, reuse=self._reuse(evict, opened.pools.layout))

    @property
    def lm(self) -> "LM":
        """The model itself: not there where only its program was kept."""
        assert not isinstance(self.model, KeptModel)
        return self.model

    @property
    def d_model(self) -> int:
        """Numbers of a hidden state."""
        return self.model.d_model

    @property
    def host_operations(self) -> dict[str, str]:
        """Parts of the model that Python computes between native ones, and why; none where all is torch's."""
        return {} if self.recording is None else self.recording.host_operations

    @property
    def runs_ahead(self) -> bool:
        """Whether several plain steps can follow one another without Python."""
        return self.recording is not None and not self.host_operations

    @property
    def is_bitwise(self) -> bool:
        """Whether the state behind a token has the same bits, however it was computed: as a prompt, in one piece or
        several, token by token, or in a draft."""
        return self.runs_ahead and not self.sizes.coarse_prompts

    def _reuse(self, evict: EvictPolicy | None, layout: PoolLayout) -> Reuse | None:
        if evict is None or not self.sizes.prefix_bytes:
            return None
        page_bytes = layout.page_bytes.values()
        cost = self.model.token_cost
        memory = {"page_bytes": sum(page_bytes), "slot_bytes": layout.slot_bytes}
        evict.know(Worth(per_token=cost.per_token, per_pair=cost.per_pair, **memory))
        for_pages = self.sizes.prefix_bytes // (2 if layout.has_slots else 1)  # the other half is for states
        pages = for_pages // max(1, sum(page_bytes))
        return Reuse(policy=evict, is_exact=self.is_bitwise, max_idle=(pages,) * len(layout.groups))

    def pack(self, parts: Sequence[Rows]) -> Step:
        """The next step; its rows must have been reserved. Sequences in step form come first."""
        num_step = sum(part.is_step for part in parts)
        assert all(part.is_step for part in parts[:num_step]), "sequences in step form come first"
        tokens: list[int] = []
        wanted: list[int] = []
        scored: list[int] = []
        for part in parts:
            scored += (len(tokens) + row for row in part.scored)
            tokens += part.tokens
            wanted += range(len(tokens) - part.wants, len(tokens))
        seqs = Seqs.of(
            [len(part.tokens) for part in parts],
            [self.cache.length(part.rid) for part in parts],
            num_draft=[part.num_draft for part in parts],
            parents=[part.tree for part in parts],
            num_step=num_step,
            tags=_tags(parts),
        )
        rids = tuple(part.rid for part in parts)
        rows = sorted((*wanted, *scored))  # what the head computes comes in order
        place = {row: i for i, row in enumerate(rows)}
        order = [place[row] for row in (*wanted, *scored)] if scored else None
        return Step(rids, StepPlan(tokens, seqs, rows, self.cache.pack(rids, seqs)), order)

    def forward(self, step: Step) -> Outputs:
        """Scores of the wanted rows and what the head was given for them, hidden states of all."""
        outputs = self._compute(step.plan)
        return outputs if step.order is None else outputs.select(step.order)

    def commit(self, step: Step, paths: Sequence[Sequence[int]]) -> None:
        """Keep the certain rows, and of the provisional ones a path per sequence: numbers of rows among its tokens."""
        if self.recording is not None and any(paths):
            self.recording.commit(step.seqs, paths)
        with self._scope():
            self.cache.commit(step.rids, step.seqs, paths)

    def ahead(
        self, parts: Sequence[Rows], how: Sequence[Draw], stops: Sequence[Collection[int]], num_steps: int
    ) -> tuple[list[list[int]], Refusals]:
        """Up to `num_steps` plain steps, packed and committed; see `Replay.ahead`. parts: of the first one, a
        pending token each; rows for all steps must have been reserved.

        To the cache the rows after the first are a chain of which some are kept.
        """
        assert self.runs_ahead and self.recording is not None
        rids, n = [part.rid for part in parts], len(parts)
        contexts = [self.cache.length(rid) for rid in rids]
        seqs = Seqs.of([num_steps] * n, contexts, num_draft=[num_steps - 1] * n, num_step=n)
        caches = self.cache.pack(rids, seqs)
        first = Seqs.of([1] * n, contexts, num_step=n, tags=_tags(parts))
        plan = StepPlan([p.tokens[0] for p in parts], first, range(n), caches)
        chosen, refused = self.recording.ahead(plan, how, stops, num_steps)
        self.cache.commit(rids, seqs, [range(1, len(chosen))] * n)
        return chosen, refused


def _tags(parts: Sequence[Rows]) -> dict[str, list[int]]:
    """Of every row of these sequences, by name; 0 where a sequence has none of a name."""
    names = {name for part in parts for name in part.tags}
    return {name: [part.tags.get(name, 0) for part in parts for _ in part.tokens] for name in names}
