"""Tokenizers against a naive encoder (tests/golden/make_tokens.py), the `tokenizers` library, naive SentencePiece."""

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from stretto.convert import pretokenizers
from stretto.convert.gguf_ import GGUFFile
from stretto.convert.stream import Detokenizer, StopMatcher
from stretto.convert.tokenizer import Tokenizer
from stretto.core.errors import ModelFileError, UserError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "smollm2_tokens.json").read_text())
CORPUS = [
    "The quick brown fox jumps over the lazy dog 1234567890 times, doesn't it?",
    "def f(x):\n    return x + 1\n\n" * 3,
    "Grüße aus Köln! Ça va? 你好，世界。 👩🏽‍💻",
]


@pytest.fixture(scope="module")
def metadata(smollm2_path: Path) -> dict[str, Any]:
    fields = GGUFFile(smollm2_path).metadata
    return {name: value for name, value in fields.items() if name.startswith("tokenizer.")}


@pytest.fixture(scope="module")
def smollm2(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_gguf(metadata)


def byte_level(pre: pre_tokenizers.PreTokenizer) -> tokenizers.Tokenizer:
    """A small trained byte-level BPE with two special tokens."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<s>", "<|im_end|>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(CORPUS, trainer)
    return inner


def save(folder: Path, inner: tokenizers.Tokenizer, config: dict[str, Any], **files: Any) -> Path:
    inner.save(str(folder / "tokenizer.json"))
    for name, content in {"tokenizer_config": config, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


# SmolLM's own tokenizer.json, in the shape transformers saves it.
DIGITS_THEN_GPT2 = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
)


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_ids_equal_the_naive_encoders(smollm2: Tokenizer, case: dict[str, Any]) -> None:
    assert smollm2.encode(case["text"]) == case["ids"]
    assert smollm2.decode(case["ids"], skip_special=False) == case["text"]


def test_fields_of_the_embedded_model(smollm2: Tokenizer) -> None:
    assert (smollm2.vocab_size, smollm2.bos_id, smollm2.eos_id, smollm2.add_bos) == (49152, 1, 2, False)
    assert smollm2.eos_ids == {0, 2}
    assert smollm2.special_ids == set(range(17))
    assert smollm2.chat_template is not None and "<|im_start|>" in smollm2.chat_template


def test_special_tokens_are_text_when_asked(smollm2: Tokenizer) -> None:
    text = "a<|im_end|>b"
    assert 2 in smollm2.encode(text)
    ids = smollm2.encode(text, parse_special=False)
    assert not smollm2.special_ids & set(ids) and smollm2.decode(ids) == text


def test_bos_is_added_when_asked(smollm2: Tokenizer) -> None:
    assert smollm2.encode("Hi", add_bos=True) == [1, *smollm2.encode("Hi")]
    assert smollm2.decode([1, *smollm2.encode("Hi")]) == "Hi"
    assert smollm2.decode([1, *smollm2.encode("Hi")], skip_special=False) == "<|im_start|>Hi"


def test_gguf_export_gives_back_the_file(smollm2: Tokenizer, metadata: dict[str, Any]) -> None:
    written = smollm2.to_gguf_metadata()
    assert {name: written.get(name) for name in metadata} == metadata


def test_json_export_reads_back(smollm2: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(smollm2.to_json())
    again = Tokenizer.from_dir(tmp_path)
    assert again.special_ids == smollm2.special_ids and again.vocab_size == smollm2.vocab_size
    for case in GOLDEN:
        assert again.encode(case["text"]) == case["ids"]


# The embedded model's vocabulary has no token for the bytes of the others.
KEPT = st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs"], exclude_characters="\x04\x06\x13\x14\x16\x1d")


@given(text=st.text(KEPT, max_size=60))
def test_text_survives(smollm2: Tokenizer, text: str) -> None:
    assert smollm2.decode(smollm2.encode(text), skip_special=False) == text


def test_characters_without_a_token_are_left_out(smollm2: Tokenizer) -> None:
    assert smollm2.encode("a\x06b") == [*smollm2.encode("a"), *smollm2.encode("b")]


@given(ids=st.lists(st.integers(0, 49151), max_size=40), cuts=st.lists(st.integers(0, 40), max_size=6))
@settings(max_examples=200)
def test_streamed_text_is_the_text_of_all_ids(smollm2: Tokenizer, ids: list[int], cuts: list[int]) -> None:
    for skip in (True, False):
        stream, text, at = Detokenizer(smollm2, skip_special=skip), "", 0
        for cut in [*sorted(cuts), len(ids)]:
            text += stream.push(ids[at:cut])
            assert smollm2.decode(ids, skip).startswith(text)
            at = max(at, cut)
        assert text + stream.finish() == smollm2.decode(ids, skip)


def test_incomplete_characters_are_held_back(smollm2: Tokenizer) -> None:
    family = "👨‍👩‍👧‍👦"
    ids = smollm2.encode(family)
    assert len(ids) > 7
    stream = Detokenizer(smollm2)
    pieces = [stream.push([i]) for i in ids]
    assert "" in pieces and "\ufffd" not in "".join(pieces) and "".join(pieces) == family and stream.finish() == ""
    assert stream.push(ids[:1]) == "" and stream.finish() == "\ufffd"


def test_decoding_equals_the_librarys(smollm2: Tokenizer) -> None:
    """The `tokenizers` decoder on ids that split characters, other than ends that stop inside one."""
    library = tokenizers.Tokenizer.from_str(smollm2.to_json())
    rng = random.Random(0)
    for _ in range(300):
        ids = [rng.randrange(49152) for _ in range(rng.randrange(12))]
        assert smollm2.decode(ids) == library.decode(ids, skip_special_tokens=True)


def test_unknown_ids_are_refused(smollm2: Tokenizer) -> None:
    for bad in (-1, 49152):
        with pytest.raises(UserError, match="not in the vocabulary"):
            smollm2.decode([bad])


def test_half_surrogates_are_refused(smollm2: Tokenizer) -> None:
    with pytest.raises(UserError, match="Unicode"):
        smollm2.encode("a\ud800b")


# --- Hugging Face directories


def test_directory_reads_ids_and_template(tmp_path: Path) -> None:
    config = {
        "bos_token": {"content": "<s>", "lstrip": False},
        "eos_token": "<|im_end|>",
        "add_bos_token": True,
        "chat_template": [{"name": "tool_use", "template": "B"}, {"name": "default", "template": "A"}],
    }
    folder = save(tmp_path, byte_level(DIGITS_THEN_GPT2), config, generation_config={"eos_token_id": [1, 7]})
    found = Tokenizer.from_dir(folder)
    assert (found.bos_id, found.eos_id, found.add_bos, found.eos_ids) == (0, 1, True, {1, 7})
    assert found.chat_template == "A" and found.special_ids == {0, 1}
    assert found.encode("Hi")[0] == 0 and found.encode("Hi", add_bos=False)[0] != 0
    (folder / "chat_template.jinja").write_text("C")
    assert Tokenizer.from_dir(folder).chat_template == "C"


def test_bos_rule_is_read_from_the_post_processor(tmp_path: Path) -> None:
    inner = byte_level(DIGITS_THEN_GPT2)
    assert not Tokenizer.from_dir(save(tmp_path, inner, {"bos_token": "<s>"})).add_bos
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    assert Tokenizer.from_dir(save(tmp_path, inner, {"bos_token": "<s>"})).add_bos


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    inner = byte_level(DIGITS_THEN_GPT2)
    inner.enable_truncation(4)
    inner.enable_padding(length=9)
    found = Tokenizer.from_dir(save(tmp_path, inner, {}))
    assert found.decode(found.encode(CORPUS[0])) == CORPUS[0]
    assert len(found.encode("a")) == 1


@given(
    text=st.text(
        alphabet=st.sampled_from("aeTh '\n1290é你👩.,don") | st.characters(exclude_categories=["Cs"]), max_size=40
    )
)
@settings(max_examples=60)
def test_conversion_to_gguf_keeps_the_ids(small_pair: tuple[Tokenizer, Tokenizer], text: str) -> None:
    source, converted = small_pair
    assert converted.encode(text) == source.encode(text)


@pytest.fixture(scope="module")
def small_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Tokenizer]:
    config = {"bos_token": "<s>", "eos_token": "<|im_end|>", "add_bos_token": True, "chat_template": "T"}
    source = Tokenizer.from_dir(save(tmp_path_factory.mktemp("small"), byte_level(DIGITS_THEN_GPT2), config))
    written = source.to_gguf_metadata()
    assert written["tokenizer.ggml.pre"] == "smollm" and written["tokenizer.ggml.eos_token_id"] == 1
    return source, Tokenizer.from_gguf(written)


# --- Pre-tokenizers


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


# --- SentencePiece

PIECES = ["▁", "a", "b", "c", "ab", "bc", "abc", "▁a", "▁ab", "aa", "aab", "cc", "▁b", "ca", "aaaa"]


def sentencepiece(prefix: bool, **more: Any) -> dict[str, Any]:
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


def test_sentencepiece_directory(tmp_path: Path) -> None:
    """A tokenizer.json in the shape of Llama-2's, built from the library's parts."""
    source = sentencepiece(True)
    (tmp_path / "tokenizer.json").write_text(Tokenizer.from_gguf(source).to_json())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    found = Tokenizer.from_dir(tmp_path)
    assert (found.add_bos, found.bos_id, found.eos_ids) == (True, 1, {2})
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in ("ab", "a b", " a", "é", ""):
        assert found.encode(text) == library.encode(text).ids
        assert found.decode(found.encode(text)) == library.decode(library.encode(text).ids) == text


# --- Refusals


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
    ],
)
def test_damaged_files_are_refused(
    small_pair: tuple[Tokenizer, Tokenizer], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelFileError, match=message):
        Tokenizer.from_gguf(small_pair[0].to_gguf_metadata() | change)


def test_damaged_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"no tokenizer\.json"):
        Tokenizer.from_dir(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
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


def test_harmony_replies_go_on_after_a_message(small_pair: tuple[Tokenizer, Tokenizer]) -> None:
    base = small_pair[0].to_gguf_metadata()
    tokens, types = base["tokenizer.ggml.tokens"], base["tokenizer.ggml.token_type"]

    def with_controls(*names: str) -> frozenset[int]:
        changed = {"tokenizer.ggml.tokens": [*tokens, *names], "tokenizer.ggml.token_type": [*types, *[3] * len(names)]}
        return Tokenizer.from_gguf(base | changed).eos_ids

    n = len(tokens)
    assert with_controls("<|end|>", "<|endoftext|>") == {1, n, n + 1}
    assert with_controls("<|end|>", "<|return|>", "<|call|>") == {1, n + 1, n + 2}


# --- Stop strings


def first_stop(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The stop string that is complete first; of those that end there the longest."""
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if hits:
            longest = max(hits, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(
    text=st.text(alphabet="ab", max_size=30),
    stops=st.lists(st.text(alphabet="ab", max_size=4), max_size=4),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
@settings(max_examples=500)
def test_stop_strings_are_found_wherever_the_text_is_split(text: str, stops: list[str], cuts: list[int]) -> None:
    matcher, shown, hit, at = StopMatcher(stops), "", None, 0
    expected, stop = first_stop(text, stops)
    for cut in [*sorted(cuts), len(text)]:
        emit, hit = matcher.push(text[at:cut])
        at, shown = max(at, cut), shown + emit
        assert expected.startswith(shown)
        if hit is not None:
            break
    assert (shown + matcher.finish(), hit) == (expected, stop)


def test_the_stop_string_that_is_complete_first_wins() -> None:
    assert StopMatcher(["abb", "b"]).push("abb") == ("a", "b")
    assert StopMatcher(["b", "ab"]).push("xab") == ("x", "ab")
    assert StopMatcher([]).push("ab") == StopMatcher([""]).push("ab") == ("ab", None)


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    matcher = StopMatcher(["</end>"])
    assert matcher.push("abc <") == ("abc ", None)
    assert matcher.push("/en") == ("", None)
    assert matcher.push("dx") == ("</endx", None)
    assert matcher.push("y</end>z") == ("y", "</end>")
