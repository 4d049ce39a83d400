"""The tokenizer of a checkpoint folder: tokenizer.json and what stands beside it.

The ids are those of tokenizer.json, as `tokenizers.Tokenizer.from_file` gives them, whatever class or model type the
other files name; what its post-processor puts before a text is put there (BOS), what it puts after one is not: a prompt
goes on. The files beside it say which tokens are special, which end a text, and what a conversation looks like.

transformers 5.24 builds some tokenizers anew from the vocabulary instead, and then `AutoTokenizer` gives other ids:

    Qwen2Tokenizer        the pattern of Qwen2 in place of the file's: where `123456` was two ids it becomes six
    GPTNeoXTokenizer      the post-processor of the file is dropped, and with it the BOS
    add_prefix_space      true: a space before the text, in the classes of GPT-2, GPT-NeoX and Qwen2
    split_special_tokens  true: special tokens in a text are cut like other text; here `parse_special=False` asks for it
    a special token that tokenizer.json does not add is found in texts all the same, and where the vocabulary lacks it,
    it has an id that no row of the model belongs to

It reads `add_bos_token` and `add_eos_token` no longer where there is a tokenizer.json (transformers 4 did, in the
classes of Llama, and wrote a tokenizer.json that agrees). `legacy`, `truncation`, `padding` and `model_max_length`
change no id of a text that fits, and `clean_up_tokenization_spaces` no text of a BPE vocabulary. chat_template.json
belongs to processors of images and sound; for text it is not read.
"""

import json
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import tokenizers

from stretto.core.errors import ModelFileError
from stretto.core.files import read_json
from stretto.text._tokenizer_gguf import ROLES
from stretto.text._vocabulary import Style, Vocabulary, end_names, with_eos


def read_dir(path: Path) -> Vocabulary:
    """The tokenizer of a checkpoint folder. Raises ModelFileError."""
    inner = _inner(path / "tokenizer.json")
    document = json.loads(inner.to_str())
    config = _optional(path / "tokenizer_config.json")
    named = _named(_optional(path / "special_tokens_map.json")) | _named(config)
    style, strips = _decoding(document.get("decoder"))
    vocab: dict[str, int] = inner.get_vocab(with_added_tokens=True)
    tokens = [""] * (max(vocab.values(), default=-1) + 1)
    for token, i in vocab.items():
        tokens[i] = token
    added = inner.get_added_tokens_decoder()
    special_names = {token.content for token in added.values() if token.special} | {*named.values(), *_declared(config)}
    special_ids = frozenset(i for i, token in added.items() if token.content in special_names)
    token_ids = {key: vocab[named[role]] for role, key in ROLES.items() if named.get(role) in vocab}
    prefix, suffix = _around(inner, vocab)
    bos_id = token_ids.get(ROLES["bos_token"], prefix[0] if len(prefix) == 1 else None)
    eos_id = token_ids.get(ROLES["eos_token"])
    eos = _ids(_optional(path / "generation_config.json").get("eos_token_id"))
    eos = eos or _ids(_optional(path / "config.json").get("eos_token_id"))
    ends = {vocab[name] for name in end_names(tokens[i] for i in special_ids)}
    eos_ids = frozenset({*eos, *ends} if eos_id is None else {*eos, *ends, eos_id})
    return Vocabulary(
        inner=inner,
        tokens=tokens,
        style=style,
        added_ids=frozenset(added),
        special_ids=special_ids,
        verbatim_ids=frozenset(added) if style == "bytes" else frozenset(),
        prefix=prefix,
        suffix=suffix,
        bos_id=bos_id,
        eos_id=eos_id,
        eos_ids=eos_ids,
        special_tokens=with_eos(named, tokens, eos_ids),
        template_adds_bos=False,
        strip_space=strips,
        chat_template=_template(path, config),
        token_ids=token_ids,
    )


