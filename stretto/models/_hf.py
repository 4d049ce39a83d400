"""What families share in checkpoint directories: keys of config.json and tensor names, part by part."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stretto.channels.dense import Dense
from stretto.mixers.attention import Attention
from stretto.mixers.mamba2 import Mamba2
from stretto.models._common import Found, linear, mamba_projections, norm_names, outer_names, rope_of
from stretto.models._rope import hf_rope, rope_to_hf, stretched, trained
from stretto.models.family import MAX_LAYERS, Reader, Source
from stretto.models.lm import Layer, LMConfig


def attention(
    read: Reader,
    *,
    head_dim: int | None = None,
    rope: bool = True,
    qkv_bias: bool = False,
    out_bias: bool = False,
    scale: float | None = None,
    window: int | None = None,
    qk_norm: float | None = None,
) -> Attention.Config:
    """Attention of a Llama-like config.json. head_dim: where the file does not say (default: hidden / heads)."""
    d_model, num_heads = read.count("hidden_size"), read.count("num_attention_heads")
    if read.get("head_dim", head_dim) is None:
        head_dim = read.divide(d_model, "num_attention_heads", num_heads)
    head_dim = read.count("head_dim", head_dim)
    num_kv_heads = read.count("num_key_value_heads", num_heads)
    read.divide(num_heads, "num_key_value_heads", num_kv_heads)
    return Attention.Config(
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rope=hf_rope(read, head_dim) if rope else None,
        scale=scale,
        window=window,
        qk_norm=qk_norm,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
    )


def dense(read: Reader, key: str = "intermediate_size", bias: bool = False) -> Dense.Config:
    """The gated MLP of a config.json."""
    return Dense.Config(d_model=read.count("hidden_size"), d_hidden=read.count(key), bias=bias)


def model(read: Reader, family: str, layers: Sequence[Layer], context: int = 2048) -> LMConfig:
    """The keys that every Llama-like config.json has besides those of its layers. context: where it does not say."""
    return LMConfig(
        family=family,
        d_model=read.count("hidden_size"),
        vocab_size=read.count("vocab_size"),
        layers=tuple(layers),
        norm_eps=read.number("rms_norm_eps", 1e-6),
        context=stretched(rope_of(layers), read.count("max_position_embeddings", context)),
        tie_embeddings=read.flag("tie_word_embeddings", False),
    )


def scaled_model(read: Reader, family: str, layers: Sequence[Layer]) -> LMConfig:
    """The same with the multipliers of Granite."""
    return replace(
        model(read, family, layers),
        embedding_multiplier=read.number("embedding_multiplier", 1.0),
        residual_multiplier=read.number("residual_multiplier", 1.0),
        logits_divider=read.number("logits_scaling", 1.0),
    )


def layer_count(read: Reader) -> int:
    """`num_hidden_layers`."""
    return read.count("num_hidden_layers", most=MAX_LAYERS)


def full_attention(read: Reader) -> None:
    """Refuse windows that are switched per layer: all layers must attend to everything. A `sliding_window` without
    `use_sliding_window` means nothing (Qwen)."""
    first, is_on = read.number("max_window_layers", 28), read.flag("use_sliding_window", False)
    if is_on and read.get("sliding_window", None) is not None and first < layer_count(read):
        read.refuse("use_sliding_window", True, "windows of some layers only are not supported")
    read.get("sliding_window", None)
    read.expect("layer_types", ["full_attention"] * layer_count(read))


def model_to_hf(config: LMConfig, architecture: str, model_type: str) -> dict[str, Any]:
    """The keys of `model`."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": config.d_model,
        "num_hidden_layers": len(config.layers),
        "rms_norm_eps": config.norm_eps,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": trained(rope_of(config.layers), config.context),
        "tie_word_embeddings": config.tie_embeddings,
    }


def attention_to_hf(mixer: Attention.Config) -> dict[str, Any]:
    """Heads and rotary embedding; biases are the family's to spell."""
    return {
        "num_attention_heads": mixer.num_heads,
        "num_key_value_heads": mixer.num_kv_heads,
        "head_dim": mixer.head_dim,
        **(rope_to_hf(mixer.rope) if mixer.rope is not None else {}),
    }


def multipliers_to_hf(config: LMConfig, mixer: Attention.Config | None) -> dict[str, Any]:
    """The keys of `scaled_model`, and the attention scale."""
    scale = 1.0 if mixer is None else mixer.head_dim**-0.5 if mixer.scale is None else mixer.scale
    return {
        "embedding_multiplier": config.embedding_multiplier,
        "residual_multiplier": config.residual_multiplier,
        "logits_scaling": config.logits_divider,
        "attention_multiplier": scale,
    }


def time_step_limit(read: Reader) -> tuple[float, float]:
    """`time_step_limit`, whose infinity is a bare token in old files and an object in new ones."""
    value = read.get("time_step_limit", [0.0, math.inf])
    pair = [float(v["__float__"]) if isinstance(v, dict) and set(v) == {"__float__"} else v for v in value]
    if len(pair) != 2 or not all(isinstance(v, int | float) for v in pair) or not 0 <= pair[0] <= pair[1]:
        read.refuse("time_step_limit", value, "it must be two numbers, the smaller one first")
    return float(pair[0]), float(pair[1])


def names(config: LMConfig) -> Found:
    """Every tensor of a Llama-like checkpoint."""
    found = outer_names(config, "model.embed_tokens", "model.norm", "lm_head")
    for i in range(len(config.layers)):
        block, theirs = f"blocks.{i}", f"model.layers.{i}"
        found |= norm_names(block, theirs, "input_layernorm", "post_attention_layernorm")
        found |= attention_names(block, theirs)
        found |= linear(f"{block}.channel.down.down", f"{theirs}.mlp.down_proj")
        for s in ("gate", "up"):
            found |= linear(f"{block}.channel.gate_up.{s}", f"{theirs}.mlp.{s}_proj")
    return found


def attention_names(block: str, theirs: str) -> Found:
    """`self_attn.*` of a checkpoint."""
    found = linear(f"{block}.mixer.out.o", f"{theirs}.self_attn.o_proj")
    for s in "qkv":
        found |= linear(f"{block}.mixer.qkv.{s}", f"{theirs}.self_attn.{s}_proj")
    for s in "qk":
        found[f"{block}.mixer.{s}_norm"] = Source(name=f"{theirs}.self_attn.{s}_norm.weight")
    return found


def mamba_names(mixer: Mamba2.Config, ours: str, theirs: str) -> Found:
    """Tensors of a Mamba-2 mixer of a checkpoint."""
    return {
        **mamba_projections(mixer, ours, f"{theirs}.in_proj", f"{theirs}.out_proj"),
        f"{ours}.conv_weight": Source(name=f"{theirs}.conv1d.weight", shape=(mixer.d_conv, 1, mixer.conv_width)),
        f"{ours}.conv_bias": Source(name=f"{theirs}.conv1d.bias"),
        f"{ours}.A_log": Source(name=f"{theirs}.A_log"),
        f"{ours}.D": Source(name=f"{theirs}.D"),
        f"{ours}.dt_bias": Source(name=f"{theirs}.dt_bias"),
        f"{ours}.norm_weight": Source(name=f"{theirs}.norm.weight"),
    }
