"""Granite 4, dense: layers of Mamba-2 or attention, each with a gated MLP, and the four multipliers of Granite.

    h0 = embedding_multiplier * embed
    h += residual_multiplier * f(norm(h))        f: mixer, then MLP
    logits = head(norm(h)) / logits_scaling

Attention scores are scaled by attention_multiplier; positions are rotated only if the file says so. Mixtures of
experts are refused. GGUF files store the rows of q and k in interleaved order, and call a model without Mamba layers
`granite`.
"""

import math
from collections.abc import Iterable
from typing import Any

from stretto.channels.dense import Dense
from stretto.mixers.attention import Attention
from stretto.mixers.mamba2 import Mamba2
from stretto.models import _gguf, _hf, granite
from stretto.models._common import linear, norm_names, outer_names, refuse_to_write
from stretto.models.family import Family, Names, Reader, Source
from stretto.models.lm import Layer, LMConfig

_MAMBA, _ATTENTION = ("mamba", "linear_attention"), ("attention", "full_attention")


def from_hf(read: Reader) -> LMConfig:
    """config.json of GraniteMoeHybridForCausalLM with `num_local_experts` 0."""
    read.need("num_local_experts")  # absent, it would mean eight
    read.expect("num_local_experts", 0)
    read.expect("position_embedding_type", "rope", "nope")
    kinds = _kinds(read)
    channel = _hf.dense(read, "shared_intermediate_size")
    layers = {kind: Layer(mixer=_hf_mixer(read, kind), channel=channel) for kind in dict.fromkeys(kinds)}
    return _hf.scaled_model(read, "granite_hybrid", [layers[kind] for kind in kinds])


def _kinds(read: Reader) -> list[str]:
    """Per layer `mamba` or `attention`."""
    count = _hf.layer_count(read)
    key = "layer_types" if read.get("layer_types", None) is not None else "layers_block_type"
    kinds = read.get(key, ["mamba"] * count)
    if not isinstance(kinds, list) or len(kinds) != count or not all(k in _MAMBA + _ATTENTION for k in kinds):
        read.refuse(key, kinds, f"it must name {count} layers: {', '.join(_MAMBA + _ATTENTION)}")
    return ["mamba" if kind in _MAMBA else "attention" for kind in kinds]


def _hf_mixer(read: Reader, kind: str) -> Attention.Config | Mamba2.Config:
    if kind == "attention":
        bias = read.flag("attention_bias", False)
        rope = read.get("position_embedding_type", None) == "rope"
        scale = read.number("attention_multiplier", 1.0)
        return _hf.attention(read, rope=rope, qkv_bias=bias, out_bias=bias, scale=scale)
    d_model, num_heads, groups = read.count("hidden_size"), read.count("mamba_n_heads"), read.count("mamba_n_groups", 1)
    read.divide(num_heads, "mamba_n_groups", groups)
    d_inner = read.count("mamba_expand", 2) * d_model
    head_dim = read.divide(d_inner, "mamba_n_heads", num_heads)
    read.expect("mamba_d_head", head_dim, "auto")
    return Mamba2.Config(
        d_model=d_model,
        num_heads=num_heads,
        head_dim=head_dim,
        num_groups=groups,
        d_state=read.count("mamba_d_state", 256),
        conv_width=read.count("mamba_d_conv", 4),
        conv_bias=read.flag("mamba_conv_bias", True),
        bias=read.flag("mamba_proj_bias", False),
        eps=read.number("rms_norm_eps", 1e-6),
        time_step_limit=_hf.time_step_limit(read),
    )


def to_hf(config: LMConfig) -> dict[str, Any]:
    """The same as a config.json. A kind of layer that the model lacks gets one head: defaults might not divide."""
    attention, mamba = _mixers(config)
    written = {
        **_hf.model_to_hf(config, "GraniteMoeHybridForCausalLM", "granitemoehybrid"),
        **_hf.multipliers_to_hf(config, attention),
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "shared_intermediate_size": _channel(config).d_hidden,
        "intermediate_size": _channel(config).d_hidden,
        "layer_types": ["attention" if isinstance(la.mixer, Attention.Config) else "mamba" for la in config.layers],
        "position_embedding_type": "rope" if attention is not None and attention.rope is not None else "nope",
        "num_attention_heads": 1,
        "mamba_n_heads": 1,
    }
    if attention is not None:
        if attention.qkv_bias != attention.out_bias or attention.window is not None:
            refuse_to_write("biases on some projections only, or a window", "GraniteMoeHybridForCausalLM")
        written |= {**_hf.attention_to_hf(attention), "attention_bias": attention.qkv_bias}
    if mamba is not None:
        if mamba.d_inner % config.d_model:
            refuse_to_write(f"an inner width of {mamba.d_inner}", "GraniteMoeHybridForCausalLM")
        written |= {
            "mamba_n_heads": mamba.num_heads,
            "mamba_d_head": mamba.head_dim,
            "mamba_expand": mamba.d_inner // config.d_model,
            "mamba_n_groups": mamba.num_groups,
            "mamba_d_state": mamba.d_state,
            "mamba_d_conv": mamba.conv_width,
            "mamba_conv_bias": mamba.conv_bias,
            "mamba_proj_bias": mamba.bias,
        }
        if mamba.time_step_limit != (0.0, math.inf):
            written["time_step_limit"] = list(mamba.time_step_limit)
    return written


