"""`Submission`: everything that one request of `AsyncLLM` is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stretto.core.grammar import TokenMatcher
from stretto.core.pooling import Kind
from stretto.core.sampling import Sampling
from stretto.text.stream import Text
from stretto.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Prompts = Prompt | Sequence[Prompt]


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """ids: of the prompt. continues: the text goes on from it, so its first space belongs to it. child: number of this
    answer among those of one prompt and seed. priority, tenant, space: see `stretto.core.policy.Job`. skip_special:
    tokens that are not text are left out of it. matcher: of the grammar of `sampling`, for this request alone
    (`LLM.matcher`). drafts: tokens may be drafted for it. lora: name of its adapter. pooling: it is embedded so, and
    nothing is sampled."""

    ids: Sequence[int]
    sampling: Sampling
    continues: bool = False
    child: int = 0
    priority: int = 0
    tenant: str = ""
    space: str = ""
    skip_special: bool = True
    matcher: TokenMatcher | None = None
    drafts: bool = True
    lora: str | None = None
    pooling: Kind | None = None

    def how(self) -> dict[str, Any]:
        """What the engine is told of it besides prompt, sampling and grammar."""
        names = ("child", "priority", "tenant", "space", "drafts", "lora", "pooling")
        return {name: getattr(self, name) for name in names}

    def text(self, tokenizer: Tokenizer) -> Text:
        """Its tokens as text."""
        grammar = self.sampling.grammar
        return Text(
            tokenizer,
            self.sampling.stops,
            skip_special=self.skip_special,
            shows=grammar.shows if grammar is not None else (),
            continues=self.continues,
        )
