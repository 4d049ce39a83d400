"""What goes beside the tensors: GGUF metadata, and the JSON files of a checkpoint directory."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from stretto.convert._shared import codec_named
from stretto.convert.gguf_ import Typed, Value
from stretto.convert.model_file import ModelFile
from stretto.convert.show import SAMPLING_KEYS, generation_hints
from stretto.core.files import read_json
from stretto.text.tokenizer import Tokenizer

_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_UNUSED = 5  # tokenizer.ggml.token_type of ids that only pad the embedding
# Whole files that a directory-to-directory conversion carries over.
_CARRIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
HF_FILES = frozenset({"config.json", "model.safetensors", *_CARRIED})
"""All that a conversion may write into a directory."""
_NO_TOKENIZER = "the source has no tokenizer, so the result has none"


def gguf_metadata(model: ModelFile, codec: str) -> tuple[dict[str, Value], list[str]]:
    """All metadata of a GGUF file whose matrices are mostly in `codec`, and remarks.

    Raises ModelFileError for what GGUF cannot say about this model or its tokenizer.
    """
    found, notes = (dict(model.metadata), list[str]()) if model.is_gguf else _translated(model)
    for key in ("general.file_type", "split.no", "split.count", "split.tensors.count"):
        found.pop(key, None)
    if (file_type := codec_named(codec).gguf_file_type) is not None:
        found["general.file_type"] = file_type
    found["general.quantization_version"] = 2
    return {key: _typed(key, value) for key, value in found.items()}, notes


def _translated(model: ModelFile) -> tuple[dict[str, Any], list[str]]:
    found = model.family.to_gguf(model.config) | {"general.type": "model", "general.name": model.path.resolve().name}
    found |= {SAMPLING_KEYS[name]: value for name, value in generation_hints(model).items()}
    if "general.sampling.top_k" in found:
        found["general.sampling.top_k"] = int(found["general.sampling.top_k"])
    if not (model.path / "tokenizer.json").is_file():
        return found, [_NO_TOKENIZER]
    tokenizer = Tokenizer.from_dir(model.path)
    words = tokenizer.to_gguf_metadata()
    # Readers take the number of embeddings from the token list.
    missing = range(len(words["tokenizer.ggml.tokens"]), model.config.vocab_size)
    words["tokenizer.ggml.tokens"] = words["tokenizer.ggml.tokens"] + [f"[PAD{i}]" for i in missing]
    words["tokenizer.ggml.token_type"] = words["tokenizer.ggml.token_type"] + [_UNUSED for _ in missing]
    if tokenizer.add_bos and tokenizer.chat_template is not None and not _writes_bos(tokenizer):
        return found | words, ["the chat template writes no BOS; in the GGUF file one comes before a chat all the same"]
    return found | words, []


def _writes_bos(tokenizer: Tokenizer) -> bool:
    """Whether the chat template writes the BOS itself, by name or as text."""
    source, bos = tokenizer.chat_template or "", tokenizer.special_tokens.get("bos_token")
    return "bos_token" in source or (bos is not None and bos in source)


def _typed(key: str, value: Any) -> Value:
    """Kinds that cannot be told from the value."""
    if key == "tokenizer.ggml.token_type":
        return Typed(kind="i32", value=value)
    if isinstance(value, float) and float(np.float32(value)) != value and str(np.float32(value)) != str(value):
        return Typed(kind="f64", value=value)
    return value  # type: ignore[no-any-return]


def hf_files(
    model: ModelFile, codec: str, quantization: Mapping[str, Any] | None = None
) -> tuple[dict[str, bytes], list[str]]:
    """File name -> content of everything but the weights, and remarks. Raises ModelFileError like `gguf_metadata`.

    codec: of the plain numbers; quantization: what config.json says about the others.
    """
    if not model.is_gguf:
        return _carried(model, codec, quantization), []
    config = model.family.to_hf(model.config) | {"torch_dtype": _DTYPES[codec]}
    config |= {"quantization_config": quantization} if quantization is not None else {}
    hints: dict[str, Any] = generation_hints(model)
    if "top_k" in hints:
        hints["top_k"] = int(hints["top_k"])
    if "tokenizer.ggml.model" not in model.metadata:
        return _json({"config.json": config, "generation_config.json": hints}), [_NO_TOKENIZER]
    tokenizer = Tokenizer.from_gguf(model.metadata)
    ids = _special_ids(model.metadata)
    ends = sorted(tokenizer.eos_ids)
    numbers = {f"{name}_token_id": i for name, i in ids.items()}
    config |= numbers
    words: dict[str, Any] = dict(tokenizer.special_tokens) | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": tokenizer.add_bos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model.config.context,
    }
    if tokenizer.chat_template is not None:
        # Where ggml's readers put the BOS before a chat, the template of a folder has to write it.
        bos = "{{ bos_token }}" if tokenizer.template_adds_bos and not _writes_bos(tokenizer) else ""
        words["chat_template"] = bos + tokenizer.chat_template
    generation = numbers | ({"eos_token_id": ends if len(ends) > 1 else ends[0]} if ends else {}) | hints
    files = _json({"config.json": config, "generation_config.json": generation, "tokenizer_config.json": words})
    return files | {"tokenizer.json": tokenizer.to_json().encode()}, []


def _special_ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    """bos, eos, pad and unk, where the file names them: those whose ids config.json has a place for."""
    keys = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    found = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in keys.items()}
    return {name: i for name, i in found.items() if i is not None}


def _carried(model: ModelFile, codec: str, quantization: Mapping[str, Any] | None) -> dict[str, bytes]:
    path, config = model.path, read_json(model.path / "config.json")
    config.pop("quantization_config", None)
    config |= {"quantization_config": quantization} if quantization is not None else {}
    if config.get("tie_word_embeddings") is not None:
        config["tie_word_embeddings"] = model.config.tie_embeddings
    config["dtype" if "dtype" in config else "torch_dtype"] = _DTYPES[codec]
    files = {name: (path / name).read_bytes() for name in _CARRIED if (path / name).is_file()}
    return _json({"config.json": config}) | files


def _json(files: Mapping[str, Any]) -> dict[str, bytes]:
    return {name: (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode() for name, value in files.items()}
