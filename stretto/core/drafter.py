"""The `Drafter` socket: what might come next. Pure Python values, and tensors only where a drafter asks for them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from stretto.core.sampling import Noise, Sampling
from stretto.core.tree import Tree

if TYPE_CHECKING:
    from torch import Tensor

_GREEDY, _NO_NOISE = Sampling(temperature=0.0).resolve(), Noise(0)


@dataclass(frozen=True, slots=True)
class Draft:
    """Proposed continuation of one request: a chain, or a tree of at most 63 tokens. Empty = no proposal.

    tokens: of rows 1, 2, ... of `tree`, whose row 0 is the pending token; default a chain.
    probs: the law each token was *really* drawn from, after all processing, [N, W] fp32; None = point mass
    (the token was chosen, not drawn).
    scores: how sure the drafter is of every token, given those before it, in [0, 1]; None = it does not say.
    source: who proposed it, where a drafter asks several. version: of the weights that proposed it, if they change.
    """

    tokens: tuple[int, ...] = ()
    tree: Tree = None  # type: ignore[assignment]
    probs: "Tensor | None" = None
    scores: tuple[float, ...] | None = None
    source: str = ""
    version: int = 0

    def __post_init__(self) -> None:
        if self.tree is None:
            object.__setattr__(self, "tree", Tree.chain(len(self.tokens) + 1))
        assert len(self.tree) == len(self.tokens) + 1, "every row but the pending one has a token"
        assert all(parent >= 0 for parent in self.tree.parents[1:]), "a draft continues the pending token"
        for given in (self.probs, self.scores):
            assert given is None or len(given) == len(self.tokens), "every token has a law and a score, or none has"

    def __len__(self) -> int:
        return len(self.tokens)

    def token(self, row: int) -> int:
        """The token of a drafted row."""
        return self.tokens[row - 1]

    def truncate(self, num_tokens: int) -> "Draft":
        """Its first `num_tokens` tokens."""
        return self if num_tokens >= len(self.tokens) else self._kept(range(1, num_tokens + 1), self.tree.truncate)

    @property
    def acceptance(self) -> tuple[float, ...] | None:
        """How likely every token is accepted, after all: `scores` along its path. None where there are none."""
        if self.scores is None:
            return None
        reached = [1.0]
        for row, score in enumerate(self.scores, start=1):
            reached.append(reached[self.tree.parents[row]] * score)
        return tuple(reached[1:])

    def chain(self) -> "Draft":
        """The path of first children: what is left of a tree for a model or judge that takes chains only."""
        return self if self.tree.is_chain else self._kept(self.tree.first_chain(), Tree.chain)

    def select(self, rows: Sequence[int]) -> "Draft":
        """What is left of it where only `rows` stay, in order; with every row those that lead to it."""
        if len(rows) == len(self.tokens):
            return self
        number = {row: n for n, row in enumerate((0, *rows))}
        return self._kept(rows, lambda _: Tree.drafted([number[self.tree.parents[row]] for row in rows]))

    def _kept(self, rows: Sequence[int], tree_of: Any) -> "Draft":
        index = [row - 1 for row in rows]
        return Draft(
            tuple(self.tokens[i] for i in index),
            tree_of(len(index) + 1),
            None if self.probs is None else self.probs[index],
            None if self.scores is None else tuple(self.scores[i] for i in index),
            self.source,
            self.version,
        )


@dataclass(frozen=True, slots=True)
class Ask:
    """One request that wants a proposal: its name since `admit`, and how many tokens the step can verify.

    sampling, noise: how its tokens are chosen, for drafters that choose theirs the same way (resolved). num_prompt: so
    many of its tokens are the prompt, which some penalties leave out.
    """

    rid: int
    max_tokens: int
    sampling: Sampling = _GREEDY
    noise: Noise = _NO_NOISE
    num_prompt: int = 0


@dataclass(frozen=True, slots=True)
class Branch:
    """Rows that ride along with a request and are never committed (a Jacobi window, lookahead n-grams).

    parents: per row what it continues: a row of the request's draft (0 = the pending token), or, from
    `len(draft) + 1` on, an earlier row of this branch.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.parents) and all(p >= 0 for p in self.parents), "rows continue rows"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the judge decided for one request: the accepted rows of the draft, in order, and the tokens to emit.

    emitted: the tokens of the accepted rows, then one more that no draft gave; where plain steps ran as one, the token
    of each. (A text that ends inside `emitted` is cut there; its request is released in the same step.)
    """

    path: tuple[int, ...]
    emitted: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of one request that were committed: prompts, accepted drafts and pending tokens, in order.

    start: position of the first. features: per layer of `Needs.features`, [len(tokens), D] hidden states of exactly
    these rows; valid during the call.
    """

    rid: int
    start: int
    tokens: tuple[int, ...]
    features: "tuple[Tensor, ...]" = ()