def _inner(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise ModelFileError(f"no tokenizer.json in {path.parent}", try_="save the model with its fast tokenizer")
    text = _text(path)
    try:
        inner = tokenizers.Tokenizer.from_str(text)
    except Exception as e:  # the library raises bare Exception for any damage
        raise ModelFileError(f"cannot read {path}", why=str(e)) from e
    inner.no_truncation()
    inner.no_padding()
    return inner


def _text(path: Path) -> str:
    """A file as text; a byte-order mark, which editors on Windows write, is no part of it."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise ModelFileError(f"cannot read {path}", why=str(e)) from e


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _named(config: Mapping[str, Any]) -> dict[str, str]:
    """Name -> text of the special tokens that a JSON file names, in the spellings of transformers 4 and 5."""
    found = {key: entry for key, entry in config.items() if key.endswith("_token")}
    for group in ("extra_special_tokens", "model_specific_special_tokens"):
        if isinstance(config.get(group), dict):
            found |= config[group]
    return {key: text for key, entry in found.items() if (text := _content(entry)) is not None}


def _declared(config: Mapping[str, Any]) -> Iterable[str]:
    """Tokens that tokenizer_config.json lists as special."""
    listed = config.get("added_tokens_decoder")
    entries = listed.values() if isinstance(listed, dict) else ()
    texts = (_content(entry) for entry in entries if isinstance(entry, dict) and entry.get("special") is True)
    return (text for text in texts if text is not None)


def _content(entry: Any) -> str | None:
    text = entry.get("content") if isinstance(entry, dict) else entry
    return text if isinstance(text, str) else None


def _ids(value: Any) -> list[int]:
    return [i for i in (value if isinstance(value, list) else [value]) if isinstance(i, int)]


def _around(inner: tokenizers.Tokenizer, vocab: Iterable[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the post-processor puts before a text and behind it: seen on the first text that is not empty in
    ids."""
    for text in chain("a0 ", vocab):
        found = inner.encode(text, add_special_tokens=True)
        if 0 in found.special_tokens_mask:
            first, behind = found.special_tokens_mask.index(0), found.special_tokens_mask[::-1].index(0)
            return tuple(found.ids[:first]), tuple(found.ids[len(found.ids) - behind :])
    return (), ()


def _decoding(decoder: Mapping[str, Any] | None) -> tuple[Style, bool]:
    """How tokens spell bytes, and whether decoding strips the first space. Raises ModelFileError for other decoders."""
    steps = _steps(decoder)
    kinds = [str(step.get("type")) for step in steps]
    if "ByteLevel" in kinds and set(kinds) <= {"ByteLevel", "Fuse"}:
        return "bytes", False
    strips = False
    for at, step in enumerate(steps):
        match step:
            case {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "} | {
                "type": "ByteFallback" | "Fuse"
            }:
                pass
            case {"type": "Strip", "content": " ", "start": 0 | 1 as start, "stop": 0} if "Fuse" in kinds[:at]:
                strips = strips or start == 1
            case {"type": "Metaspace", "replacement": "\u2581"}:
                strips = strips or step.get("prepend_scheme", "always") != "never"
            case _:
                raise _unknown_decoder(steps)
    if "Metaspace" in kinds or {"Replace", "ByteFallback"} <= set(kinds):
        return "sentencepiece", strips
    raise _unknown_decoder(steps)


def _steps(decoder: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if decoder is None:
        return []
    parts = decoder.get("decoders")
    return [step for part in parts for step in _steps(part)] if isinstance(parts, list) else [decoder]


def _unknown_decoder(steps: Iterable[Mapping[str, Any]]) -> ModelFileError:
    shown = json.dumps(list(steps), ensure_ascii=False)
    return ModelFileError(
        "tokenizer.json has a decoder that is not supported",
        why=f"expected ByteLevel, Metaspace, or the Replace and ByteFallback of SentencePiece; found {shown[:300]}",
    )


def _template(path: Path, config: Mapping[str, Any]) -> str | None:
    """The default template; named ones beside it (`tool_use`) are left alone."""
    for file in (path / "additional_chat_templates" / "default.jinja", path / "chat_template.jinja"):
        if file.is_file():
            return _text(file)
    entry = config.get("chat_template")
    if isinstance(entry, list):
        entry = {t["name"]: t["template"] for t in entry if isinstance(t, dict) and {"name", "template"} <= t.keys()}
    if isinstance(entry, dict):
        entry = entry.get("default")
    return entry if isinstance(entry, str) else None
