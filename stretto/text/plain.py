"""A vocabulary as plain values, and back: what a later start needs of it without reading the model's files."""

from typing import Any

import tokenizers

from stretto.text._vocabulary import Vocabulary

_SETS = ("added_ids", "special_ids", "verbatim_ids", "eos_ids")
_IDS = ("prefix", "suffix")
_VALUES = ("style", "bos_id", "eos_id", "template_adds_bos", "strip_space", "chat_template")


def vocabulary_to_plain(vocabulary: Vocabulary) -> tuple[dict[str, Any], str]:
    """Values for JSON, and tokenizer.json."""
    found: dict[str, Any] = {name: getattr(vocabulary, name) for name in _VALUES}
    found |= {name: sorted(getattr(vocabulary, name)) for name in _SETS}
    found |= {name: dict(getattr(vocabulary, name)) for name in ("special_tokens", "token_ids")}
    found |= {"tokens": list(vocabulary.tokens)}
    found |= {name: list(getattr(vocabulary, name)) for name in _IDS}
    return found, vocabulary.inner.to_str()


def vocabulary_from_plain(plain: dict[str, Any], tokenizer_json: str) -> Vocabulary:
    """The same vocabulary."""
    sets = {name: frozenset(plain[name]) for name in _SETS}
    known = plain | sets | {name: tuple(plain[name]) for name in _IDS}
    return Vocabulary(inner=tokenizers.Tokenizer.from_str(tokenizer_json), **known)
