"""Mamba-2 language models (arXiv 2405.21060): every layer is one Mamba-2 mixer, without an MLP."""

import math
from typing import Any

from stretto.mixers.mamba2 import Mamba2
from stretto.models import _gguf, _hf
from stretto.models._common import norm_names, outer_names
from stretto.models.family import Family, Names, Reader
from stretto.models.lm import Layer, LMConfig

_CONTEXT = 1 << 20  # a recurrence has no longest sequence; this is what GGUF writers put there


def from_hf(read: Reader) -> LMConfig:
    """config.json of Mamba2ForCausalLM."""
    read.expect("rms_norm", True)
    d_model, num_heads, head_dim = read.count("hidden_size"), read.count("num_heads"), read.count("head_dim")
    if read.number("expand", 2) * d_model != num_heads * head_dim:
        read.refuse("head_dim", head_dim, f"{num_heads} heads must fill expand * hidden_size")
    mixer = Mamba2.Config(
        d_model=d_model,
        num_heads=num_heads,
        head_dim=head_dim,
        num_groups=_groups(read, "n_groups", num_heads),
        d_state=read.count("state_size"),
        conv_width=read.count("conv_kernel", 4),
        conv_bias=read.flag("use_conv_bias", True),
        bias=read.flag("use_bias", False),
        eps=read.number("layer_norm_epsilon", 1e-5),
        time_step_limit=_hf.time_step_limit(read),
    )
    return LMConfig(
        family="mamba2",
        d_model=d_model,
        vocab_size=read.count("vocab_size"),
        layers=(Layer(mixer=mixer),) * _hf.layer_count(read),
        norm_eps=mixer.eps,
        context=_CONTEXT,
        tie_embeddings=read.flag("tie_word_embeddings", False),
    )


def _groups(read: Reader, key: str, num_heads: int) -> int:
    groups = read.count(key)
    read.divide(num_heads, key, groups)
    return groups


def to_hf(config: LMConfig) -> dict[str, Any]:
    """The same as a config.json."""
    mixer = _mixer(config)
    low, high = mixer.time_step_limit
    return {
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        "hidden_act": "silu",
        "hidden_size": config.d_model,
        "num_hidden_layers": len(config.layers),
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "layer_norm_epsilon": config.norm_eps,
        "num_heads": mixer.num_heads,
        "head_dim": mixer.head_dim,
        "n_groups": mixer.num_groups,
        "state_size": mixer.d_state,
        "conv_kernel": mixer.conv_width,
        "expand": mixer.d_inner / config.d_model if mixer.d_inner % config.d_model else mixer.d_inner // config.d_model,
        "use_conv_bias": mixer.conv_bias,
        "use_bias": mixer.bias,
        **({} if (low, high) == (0.0, math.inf) else {"time_step_limit": [low, high]}),
    }


def hf_names(config: LMConfig) -> Names:
    """Tensors of a checkpoint."""
    found = outer_names(config, "backbone.embeddings", "backbone.norm_f", "lm_head")
    for i in range(len(config.layers)):
        found |= norm_names(f"blocks.{i}", f"backbone.layers.{i}", "norm")
        found |= _hf.mamba_names(_mixer(config), f"blocks.{i}.mixer", f"backbone.layers.{i}.mixer")
    return found


def _mixer(config: LMConfig) -> Mamba2.Config:
    mixer = config.layers[0].mixer
    assert isinstance(mixer, Mamba2.Config)
    return mixer


def from_gguf(read: Reader) -> LMConfig:
    """GGUF metadata of architecture `mamba2`."""
    return _gguf.model(read, "mamba2", [Layer(mixer=_gguf.mamba(read))] * _gguf.layer_count(read))


def to_gguf(config: LMConfig) -> dict[str, Any]:
    """The same as GGUF metadata; readers want the two zeros."""
    keys = _gguf.model_to_gguf(config) | _gguf.mamba_to_gguf(_mixer(config))
    return _gguf.prefixed("mamba2", keys | {"attention.head_count": 0, "feed_forward_length": 0})


def gguf_names(config: LMConfig) -> Names:
    """Tensors of a GGUF file."""
    return _gguf.names(config, permuted=False)


FAMILY = Family(
    name="mamba2",
    hf=("Mamba2ForCausalLM",),
    gguf=("mamba2",),
    from_hf=from_hf,
    to_hf=to_hf,
    hf_names=hf_names,
    from_gguf=from_gguf,
    to_gguf=to_gguf,
    gguf_names=gguf_names,
)
