"""What a conversion of a whole model carries over of its tokenizer, read by transformers afterwards."""

import json
from pathlib import Path
from typing import Any

import pytest
from command import TEMPLATE, write_tiny
from tokenizers import processors
from transformers import AutoTokenizer
from vocabularies import library

from stretto.convert.convert import convert
from stretto.convert.gguf_ import GGUFFile
from stretto.text.chat import ChatTemplate, chat_ids
from stretto.text.tokenizer import Tokenizer

MESSAGES = [{"role": "user", "content": "hi"}]
CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}


def model(path: Path, words: dict[str, Any], *, adds_bos: bool = False) -> Path:
    """The tiny checkpoint (`<s>` 256, `</s>` 257) with another tokenizer_config.json."""
    path.mkdir()
    write_tiny(path)
    (path / "tokenizer_config.json").write_text(json.dumps(CLASS | words))
    if adds_bos:
        inner = library(path)
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
        inner.save(str(path / "tokenizer.json"))
    return path


def test_special_tokens_survive_the_way_to_gguf_and_back(tmp_path: Path) -> None:
    words = {f"{role}_token": "</s>" for role in ("eos", "unk", "sep", "mask", "eot", "eom")}
    words |= {"bos_token": "<s>", "pad_token": "<s>", "cls_token": "<s>", "chat_template": TEMPLATE}
    source = model(tmp_path / "a", words)
    convert(source, tmp_path / "b.gguf", "gguf")
    convert(tmp_path / "b.gguf", tmp_path / "c", "hf")
    named = AutoTokenizer.from_pretrained(source).special_tokens_map
    assert AutoTokenizer.from_pretrained(tmp_path / "c").special_tokens_map == named
    assert Tokenizer.from_gguf(GGUFFile(tmp_path / "b.gguf").metadata).special_tokens == named
    assert Tokenizer.from_dir(tmp_path / "c").special_tokens == named


@pytest.mark.parametrize("writes_bos", [True, False])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_chats_keep_their_bos_on_the_way_to_a_folder(tmp_path: Path, adds_bos: bool, writes_bos: bool) -> None:
    words = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ bos_token }}" * writes_bos + TEMPLATE}
    source = model(tmp_path / "a", words, adds_bos=adds_bos)
    report = convert(source, tmp_path / "b.gguf", "gguf")
    assert any("BOS" in note for note in report.notes) == (adds_bos and not writes_bos)
    convert(tmp_path / "b.gguf", tmp_path / "c", "hf")
    middle = Tokenizer.from_gguf(GGUFFile(tmp_path / "b.gguf").metadata)
    ids = chat_ids(middle, ChatTemplate.of(middle), MESSAGES)
    assert ids.count(256) == (adds_bos or writes_bos) and middle.encode("hi") == library(source).encode("hi").ids
    theirs = AutoTokenizer.from_pretrained(tmp_path / "c")
    assert theirs.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"] == ids
    assert theirs("hi").input_ids == middle.encode("hi")
    last = Tokenizer.from_dir(tmp_path / "c")
    assert chat_ids(last, ChatTemplate.of(last), MESSAGES) == ids
