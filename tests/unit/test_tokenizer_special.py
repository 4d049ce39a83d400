"""What stands beside tokenizer.json: special tokens, ends and chat templates, as transformers reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from vocabularies import byte_level, save

from stretto.core.errors import ModelFileError
from stretto.text.stream import Detokenizer
from stretto.text.tokenizer import Tokenizer

CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}
FLAGS = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
ENTRY = {"content": "<x>", "__type": "AddedToken"} | FLAGS


def folder(path: Path, words: dict[str, Any], added: AddedToken | None = None, /, **files: Any) -> Path:
    """A folder whose tokenizer has `<s>` 0, `<|im_end|>` 1, and `<x>` at the end."""
    inner = byte_level()
    inner.add_tokens([added or AddedToken("<x>", special=True, normalized=False)])
    return save(path, inner, CLASS | words, **files)


def theirs(path: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(path)


# --- Names for chat templates


@pytest.mark.parametrize(
    ("config", "beside"),
    [
        ({"bos_token": "<s>", "eos_token": "<|im_end|>"}, {}),
        ({"bos_token": "<s>", "eos_token": "<x>", "pad_token": "<x>", "unk_token": "<s>"}, {}),
        ({"eos_token": "<|im_end|>", "sep_token": "<x>", "cls_token": "<s>", "mask_token": "<x>"}, {}),
        ({"eos_token": ENTRY, "pad_token": None}, {}),
        ({"eos_token": "<x>", "eot_token": "<|im_end|>", "image_token": "<s>", "add_bos_token": True}, {}),
        ({"eos_token": "<x>", "extra_special_tokens": {"image_token": "<s>", "sound": ENTRY}}, {}),
        ({"eos_token": "<x>", "model_specific_special_tokens": {"image_token": "<s>"}}, {}),
        ({"eos_token": "<x>", "extra_special_tokens": ["<s>"]}, {}),
        ({"eos_token": "<x>", "additional_special_tokens": ["<s>"]}, {}),
        (
            {"eos_token": "<x>", "bos_token": "<s>"},
            {"pad_token": {"content": "<|im_end|>"} | FLAGS, "eot_token": "<s>"},
        ),
        ({}, {"eos_token": "<x>", "extra_special_tokens": {"image_token": "<s>"}}),
        ({"eos_token": "<x>", "pad_token": "[a token that no row belongs to]"}, {}),
    ],
    ids=range(12),
)
def test_special_tokens_are_those_that_transformers_names(
    tmp_path: Path, config: dict[str, Any], beside: dict[str, Any]
) -> None:
    path = folder(tmp_path, config, special_tokens_map=beside)
    (tmp_path / "saved").mkdir()
    named = theirs(path).special_tokens_map
    assert Tokenizer.from_dir(path).special_tokens == named
    theirs(path).save_pretrained(tmp_path / "saved")  # in its own spelling
    assert Tokenizer.from_dir(tmp_path / "saved").special_tokens == named


def test_the_config_wins_over_the_map(tmp_path: Path) -> None:
    config = {
        "eos_token": "<|im_end|>",
        "added_tokens_decoder": {"1": {"content": "<|im_end|>", "special": True} | FLAGS},
    }
    path = folder(tmp_path, config, special_tokens_map={"eos_token": "<x>"})
    found = Tokenizer.from_dir(path)
    assert found.special_tokens == theirs(path).special_tokens_map == {"eos_token": "<|im_end|>"} and found.eos_id == 1


def test_an_end_without_a_name_is_the_first_that_is_known(tmp_path: Path) -> None:
    path = folder(tmp_path, {}, generation_config={"eos_token_id": [7, 5, -1, 10**6]})
    found = Tokenizer.from_dir(path)
    assert found.eos_id is None and found.eos_ids == {1, 5, 7, -1, 10**6}
    assert found.special_tokens == {"eos_token": "<|im_end|>"}
    assert Tokenizer.from_dir(folder(tmp_path, {"bos_token": "<s>"}, generation_config={})).special_tokens == {
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
    }


# --- Which tokens are text, and which end it


@pytest.mark.parametrize(
    ("config", "beside"),
    [
        ({}, {}),
        ({"eos_token": "<x>"}, {}),
        ({"pad_token": ENTRY}, {}),
        ({"eot_token": "<x>"}, {}),
        ({"extra_special_tokens": ["<x>"]}, {}),
        ({"additional_special_tokens": ["<x>"]}, {}),
        ({"extra_special_tokens": {"image_token": "<x>"}}, {}),
        ({"model_specific_special_tokens": {"image": "<x>"}}, {}),
        ({"added_tokens_decoder": {"ID": {"content": "<x>", "special": True} | FLAGS}}, {}),
        ({"added_tokens_decoder": {"ID": {"content": "<x>", "special": False} | FLAGS}}, {}),
        ({}, {"pad_token": "<x>"}),
    ],
    ids=range(11),
)
@pytest.mark.parametrize("special", [True, False])
def test_tokens_that_the_folder_calls_special_are_left_out_of_texts(
    tmp_path: Path, config: dict[str, Any], beside: dict[str, Any], special: bool
) -> None:
    added = AddedToken("<x>", special=special, normalized=False)
    n = json.loads(folder(tmp_path, {}, added).joinpath("tokenizer.json").read_text())["added_tokens"][-1]["id"]
    config = json.loads(json.dumps(config).replace('"ID"', f'"{n}"'))
    path = folder(tmp_path, {"bos_token": "<s>"} | config, added, special_tokens_map=beside)
    found, ids = Tokenizer.from_dir(path), [n - 1, n, n - 2]
    stream = Detokenizer(found)
    assert found.decode(ids) == stream.push(ids) + stream.finish() == theirs(path).decode(ids, skip_special_tokens=True)
    assert found.decode(ids, skip_special=False) == theirs(path).decode(ids)


@pytest.mark.parametrize(
    ("special", "generation", "ends"),
    [
        (True, {}, {1, "n"}),  # special, and an end by its name
        (False, {}, {1}),  # text: nothing in the folder says that it ends one
        (False, {"eos_token_id": "n"}, {1, "n"}),
        (False, {"eos_token_id": ["n", 5]}, {1, 5, "n"}),
    ],
)
def test_an_end_token_that_is_not_special_ends_a_text_where_the_folder_says_so(
    tmp_path: Path, special: bool, generation: dict[str, Any], ends: set[Any]
) -> None:
    inner = byte_level()
    inner.add_tokens([AddedToken("<|eot_id|>", special=special, normalized=False)])
    n = inner.token_to_id("<|eot_id|>")
    generation = json.loads(json.dumps(generation).replace('"n"', str(n)))
    found = Tokenizer.from_dir(save(tmp_path, inner, {"eos_token": "<|im_end|>"}, generation_config=generation))
    assert found.eos_ids == {n if i == "n" else i for i in ends} and (n in found.special_ids) == special


def test_directory_reads_ids_and_template(tmp_path: Path) -> None:
    config = {
        "bos_token": {"content": "<s>", "lstrip": False},
        "eos_token": "<|im_end|>",
        "chat_template": [{"name": "tool_use", "template": "B"}, {"name": "default", "template": "A"}],
    }
    found = Tokenizer.from_dir(save(tmp_path, byte_level(), config, generation_config={"eos_token_id": [1, 7]}))
    assert (found.bos_id, found.eos_id, found.add_bos, found.eos_ids) == (0, 1, False, {1, 7})
    assert found.chat_template == "A" and found.special_ids == {0, 1} and not found.template_adds_bos
    path = save(tmp_path, byte_level(), config, generation_config={}, config={"eos_token_id": 5})
    assert Tokenizer.from_dir(path).eos_ids == {1, 5}


# --- Chat templates


@pytest.mark.parametrize(
    ("config", "files"),
    [
        (None, {}),
        ("A", {}),
        ([{"name": "tool_use", "template": "B"}, {"name": "default", "template": "A"}], {}),
        ({"tool_use": "B", "default": "A"}, {}),
        ("A", {"chat_template.jinja": "C"}),
        (None, {"chat_template.jinja": "a\r\nb\n"}),
        (None, {"chat_template.json": '{"chat_template": "J"}'}),  # of a processor: not for text
        ("A", {"chat_template.json": '{"chat_template": "J"}'}),
        (None, {"chat_template.jinja": "C", "additional_chat_templates/tool_use.jinja": "T"}),
        ("A", {"chat_template.jinja": "C", "additional_chat_templates/default.jinja": "D"}),
    ],
    ids=range(10),
)
def test_the_template_is_the_default_one_of_transformers(tmp_path: Path, config: Any, files: dict[str, str]) -> None:
    path = folder(tmp_path, {"eos_token": "<x>"} | ({} if config is None else {"chat_template": config}))
    for name, text in files.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(text.encode())
    expected = theirs(path).chat_template
    expected = expected["default"] if isinstance(expected, dict) else expected
    assert Tokenizer.from_dir(path).chat_template == expected


@pytest.mark.parametrize("config", [[{"name": "tool_use", "template": "B"}], {"tool_use": "B"}, 7])
def test_a_model_with_named_templates_alone_has_none(tmp_path: Path, config: Any) -> None:
    assert Tokenizer.from_dir(folder(tmp_path, {"chat_template": config})).chat_template is None


FILES = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json"]


@pytest.mark.parametrize("name", [*FILES, "chat_template.jinja"])
def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path, name: str) -> None:
    """Editors on Windows write one."""
    files = {"special_tokens_map": {"pad_token": "<x>"}, "generation_config": {}, "config": {"eos_token_id": 5}}
    path = folder(tmp_path, {"eos_token": "<|im_end|>"}, **files)
    (path / "chat_template.jinja").write_text("{{ messages }}")
    plain = Tokenizer.from_dir(path)
    content = (path / name).read_bytes()
    (path / name).write_bytes(b"\xef\xbb\xbf" + content)
    found = Tokenizer.from_dir(path)
    assert found.encode("Hi <x>") == plain.encode("Hi <x>") and found.chat_template == plain.chat_template
    assert found.special_tokens == plain.special_tokens and found.eos_ids == plain.eos_ids == {1, 5}


@pytest.mark.parametrize("name", [*FILES[:4], "chat_template.jinja"])
def test_files_in_another_encoding_are_refused(tmp_path: Path, name: str) -> None:
    path = folder(tmp_path, {"eos_token": "<x>"})
    (path / name).write_bytes('{"ä": 1}'.encode("latin-1"))
    with pytest.raises(ModelFileError, match=name):
        Tokenizer.from_dir(path)
