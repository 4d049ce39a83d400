"""Tokenizers of GGUF files: the `gguf` package, the definition of SentencePiece, and a table of every key."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import AutoTokenizer
from vocabularies import byte_level, byte_metadata, library, save, sentencepiece

from stretto.convert.gguf_ import GGUFFile
from stretto.core.errors import ModelFileError
from stretto.text._tokenizer_gguf import KEYS
from stretto.text.stream import Detokenizer
from stretto.text.tokenizer import Tokenizer

# --- Byte-level vocabularies


@pytest.fixture(scope="module")
def small_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    inner = byte_level()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    config = {"bos_token": "<s>", "eos_token": "<|im_end|>", "chat_template": "T"}
    source = Tokenizer.from_dir(save(tmp_path_factory.mktemp("small"), inner, config))
    written = source.to_gguf_metadata()
    assert written["tokenizer.ggml.pre"] == "smollm" and written["tokenizer.ggml.eos_token_id"] == 1
    return source, Tokenizer.from_gguf(written)


@given(
    text=st.text(
        alphabet=st.sampled_from("aeTh '\n1290é你👩.,don") | st.characters(exclude_categories=["Cs"]), max_size=40
    )
)
@settings(max_examples=60)
def test_conversion_to_gguf_keeps_the_ids(small_pair: tuple[Tokenizer, Tokenizer], text: str) -> None:
    source, converted = small_pair
    assert converted.encode(text) == source.encode(text) and converted.encode(text)[0] == 0


def test_conversion_to_gguf_keeps_roles_and_ends(tmp_path: Path) -> None:
    inner = byte_level()
    inner.add_special_tokens(["<pad>", "<sep>", "[A]", "[B]"])
    words = {"bos_token": "<s>", "pad_token": "<pad>", "sep_token": "<sep>", "unk_token": "<s>", "mask_token": "<sep>"}
    a, b = inner.token_to_id("[A]"), inner.token_to_id("[B]")
    for config, ends in (
        ({"eos_token": "<|im_end|>"}, [1]),
        ({"eos_token": "<|im_end|>"}, [1, a, b]),  # two that a reader would not know
        ({"eos_token": "[A]", "eot_token": "[B]"}, [a, b]),
        ({"eos_token": "[A]", "eot_token": "[B]"}, [a]),  # named, but nothing says that it ends a text
        ({}, [a, b, 1]),
        ({}, []),
    ):
        source = Tokenizer.from_dir(save(tmp_path, inner, words | config, generation_config={"eos_token_id": ends}))
        found = Tokenizer.from_gguf(source.to_gguf_metadata())
        assert found.eos_ids == source.eos_ids >= set(ends)
        assert found.special_ids == source.special_ids
        names = source.special_tokens.keys() - ({"eot_token"} if b not in ends else set())
        assert all(found.special_tokens[name] == source.special_tokens[name] for name in names)
    source = Tokenizer.from_dir(save(tmp_path, inner, words, generation_config={"eos_token_id": [a, b, 2, 3]}))
    with pytest.raises(ModelFileError, match="cannot be written to GGUF") as refused:
        source.to_gguf_metadata()
    assert "4 of its end tokens need a key" in str(refused.value)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_file_that_the_gguf_package_wrote_from_a_folder(tmp_path: Path, adds_bos: bool) -> None:
    inner = byte_level()
    inner.add_special_tokens(["<pad>", "<unk>", "<sep>", "<mask>", "<|eot_id|>", "<|eom_id|>"])
    if adds_bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    words = {f"{role}_token": f"<{role}>" for role in ("pad", "unk", "sep", "mask")}
    words |= {"bos_token": "<s>", "eos_token": "<|im_end|>", "eot_token": "<|eot_id|>", "eom_token": "<|eom_id|>"}
    folder = save(tmp_path, inner, words | {"chat_template": "T", "tokenizer_class": "PreTrainedTokenizerFast"})
    size = inner.get_vocab_size()
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([inner.id_to_token(i) for i in range(size)])
    special = inner.get_added_tokens_decoder()
    writer.add_token_types([gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(size)])
    kinds = ("bos", "eos", "unk", "sep", "pad", "mask", "eot", "eom")
    gguf.SpecialVocab(folder, load_merges=True, special_token_types=kinds, n_vocab=size).add_to_gguf(writer, quiet=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = Tokenizer.from_gguf(GGUFFile(tmp_path / "a.gguf").metadata)
    assert found.special_tokens == AutoTokenizer.from_pretrained(folder).special_tokens_map
    assert (found.template_adds_bos, found.chat_template, found.eos_id) == (adds_bos, "T", 1)
    assert found.encode("", add_bos=None) == library(folder).encode("").ids


@pytest.mark.parametrize(
    ("keys", "adds"),
    [
        ({"add_bos_token": True}, True),
        ({"add_bos_token": False}, False),
        ({}, False),
        ({"pre": "llama-bpe"}, True),  # whose files may leave the key out
        ({"pre": "llama-bpe", "add_bos_token": False}, False),
        ({"add_bos_token": True, "bos_token_id": None}, False),
    ],
    ids=str,
)
def test_the_bos_of_a_file_comes_before_chats_as_before_plain_text(keys: dict[str, Any], adds: bool) -> None:
    found = Tokenizer.from_gguf(byte_metadata(("<s>", 3), ("</s>", 3), **{"bos_token_id": 256} | keys))
    assert found.template_adds_bos == found.add_bos == adds and found.encode("")[:1] == [256] * adds


def test_sentencepiece_files_may_leave_out_what_their_kind_means() -> None:
    source = sentencepiece(True)
    full = Tokenizer.from_gguf(source)
    assert full.template_adds_bos and full.special_tokens == {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    for key in ("bos_token_id", "eos_token_id", "add_space_prefix"):
        del source[f"tokenizer.ggml.{key}"]
    found = Tokenizer.from_gguf(source)
    assert found.encode("ab") == full.encode("ab") and found.eos_ids == full.eos_ids == {2}
    assert found.special_tokens == full.special_tokens
    source["tokenizer.ggml.token_type"][1] = 1  # `<s>` is a token like others
    assert Tokenizer.from_gguf(source).bos_id is None


def test_added_tokens_are_the_text_that_the_file_holds() -> None:
    """Converters write the spaces of user-defined tokens as spaces; ggml gives such tokens out as they are."""
    source = sentencepiece(True)
    for name, kind in (("    ", 4), ("▁fn", 4), ("▁x", 1)):
        source["tokenizer.ggml.tokens"] += [name]
        source["tokenizer.ggml.token_type"] += [kind]
        source["tokenizer.ggml.scores"] += [0.0]
    found, n = Tokenizer.from_gguf(source), len(source["tokenizer.ggml.tokens"]) - 3
    a = found.encode("a", add_bos=False)
    assert [found.decode([*a, n + i]) for i in range(3)] == ["a    ", "a▁fn", "a x"]
    found = Tokenizer.from_gguf(byte_metadata(("Ġfn", 4), ("Müller", 4), ("Ġa", 1)))
    assert [found.decode([256 + i]) for i in range(3)] == ["Ġfn", "Müller", " a"]
    assert found.decode(found.encode("der Müller")) == "der Müller"


# --- SentencePiece


def naive_sentencepiece(metadata: dict[str, Any], text: str) -> list[int]:
    """Merge the neighbours with the best score, the leftmost first, until none form a token; then bytes."""
    if metadata["tokenizer.ggml.add_space_prefix"] and text:
        text = " " + text
    ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    scores, parts = metadata["tokenizer.ggml.scores"], list(text.replace(" ", "▁"))
    while True:
        found = [(-scores[ids[a + b]], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
        if not found:
            break
        i = min(found)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [i for part in parts for i in ([ids[part]] if part in ids else [ids[f"<0x{b:02X}>"] for b in part.encode()])]


@given(text=st.text(alphabet="abc é👩 \n", max_size=30), prefix=st.booleans())
@settings(max_examples=300)
def test_sentencepiece_equals_its_definition(text: str, prefix: bool) -> None:
    metadata = sentencepiece(prefix)
    found = Tokenizer.from_gguf(metadata)
    ids = found.encode(text, add_bos=False)
    assert ids == naive_sentencepiece(metadata, text)
    assert found.decode(ids) == text


def test_sentencepiece_specials_and_streaming() -> None:
    found = Tokenizer.from_gguf(sentencepiece(True))
    assert found.add_bos and found.eos_ids == {2} and found.special_ids == {0, 1, 2}
    assert (
        found.encode("ab")[0] == 1
        and 2 in found.encode("a</s>")
        and 2 not in found.encode("a</s>", parse_special=False)
    )
    ids = found.encode("ab é")
    stream, going_on = Detokenizer(found), Detokenizer(found, continues=True)
    assert "".join([*(stream.push([i]) for i in ids), stream.finish()]) == "ab é"
    assert "".join([*(going_on.push([i]) for i in ids), going_on.finish()]) == " ab é"
    with pytest.raises(ModelFileError, match="only byte-level BPE"):
        found.to_gguf_metadata()


# --- Every key

# What llama.cpp reads (`LLM_KV_TOKENIZER_*`), beyond what the gguf package 0.19 knows; what ollama writes.
LLAMA_CPP = [
    "ggml.cls_token_id",
    "ggml.normalizer.lowercase",
    "ggml.normalizer.strip_accents",
    "ggml.suppress_tokens",
]
OLLAMA = ["ggml.eos_token_ids", "ggml.add_padding_token", "ggml.add_unknown_token", "ggml.add_mask_token"]
MARKS = [("<|fim_prefix|>", 4), ("<|fim_suffix|>", 4), ("<|fim_middle|>", 4), ("<PAD>", 4), ("<REPO>", 4)]
MARKS += [("<|file_sep|>", 4)]
# Key -> a value beside the one that BASE has (or has not), with which the tokenizer is another one, or refuses.
READ: dict[str, Any] = {
    "ggml.model": "llama",
    "ggml.pre": "smollm",
    "ggml.tokens": ["x"],
    "ggml.token_type": [1] * 268,
    "ggml.merges": ["1 2", "a b"],
    "ggml.add_bos_token": True,
    "ggml.add_eos_token": True,
    "chat_template": "T",
    **{f"ggml.{role}_token_id": 259 for role in ("bos", "eos", "unknown", "seperator", "padding", "cls", "mask")},
    **{f"ggml.{role}_token_id": 259 for role in ("eot", "eom", "prefix", "suffix", "middle")},
    **{f"ggml.fim_{role}_token_id": 259 for role in ("pre", "suf", "mid", "pad", "rep", "sep")},
    "ggml.eos_token_ids": [257, 259],
}
READ_IN_PIECES: dict[str, Any] = {
    "ggml.scores": [-score for score in sentencepiece(True)["tokenizer.ggml.scores"]],
    "ggml.add_space_prefix": False,
}
HARMLESS: dict[str, Any] = {
    "ggml.add_sep_token": True,
    "ggml.add_padding_token": True,
    "ggml.add_unknown_token": True,
    "ggml.add_mask_token": True,
    "ggml.token_type_count": 2,
    "huggingface.json": "{}",
    "rwkv.world": "x",
    "chat_templates": ["tool_use"],
    "chat_template.{name}": "B",
}
# Key -> a value that is refused, a neutral one.
REFUSED: dict[str, tuple[Any, Any]] = {
    "ggml.remove_extra_whitespaces": (True, False),
    "ggml.precompiled_charsmap": ([1, 2], []),
    "ggml.normalizer.lowercase": (True, False),
    "ggml.normalizer.strip_accents": (True, False),
    "ggml.suppress_tokens": ([5], []),
}


def base() -> dict[str, Any]:
    """Byte-level: `<s>` 256, `</s>` 257, `<a>` 258, `<x>` 259, then user-defined marks of fill-in-the-middle."""
    more = [("<s>", 3), ("</s>", 3), ("<a>", 4), ("<x>", 4), *MARKS, ("12", 1), ("ab", 1)]
    return byte_metadata(*more, merges=["1 2"], eos_token_id=257, bos_token_id=256, add_bos_token=False)


def state(metadata: dict[str, Any]) -> tuple[Any, ...]:
    """All that a tokenizer shows."""
    t = Tokenizer.from_gguf(metadata)
    texts = ["", "ab 1234 É", "aaaa abc", "a<x></s>b"]
    return (
        [t.encode(text) for text in texts] + [t.encode(text, add_bos=True, parse_special=False) for text in texts],
        [t.encode(text, is_whole=True) for text in texts],
        [t.decode([i]) for i in range(t.vocab_size)],
        (t.eos_ids, t.eos_id, t.special_ids, t.special_tokens, t.chat_template, t.template_adds_bos),
    )


def test_the_table_has_every_key() -> None:
    known = {value for name, value in vars(gguf.constants.Keys.Tokenizer).items() if not name.startswith("_")}
    assert {key.removeprefix("tokenizer.") for key in known} | {*LLAMA_CPP, *OLLAMA} <= KEYS.keys()
    assert {name for name, key in KEYS.items() if key.refused} == REFUSED.keys()
    assert {name for name, key in KEYS.items() if key.harmless} == HARMLESS.keys()
    read = {name for name, key in KEYS.items() if not key.refused and not key.harmless}
    assert read == READ.keys() | READ_IN_PIECES.keys()


@pytest.mark.parametrize("key", READ)
def test_a_key_that_is_read_changes_the_tokenizer(key: str) -> None:
    changed = base() | {f"tokenizer.{key}": READ[key]}
    if key in ("ggml.model", "ggml.tokens"):
        with pytest.raises(ModelFileError):
            state(changed)
    else:
        assert state(changed) != state(base())


@pytest.mark.parametrize("key", READ_IN_PIECES)
def test_a_key_that_sentencepiece_reads_changes_the_tokenizer(key: str) -> None:
    assert state(sentencepiece(True) | {f"tokenizer.{key}": READ_IN_PIECES[key]}) != state(sentencepiece(True))
    assert state(base() | {f"tokenizer.{key}": READ_IN_PIECES[key]}) == state(base())  # ggml does not look at it either


@pytest.mark.parametrize("source", [base, lambda: sentencepiece(True)], ids=["bytes", "pieces"])
@pytest.mark.parametrize("key", HARMLESS)
def test_a_harmless_key_changes_nothing(key: str, source: Callable[[], dict[str, Any]]) -> None:
    assert state(source() | {f"tokenizer.{key.format(name='tool_use')}": HARMLESS[key]}) == state(source())


@pytest.mark.parametrize("source", [base, lambda: sentencepiece(True)], ids=["bytes", "pieces"])
@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_would_change_the_ids_is_refused_by_name(key: str, source: Callable[[], dict[str, Any]]) -> None:
    value, neutral = REFUSED[key]
    with pytest.raises(ModelFileError, match=f"tokenizer.{key} = "):
        state(source() | {f"tokenizer.{key}": value})
    assert state(source() | {f"tokenizer.{key}": neutral}) == state(source())


# --- Damage


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.pre": "nonesuch"}, "unknown pre-tokenizer 'nonesuch'"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre is missing"),
        ({"tokenizer.ggml.model": "t5"}, "unknown tokenizer 't5'"),
        ({"tokenizer.ggml.model": None}, "tokenizer.ggml.model is missing"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokenizer.ggml.merges": ["nope nope"]}, "merges do not fit"),
        ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges is missing"),
        ({"tokenizer.ggml.token_type": [1, 1]}, "but 2 token types"),
        ({"tokenizer.ggml.eos_token_id": 10**6}, "special token has id 1000000"),
        ({"tokenizer.ggml.eos_token_ids": [1, 10**6]}, "special token has id 1000000"),
    ],
)
def test_damaged_files_are_refused(
    small_pair: tuple[Tokenizer, Tokenizer], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelFileError, match=message):
        Tokenizer.from_gguf(small_pair[0].to_gguf_metadata() | change)


def test_a_padding_token_outside_the_vocabulary_is_none(small_pair: tuple[Tokenizer, Tokenizer]) -> None:
    """Converters write -1 as 4294967295; nothing but a template could ask for it."""
    written = small_pair[0].to_gguf_metadata() | {"tokenizer.ggml.padding_token_id": 2**32 - 1}
    assert "pad_token" not in Tokenizer.from_gguf(written).special_tokens
