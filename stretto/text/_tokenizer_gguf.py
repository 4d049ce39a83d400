"""The tokenizer of a GGUF file, from its key-value pairs and back to them.

Token types: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte. Converters get them wrong, so tokens that
are known by their names are control whatever their type: the ends of a turn or a text (`_vocabulary.END_NAMES`), which
then end an answer, and the marks of fill-in-the-middle (`_FIM`), which do not: ggml stops at the marks of padding, a
new repository and a new file too, which in an answer are ordinary output. As in ggml, a key that names the token of a
role leaves the type alone.

`KEYS` says for every key what becomes of it. It follows the `gguf` package 0.19 and llama.cpp's `llama-vocab.cpp`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, processors

from stretto.core.errors import ModelFileError
from stretto.text import pretokenizers
from stretto.text._vocabulary import Style, Vocabulary, control_names, end_names, with_eos

T = TypeVar("T")

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)
_SPACE = "\u2581"
ROLES: Mapping[str, str] = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "sep_token": "tokenizer.ggml.seperator_token_id",  # spelled so in the format
    "cls_token": "tokenizer.ggml.cls_token_id",
    "mask_token": "tokenizer.ggml.mask_token_id",
    "eot_token": "tokenizer.ggml.eot_token_id",
    "eom_token": "tokenizer.ggml.eom_token_id",
}
"""Name of a special token, as templates and tokenizer_config.json have it -> the key of its id."""
# What a SentencePiece vocabulary means where a key is missing.
_LLAMA_ROLES = {"bos_token": 1, "eos_token": 2, "unk_token": 0}
_ENDS = ("eos_token", "eot_token", "eom_token")
_END_KEYS = tuple(ROLES[name] for name in _ENDS)
# Keys that name the token of a role in fill-in-the-middle -> the names by which it is known without them.
_FIM: Mapping[tuple[str, ...], str] = {
    ("fim_pre_token_id", "prefix_token_id"): """<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE>
        <|code_prefix|> <|prefix|>""",
    ("fim_suf_token_id", "suffix_token_id"): """<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF>
        <|code_suffix|> <|suffix|>""",
    ("fim_mid_token_id", "middle_token_id"): """<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID>
        <|code_middle|> <|middle|>""",
    ("fim_pad_token_id",): "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    ("fim_rep_token_id",): "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    ("fim_sep_token_id",): "<|file_sep|>",
}


@dataclass(frozen=True, slots=True)
class Key:
    """What becomes of a key: it is read (no reason), it changes nothing here (`harmless`), or it is refused by name
    unless it is absent or has the neutral value."""

    harmless: str | None = None
    refused: str | None = None
    neutral: Any = None


_OTHER_KIND = "text would be changed before it is cut, as tokenizers of another kind do"
KEYS: Mapping[str, Key] = {
    **dict.fromkeys(("ggml.model", "ggml.pre", "ggml.tokens", "ggml.token_type", "ggml.scores", "ggml.merges"), Key()),
    **dict.fromkeys((key.removeprefix("tokenizer.") for key in ROLES.values()), Key()),
    **dict.fromkeys((f"ggml.{key}" for keys in _FIM for key in keys), Key()),
    "ggml.eos_token_ids": Key(),  # written by ollama beside eos_token_id
    "ggml.add_bos_token": Key(),
    "ggml.add_space_prefix": Key(),  # in SentencePiece vocabularies; ggml's byte-level path does not look at it
    "chat_template": Key(),
    "ggml.add_eos_token": Key(),  # behind a text that is embedded; a prompt goes on
    "ggml.add_sep_token": Key(harmless="it stands between the two texts of a pair; a prompt is one text"),
    **dict.fromkeys(
        ("ggml.add_padding_token", "ggml.add_unknown_token", "ggml.add_mask_token"),
        Key(harmless="written by ollama for every special token; no reader puts one into a prompt"),
    ),
    "ggml.token_type_count": Key(harmless="it counts the segments of BERT, whose weights are refused"),
    "ggml.remove_extra_whitespaces": Key(refused=_OTHER_KIND, neutral=False),
    "ggml.precompiled_charsmap": Key(refused=_OTHER_KIND, neutral=[]),
    "ggml.normalizer.lowercase": Key(refused=_OTHER_KIND, neutral=False),
    "ggml.normalizer.strip_accents": Key(refused=_OTHER_KIND, neutral=False),
    "ggml.suppress_tokens": Key(refused="these tokens must never be chosen, and nothing here forbids them", neutral=[]),
    "huggingface.json": Key(harmless="a copy of the tokenizer.json that the other keys were made from"),
    "rwkv.world": Key(harmless="the vocabulary of another kind of tokenizer, which is refused by tokenizer.ggml.model"),
    "chat_templates": Key(harmless="the names of further templates; the default one is used"),
    "chat_template.{name}": Key(harmless="a further template; the default one is used"),
}
"""Key without `tokenizer.` -> what becomes of it. Keys that are not listed are those of some writer alone."""


def read_gguf(metadata: Mapping[str, Any]) -> Vocabulary:
    """The tokenizer of a GGUF file (`tokenizer.ggml.model` gpt2 or llama). Raises ModelFileError."""
    for name, key in KEYS.items():
        value = metadata.get(f"tokenizer.{name}")
        if key.refused is not None and value is not None and value != key.neutral:
            raise ModelFileError(
                f"tokenizer.{name} = {str(value)[:100]} is not supported",
                why=key.refused,
                try_="convert the model from its Hugging Face directory instead",
            )
    kind, tokens = _field(metadata, "model", str), _array(metadata, "tokens", str)
    types = _array(metadata, "token_type", int, optional=True) or [_NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise _damaged(f"{len(tokens)} tokens but {len(types)} token types")
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
    roles = _roles(metadata, types, kind)
    special = frozenset(i for i, t in enumerate(types) if t == _CONTROL or (t == _UNKNOWN and kind == "llama"))
    special |= _control_by_name(metadata, tokens)
    added = special | {i for i, t in enumerate(types) if t == _USER}
    inner.add_tokens([AddedToken(tokens[i], special=i in special, normalized=False) for i in sorted(added)])
    bos_id = roles.get("bos_token")
    prefix = (bos_id,) if bos_id is not None and _field(metadata, "add_bos_token", bool, default_bos) else ()
    if prefix:
        pair = (tokens[prefix[0]], prefix[0])
        inner.post_processor = processors.TemplateProcessing(single=f"{pair[0]} $A", special_tokens=[pair])
    eos_id = roles.get("eos_token")
    suffix = (eos_id,) if eos_id is not None and _field(metadata, "add_eos_token", bool, False) else ()
    ends = {roles[name] for name in _ENDS if name in roles}
    ends |= {_inside(i, tokens) for i in _array(metadata, "eos_token_ids", int, optional=True)}
    by_name = end_names(tokens)
    eos_ids = frozenset(ends | {i for i, token in enumerate(tokens) if token in by_name})
    return Vocabulary(
        inner=inner,
        tokens=tokens,
        style=style,
        added_ids=frozenset(added),
        special_ids=special,
        verbatim_ids=frozenset(added),
        prefix=prefix,
        suffix=suffix,
        bos_id=bos_id,
        eos_id=eos_id,
        eos_ids=eos_ids,
        special_tokens=with_eos({name: tokens[i] for name, i in roles.items()}, tokens, eos_ids),
        template_adds_bos=bool(prefix),
        strip_space=strip,
        chat_template=metadata.get("tokenizer.chat_template"),
        token_ids={key: value for key, value in metadata.items() if key.endswith("_token_id")},
    )


def gguf_fields(vocabulary: Vocabulary) -> dict[str, Any]:
    """`tokenizer.*` fields of a GGUF file. Raises ModelFileError for what GGUF has no words for."""
    document = json.loads(vocabulary.inner.to_str())
    if vocabulary.style != "bytes" or document["model"]["type"] != "BPE":
        raise ModelFileError("this tokenizer cannot be written to GGUF", why="only byte-level BPE can")
    tokens, prefix, bos_id = vocabulary.tokens, vocabulary.prefix, vocabulary.bos_id
    if prefix not in ((), (bos_id,)):
        shown = " ".join(tokens[i] for i in prefix)
        raise ModelFileError(
            "this tokenizer cannot be written to GGUF",
            why=f"it puts {shown} before every text, and GGUF has a place for the BOS alone",
            try_="convert to a format that carries tokenizer.json",
        )
    found: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pretokenizers.name_of(document),
        "tokenizer.ggml.tokens": [token or f"[PAD{i}]" for i, token in enumerate(tokens)],
        "tokenizer.ggml.token_type": [_type(vocabulary, i) for i in range(len(tokens))],
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in document["model"]["merges"]],
        "tokenizer.ggml.add_bos_token": bool(prefix),
        "tokenizer.ggml.add_eos_token": True if vocabulary.suffix == (vocabulary.eos_id,) else None,
        "tokenizer.ggml.add_space_prefix": False,
        ROLES["bos_token"]: bos_id,
        "tokenizer.chat_template": vocabulary.chat_template,
    }
    others = {key: i for key, i in vocabulary.token_ids.items() if key not in _END_KEYS}
    found = others | _end_fields(vocabulary) | found
    return {key: value for key, value in found.items() if value is not None}


def _type(vocabulary: Vocabulary, i: int) -> int:
    if not vocabulary.tokens[i]:
        return _UNUSED
    if i in vocabulary.special_ids:
        return _CONTROL
    return _USER if i in vocabulary.added_ids else _NORMAL


def _end_fields(vocabulary: Vocabulary) -> dict[str, int]:
    """The keys that make a reader end a text where this tokenizer does, and nowhere else."""
    ends = sorted(i for i in vocabulary.eos_ids if 0 <= i < len(vocabulary.tokens))
    known = dict(zip(_END_KEYS, ends[:1], strict=False))
    known |= {key: i for key, i in vocabulary.token_ids.items() if key in _END_KEYS and i in ends}
    by_name = end_names(vocabulary.tokens)
    left = [i for i in ends if i not in known.values() and vocabulary.tokens[i] not in by_name]
    free = [key for key in _END_KEYS if key not in known]
    if len(left) > len(free):
        raise ModelFileError(
            "this tokenizer cannot be written to GGUF",
            why=f"{len(left)} of its end tokens need a key and {len(free)} are left (eos, eot, eom)",
            try_="convert to a format that carries generation_config.json",
        )
    return known | dict(zip(free, left, strict=False))


def _roles(metadata: Mapping[str, Any], types: list[int], kind: str) -> dict[str, int]:
    """Name of a special token -> its id, where the vocabulary has it."""
    found = {}
    for name, key in ROLES.items():
        i = _field(metadata, key.removeprefix("tokenizer.ggml."), int, None)
        if i is None and kind == "llama" and (default := _LLAMA_ROLES.get(name, len(types))) < len(types):
            i = default if types[default] in (_CONTROL, _UNKNOWN) else None
        if i is None:
            continue
        if name in ("bos_token", *_ENDS):
            _inside(i, types)
        if 0 <= i < len(types):
            found[name] = i
    return found


def _control_by_name(metadata: Mapping[str, Any], tokens: list[str]) -> frozenset[int]:
    names = set(control_names(tokens))
    for keys, known in _FIM.items():
        if not any(f"tokenizer.ggml.{key}" in metadata for key in keys):
            names |= set(known.split())
    return frozenset(i for i, token in enumerate(tokens) if token in names)


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


def _damaged(what: str) -> ModelFileError:
    return ModelFileError(f"the tokenizer of this GGUF file is damaged: {what}", try_="fetch the file again")


def _inside(i: int, vocabulary: list[Any]) -> int:
    if not 0 <= i < len(vocabulary):
        raise _damaged(f"a special token has id {i}, the vocabulary {len(vocabulary)} tokens")
    return i


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
