"""The table of softmax attention, in the spelling of Llama and its relatives."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stretto.mixers.attention import Attention
from stretto.models.parts.rope import ROPE
from stretto.models.reader import MAX_LAYERS, Reader
from stretto.models.table import Key, Known, Part, Row, Source, Way, linear, row
from stretto.models.ways import count, divisor, fixed, flag, held, known_as, nothing, positive, same, same_count


def head_dim(default: int | None = None) -> Way:
    """The width of a head in config.json; default: where it does not say (None: hidden_size / heads)."""

    def read(read: Reader, known: Known) -> int:
        if read.get("head_dim", default) is None:
            return read.divide(known["d_model"], "num_attention_heads", known["num_heads"])
        return read.count("head_dim", default)

    return Way(read, lambda value, config: {"head_dim": value})


def _gguf_head_dim(read: Reader, known: Known) -> int:
    if read.get("attention.key_length", None) is None:
        width = read.divide(known["d_model"], "attention.head_count", known["num_heads"])
    else:
        width = read.count("attention.key_length")
    read.expect("attention.value_length", width)
    return width


GGUF_HEAD_DIM = Way(
    _gguf_head_dim, lambda value, config: {"attention.key_length": value, "attention.value_length": value}
)


def _gguf_kv_heads(read: Reader, known: Known) -> int:
    found = same_count(read, "attention.head_count_kv", known["num_heads"])
    read.divide(known["num_heads"], "attention.head_count_kv", found)
    return found


GGUF_KV_HEADS = Way(_gguf_kv_heads, lambda value, config: {"attention.head_count_kv": value})


def _gguf_window(read: Reader, known: Known) -> int | None:
    return read.count("attention.sliding_window") if read.get("attention.sliding_window", 0) else None


def _write_window(key: str) -> Any:
    return lambda value, config: {} if value is None else {key: value}


HEADS = (
    Key("num_heads", count("num_attention_heads"), same("attention.head_count")),
    Key("num_kv_heads", divisor("num_key_value_heads", "num_heads", or_all=True), GGUF_KV_HEADS),
    Key("head_dim", head_dim(), GGUF_HEAD_DIM),
)
QK_NORM = (known_as("norm_eps"), known_as("norm_eps"))
"""A norm over every head of queries and keys, with the epsilon of the model."""
BIASES = {name: flag("attention_bias", False) for name in ("qkv_bias", "out_bias")}
"""One key of config.json for the biases of all projections."""


def tensors(c: Attention.Config) -> Iterator[Row]:
    """The rows of q and k in the order of checkpoints."""
    yield from linear("out.o", Source(name="o_proj"), Source(name="attn_output"))
    for s in "qkv":
        yield from linear(f"qkv.{s}", Source(name=f"{s}_proj"), Source(name=f"attn_{s}"))
    for s in "qk":
        yield row(f"{s}_norm", f"{s}_norm.weight", f"attn_{s}_norm.weight")


def fused_tensors(c: Attention.Config) -> Iterator[Row]:
    """q, k and v are one matrix in both formats (Phi-3)."""
    yield from linear("out.o", Source(name="o_proj"), Source(name="attn_output"))
    first = 0
    for s, heads in (("q", c.num_heads), ("k", c.num_kv_heads), ("v", c.num_kv_heads)):
        rows = first, heads * c.head_dim
        yield from linear(f"qkv.{s}", Source(name="qkv_proj", rows=rows), Source(name="attn_qkv", rows=rows))
        first += heads * c.head_dim


def interleaved_tensors(c: Attention.Config) -> Iterator[Row]:
    """The same for architectures whose GGUF files store the rows of q and k in interleaved rotary order."""
    heads = {"qkv.q": c.num_heads, "qkv.k": c.num_kv_heads}
    for found in tensors(c):
        ours = found.ours.removesuffix(".bias")
        order = interleaved(heads[ours], c.head_dim) if ours in heads else None
        yield replace(found, gguf=replace(found.gguf, order=order))


def interleaved(num_heads: int, head_dim: int) -> Tensor:
    """`Source.order` that undoes GGUF's rotary row order: there row 2i + j of a head is our row j * dim/2 + i."""
    per_head = torch.arange(head_dim).view(head_dim // 2, 2).T.reshape(-1)
    return (torch.arange(num_heads)[:, None] * head_dim + per_head[None, :]).reshape(-1)


PART = Part(
    config=Attention.Config,
    keys=(
        *HEADS,
        Key("rope", *ROPE),
        Key("scale", fixed(None), positive("attention.scale")),
        Key("window", fixed(None), Way(_gguf_window, _write_window("attention.sliding_window"))),
        Key("softcap", fixed(None), fixed(None)),
        Key("qk_norm", fixed(None), fixed(None)),
        Key("norm_of_all", fixed(False), fixed(False)),
        Key("qkv_bias", fixed(False), held("attn_q.bias")),
        Key("out_bias", fixed(False), held("attn_output.bias")),
    ),
    tensors=tensors,
    module="self_attn",
    shown=("num_heads", "num_kv_heads", "head_dim", "window"),
)


# Spellings of single families -----------------------------------------------------------------------------------------

_MISTRAL_WINDOW = 4096  # what an absent key means; null means no window


def _mistral_window(read: Reader, known: Known) -> int | None:
    """A file without `architectures` says by `model_type` what it is."""
    announced = (read.get("architectures", None) or [read.get("model_type", None)])[0]
    if announced not in ("MistralForCausalLM", "mistral"):
        return None
    has_window = "sliding_window" not in read.config or read.get("sliding_window", None) is not None
    return read.count("sliding_window", _MISTRAL_WINDOW) if has_window else None


MISTRAL_WINDOW = Way(_mistral_window, _write_window("sliding_window"))
"""A sliding window in config.json, where the architecture is Mistral's."""


def _every_layer_sees_all(read: Reader, known: Known) -> None:
    layers = read.count("num_hidden_layers", most=MAX_LAYERS)
    read.expect("layer_types", ["full_attention"] * layers)


EVERY_LAYER_SEES_ALL = Key("", Way(_every_layer_sees_all, nothing), fixed(None))
"""Refuses kinds of layers that differ."""


def _no_window_is_on(read: Reader, known: Known) -> None:
    layers = read.count("num_hidden_layers", most=MAX_LAYERS)
    first, is_on = read.number("max_window_layers", 28), read.flag("use_sliding_window", False)
    if is_on and read.get("sliding_window", None) is not None and first < layers:
        read.refuse("use_sliding_window", True, "windows of some layers only are not supported")
    read.get("sliding_window", None)


NO_WINDOW_IS_ON = Key("", Way(_no_window_is_on, lambda value, config: {"use_sliding_window": False}), fixed(None))
"""Refuses windows that are switched per layer; a `sliding_window` without `use_sliding_window` means nothing (Qwen)."""


def _write_multiplier(scale: float | None, config: Attention.Config) -> dict[str, Any]:
    return {"attention_multiplier": config.head_dim**-0.5 if scale is None else scale}


MULTIPLIER = Way(lambda read, known: read.number("attention_multiplier", 1.0), _write_multiplier)
"""What Granite multiplies scores by."""
