"""Text to token ids and back: the tokenizers of Hugging Face directories and of GGUF files.

Encoding is the `tokenizers` library's; decoding is ours and works on bytes, so that streamed text equals the text of
all ids at once. A byte-level token spells each of its bytes as one character (the GPT-2 table); a SentencePiece token
spells a space as U+2581 and a lone byte as `<0xNN>`. Token types of GGUF: 1 normal, 2 unknown, 3 control,
4 user-defined, 5 unused, 6 byte.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from stretto.convert import pretokenizers
from stretto.core.errors import ModelFileError, UserError

Style = Literal["bytes", "sentencepiece"]
T = TypeVar("T")

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
_SPACE = "\u2581"
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Control tokens that end a turn or a text, whatever the file's eos field says.
_END_NAMES = """</s> <|endoftext|> <|im_end|> <|end|> <|eot_id|> <|eom_id|> <|end_of_text|> <|eot|> <|eom|> <EOT> <eos>
<end_of_turn> <turn|> <|endofturn|> <|end_of_turn|> <|return|> <|call|> <|END_OF_TURN_TOKEN|> <｜end▁of▁sentence｜>"""
# In Harmony a message ends with <|end|> and the reply goes on; the text ends with one of the others.
_HARMONY = frozenset({"<|return|>", "<|call|>"})


def _byte_alphabet() -> dict[str, int]:
    """Character -> byte: printable Latin-1 stands for itself, the other bytes for U+0100 and up, in order (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTES = _byte_alphabet()


class Tokenizer:
    """A vocabulary with its merges, special tokens and chat template. Build it with `from_dir` or `from_gguf`.

    Laws: `decode(encode(text))` is `text` for byte-level vocabularies without a normalizer that have a token for every
    byte (bytes without one are left out, as they were in training); `decode` of any ids is the
    UTF-8 text of their bytes, damaged sequences as U+FFFD; `Detokenizer` gives the same text in pieces.
    """

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        tokens: Sequence[str],
        style: Style,
        special_ids: frozenset[int],
        added_ids: frozenset[int],
        bos_id: int | None,
        eos_ids: Iterable[int],
        eos_id: int | None = None,
        add_bos: bool,
        strip_space: bool = False,
        chat_template: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """tokens: text of every id, as stored. added_ids: tokens stored as plain text (special ones among them).

        eos_id: the end that templates write. eos_ids: all that the file names; end tokens known by name are added.
        strip_space: decoding drops the space that encoding put before the first word.
        metadata: fields of the file that an export carries on (`tokenizer.ggml.*`).
        """
        self._inner, self._tokens, self._style = inner, list(tokens), style
        self.special_ids, self._added_ids = special_ids, added_ids
        self.bos_id, self.eos_id = bos_id, eos_id
        self.add_bos, self.strip_space = add_bos and bos_id is not None, strip_space
        self.chat_template, self._metadata = chat_template, dict(metadata or {})
        self.eos_ids = frozenset(eos_ids) | _end_ids(self._tokens, special_ids)
        self._pieces: dict[int, bytes] = {}

    @classmethod
    def from_dir(cls, path: Path) -> "Tokenizer":
        """tokenizer.json, tokenizer_config.json, generation_config.json and chat_template.jinja of a directory."""
        inner = _read_inner(path / "tokenizer.json")
        config, generation = _read_json(path / "tokenizer_config.json"), _read_json(path / "generation_config.json")
        document = json.loads(inner.to_str())
        style, strip_space = _style_of(document)
        added = inner.get_added_tokens_decoder()
        vocab = inner.get_vocab(with_added_tokens=True)
        tokens = [""] * (max(vocab.values(), default=-1) + 1)
        for token, i in vocab.items():
            tokens[i] = token
        bos_id, eos_id = (_config_id(config, name, vocab) for name in ("bos_token", "eos_token"))
        add_bos = config.get("add_bos_token")
        if add_bos is None:
            # Only the post-processor knows: see what it puts before an empty text.
            add_bos = inner.encode("", add_special_tokens=True).ids[:1] == [bos_id]
        eos = {eos_id} | set(
            _ids(generation.get("eos_token_id")) or _ids(_read_json(path / "config.json").get("eos_token_id"))
        )
        return cls(
            inner,
            tokens=tokens,
            style=style,
            special_ids=frozenset(i for i, token in added.items() if token.special),
            added_ids=frozenset(added),
            bos_id=bos_id,
            eos_ids={i for i in eos if i is not None},
            eos_id=eos_id,
            add_bos=bool(add_bos),
            strip_space=strip_space,
            chat_template=_template_of(path, config),
            metadata={
                "tokenizer.ggml.eos_token_id": eos_id,
                "tokenizer.ggml.padding_token_id": _config_id(config, "pad_token", vocab),
            },
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """The tokenizer of a GGUF file, from its key-value pairs (`tokenizer.ggml.model` gpt2 or llama)."""
        kind, tokens = _field(metadata, "model", str), _array(metadata, "tokens", str)
        types = _array(metadata, "token_type", int, optional=True) or [_NORMAL] * len(tokens)
        if len(types) != len(tokens):
            raise _damaged(f"{len(tokens)} tokens but {len(types)} token types")
        bos_id = _field(metadata, "bos_token_id", int, None)
        ends = {i for key in ("eos", "eot", "eom") if (i := _field(metadata, f"{key}_token_id", int, None)) is not None}
        for i in ends | ({bos_id} if bos_id is not None else set()):
            if not 0 <= i < len(tokens):
                raise _damaged(f"a special token has id {i}, the vocabulary {len(tokens)} tokens")
        style: Style
        if kind == "gpt2":
            pre = pretokenizers.by_name(_field(metadata, "pre", str))
            inner = _byte_level(tokens, _array(metadata, "merges", str), pre)
            # Files of these kinds may leave out add_bos_token and still mean it.
            style, strip, default_bos = "bytes", False, pre.ignore_merges
        elif kind == "llama":
            strip = _field(metadata, "add_space_prefix", bool, True)
            inner = _sentencepiece(tokens, types, _array(metadata, "scores", float), prefix=strip)
            style, default_bos = "sentencepiece", True
        else:
            raise ModelFileError(
                f"unknown tokenizer {kind!r} (tokenizer.ggml.model)",
                why="supported: gpt2 (byte-level BPE) and llama (SentencePiece)",
            )
        special = frozenset(i for i, t in enumerate(types) if t == _CONTROL or (t == _UNKNOWN and kind == "llama"))
        added = special | {i for i, t in enumerate(types) if t == _USER}
        inner.add_tokens([AddedToken(tokens[i], special=i in special, normalized=False) for i in sorted(added)])
        add_bos = _field(metadata, "add_bos_token", bool, default_bos)
        if add_bos and bos_id is not None:
            pair = (tokens[bos_id], bos_id)
            inner.post_processor = processors.TemplateProcessing(single=f"{pair[0]} $A", special_tokens=[pair])
        return cls(
            inner,
            tokens=tokens,
            style=style,
            special_ids=special,
            added_ids=added,
            bos_id=bos_id,
            eos_ids=ends,
            eos_id=_field(metadata, "eos_token_id", int, None),
            add_bos=add_bos,
            strip_space=strip,
            chat_template=metadata.get("tokenizer.chat_template"),
            metadata={key: value for key, value in metadata.items() if key.endswith("_token_id")},
        )

    @property
    def vocab_size(self) -> int:
        """Number of ids; the model's matrices may have more rows."""
        return len(self._tokens)

    def encode(self, text: str, *, add_bos: bool | None = None, parse_special: bool = True) -> list[int]:
        """Ids of `text`. add_bos None = as the file says. parse_special False: `<|im_end|>` in the text is plain text.

        Raises UserError for text that is no Unicode (lone surrogates).
        """
        try:
            ids: list[int] = (self._inner if parse_special else self._plain).encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError) as e:  # the library has no error of its own for this
            raise UserError("the text is not valid Unicode", why="it holds half of a surrogate pair") from e
        if (self.add_bos if add_bos is None else add_bos) and self.bos_id is not None:
            return [self.bos_id, *ids]
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD. Raises UserError for an id outside the vocabulary."""
        skipped = self.special_ids if skip_special else frozenset[int]()
        text = b"".join(self.token_bytes(i) for i in ids if i not in skipped).decode("utf-8", errors="replace")
        return text[1:] if self.strip_space and text.startswith(" ") else text

    def token_bytes(self, i: int) -> bytes:
        """The bytes one id adds to the text."""
        piece = self._pieces.get(i)
        if piece is None:
            if not 0 <= i < len(self._tokens):
                raise UserError(f"token id {i} is not in the vocabulary", why=f"it has {len(self._tokens)} tokens")
            piece = self._pieces[i] = self._spell(i)
        return piece

    def token_text(self, i: int) -> str:
        """The token as the file stores it (`Ġthe`, `<|im_end|>`), for listings."""
        return self._tokens[i]

    def to_json(self) -> str:
        """tokenizer.json."""
        text: str = self._inner.to_str()
        return text

    def to_gguf_metadata(self) -> dict[str, Any]:
        """`tokenizer.*` fields of a GGUF file. Raises ModelFileError for a pre-tokenizer that GGUF has no name for."""
        document = json.loads(self.to_json())
        if self._style != "bytes" or document["model"]["type"] != "BPE":
            raise ModelFileError("this tokenizer cannot be written to GGUF", why="only byte-level BPE can")
        types = [
            _CONTROL if i in self.special_ids else _USER if i in self._added_ids else _NORMAL
            for i in range(self.vocab_size)
        ]
        for i, token in enumerate(self._tokens):
            if not token:
                types[i] = _UNUSED
        found: dict[str, Any] = {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pretokenizers.name_of(document),
            "tokenizer.ggml.tokens": [token or f"[PAD{i}]" for i, token in enumerate(self._tokens)],
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in document["model"]["merges"]],
            "tokenizer.ggml.add_bos_token": self.add_bos,
            "tokenizer.ggml.add_space_prefix": False,
            "tokenizer.ggml.bos_token_id": self.bos_id,
            "tokenizer.chat_template": self.chat_template,
        }
        return {key: value for key, value in (self._metadata | found).items() if value is not None}

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """The same model without its special tokens."""
        plain = tokenizers.Tokenizer(self._inner.model)
        if self._inner.normalizer is not None:
            plain.normalizer = self._inner.normalizer
        if self._inner.pre_tokenizer is not None:
            plain.pre_tokenizer = self._inner.pre_tokenizer
        user = sorted(self._added_ids - self.special_ids)
        plain.add_tokens([AddedToken(self._tokens[i], normalized=False) for i in user])
        return plain

    def _spell(self, i: int) -> bytes:
        token = self._tokens[i]
        if i in self._added_ids:
            return token.encode()
        if self._style == "sentencepiece":
            byte = _BYTE_PIECE.fullmatch(token)
            return bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode()
        if all(c in _BYTES for c in token):
            return bytes(_BYTES[c] for c in token)
        return token.encode()


def _end_ids(tokens: Sequence[str], special_ids: frozenset[int]) -> set[int]:
    ends = {i for i in special_ids if tokens[i] in _END_NAMES.split()}
    if len(_HARMONY & {tokens[i] for i in ends}) == len(_HARMONY):
        return {i for i in ends if tokens[i] != "<|end|>"}
    return ends


def _byte_level(tokens: list[str], merges: list[str], pre: pretokenizers.PreTokenizer) -> tokenizers.Tokenizer:
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    try:
        inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=pre.ignore_merges))
    except Exception as e:  # the library raises bare Exception for merges that do not fit the vocabulary
        raise _damaged(f"its merges do not fit its tokens ({e})") from e
    if pre.nfc:
        inner.normalizer = pre.normalizer()
    inner.pre_tokenizer, inner.decoder = pre.pre_tokenizer(), decoders.ByteLevel()
    return inner


def _sentencepiece(tokens: list[str], types: list[int], scores: list[float], *, prefix: bool) -> tokenizers.Tokenizer:
    """SentencePiece's BPE as ranked merges: of two neighbours that form a token, the best-scored token comes first."""
    if len(scores) != len(tokens):
        raise _damaged(f"{len(tokens)} tokens but {len(scores)} scores")
    vocab = {token: i for i, token in enumerate(tokens)}
    whole = [i for i, t in enumerate(types) if t == _NORMAL and len(tokens[i]) > 1]
    whole.sort(key=lambda i: -scores[i])
    merges = [
        (token[:cut], token[cut:])
        for token in (tokens[i] for i in whole)
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    unknown = next((tokens[i] for i, t in enumerate(types) if t == _UNKNOWN), None)
    model = models.BPE(vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=_BYTE in types)
    inner = tokenizers.Tokenizer(model)
    spaces = normalizers.Replace(" ", _SPACE)
    inner.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return inner


def _style_of(document: Mapping[str, Any]) -> tuple[Style, bool]:
    """How tokenizer.json spells bytes, and whether decoding strips the first space."""
    decoder = document.get("decoder") or {}
    steps = decoder.get("decoders", [decoder])
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return "bytes", False
    if kinds & {"ByteFallback", "Metaspace"}:
        strips = any(
            (s.get("type") == "Strip" and s.get("start", 0) > 0)
            or (s.get("type") == "Metaspace" and s.get("prepend_scheme", "always") != "never")
            for s in steps
        )
        return "sentencepiece", strips
    raise ModelFileError(
        "tokenizer.json has a decoder that is not supported",
        why=f"expected ByteLevel, ByteFallback or Metaspace, found {sorted(k for k in kinds if k) or 'none'}",
    )


def _read_inner(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise ModelFileError(f"no tokenizer.json in {path.parent}", try_="save the model with its fast tokenizer")
    try:
        inner = tokenizers.Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises bare Exception for any damage
        raise ModelFileError(f"cannot read {path}", why=str(e)) from e
    inner.no_truncation()
    inner.no_padding()
    return inner


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ModelFileError(f"cannot read {path}", why=str(e)) from e
    if not isinstance(found, dict):
        raise ModelFileError(f"cannot read {path}", why="it is no JSON object")
    return found


def _config_id(config: Mapping[str, Any], name: str, vocab: Mapping[str, int]) -> int | None:
    entry = config.get(name)
    text = entry.get("content") if isinstance(entry, dict) else entry
    return vocab.get(text) if isinstance(text, str) else None


def _ids(value: Any) -> list[int]:
    return [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]


def _template_of(path: Path, config: Mapping[str, Any]) -> str | None:
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    entry = config.get("chat_template")
    if isinstance(entry, list):
        named = {t["name"]: t["template"] for t in entry if isinstance(t, dict) and {"name", "template"} <= t.keys()}
        entry = named.get("default")
    return entry if isinstance(entry, str) else None


def _damaged(what: str) -> ModelFileError:
    return ModelFileError(f"the tokenizer of this GGUF file is damaged: {what}", try_="fetch the file again")


_NEEDED = object()


def _field(metadata: Mapping[str, Any], name: str, kind: Callable[[Any], T], default: Any = _NEEDED) -> T:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        if default is _NEEDED:
            raise _damaged(f"tokenizer.ggml.{name} is missing")
        found: T = default
        return found
    return kind(value)


def _array(metadata: Mapping[str, Any], name: str, kind: Callable[[Any], T], *, optional: bool = False) -> list[T]:
    values = _field(metadata, name, list, [] if optional else _NEEDED)
    return [kind(value) for value in values]