@dataclass(frozen=True, slots=True)
class Round:
    """What became of one draft, which may have been empty, or of plain steps that ran as one.

    picks: with `Needs.picks`, the token that plain decoding emits after every row of the draft, also after rejected
    ones, [N + 1], and then after every row of the request's `Branch`; after a row that gives no token (NaN) some token
    stands there. None for steps that ran as one. top: with `Needs.top`, the likeliest tokens after the last accepted
    row and their log-probabilities, where the draft was not accepted to its end.
    """

    rid: int
    draft: Draft
    verdict: Verdict
    picks: tuple[int, ...] | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a drafter wants from the target beyond emitted tokens; whoever asks for nothing costs nothing.

    features: layers whose hidden states `read` gets (number n = after n layers, negative ones count from the end).
    rows: whether `read` is called where no features are asked for. extra: most rows per request that `extra` may add
    to a step. picks, top: see `Round`.
    """

    features: tuple[int, ...] = ()
    rows: bool = False
    extra: int = 0
    picks: bool = False
    top: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a drafter is built for. model: the `LM`; threads: native ones that run it, None = torch. context, max_seqs,
    max_rows: of its engine. vocab_size: tokens from here on do not exist. tokenizer: None where there is none.
    kv: the format of its cached keys and values. load: reads another model, in the same layout, and
    its tokenizer. eos_ids: tokens that end a text."""

    model: Any
    context: int
    max_seqs: int
    max_rows: int
    vocab_size: int
    threads: Any = None
    tokenizer: Any = None
    kv: str = "auto"
    load: Callable[[str], tuple[Any, Any]] | None = None
    eos_ids: frozenset[int] = field(default_factory=frozenset)


@runtime_checkable
class DrafterConfig(Protocol):
    """Settings of a drafter: a frozen dataclass whose fields a user may name (`NAME:field=value,...`)."""

    def build(self, target: Target) -> "Drafter": ...


class Drafter(ABC):
    """Proposes; never edits a sequence. Only `commit` changes state, and `read` and `observe` tell what it committed.

    A step calls, in this order: `admit` for requests that begin, `propose`, `extra`, `prefetch`, (the target runs),
    `read`, `observe`, `release` for requests that ended.

    Laws (tests/contracts/test_drafter.py), with an always-right and an always-wrong drafter as controls, batches of 1
    to 8, preemption and cancellation mixed in:
    - greedy output equals plain decoding token for token, for every mixer family;
    - the same seed gives the same text under the coupled judge;
    - `observe` hears of every step, also without a proposal, so a drafter never loses track;
    - `read` hears of every committed row exactly once between `admit` and `release`, in order;
    - after `release` nothing of the request is kept (unless the card says so).
    """

    needs: Needs = Needs()
    runners: Sequence[Any] = ()
    """What it runs models with (`runner.Runner`), each over a cache of its own."""
    is_lookup: bool = False
    """Whether `propose` only looks at what the host holds and changes nothing: it takes microseconds, may be asked at
    any time, and what it says may not be verified. Its drafts have scores."""

    @abstractmethod
    def admit(self, rid: int, tokens: Sequence[int]) -> None:
        """A request starts (or starts again after preemption) with these prompt and output tokens."""

    @abstractmethod
    def propose(self, asks: Sequence[Ask]) -> list[Draft]:
        """One draft per ask, possibly empty, with at most `ask.max_tokens` tokens, all of the target's vocabulary."""

    def extra(self, asks: Sequence[Ask], drafts: Sequence[Draft]) -> list[Branch]:
        """Rows that ride along with each ask, at most `needs.extra`; called if that is not 0 and trees can be verified.
        drafts: what of the proposals will be verified."""
        return [Branch((), ()) for _ in asks]

    def prefetch(self, drafts: Sequence[tuple[int, Draft]]) -> None:  # noqa: B027
        """These drafts, by request, are being verified. Returns at once: what can be prepared before the verdict is
        prepared elsewhere (a thread, a process, a device)."""

    def read(self, pieces: Sequence[Piece]) -> None:  # noqa: B027
        """Rows were committed; called if `needs.rows` or `needs.features`."""

    @abstractmethod
    def observe(self, rounds: Sequence[Round]) -> None:
        """The verdicts of one step, of all requests that emitted something."""

    @abstractmethod
    def release(self, rid: int, keep: bool = False) -> None:
        """The request ended or was preempted. keep: it ended by itself, so its text may be remembered for others."""
