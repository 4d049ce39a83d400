"""What families share in GGUF files: `{arch}.*` keys and tensor names, part by part."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stretto.channels.dense import Dense
from stretto.core.errors import ModelFileError
from stretto.mixers.attention import Attention
from stretto.mixers.mamba2 import Mamba2
from stretto.models._common import (
    Found,
    linear,
    mamba_projections,
    norm_names,
    only_layer,
    outer_names,
    refuse_to_write,
    rope_of,
)
from stretto.models._rope import gguf_rope, rope_extra, rope_to_gguf, stretched, trained
from stretto.models.family import MAX_LAYERS, Config, Reader, Source
from stretto.models.lm import Layer, LMConfig


def tensors_of(read: Reader) -> Config:
    """The tensors of the file: name -> shape."""
    found: Config = read.config["stretto.tensors"]
    return found


def layer_count(read: Reader) -> int:
    """`block_count`."""
    return read.count("block_count", most=MAX_LAYERS)


def per_layer(read: Reader, key: str, default: int | None = None) -> list[int]:
    """A number per layer, which the file may spell as one number."""
    layers = layer_count(read)
    value = read.need(key) if default is None else read.get(key, default)
    values = value if isinstance(value, list) else [value] * layers
    if len(values) != layers or not all(isinstance(v, int) and v >= 0 for v in values):
        read.refuse(key, value, "it must be a number per layer, or one for all")
    return list(values)


def same(read: Reader, key: str, default: int | None = None) -> int:
    """A number that must be the same for all layers that have it (0 means that a layer does not)."""
    values = {v for v in per_layer(read, key, default) if v}
    if len(values) != 1:
        raise ModelFileError(
            f"{read.where}: {read.prefix + key} differs between layers", why="this family has layers of one size"
        )
    return values.pop()


def attention(read: Reader, block: int = 0, *, rope: bool = True, qk_norm: bool = False) -> Attention.Config:
    """Attention of the `{arch}.*` keys; the tensors of `block` say whether there are biases."""
    d_model, num_heads = read.count("embedding_length"), same(read, "attention.head_count")
    num_kv_heads = same(read, "attention.head_count_kv", num_heads)
    read.divide(num_heads, "attention.head_count_kv", num_kv_heads)
    if read.get("attention.key_length", None) is None:
        head_dim = read.divide(d_model, "attention.head_count", num_heads)
    else:
        head_dim = read.count("attention.key_length")
    read.expect("attention.value_length", head_dim)
    angles = gguf_rope(read, head_dim) if rope else None
    tensors = tensors_of(read)
    return Attention.Config(
        d_model=d_model,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rope=angles,
        scale=read.number("attention.scale", 0.0) or None,
        window=read.count("attention.sliding_window") if read.get("attention.sliding_window", 0) else None,
        qk_norm=norm_eps(read) if qk_norm else None,
        qkv_bias=f"blk.{block}.attn_q.bias" in tensors,
        out_bias=f"blk.{block}.attn_output.bias" in tensors,
    )


def norm_eps(read: Reader) -> float:
    """The epsilon of every norm."""
    return read.number("attention.layer_norm_rms_epsilon")


def dense(read: Reader) -> Dense.Config:
    """The gated MLP of the `{arch}.*` keys."""
    return Dense.Config(
        d_model=read.count("embedding_length"),
        d_hidden=same(read, "feed_forward_length"),
        bias="blk.0.ffn_down.bias" in tensors_of(read),
    )


def model(read: Reader, family: str, layers: Sequence[Layer]) -> LMConfig:
    """The keys that every GGUF file has besides those of its layers."""
    tensors = tensors_of(read)
    return LMConfig(
        family=family,
        d_model=read.count("embedding_length"),
        vocab_size=tensors["token_embd.weight"][0],
        layers=tuple(layers),
        norm_eps=norm_eps(read),
        context=stretched(rope_of(layers), read.count("context_length")),
        tie_embeddings="output.weight" not in tensors,
    )


def scaled_model(read: Reader, family: str, layers: Sequence[Layer]) -> LMConfig:
    """The same with the multipliers of Granite; 0 says that there is none."""
    return replace(
        model(read, family, layers),
        embedding_multiplier=read.number("embedding_scale", 1.0) or 1.0,
        residual_multiplier=read.number("residual_scale", 1.0) or 1.0,
        logits_divider=read.number("logit_scale", 1.0) or 1.0,
    )


def model_to_gguf(config: LMConfig) -> dict[str, Any]:
    """The keys of `model`, without the architecture."""
    keys: dict[str, Any] = {
        "block_count": len(config.layers),
        "context_length": trained(rope_of(config.layers), config.context),
        "embedding_length": config.d_model,
        "vocab_size": config.vocab_size,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
    }
    scales = {
        "embedding_scale": config.embedding_multiplier,
        "residual_scale": config.residual_multiplier,
        "logit_scale": config.logits_divider,
    }
    return keys | {key: float(value) for key, value in scales.items() if value != 1.0}


def attention_to_gguf(mixer: Attention.Config) -> dict[str, Any]:
    """The keys of `attention`."""
    keys: dict[str, Any] = {
        "attention.head_count": mixer.num_heads,
        "attention.head_count_kv": mixer.num_kv_heads,
        "attention.key_length": mixer.head_dim,
        "attention.value_length": mixer.head_dim,
    }
    if mixer.window is not None:
        keys["attention.sliding_window"] = mixer.window
    if mixer.scale is not None:
        keys["attention.scale"] = float(mixer.scale)
    return keys | (rope_to_gguf(mixer.rope) if mixer.rope is not None else {})


def dense_to_gguf(config: LMConfig, arch: str) -> dict[str, Any]:
    """All metadata of a model whose layers are the same attention and dense MLP."""
    mixer, channel = only_layer(config)
    keys = model_to_gguf(config) | attention_to_gguf(mixer) | {"feed_forward_length": channel.d_hidden}
    return prefixed(arch, keys)


def extra(config: LMConfig) -> dict[str, Tensor]:
    """Stretched frequencies that no key can say (llama3), as their tensor."""
    return rope_extra(rope_of(config.layers))


def prefixed(arch: str, keys: dict[str, Any]) -> dict[str, Any]:
    """`general.architecture` and the keys with the architecture before them."""
    return {"general.architecture": arch, **{f"{arch}.{key}": value for key, value in keys.items()}}


def mamba(read: Reader, block: int = 0) -> Mamba2.Config:
    """Mamba-2 of the `{arch}.ssm.*` keys; the tensors of `block` say which biases there are."""
    num_heads, tensors = read.count("ssm.time_step_rank"), tensors_of(read)
    return Mamba2.Config(
        d_model=read.count("embedding_length"),
        num_heads=num_heads,
        head_dim=read.divide(read.count("ssm.inner_size"), "ssm.time_step_rank", num_heads),
        num_groups=read.count("ssm.group_count", 1),
        d_state=read.count("ssm.state_size"),
        conv_width=read.count("ssm.conv_kernel"),
        conv_bias=f"blk.{block}.ssm_conv1d.bias" in tensors,
        bias=f"blk.{block}.ssm_in.bias" in tensors,
        eps=norm_eps(read),
    )


def mamba_to_gguf(mixer: Mamba2.Config) -> dict[str, Any]:
    """The keys of `mamba`."""
    if mixer.time_step_limit != (0.0, math.inf):
        refuse_to_write(f"time_step_limit = {list(mixer.time_step_limit)}", "GGUF")
    return {
        "ssm.conv_kernel": mixer.conv_width,
        "ssm.inner_size": mixer.d_inner,
        "ssm.state_size": mixer.d_state,
        "ssm.time_step_rank": mixer.num_heads,
        "ssm.group_count": mixer.num_groups,
    }


def interleaved(num_heads: int, head_dim: int) -> Tensor:
    """`Source.order` that undoes GGUF's rotary row order: there row 2i + j of a head is our row j * dim/2 + i."""
    per_head = torch.arange(head_dim).view(head_dim // 2, 2).T.reshape(-1)
    return (torch.arange(num_heads)[:, None] * head_dim + per_head[None, :]).reshape(-1)


def names(config: LMConfig, *, permuted: bool) -> Found:
    """Every tensor of a GGUF file whose layers are attention or Mamba-2, with or without an MLP.

    permuted: the rows of q and k are in interleaved rotary order (llama and granite architectures).
    """
    found = outer_names(config, "token_embd", "output_norm", "output")
    for i, layer in enumerate(config.layers):
        block, theirs = f"blocks.{i}", f"blk.{i}"
        found |= norm_names(block, theirs, "attn_norm", "ffn_norm")
        if isinstance(layer.mixer, Mamba2.Config):
            found |= mamba_names(layer.mixer, f"{block}.mixer", theirs)
        elif isinstance(layer.mixer, Attention.Config):
            found |= attention_names(layer.mixer, f"{block}.mixer", theirs, permuted)
        found |= linear(f"{block}.channel.down.down", f"{theirs}.ffn_down")
        for s in ("gate", "up"):
            found |= linear(f"{block}.channel.gate_up.{s}", f"{theirs}.ffn_{s}")
    return found


def attention_names(mixer: Attention.Config, ours: str, theirs: str, permuted: bool) -> Found:
    """`attn_*` of a GGUF file."""
    found = linear(f"{ours}.out.o", f"{theirs}.attn_output")
    for s, heads in (("q", mixer.num_heads), ("k", mixer.num_kv_heads), ("v", 0)):
        order = interleaved(heads, mixer.head_dim) if permuted and heads else None
        found |= linear(f"{ours}.qkv.{s}", f"{theirs}.attn_{s}", order=order)
        found[f"{ours}.{s}_norm"] = Source(name=f"{theirs}.attn_{s}_norm.weight")
    return found


def mamba_names(mixer: Mamba2.Config, ours: str, theirs: str) -> Found:
    """`ssm_*` of a GGUF file: A itself in place of its logarithm, and other shapes of vectors."""
    column, groups = (mixer.num_heads, 1), (mixer.num_groups, mixer.d_inner // mixer.num_groups)
    return {
        **mamba_projections(mixer, ours, f"{theirs}.ssm_in", f"{theirs}.ssm_out"),
        f"{ours}.conv_weight": Source(name=f"{theirs}.ssm_conv1d.weight"),
        f"{ours}.conv_bias": Source(name=f"{theirs}.ssm_conv1d.bias"),
        f"{ours}.A_log": Source(name=f"{theirs}.ssm_a", shape=column, load=_log_of_minus, save=_minus_exp),
        f"{ours}.D": Source(name=f"{theirs}.ssm_d", shape=column),
        f"{ours}.dt_bias": Source(name=f"{theirs}.ssm_dt.bias"),
        f"{ours}.norm_weight": Source(name=f"{theirs}.ssm_norm.weight", shape=groups),
    }


def _log_of_minus(a: Tensor) -> Tensor:
    if not bool((a < 0).all()):
        raise ModelFileError("ssm_a has numbers that are not negative", why="a state that grows is no Mamba-2")
    return torch.log(-a)


def _minus_exp(log: Tensor) -> Tensor:
    return -torch.exp(log)
