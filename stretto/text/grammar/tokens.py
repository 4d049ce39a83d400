"""A tokenizer of ours as llguidance sees it: the bytes of every token, its ends, and how a text is split."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stretto.core.errors import MissingDependency, UserError
from stretto.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_MARK = "\x02"  # takes the space that some tokenizers put before a text, and merges with nothing


class Split:
    """The object that llguidance asks. Tokens that are special are no text: a grammar reaches them by name alone."""

    bos_token_id: int | None = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.eos_ids)
        # Special ones without their 0xFF: llguidance puts it there.
        self.tokens: Sequence[bytes] = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.special_token_ids: Sequence[int] = sorted(tokenizer.special_ids | tokenizer.eos_ids)
        puts_space = tokenizer.vocabulary.style == "sentencepiece"
        self._mark = tokenizer.encode(_MARK, add_bos=False, parse_special=False) if puts_space else []

    def __call__(self, text: str | bytes) -> list[int]:
        """The ids of a text in the middle of another: no BOS, no special tokens, no space before its first word."""
        text = text if isinstance(text, str) else text.decode("utf-8", errors="replace")
        ids = self._tokenizer.encode(_MARK + text if self._mark else text, add_bos=False, parse_special=False)
        assert ids[: len(self._mark)] == self._mark, "the mark is split from what follows it"
        return ids[len(self._mark) :]


def llguidance_tokenizer(tokenizer: Tokenizer) -> "LLTokenizer":
    """It takes 0.3 s for 49,152 tokens. Raises UserError for a vocabulary without ends: no text would ever be whole;
    MissingDependency if llguidance is not there."""
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError as problem:
        raise MissingDependency(
            "structured output needs llguidance", why=str(problem), try_="pip install llguidance"
        ) from problem
    if not tokenizer.eos_ids:
        raise UserError("this model cannot follow a grammar", why="its tokenizer names no token that ends a text")
    wrapper = TokenizerWrapper(Split(tokenizer))
    return LLTokenizer(wrapper, eos_token=sorted(tokenizer.eos_ids), slices=LLTokenizer.general_slices())
