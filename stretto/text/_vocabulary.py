"""What a file says about its tokens, whichever kind of file it is, and the end tokens that are known by their names.

In a checkpoint folder a token ends a text if the folder says so (generation_config.json, config.json, `eos_token`), or
if it is special and has one of the names below. A token that tokenizer.json adds with `"special": false` and that no
other file names is text, whatever its name: transformers, too, ends by ids alone. The token types of a GGUF file are
what a converter made of the original, and often wrong, so there the name is enough, as it is for ggml.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import tokenizers

Style = Literal["bytes", "sentencepiece"]

END_NAMES = frozenset({
    "</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "[EOS]",
    "<|im_end|>", "<|end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|eom|>", "<EOT>", "_<EOT>", "[EOT]",
    "<end_of_turn>", "<turn|>", "<|endofturn|>", "<|end_of_turn|>", "<end_of_utterance>", "<|END_OF_TURN_TOKEN|>",
    "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
})  # fmt: skip
"""Tokens that end a turn or a text wherever they occur, with the exceptions that `control_names` and `end_names` make.

The names that ggml counts among the ends are all here; the others are those of Llama 4, Command, Exaone and their like.
"""
# Beside one of these, <|end|> ends a message and the reply goes on: Harmony, Solar.
_REPLY_ENDS = (
    frozenset({"<|return|>", "<|call|>"}),
    frozenset({"<|flush|>", "<|call|>"}),
    frozenset({"<|flush|>", "<|calls|>"}),
)
# Gemma ends a text with <eos>; its </s> is the HTML tag that closes struck-through text.
_MARKUP = frozenset({"<eos>", "<|tool_response>"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """The tokens of a model, their order, their roles.

    inner: cuts text into ids. tokens: the text of every id, as the file stores it. style: how a stored token spells its
    bytes. added_ids: tokens that are found in a text before anything else is; special_ids: those of them that are not
    text. verbatim_ids: tokens whose stored text is what they stand for, not a spelling of it.

    prefix: ids that come before every text; suffix: behind one that is not continued. bos_id: the one that
    `add_bos=True` asks for. eos_id: the end that the file names first. eos_ids: all ends. special_tokens: name -> text,
    for chat templates. template_adds_bos: whether the BOS also comes before what a chat template writes. strip_space:
    decoding drops the space that encoding put before the first word. token_ids: GGUF key -> id, for an export.
    """

    inner: tokenizers.Tokenizer
    tokens: Sequence[str]
    style: Style
    added_ids: frozenset[int]
    special_ids: frozenset[int]
    verbatim_ids: frozenset[int]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    bos_id: int | None
    eos_id: int | None
    eos_ids: frozenset[int]
    special_tokens: Mapping[str, str]
    template_adds_bos: bool
    strip_space: bool
    chat_template: str | None
    token_ids: Mapping[str, int]


def control_names(names: Iterable[str]) -> frozenset[str]:
    """Those of a vocabulary's tokens that are control tokens by their name alone."""
    found = END_NAMES & frozenset(names)
    return found - {"</s>"} if found & _MARKUP else found


def end_names(names: Iterable[str]) -> frozenset[str]:
    """Those of a vocabulary's tokens that end a text by their name alone."""
    found = control_names(names)
    return found - {"<|end|>"} if any(ends <= found for ends in _REPLY_ENDS) else found


def with_eos(special_tokens: Mapping[str, str], tokens: Sequence[str], eos_ids: frozenset[int]) -> dict[str, str]:
    """Templates write an end even where the file names none: then it is the first of those that are known."""
    first = next(({"eos_token": tokens[i]} for i in sorted(eos_ids) if 0 <= i < len(tokens)), {})
    return first | dict(special_tokens)
