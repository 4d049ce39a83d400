"""Small tokenizers for the tests: byte-level and SentencePiece, as folders and as GGUF metadata."""

import json
import random
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog 1234567890 times, doesn't it?",
    "def f(x):\n    return x + 1\n\n" * 3,
    "Grüße aus Köln! Ça va? 你好，世界。 👩🏽‍💻",
]
# SmolLM's own tokenizer.json, in the shape transformers saves it.
DIGITS_THEN_GPT2 = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
)
PIECES = ["▁", "a", "b", "c", "ab", "bc", "abc", "▁a", "▁ab", "aa", "aab", "cc", "▁b", "ca", "aaaa"]


def byte_level(pre: pre_tokenizers.PreTokenizer = DIGITS_THEN_GPT2) -> tokenizers.Tokenizer:
    """A small trained byte-level BPE with two special tokens, `<s>` 0 and `<|im_end|>` 1."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "<|im_end|>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(CORPUS, trainer)
    return inner


def save(folder: Path, inner: tokenizers.Tokenizer, words: dict[str, Any], /, **files: Any) -> Path:
    """Write tokenizer.json, tokenizer_config.json and further JSON files into `folder`."""
    inner.save(str(folder / "tokenizer.json"))
    for name, content in {"tokenizer_config": words, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def library(folder: Path) -> tokenizers.Tokenizer:
    """The oracle of ids and texts: the `tokenizers` library on tokenizer.json alone."""
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def llama_like(*added: AddedToken) -> tokenizers.Tokenizer:
    """A tokenizer.json in the shape of Llama-2's: `<unk>` 0, `<s>` 1, `</s>` 2, bytes from 3 on, PIECES, `added`."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *PIECES]
    vocab = {word: i for i, word in enumerate(words)}
    model = models.BPE(vocab=vocab, merges=[("▁", "a"), ("a", "b")], unk_token="<unk>", byte_fallback=True)
    inner = tokenizers.Tokenizer(model)
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(steps)
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    inner.add_tokens(list(added))
    return inner


def sentencepiece(prefix: bool, **more: Any) -> dict[str, Any]:
    """GGUF metadata of kind llama over PIECES."""
    rng = random.Random(1)
    ranks = rng.sample(range(len(PIECES)), len(PIECES))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *PIECES]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(PIECES)],
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(r) for r in ranks],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": prefix,
        **more,
    }


def byte_metadata(*more: tuple[str, int], **keys: Any) -> dict[str, Any]:
    """GGUF metadata of kind gpt2: one token per byte, then (text, type) pairs from id 256 on. keys: more of them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    named = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": [*alphabet, *(text for text, _ in more)],
        "token_type": [*[1] * 256, *(kind for _, kind in more)],
        "merges": [],
    } | keys
    return {f"tokenizer.ggml.{key}": value for key, value in named.items()}
