"""Tokenizers of checkpoint folders: ids and texts of the `tokenizers` library, specials and templates elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from vocabularies import CORPUS, DIGITS_THEN_GPT2, byte_level, library, llama_like, save, sentencepiece

from stretto.core.errors import ModelFileError
from stretto.text.stream import Detokenizer
from stretto.text.tokenizer import Tokenizer

SPACES, FN = "▁▁▁▁", "▁fn"
CLASSES = [
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
    "LlamaTokenizerFast",
    "Qwen2TokenizerFast",
    "Qwen2Tokenizer",
    "GPT2Tokenizer",
    "GPTNeoXTokenizerFast",
]


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = Detokenizer(tokenizer)
    return "".join([*(stream.push([i]) for i in ids), stream.finish()])


def starting_with(*ids: tuple[str, int]) -> processors.PostProcessor:
    """Puts tokens before a text."""
    names = " ".join(name for name, _ in ids)
    return processors.TemplateProcessing(single=f"{names} $A", special_tokens=list(ids))


# --- Ids


def in_threes() -> tokenizers.Tokenizer:
    """Cuts digits into runs of three, as Llama 3 does."""
    digits = pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|[^\p{L}\p{N}]"), "isolated")
    inner = byte_level(
        pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    )
    inner.post_processor = starting_with(("<s>", 0))
    return inner


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gpt_neox", "mamba2", "granite"])
@pytest.mark.parametrize("tokenizer_class", CLASSES)
def test_ids_are_those_of_the_file_whatever_class_is_named(
    tmp_path: Path, tokenizer_class: str, model_type: str
) -> None:
    words = {"bos_token": "<s>", "tokenizer_class": tokenizer_class}
    folder = save(tmp_path, in_threes(), words, config={"model_type": model_type})
    found = Tokenizer.from_dir(folder)
    for text in ("123456", "1234567 a 12", CORPUS[0]):
        assert found.encode(text) == library(folder).encode(text).ids


# Keys of tokenizer_config.json that change ids in some class of transformers.
@pytest.mark.parametrize(
    "setting",
    [
        {"add_bos_token": True},
        {"add_bos_token": False},
        {"add_eos_token": True},
        {"add_prefix_space": True},
        {"split_special_tokens": True},
        {"legacy": False},
        {"clean_up_tokenization_spaces": True},
        {"truncation_side": "left", "model_max_length": 4, "padding_side": "left"},
        {"pad_token": "<a token that only the config knows>"},
    ],
    ids=str,
)
@pytest.mark.parametrize("with_bos", [True, False])
def test_ids_are_those_of_the_file_whatever_the_config_says(
    tmp_path: Path, setting: dict[str, Any], with_bos: bool
) -> None:
    inner = byte_level()
    if with_bos:
        inner.post_processor = starting_with(("<s>", 0))
    folder = save(tmp_path, inner, {"bos_token": "<s>", "eos_token": "<|im_end|>"} | setting)
    found = Tokenizer.from_dir(folder)
    for text in ("", "a , b 's <|im_end|> c", CORPUS[0]):
        ids = library(folder).encode(text).ids
        assert found.encode(text) == ids
        assert found.decode(ids) == library(folder).decode(ids) and found.vocab_size == inner.get_vocab_size()


def processor(kind: str) -> processors.PostProcessor:
    bytes_ = processors.ByteLevel(trim_offsets=False)
    return {
        "bos": starting_with(("<s>", 0)),
        "two": starting_with(("<|im_end|>", 1), ("<s>", 0)),
        "after bytes": processors.Sequence([bytes_, starting_with(("<s>", 0))]),
        "one in another": processors.Sequence([starting_with(("<s>", 0)), starting_with(("<|im_end|>", 1))]),
        "bytes": bytes_,
    }[kind]


@pytest.mark.parametrize("kind", ["bos", "two", "after bytes", "one in another", "bytes"])
@pytest.mark.parametrize("config", [{"bos_token": "<s>"}, {}], ids=["named", "unnamed"])
def test_what_the_file_puts_before_a_text_is_put_there(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    inner = byte_level()
    inner.post_processor = processor(kind)
    folder = save(tmp_path, inner, config)
    found, plain = Tokenizer.from_dir(folder), library(folder).encode("Hi", add_special_tokens=False).ids
    assert found.encode("Hi") == library(folder).encode("Hi").ids
    assert found.encode("Hi", add_bos=False) == plain
    assert found.add_bos == (kind != "bytes") and not found.template_adds_bos


@pytest.mark.parametrize(
    "post",
    [
        processors.TemplateProcessing(single="<s> $A <|im_end|>", special_tokens=[("<s>", 0), ("<|im_end|>", 1)]),
        processors.RobertaProcessing(("<|im_end|>", 1), ("<s>", 0)),
        processors.BertProcessing(("<|im_end|>", 1), ("<s>", 0)),
    ],
    ids=["template", "roberta", "bert"],
)
def test_what_the_file_puts_after_a_text_is_left_out_of_prompts(tmp_path: Path, post: processors.PostProcessor) -> None:
    """A prompt goes on; the end that training puts there would end it. A text that is embedded has it."""
    inner = byte_level()
    inner.post_processor = post
    folder = save(tmp_path, inner, {"bos_token": "<s>", "eos_token": "<|im_end|>"})
    *ids, last = library(folder).encode("Hi").ids
    found = Tokenizer.from_dir(folder)
    assert last == 1 and found.encode("Hi") == ids and found.encode("Hi", is_whole=True) == [*ids, last]


def test_a_bos_is_added_when_asked(tmp_path: Path) -> None:
    found = Tokenizer.from_dir(save(tmp_path, byte_level(), {"bos_token": "<s>"}))
    assert not found.add_bos and found.encode("Hi", add_bos=True) == [0, *found.encode("Hi")]


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    inner = byte_level()
    inner.enable_truncation(4)
    inner.enable_padding(length=9)
    found = Tokenizer.from_dir(save(tmp_path, inner, {}))
    assert found.decode(found.encode(CORPUS[0])) == CORPUS[0]
    assert len(found.encode("a")) == 1


def test_special_tokens_as_text_leave_the_other_added_tokens(tmp_path: Path) -> None:
    inner = byte_level()
    inner.add_special_tokens(["<|a|>", "<|b|>"])
    inner.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("<left>", lstrip=True, normalized=False)])
    folder = save(tmp_path, inner, {})
    found, plain = Tokenizer.from_dir(folder), library(folder)
    plain.encode_special_tokens = True
    for text in ("x<|a|><tool>y", "a  <left> <|im_end|>", "<s>"):
        assert found.encode(text, parse_special=False) == plain.encode(text, add_special_tokens=False).ids
    assert inner.token_to_id("<tool>") in found.encode("<tool>", parse_special=False)


# --- Texts


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("word", [SPACES, FN, "<fn>", "<0x41>", "a▁b", "▁"])
def test_added_sentencepiece_tokens_are_spelled_as_the_file_says(tmp_path: Path, word: str, normalized: bool) -> None:
    inner = llama_like(AddedToken(word, normalized=normalized))
    folder = save(tmp_path, inner, {"bos_token": "<s>", "eos_token": "</s>"})
    found, n = Tokenizer.from_dir(folder), inner.token_to_id(word)
    a, b = inner.token_to_id("a"), inner.token_to_id("b")
    for ids in ([a, n, b], [n, b], [n], [n, n, a], [1, n, b, 2]):
        assert found.decode(ids) == streamed(found, ids) == library(folder).decode(ids)


@pytest.mark.parametrize("word", ["Müller", "čas", "đem", "Ġx", "<fn>", "  ", "日本"])
def test_added_byte_level_tokens_are_the_text_that_was_added(tmp_path: Path, word: str) -> None:
    """The library decodes them as if they were spelled in the byte alphabet, and `čas` becomes a carriage return."""
    inner = byte_level()
    inner.add_tokens([AddedToken(word, normalized=False)])
    found = Tokenizer.from_dir(save(tmp_path, inner, {}))
    ids = found.encode(f"a{word}b")
    assert inner.token_to_id(word) in ids and found.decode(ids) == streamed(found, ids) == f"a{word}b"


def test_a_character_that_breaks_off_is_one_replacement_in_both_styles(tmp_path: Path) -> None:
    (tmp_path / "pieces").mkdir()
    pieces = save(tmp_path / "pieces", llama_like(), {})
    found, a = Tokenizer.from_dir(pieces), library(pieces).token_to_id("a")
    euro = [3 + 0xE2, 3 + 0x82]
    assert found.decode([*euro, a]) == streamed(found, [*euro, a]) == b"\xe2\x82a".decode(errors="replace") == "\ufffda"
    assert library(pieces).decode([*euro, a]) == "\ufffd\ufffda"  # one per byte, as sentencepiece 0.2.3
    assert found.decode([a, *euro]) == "a\ufffd" and found.decode([*euro, 3 + 0xAC, a]) == "€a"
    inner = byte_level()
    folder = save(tmp_path, inner, {})
    found, ids = Tokenizer.from_dir(folder), [inner.token_to_id(char) for char in "âĤa"]
    assert found.decode(ids) == streamed(found, ids) == library(folder).decode(ids) == "\ufffda"


def test_sentencepiece_directory(tmp_path: Path) -> None:
    """A tokenizer.json in the shape of Llama-2's, built from the library's parts."""
    source = sentencepiece(True)
    (tmp_path / "tokenizer.json").write_text(Tokenizer.from_gguf(source).to_json())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    found = Tokenizer.from_dir(tmp_path)
    assert (found.add_bos, found.bos_id, found.eos_ids) == (True, 1, {2})
    for text in ("ab", "a b", " a", "é", ""):
        assert found.encode(text) == library(tmp_path).encode(text).ids
        assert found.decode(found.encode(text)) == library(tmp_path).decode(library(tmp_path).encode(text).ids) == text


# --- Refusals


REPLACE, FUSE, STRIP = decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)


@pytest.mark.parametrize(
    "steps",
    [
        [decoders.WordPiece()],
        [REPLACE, FUSE],  # byte pieces would stay as they are written
        [decoders.ByteFallback(), FUSE],  # spaces would
        [REPLACE, decoders.ByteFallback(), STRIP, FUSE],  # strips every token
        [REPLACE, decoders.ByteFallback(), FUSE, decoders.Strip(" ", 2, 0)],
        [REPLACE, decoders.ByteFallback(), FUSE, decoders.Strip(" ", 1, 1)],
        [decoders.Replace("_", " "), decoders.ByteFallback(), FUSE],
        [decoders.Metaspace(replacement="_")],
        [REPLACE, decoders.ByteFallback(), FUSE, decoders.CTC()],
        [decoders.ByteLevel(), decoders.Strip(" ", 1, 0)],
    ],
    ids=range(10),
)
def test_decoders_that_would_give_another_text_are_refused(tmp_path: Path, steps: list[decoders.Decoder]) -> None:
    inner = llama_like()
    inner.decoder = decoders.Sequence(steps)
    with pytest.raises(ModelFileError, match="decoder that is not supported"):
        Tokenizer.from_dir(save(tmp_path, inner, {}))


@pytest.mark.parametrize(
    "steps",
    [
        [REPLACE, decoders.ByteFallback(), FUSE],
        [REPLACE, decoders.ByteFallback(), FUSE, STRIP],
        [decoders.Sequence([REPLACE, decoders.ByteFallback()]), FUSE, STRIP],
        [decoders.Metaspace(), decoders.ByteFallback(), FUSE],
        [decoders.Metaspace(prepend_scheme="never")],
    ],
    ids=range(5),
)
def test_decoders_of_sentencepiece_give_the_librarys_text(tmp_path: Path, steps: list[decoders.Decoder]) -> None:
    inner = llama_like(AddedToken(SPACES, normalized=False))
    inner.decoder = decoders.Sequence(steps)
    folder = save(tmp_path, inner, {})
    found, ids = (
        Tokenizer.from_dir(folder),
        [inner.token_to_id(piece) for piece in ("▁a", "b", SPACES, "▁ab", "▁", "a")],
    )
    assert found.decode(ids) == library(folder).decode(ids)


def test_damaged_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no tokenizer\.json"):
        Tokenizer.from_dir(tmp_path)
    for content in (b"{", b"\xff\xfe{\x00}\x00"):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(ModelFileError, match="cannot read"):
            Tokenizer.from_dir(tmp_path)
    inner = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    save(tmp_path, inner, {})
    with pytest.raises(ModelFileError, match="decoder that is not supported"):
        Tokenizer.from_dir(tmp_path)
    inner = byte_level(DIGITS_THEN_GPT2)
    inner.normalizer = normalizers.Lowercase()
    with pytest.raises(ModelFileError, match="Lowercase normalizer"):
        Tokenizer.from_dir(save(tmp_path, inner, {})).to_gguf_metadata()
    inner = byte_level()
    inner.post_processor = processor("two")
    with pytest.raises(ModelFileError, match="GGUF") as refused:
        Tokenizer.from_dir(save(tmp_path, inner, {"bos_token": "<s>"})).to_gguf_metadata()
    assert "<|im_end|> <s>" in str(refused.value)
