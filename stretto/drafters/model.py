"""A small model drafts for a large one: it continues the text by itself, over a cache of its own.

Each token of a draft is one step of the small model over all requests that ask. Its own cache keeps what the target
committed and nothing else: tokens that are only drafted are provisional rows of every such step and are dropped at its
end, so any mixer can draft, also one whose state cannot be cut (row n is computed anew in each of the steps after it,
which costs little where a step reads all weights anyway). Tokens are chosen as the target chooses: same sampling, same
noise, so that under the coupled judge a small model that agrees is accepted.

Source: arXiv 2211.17192. The two must share a tokenizer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stretto.core.card import Can, Card
from stretto.core.drafter import Ask, Draft, Drafter, Needs, Piece, Round, Target
from stretto.core.errors import FitError, UserError
from stretto.core.memory import parse_size
from stretto.kernels.sampling import RowSampling, score_picks
from stretto.runner.kept import KeptModel
from stretto.runner.runner import Rows, Runner, Sizes

if TYPE_CHECKING:
    from stretto.models.lm import LM

_CATCH_UP = 16  # tokens that are read in the step that drafts: more are read as a prompt is, before it


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """path: an alias, a .gguf file or a checkpoint directory. mem: for its cache."""

    path: str = ""
    mem: str = "256MiB"

    def __post_init__(self) -> None:
        parse_size(self.mem, "mem")

    def build(self, target: Target) -> "Model":
        if not self.path or target.load is None:
            raise UserError("the drafter `model` needs a model", try_="model:path=smollm2")
        lm, tokenizer = target.load(self.path)
        if lm.vocab_size < target.vocab_size or not tokenizer.shares_ids(target.tokenizer):
            raise UserError(
                f"{self.path} cannot draft for this model",
                why="their tokenizers differ",
                try_="a model of the same family",
            )
        needed = Can.CAUSAL | Can.CHAIN | (Can.PACKED if target.max_seqs > 1 else Can(0))
        if needed not in lm.can:
            raise UserError(
                f"{self.path} cannot draft",
                why="one of its layers is not causal, cannot take rows back, or takes one sequence per call",
            )
        try:
            return Model(lm, target, parse_size(self.mem, "mem"))
        except FitError as problem:
            raise FitError(
                f"{self.path} cannot draft: a context of {target.context:,} tokens does not fit into {self.mem}",
                why=problem.why,
                try_=f"more memory for its cache (model:path={self.path},mem=SIZE), or a smaller --ctx",
            ) from problem


class Model(Drafter):
    """lm: in the layout of `target.threads`. memory_bytes: for its cache; requests that find no place there are not
    drafted for."""

    needs = Needs(rows=True)

    def __init__(self, lm: "LM | KeptModel", target: Target, memory_bytes: int = 256 << 20) -> None:
        sizes = Sizes(
            context=target.context,
            max_seqs=target.max_seqs,
            max_rows=target.max_rows,
            memory_bytes=memory_bytes,
            kv=target.kv,
        )
        self._runner = Runner(lm, sizes, target.threads, vocab_size=target.vocab_size)
        self.runners = (self._runner,)
        self._texts: dict[int, list[int]] = {}

    def admit(self, rid: int, tokens: Sequence[int]) -> None:
        self._texts[rid] = list(tokens)
        self._runner.cache.admit(rid)

    def read(self, pieces: Sequence[Piece]) -> None:
        self._read({piece.rid: piece.start + len(piece.tokens) for piece in pieces})

    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        self._read({ask.rid: len(self._texts[ask.rid]) for ask in asks})
        drafts: dict[int, list[int]] = {ask.rid: [] for ask in asks}
        left = [ask for ask in asks if ask.max_tokens]
        while left:
            left = self._draft(left, drafts)
        return [Draft(tuple(drafts[ask.rid])) for ask in asks]

    def observe(self, rounds: Sequence[Round]) -> None:
        for one in rounds:
            self._texts[one.rid] += one.verdict.emitted

    def release(self, rid: int, keep: bool = False) -> None:
        del self._texts[rid]
        self._runner.cache.release(rid)

    def _read(self, ends: Mapping[int, int]) -> None:
        """Texts that are far ahead of the cache go into it up to these lengths, but for their last tokens."""
        runner = self._runner
        while True:
            budget, parts = runner.max_rows, list[Rows]()
            for rid, end in ends.items():
                text, held = self._texts[rid], runner.cache.length(rid)
                unread = min(end, len(text) - 1) - held
                rows = min(unread, budget)
                if unread > _CATCH_UP and rows > 0 and runner.cache.reserve(rid, rows):
                    parts.append(Rows(rid, text[held : held + rows], is_step=False))
                    budget -= rows
            if not parts:
                return
            step = runner.pack(parts)
            runner.forward(step)
            runner.commit(step, [()] * len(parts))

    def _draft(self, asks: Sequence[Ask], drafts: dict[int, list[int]]) -> list[Ask]:
        """One more token for those that fit into a step; those that want more, none if nothing fits."""
        runner, budget, parts, answering = self._runner, self._runner.max_rows, list[Rows](), list[Ask]()
        for ask in asks:
            text, own, held = self._texts[ask.rid], drafts[ask.rid], runner.cache.length(ask.rid)
            rows, unread = len(text) - held + len(own), len(text) - 1 - held
            if text and unread <= _CATCH_UP and rows <= budget and runner.cache.reserve(ask.rid, rows):
                parts.append(Rows(ask.rid, (*text[held:], *own), num_draft=1 + len(own), wants=1))
                answering.append(ask)
                budget -= rows
        if not parts:
            return []
        step = runner.pack(parts)
        how = [self._row(ask, drafts[ask.rid]) for ask in answering]
        chosen, refused = score_picks(runner.forward(step).scores, how, range(len(how)))
        runner.commit(step, [()] * len(parts))
        done = {answering[n].rid for n in refused}  # no token follows, now or later
        for n, (ask, token) in enumerate(zip(answering, chosen, strict=True)):
            if n not in refused:
                drafts[ask.rid].append(token)
        return [ask for ask in asks if ask.rid not in done and len(drafts[ask.rid]) < ask.max_tokens]

    def _row(self, ask: Ask, drafted: Sequence[int]) -> RowSampling:
        text, n = self._texts[ask.rid], ask.num_prompt
        return RowSampling(ask.sampling, ask.noise, len(text) + len(drafted), text[:n], text[n:], drafted)


CARD = Card(
    name="model",
    make=Config,
    idea="a small model with a cache of its own continues the text",
    paper="2211.17192",
    can=Can.CHAIN,
    tiny={"path": "tiny"},
    state="what the small model carries",
    cost="N steps of the small model",
)
