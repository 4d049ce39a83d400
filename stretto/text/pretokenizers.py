"""How byte-level BPE tokenizers cut text into words before merging: the table behind `tokenizer.ggml.pre`.

A GGUF file names its pre-tokenizer instead of carrying it. The patterns are those of the models' own tokenizer.json
files; they run in the `tokenizers` library (Oniguruma syntax), one after the other, each match a piece of its own. A
wrong pattern does not fail, it silently costs quality, so a name that is not in the table is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, normalizers, pre_tokenizers

from stretto.core.errors import ModelFileError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_ASCII_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""


def _words(digits: str) -> str:
    """Words with one leading symbol, runs of `digits`, runs of symbols, spaces."""
    return rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"


def _cased(digits: str, suffix: str) -> str:
    """Words that also end where lower case turns to upper case."""
    start = r"[^\r\n\p{L}\p{N}]?"
    words = f"{start}{_UPPER}*{_LOWER}+{suffix}|{start}{_UPPER}+{_LOWER}*{suffix}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


@dataclass(frozen=True, kw_only=True, slots=True)
class PreTokenizer:
    """patterns: cut in this order. nfc: text is normalised first. ignore_merges: a word that is a token stays whole."""

    patterns: tuple[str, ...]
    nfc: bool = False
    ignore_merges: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """The object that cuts and then maps bytes to characters."""
        cuts: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns
        ]
        return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    def normalizer(self) -> normalizers.Normalizer | None:
        return normalizers.NFC() if self.nfc else None


# The first name of a kind is the one that is written; the others are read.
_KINDS: tuple[tuple[tuple[str, ...], PreTokenizer], ...] = (
    (
        ("gpt-2", "default", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4"),
        PreTokenizer(patterns=(_GPT2,)),
    ),
    (
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        PreTokenizer(patterns=(_DIGIT, _GPT2)),
    ),
    (
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"),
        PreTokenizer(patterns=(_words(r"\p{N}{1,3}"),), ignore_merges=True),
    ),
    (("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"), PreTokenizer(patterns=(_words(r"\p{N}{1,3}"),))),
    (("qwen2", "megrez"), PreTokenizer(patterns=(_words(r"\p{N}"),), nfc=True)),
    (("deepseek-r1-qwen", "stablelm2", "hunyuan", "grok-2"), PreTokenizer(patterns=(_words(r"\p{N}"),))),
    (("tekken",), PreTokenizer(patterns=(_cased(r"\p{N}", ""),), ignore_merges=True)),
    (("gpt-4o", "llama4", "minimax-m2"), PreTokenizer(patterns=(_cased(r"\p{N}{1,3}", f"{_CONTRACTION}?"),))),
    (
        ("deepseek-v3", "hunyuan-dense"),
        PreTokenizer(
            patterns=(
                r"\p{N}{1,3}",
                "[一-龥぀-ゟ゠-ヿ]+",
                rf"{_ASCII_PUNCTUATION}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
                rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
            )
        ),
    ),
)
_BY_NAME = {name: kind for names, kind in _KINDS for name in names}


def known_names() -> list[str]:
    """Every name that `by_name` takes."""
    return sorted(_BY_NAME)


def by_name(name: str) -> PreTokenizer:
    """The pre-tokenizer a GGUF file names. Raises ModelFileError."""
    if name not in _BY_NAME:
        raise ModelFileError(
            f"unknown pre-tokenizer {name!r} (tokenizer.ggml.pre)",
            why=f"guessing one would silently change the tokens; known: {', '.join(known_names())}",
            try_="convert the model from its Hugging Face directory instead",
        )
    return _BY_NAME[name]


def name_of(tokenizer_json: Mapping[str, Any]) -> str:
    """The `tokenizer.ggml.pre` name of a tokenizer.json document. Raises ModelFileError if it matches none."""
    patterns = _patterns(tokenizer_json.get("pre_tokenizer"))
    found = PreTokenizer(
        patterns=tuple(patterns or ()),
        nfc=_is_nfc(tokenizer_json.get("normalizer")),
        ignore_merges=bool(tokenizer_json["model"].get("ignore_merges")),
    )
    for names, kind in _KINDS:
        if kind == found and patterns:
            return names[0]
    shown = json.dumps(tokenizer_json.get("pre_tokenizer"), ensure_ascii=False)
    raise ModelFileError(
        "this tokenizer cannot be written to GGUF",
        why=f"its pre-tokenizer has no known tokenizer.ggml.pre name: {shown[:300]}",
        try_="convert to a format that carries tokenizer.json",
    )


def _patterns(node: Mapping[str, Any] | None) -> list[str] | None:
    """The cuts of a tokenizer.json `pre_tokenizer` in order; None = something else."""
    match node:
        case {"type": "Sequence", "pretokenizers": list(parts)}:
            cuts = [_patterns(part) for part in parts]
            return None if any(c is None for c in cuts) else [p for c in cuts for p in c or ()]
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return [pattern.replace("\r", r"\r").replace("\n", r"\n")]
        case {"type": "Digits", "individual_digits": True}:
            return [_DIGIT]
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
            return []
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return [_GPT2]
    return None


def _is_nfc(node: Mapping[str, Any] | None) -> bool:
    match node:
        case None | {"type": "Sequence", "normalizers": []}:
            return False
        case {"type": "NFC"} | {"type": "Sequence", "normalizers": [{"type": "NFC"}]}:
            return True
    raise ModelFileError(
        f"this tokenizer cannot be written to GGUF: it has a {node['type']} normalizer",
        why="tokenizer.ggml.pre names stand for no normalizer or NFC only",
        try_="convert to a format that carries tokenizer.json",
    )
