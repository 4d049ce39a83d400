"""What a model file is, without loading it: for `stretto show`, and for defaults that the file itself gives."""

import math
from collections import Counter
from typing import Any

import torch

from stretto.convert.load import check_tensors
from stretto.convert.model_file import ModelFile
from stretto.core.errors import ModelFileError
from stretto.core.files import read_json
from stretto.core.sampling import Sampling
from stretto.core.state import StateSpec
from stretto.models.lm import LM
from stretto.models.parts import part_of

# Hint -> its GGUF key. The names on the left are those of generation_config.json and of our sampling parameters.
SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_p": "general.sampling.top_p",
    "top_k": "general.sampling.top_k",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}


def generation_hints(model: ModelFile) -> dict[str, float]:
    """How the file's authors want it sampled: some of temperature, top_p, top_k, min_p, repetition_penalty.

    From `general.sampling.*` or generation_config.json. Raises ModelFileError for a hint that is no finite number.
    """
    if model.is_gguf:
        given = {name: model.metadata.get(key) for name, key in SAMPLING_KEYS.items()}
    else:
        config = _generation_config(model)
        given = {name: config.get(name) for name in SAMPLING_KEYS}
    hints = {}
    for name, value in given.items():
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise ModelFileError(f"{model.path}: the hint {name} = {value!r} is not a number")
        hints[name] = float(value)
    return hints


# Hint that is not followed -> where it changes nothing. GGUF keys have a dot.
_IGNORED: dict[str, tuple[Any, ...]] = {
    "general.sampling.xtc_probability": (0.0,),
    "general.sampling.mirostat": (0,),
    **dict.fromkeys(("typical_p", "length_penalty", "encoder_repetition_penalty", "guidance_scale"), (1.0,)),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "no_repeat_ngram_size", "penalty_alpha", "min_length"), (0,)),
    "num_beams": (1,),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"), ([], {})),
    **dict.fromkeys(("min_new_tokens", "forced_eos_token_id", "exponential_decay_length_penalty"), ()),
}


def ignored_hints(model: ModelFile) -> list[str]:
    """What the file's authors ask for that we do not do, one sentence each."""
    given = model.metadata if model.is_gguf else _generation_config(model)
    where = "the file" if model.is_gguf else "generation_config.json"
    return [
        f"{where} asks for {name} = {given[name]!r}, which is not followed"
        for name, neutral in _IGNORED.items()
        if given.get(name) is not None and given[name] not in neutral
    ]


def _generation_config(model: ModelFile) -> dict[str, Any]:
    path = model.path / "generation_config.json"
    return read_json(path) if path.is_file() else {}


def describe(model: ModelFile, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Plain values for a page or for JSON; a missing or misshapen tensor raises ModelFileError.

    bytes: of the file's tensors, by codec. bytes_per_token: what one decode step streams (an embedding that is not
    also the head gives one row). kv_bytes_per_token and state_bytes: of one sequence, where states have no dtype of
    their own kept in `dtype`. generation: the file's hints. sampling: what holds where a request says nothing; a top_k
    of None keeps all tokens.
    """
    c = model.config
    with torch.device("meta"):
        lm = LM(c)
    check_tensors(model, lm)
    names = list(dict.fromkeys(model.names[name].name for name, _, _ in lm.targets()))
    held = {name: model.held(name) for name in names}
    codecs: Counter[str] = Counter()
    for info in held.values():
        codecs[info.codec] += info.nbytes
    streamed = sum(info.nbytes for info in held.values())
    if not c.tie_embeddings:
        embedding = held[model.names["embed.embed"].name]
        streamed -= embedding.nbytes - embedding.nbytes // max(1, c.vocab_size)
    hints = generation_hints(model)
    sampling = Sampling().resolve(hints)
    specs = [spec for layer in lm.state_specs for spec in layer]
    return {
        "path": str(model.path),
        "format": "gguf" if model.is_gguf else "hf",
        "family": model.family.name,
        "architecture": _announced(model),
        "num_layers": len(c.layers),
        "layers": dict(Counter(type(layer.mixer or layer.channel).__module__.rpartition(".")[2] for layer in c.layers)),
        "d_model": c.d_model,
        **_heads(model),
        "context": c.context,
        "vocab_size": c.vocab_size,
        "tied_head": c.tie_embeddings,
        "params": sum(p.numel() for p in lm.parameters()),
        "bytes": dict(codecs),
        "bytes_per_token": streamed,
        "kv_bytes_per_token": _bytes(specs, dtype, paged=True),
        "state_bytes": _bytes(specs, dtype, paged=False),
        "tokenizer": _tokenizer_kind(model),
        "chat_template": _has_template(model),
        "generation": hints,
        "sampling": {name: getattr(sampling, name) for name in SAMPLING_KEYS} | {"top_k": sampling.top_k or None},
    }


def _bytes(specs: list[StateSpec], dtype: torch.dtype, *, paged: bool) -> int:
    return sum(spec.nbytes(dtype) for spec in specs if (spec.kind == "paged") == paged)


def _announced(model: ModelFile) -> str:
    if model.is_gguf:
        return str(model.metadata["general.architecture"])
    config = read_json(model.path / "config.json")
    return str((config.get("architectures") or [config.get("model_type")])[0])


def _heads(model: ModelFile) -> dict[str, int | None]:
    """Of the first layer of attention, where there is one."""
    mixers = (layer.mixer for layer in model.config.layers)
    shown = ({name: getattr(mixer, name) for name in part_of(mixer).shown} for mixer in mixers)
    return next((fields for fields in shown if fields), {})


def _tokenizer_kind(model: ModelFile) -> str | None:
    """`gpt2/smollm` for GGUF, the kind of model (`BPE`) for tokenizer.json; None without a tokenizer."""
    if model.is_gguf:
        parts = [model.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre")]
        return "/".join(str(part) for part in parts if part is not None) or None
    path = model.path / "tokenizer.json"
    kind = read_json(path).get("model") if path.is_file() else None
    return str(kind.get("type")) if isinstance(kind, dict) else None


def _has_template(model: ModelFile) -> bool:
    if model.is_gguf:
        return "tokenizer.chat_template" in model.metadata
    path = model.path / "tokenizer_config.json"
    inline = path.is_file() and read_json(path).get("chat_template") is not None
    return inline or (model.path / "chat_template.jinja").is_file()
