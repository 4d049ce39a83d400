"""The embedded model's tokenizer: against a naive encoder (tests/golden/make_tokens.py) and `tokenizers`."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from stretto.convert.gguf_ import GGUFFile
from stretto.core.errors import UserError
from stretto.text.stream import Detokenizer
from stretto.text.tokenizer import Tokenizer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "smollm2_tokens.json").read_text())


@pytest.fixture(scope="module")
def metadata(smollm2_path: Path) -> dict[str, Any]:
    fields = GGUFFile(smollm2_path).metadata
    return {name: value for name, value in fields.items() if name.startswith("tokenizer.")}


@pytest.fixture(scope="module")
def smollm2(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_gguf(metadata)


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
