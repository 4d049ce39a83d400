"""Which texts find their beginning in the prefix cache: its own code over integers, without a model or a clock.

`serve` runs texts one after the other and counts tokens; `best_alpha` chooses the weight of `marconi` by that, from
texts that were served (arXiv 2411.19379, section 4.3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from stretto.cache.evict.marconi import Marconi
from stretto.cache.ledger import Ledger, Room
from stretto.cache.prefix_cache import Reuse
from stretto.core.policy import Worth

ALPHAS = (0.0, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0)


@dataclass(frozen=True, slots=True)
class Served:
    """A request. prompt, output: its tokens, at least one of each."""

    prompt: Sequence[int]
    output: Sequence[int]
    space: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """What the cache had. cached: tokens of each prompt; tokens: of all prompts; saved: operations, in those of
    `Worth`."""

    cached: tuple[int, ...]
    tokens: int
    saved: float

    @property
    def rate(self) -> float:
        """Tokens that were cached, of all."""
        return sum(self.cached) / self.tokens


def serve(texts: Sequence[Served], room: Room, reuse: Reuse, worth: Worth | None = None) -> Found:
    """Every text after the other: what was found of each. Raises AssertionError for one that does not fit."""
    reuse.policy.know(worth or Worth())
    ledger, cached = Ledger(room, reuse), list[int]()
    for rid, text in enumerate(texts):
        tokens = list(text.prompt)
        held = ledger.admit(rid, tokens, text.space)
        cached.append(held)
        while held < len(text.prompt):
            cut = ledger.next_cut(rid)
            rows = min(len(text.prompt) - held, (cut or len(text.prompt)) - held)
            assert ledger.reserve(rid, rows), "a text does not fit"
            ledger.copies(rid)
            ledger.advance(rid, rows)
            held += rows
        for token in text.output[:-1]:
            tokens.append(token)
        if len(text.output) > 1:
            assert ledger.reserve(rid, len(text.output) - 1), "a text does not fit"
            ledger.advance(rid, len(text.output) - 1)
        ledger.release(rid)
    costs = worth or Worth()
    return Found(tuple(cached), sum(len(t.prompt) for t in texts), sum(costs.saved(0, n) for n in cached))


def best_alpha(
    texts: Sequence[Served], room: Room, worth: Worth, alphas: Sequence[float] = ALPHAS
) -> tuple[float, dict[float, float]]:
    """The weight that saves most operations over these texts (the smallest of equals), and what each saves."""
    saved = {alpha: serve(texts, room, Reuse(policy=Marconi(alpha=alpha)), worth).saved for alpha in alphas}
    return max(saved, key=lambda alpha: (saved[alpha], -alpha)), saved
