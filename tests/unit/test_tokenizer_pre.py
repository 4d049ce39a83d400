"""Pre-tokenizers by their GGUF names: words cut by hand, names of published tokenizer.json files."""

import json
from pathlib import Path
from typing import Any

import pytest

from stretto.core.errors import ModelFileError
from stretto.text import pretokenizers

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "smollm2_tokens.json").read_text())


def split(name: str, text: str) -> list[str]:
    pre = pretokenizers.by_name(name).pre_tokenizer()
    return [text[a:b] for _, (a, b) in pre.pre_tokenize_str(text)]


# Cut by hand, from the patterns of the models' tokenizer.json files.
@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("gpt-2", "Don't 1234 stop!  x", ["Don", "'t", " 1234", " stop", "!", " ", " x"]),
        ("smollm", "Don't 12 stop", ["Don", "'t", " ", "1", "2", " stop"]),
        ("starcoder", "a12", ["a", "1", "2"]),
        ("llama-bpe", "DON'T 1234567.\n\nx(y", ["DON", "'T", " ", "123", "456", "7", ".\n\n", "x", "(y"]),
        ("qwen2", "DON'T 123.\n\nx", ["DON", "'T", " ", "1", "2", "3", ".\n\n", "x"]),
        ("gpt-4o", "CamelCase's 1234", ["Camel", "Case's", " ", "123", "4"]),
        ("tekken", "CamelCase 12", ["Camel", "Case", " ", "1", "2"]),
        ("deepseek-v3", "12345 中文abc (def", ["123", "45", " ", "中文", "abc", " (", "def"]),
    ],
)
def test_words_are_cut_as_the_model_was_trained(name: str, text: str, words: list[str]) -> None:
    assert split(name, text) == words


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def document(pre: Any, *, normalizer: Any = None, ignore_merges: bool = False) -> dict[str, Any]:
    return {"pre_tokenizer": pre, "normalizer": normalizer, "model": {"ignore_merges": ignore_merges}}


def split_step(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


PLAIN_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


GPT2_BYTES = PLAIN_BYTES | {"use_regex": True}


def test_names_are_found_for_published_tokenizers() -> None:
    llama3 = {"type": "Sequence", "pretokenizers": [split_step(LLAMA3), PLAIN_BYTES]}
    qwen2 = {"type": "Sequence", "pretokenizers": [split_step(LLAMA3.replace("{1,3}", "")), PLAIN_BYTES]}
    digits = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, GPT2_BYTES]}
    assert pretokenizers.name_of(document(GPT2_BYTES)) == "gpt-2"
    assert pretokenizers.name_of(document(digits)) == "smollm"
    assert pretokenizers.name_of(document(llama3, ignore_merges=True)) == "llama-bpe"
    assert pretokenizers.name_of(document(llama3)) == "dbrx"
    assert pretokenizers.name_of(document(qwen2, normalizer={"type": "NFC"})) == "qwen2"
    assert pretokenizers.name_of(document(qwen2)) == "deepseek-r1-qwen"
    for other in (
        document(None),
        document(PLAIN_BYTES),
        document(digits, normalizer={"type": "NFC"}),
        document(digits, normalizer={"type": "Lowercase"}),
        document({"type": "Whitespace"}),
        document({"type": "Sequence", "pretokenizers": [split_step("a+"), PLAIN_BYTES]}),
    ):
        with pytest.raises(ModelFileError, match="cannot be written to GGUF"):
            pretokenizers.name_of(other)


@pytest.mark.parametrize("name", pretokenizers.known_names())
def test_every_known_name_keeps_all_text(name: str) -> None:
    for case in GOLDEN:
        assert "".join(split(name, case["text"])) == case["text"]
