"""Granite 3, dense: the Llama skeleton with four multipliers (muP): embeddings, residuals, attention scores, logits.

GGUF files store the rows of q and k in interleaved rotary order.
"""

from typing import Any

from stretto.models import _gguf, _hf
from stretto.models._common import only_layer, refuse_to_write
from stretto.models.family import Family, Names, Reader
from stretto.models.lm import Layer, LMConfig


def from_hf(read: Reader) -> LMConfig:
    """config.json of GraniteForCausalLM."""
    bias = read.flag("attention_bias", False)
    mixer = _hf.attention(read, qkv_bias=bias, out_bias=bias, scale=read.number("attention_multiplier", 1.0))
    layer = Layer(mixer=mixer, channel=_hf.dense(read, bias=read.flag("mlp_bias", False)))
    return _hf.scaled_model(read, "granite", [layer] * _hf.layer_count(read))


def to_hf(config: LMConfig) -> dict[str, Any]:
    """The same as a config.json."""
    mixer, channel = only_layer(config)
    if mixer.qkv_bias != mixer.out_bias or mixer.window is not None or mixer.rope is None:
        refuse_to_write("biases on some projections only, a window or the absence of positions", "GraniteForCausalLM")
    return {
        **_hf.model_to_hf(config, "GraniteForCausalLM", "granite"),
        **_hf.attention_to_hf(mixer),
        **_hf.multipliers_to_hf(config, mixer),
        "intermediate_size": channel.d_hidden,
        "attention_bias": mixer.qkv_bias,
        "mlp_bias": channel.bias,
    }


def from_gguf(read: Reader) -> LMConfig:
    """GGUF metadata of architecture `granite`."""
    mixer = _gguf.attention(read, rope=uses_rope(read))
    layer = Layer(mixer=mixer, channel=_gguf.dense(read))
    return _gguf.scaled_model(read, "granite", [layer] * _gguf.layer_count(read))


def uses_rope(read: Reader) -> bool:
    """Granite files say by `rope.scaling.finetuned` whether positions are rotated at all."""
    return read.flag("rope.scaling.finetuned", True)


def to_gguf(config: LMConfig) -> dict[str, Any]:
    """The same as GGUF metadata."""
    return _gguf.dense_to_gguf(config, "granite") | {
        "granite.rope.scaling.finetuned": only_layer(config)[0].rope is not None,
        "granite.logit_scale": float(config.logits_divider),
    }


def gguf_names(config: LMConfig) -> Names:
    """Tensors, the rows of q and k in interleaved rotary order."""
    return _gguf.names(config, permuted=True)


FAMILY = Family(
    name="granite",
    hf=("GraniteForCausalLM",),
    gguf=("granite",),
    from_hf=from_hf,
    to_hf=to_hf,
    hf_names=_hf.names,
    from_gguf=from_gguf,
    to_gguf=to_gguf,
    gguf_names=gguf_names,
    gguf_extra=_gguf.extra,
)
