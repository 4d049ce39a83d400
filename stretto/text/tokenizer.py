"""Text to token ids and back: the tokenizers of Hugging Face directories and of GGUF files.

Encoding is the `tokenizers` library's; decoding is ours and works on bytes (`_spelling`), so that streamed text equals
the text of all ids at once. What the files say is read in `_tokenizer_json` and `_tokenizer_gguf`.
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from stretto.core.errors import UserError
from stretto.text._spelling import Spelling
from stretto.text._tokenizer_gguf import gguf_fields, read_gguf
from stretto.text._tokenizer_json import read_dir
from stretto.text._vocabulary import Vocabulary


class Tokenizer:
    """A vocabulary with its merges, special tokens and chat template. Build it with `from_dir` or `from_gguf`.

    Laws: `decode(encode(text))` is `text` for byte-level vocabularies without a normalizer that have a token for every
    byte (bytes without one are left out, as they were in training); `decode` of any ids is the
    UTF-8 text of their bytes, damaged sequences as U+FFFD; `Detokenizer` gives the same text in pieces.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._spelling = Spelling(vocabulary)

    @classmethod
    def from_dir(cls, path: Path) -> "Tokenizer":
        """tokenizer.json, tokenizer_config.json, generation_config.json and chat_template.jinja of a directory.

        Raises ModelFileError for damage and for what is not supported.
        """
        return cls(read_dir(path))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """The tokenizer of a GGUF file, from its key-value pairs (`tokenizer.ggml.model` gpt2 or llama).

        Raises ModelFileError for damage and for what is not supported.
        """
        return cls(read_gguf(metadata))

    @property
    def vocabulary(self) -> Vocabulary:
        """What the files say, as values."""
        return self._vocabulary

    @property
    def vocab_size(self) -> int:
        """Number of ids; the model's matrices may have more rows."""
        return len(self._vocabulary.tokens)

    def shares_ids(self, other: "Tokenizer") -> bool:
        """Whether every id that both have means the same."""
        ours, theirs = self._vocabulary, other._vocabulary
        n = min(len(ours.tokens), len(theirs.tokens))
        return ours.style == theirs.style and list(ours.tokens[:n]) == list(theirs.tokens[:n])

    @property
    def bos_id(self) -> int | None:
        """The token that begins a text, whether or not the file puts it before every text (`add_bos`)."""
        return self._vocabulary.bos_id

    @property
    def eos_id(self) -> int | None:
        """The end that the file names as such."""
        return self._vocabulary.eos_id

    @property
    def eos_ids(self) -> frozenset[int]:
        """All tokens that end a text: those the file names, and end tokens known by name."""
        return self._vocabulary.eos_ids

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that are not text: `decode` leaves them out."""
        return self._vocabulary.special_ids

    @property
    def add_bos(self) -> bool:
        """Whether `encode` puts a BOS, or what else the file says, before a text if it is not told otherwise."""
        return bool(self._vocabulary.prefix)

    @property
    def strip_space(self) -> bool:
        """Whether decoding drops the space that encoding put before the first word."""
        return self._vocabulary.strip_space

    @property
    def chat_template(self) -> str | None:
        """The source of the file's default template."""
        return self._vocabulary.chat_template

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Name -> text of the special tokens that the file names, for chat templates: `bos_token`, `pad_token`, ...

        A folder's are those of tokenizer_config.json, then of special_tokens_map.json, every `*_token` among them.
        Where no end is named and some are known, `eos_token` is the first of them.
        """
        return self._vocabulary.special_tokens

    @property
    def template_adds_bos(self) -> bool:
        """Whether the BOS comes before what a chat template writes, too, unless the template wrote it.

        True for a GGUF file that puts a BOS before every text. A folder's template writes all special tokens itself.
        """
        return self._vocabulary.template_adds_bos

    def encode(
        self, text: str, *, add_bos: bool | None = None, parse_special: bool = True, is_whole: bool = False
    ) -> list[int]:
        """Ids of `text`. add_bos None = as the file says. parse_special False: `<|im_end|>` in the text is plain text.
        is_whole: the text is not continued, so what the file puts behind a text (an EOS) comes behind it.

        Raises UserError for text that is no Unicode (lone surrogates).
        """
        inner = self._vocabulary.inner if parse_special else self._plain
        try:
            ids: list[int] = inner.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as e:  # the library has no error of its own for this
            raise UserError("the text is not valid Unicode", why="it holds half of a surrogate pair") from e
        if is_whole:
            ids += self._vocabulary.suffix
        if add_bos is False:
            return ids
        bos_id = self.bos_id
        wanted = (bos_id,) if add_bos and bos_id is not None else ()
        return [*(self._vocabulary.prefix or wanted), *ids]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD. Raises UserError for an id outside the vocabulary.

        A character whose bytes break off is one U+FFFD, in both styles, as Python and the Unicode standard have it:
        `<0xE2><0x82>` and then `a` is one U+FFFD and `a`, where `tokenizers` and `sentencepiece` give one U+FFFD per
        byte. A token that a byte-level tokenizer.json adds is the text that was added; the library's decoder takes it
        for a spelling and breaks letters such as `é` and `č`.
        """
        skipped = self.special_ids if skip_special else frozenset[int]()
        text = b"".join(self.token_bytes(i) for i in ids if i not in skipped).decode("utf-8", errors="replace")
        return text[1:] if self.strip_space and text.startswith(" ") else text

    def token_bytes(self, i: int) -> bytes:
        """The bytes one id adds to the text."""
        return self._spelling.bytes_of(i)

    def token_text(self, i: int) -> str:
        """The token as the file stores it (`Ġthe`, `<|im_end|>`), for listings."""
        return self._vocabulary.tokens[i]

    def to_json(self) -> str:
        """tokenizer.json."""
        text: str = self._vocabulary.inner.to_str()
        return text

    def to_gguf_metadata(self) -> dict[str, Any]:
        """`tokenizer.*` fields of a GGUF file. Raises ModelFileError for a pre-tokenizer that GGUF has no name for."""
        return gguf_fields(self._vocabulary)

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        return _without_control(self._vocabulary.inner, self.special_ids)


def _without_control(inner: tokenizers.Tokenizer, special: frozenset[int]) -> tokenizers.Tokenizer:
    """The same tokenizer, for which special tokens are text. A second one, since the switch is the object's own."""
    plain = tokenizers.Tokenizer(inner.model)
    if inner.normalizer is not None:
        plain.normalizer = inner.normalizer
    if inner.pre_tokenizer is not None:
        plain.pre_tokenizer = inner.pre_tokenizer
    # All of them, in order: the library counts ids up from the size of the vocabulary.
    plain.add_tokens([_marked(token, i in special) for i, token in sorted(inner.get_added_tokens_decoder().items())])
    plain.encode_special_tokens = True
    return plain


def _marked(token: AddedToken, special: bool) -> AddedToken:
    return AddedToken(
        token.content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=special,
    )
