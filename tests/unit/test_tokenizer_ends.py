"""Tokens that GGUF files give a wrong type: known by name, as ggml has them (llama.cpp, src/llama-vocab.cpp)."""

from typing import Any

import pytest
from vocabularies import byte_metadata, sentencepiece

from stretto.text.tokenizer import Tokenizer

# Names that ggml counts among the ends of a generation, whatever their type.
GGML_ENDS = [
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
    "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>",
    "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
]  # fmt: skip
OTHER_ENDS = ["<|eot|>", "<|eom|>", "<|END_OF_TURN_TOKEN|>", "<|endofturn|>", "<|end_of_turn|>"]
# Role -> the names that ggml takes for it where no key names a token.
GGML_FIM = {
    "fim_pre": "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>",
    "fim_suf": "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>",
    "fim_mid": "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>",
    "fim_pad": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "fim_rep": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "fim_sep": "<|file_sep|>",
}
NORMAL, CONTROL, USER, UNUSED = 1, 3, 4, 5


def with_tokens(*more: tuple[str, int], **keys: Any) -> tuple[Tokenizer, dict[str, int]]:
    """A byte-level tokenizer whose end is `[END]`, and the ids of `more`."""
    found = Tokenizer.from_gguf(byte_metadata(("[END]", CONTROL), *more, **{"eos_token_id": 256} | keys))
    return found, {name: 257 + i for i, (name, _) in enumerate(more)}


def is_control(found: Tokenizer, name: str, i: int) -> bool:
    """Found in a text, but not where special tokens are text, and left out of texts."""
    h, x = found.encode("h"), found.encode("x")
    parsed, plain = found.encode(f"h{name}x"), found.encode(f"h{name}x", parse_special=False)
    assert found.decode([*h, i, *x], skip_special=False) == f"h{name}x" == found.decode(plain)
    return i in found.special_ids and i in parsed and i not in plain and found.decode([*h, i, *x]) == "hx"


@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER, UNUSED])
@pytest.mark.parametrize("name", GGML_ENDS + OTHER_ENDS)
def test_an_end_is_one_by_its_name_whatever_its_type(name: str, kind: int) -> None:
    found, ids = with_tokens((name, kind))
    assert found.eos_ids == {256, ids[name]} and is_control(found, name, ids[name])


@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER])
def test_sentencepiece_vocabularies_have_them_too(kind: int) -> None:
    source = sentencepiece(True)
    source["tokenizer.ggml.tokens"] += ["<|im_end|>"]
    source["tokenizer.ggml.token_type"] += [kind]
    source["tokenizer.ggml.scores"] += [0.0]
    found, n = Tokenizer.from_gguf(source), len(source["tokenizer.ggml.tokens"]) - 1
    assert found.eos_ids == {2, n} and found.encode("a<|im_end|>", add_bos=False)[-1] == n
    assert found.decode([*found.encode("a"), n]) == "a"


def test_other_tokens_keep_their_type() -> None:
    found, ids = with_tokens(("<think>", USER), ("<tool_call>", NORMAL), ("<|im_start|>", CONTROL), ("<|ends|>", USER))
    assert found.eos_ids == {256} and found.special_ids == {256, ids["<|im_start|>"]}
    assert found.decode([ids["<think>"], ids["<tool_call>"], ids["<|im_start|>"]]) == "<think><tool_call>"


@pytest.mark.parametrize("beside", ["<eos>", "<|tool_response>"])
@pytest.mark.parametrize("kind", [NORMAL, USER])
def test_the_tag_of_struck_through_text_ends_nothing(beside: str, kind: int) -> None:
    """Gemma's vocabulary has the tags of HTML, `</s>` among them."""
    found, ids = with_tokens((beside, CONTROL), ("</s>", kind))
    assert found.eos_ids == {256, ids[beside]} and found.decode([ids["</s>"]]) == "</s>"
    found, ids = with_tokens((beside, CONTROL), ("</s>", kind), eos_token_id=258)
    assert ids["</s>"] in found.eos_ids  # the file names it


@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER])
@pytest.mark.parametrize(
    ("beside", "goes_on"),
    [
        (("<|return|>", "<|call|>"), True),  # Harmony
        (("<|calls|>", "<|flush|>"), True),  # Solar
        (("<|call|>", "<|flush|>"), True),
        (("<|return|>",), False),
        (("<|endoftext|>",), False),
    ],
)
def test_replies_go_on_after_a_message_in_harmony(beside: tuple[str, ...], goes_on: bool, kind: int) -> None:
    found, ids = with_tokens(("<|end|>", kind), *((name, CONTROL) for name in beside))
    assert found.eos_ids == {256, *(ids[name] for name in beside)} | (set() if goes_on else {ids["<|end|>"]})
    assert is_control(found, "<|end|>", ids["<|end|>"])


@pytest.mark.parametrize("kind", [NORMAL, CONTROL, USER])
@pytest.mark.parametrize(("role", "name"), [(role, name) for role, names in GGML_FIM.items() for name in names.split()])
def test_marks_of_fill_in_the_middle_are_control_and_end_nothing(role: str, name: str, kind: int) -> None:
    found, ids = with_tokens((name, kind))
    assert found.eos_ids == {256} and is_control(found, name, ids[name])


@pytest.mark.parametrize("role", [*GGML_FIM, "prefix", "suffix", "middle"])
def test_a_key_that_names_a_mark_leaves_the_types_alone(role: str) -> None:
    roles = {"prefix": "fim_pre", "suffix": "fim_suf", "middle": "fim_mid"}
    name = GGML_FIM[roles.get(role, role)].split()[0]
    found, ids = with_tokens((name, USER), ("<mark>", USER), **{f"{role}_token_id": 258})
    assert found.special_ids == {256} and found.decode([ids[name], ids["<mark>"]]) == f"{name}<mark>"


def test_the_file_names_ends_of_its_own() -> None:
    keys = {"eot_token_id": 257, "eom_token_id": 258, "eos_token_ids": [256, 259]}
    found, _ = with_tokens(("[A]", CONTROL), ("[B]", USER), ("[C]", NORMAL), ("[D]", CONTROL), **keys)
    assert found.eos_ids == {256, 257, 258, 259} and found.eos_id == 256
    assert found.special_ids == {256, 257, 260}  # a name of one's own says nothing about the type