def _mixers(config: LMConfig) -> tuple[Attention.Config | None, Mamba2.Config | None]:
    """The mixer of each kind, where the model has it."""
    found: dict[type, Any] = {}
    for layer in config.layers:
        found.setdefault(type(layer.mixer), layer.mixer)
    return found.get(Attention.Config), found.get(Mamba2.Config)


def _channel(config: LMConfig) -> Dense.Config:
    channel = config.layers[0].channel
    assert isinstance(channel, Dense.Config)
    return channel


def hf_names(config: LMConfig) -> Names:
    """Tensors of a checkpoint: gate and up are one tensor there."""
    found = outer_names(config, "model.embed_tokens", "model.norm", "lm_head")
    width = _channel(config).d_hidden
    for i, layer in enumerate(config.layers):
        block, theirs = f"blocks.{i}", f"model.layers.{i}"
        found |= norm_names(block, theirs, "input_layernorm", "post_attention_layernorm")
        if isinstance(layer.mixer, Mamba2.Config):
            found |= _hf.mamba_names(layer.mixer, f"{block}.mixer", f"{theirs}.mamba")
        else:
            found |= _hf.attention_names(block, theirs)
        found |= linear(f"{block}.channel.gate_up.gate", f"{theirs}.shared_mlp.input_linear", (0, width))
        found |= linear(f"{block}.channel.gate_up.up", f"{theirs}.shared_mlp.input_linear", (width, width))
        found[f"{block}.channel.down.down"] = Source(name=f"{theirs}.shared_mlp.output_linear.weight")
    return found


def from_gguf(read: Reader) -> LMConfig:
    """GGUF metadata of architecture `granitehybrid`: layers without key heads are Mamba layers."""
    has_attention = [heads > 0 for heads in _gguf.per_layer(read, "attention.head_count_kv")]
    layers: dict[bool, Layer] = {}
    for block, is_attention in _first_of_each(has_attention):
        mixer = _gguf.attention(read, block, rope=granite.uses_rope(read)) if is_attention else _gguf.mamba(read, block)
        layers[is_attention] = Layer(mixer=mixer, channel=_gguf.dense(read))
    return _gguf.scaled_model(read, "granite_hybrid", [layers[kind] for kind in has_attention])


def _first_of_each(kinds: list[bool]) -> Iterable[tuple[int, bool]]:
    return [(kinds.index(kind), kind) for kind in dict.fromkeys(kinds)]


def to_gguf(config: LMConfig) -> dict[str, Any]:
    """The same as GGUF metadata."""
    attention, mamba = _mixers(config)
    arch = "granite" if mamba is None else "granitehybrid"
    keys = _gguf.model_to_gguf(config)
    if attention is not None:
        keys |= _gguf.attention_to_gguf(attention)
    if mamba is not None:
        heads = 0 if attention is None else attention.num_kv_heads
        per_layer = [heads if isinstance(layer.mixer, Attention.Config) else 0 for layer in config.layers]
        keys |= {**_gguf.mamba_to_gguf(mamba), "attention.head_count_kv": per_layer}
        keys.setdefault("attention.head_count", 0)
    width = _channel(config).d_hidden
    return _gguf.prefixed(
        arch,
        keys
        | {
            "feed_forward_length": width,
            "logit_scale": float(config.logits_divider),
            "rope.scaling.finetuned": attention is not None and attention.rope is not None,
        },
    )


def gguf_names(config: LMConfig) -> Names:
    """Tensors, the rows of q and k in interleaved order."""
    return _gguf.names(config, permuted=True)


FAMILY = Family(
    name="granite_hybrid",
    hf=("GraniteMoeHybridForCausalLM",),
    gguf=("granitehybrid",),
    from_hf=from_hf,
    to_hf=to_hf,
    hf_names=hf_names,
    from_gguf=from_gguf,
    to_gguf=to_gguf,
    gguf_names=gguf_names,
    gguf_extra=_gguf.extra,
)
