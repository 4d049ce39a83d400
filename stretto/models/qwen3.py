"""Qwen3, dense (arXiv 2505.09388): the Llama skeleton with RMSNorm over every query and key head.

Heads are 128 wide whatever the model width. Rotary order is the same in checkpoints and GGUF files. Sliding windows
for a part of the layers are refused.
"""

from typing import Any

from stretto.models import _gguf, _hf
from stretto.models._common import only_layer, refuse_to_write
from stretto.models.family import Family, Names, Reader
from stretto.models.lm import Layer, LMConfig


def from_hf(read: Reader) -> LMConfig:
    """config.json of Qwen3ForCausalLM."""
    _hf.full_attention(read)
    bias = read.flag("attention_bias", False)
    eps = read.number("rms_norm_eps", 1e-6)
    mixer = _hf.attention(read, head_dim=128, qkv_bias=bias, out_bias=bias, qk_norm=eps)
    layer = Layer(mixer=mixer, channel=_hf.dense(read))
    return _hf.model(read, "qwen3", [layer] * _hf.layer_count(read), context=32768)


def to_hf(config: LMConfig) -> dict[str, Any]:
    """The same as a config.json."""
    mixer, channel = only_layer(config)
    if mixer.qkv_bias != mixer.out_bias:
        refuse_to_write("biases on some projections only", "Qwen3ForCausalLM")
    return {
        **_hf.model_to_hf(config, "Qwen3ForCausalLM", "qwen3"),
        **_hf.attention_to_hf(mixer),
        "intermediate_size": channel.d_hidden,
        "attention_bias": mixer.qkv_bias,
        "use_sliding_window": False,
    }


def from_gguf(read: Reader) -> LMConfig:
    """GGUF metadata of architecture `qwen3`."""
    read.expect("attention.sliding_window", 0)
    layer = Layer(mixer=_gguf.attention(read, qk_norm=True), channel=_gguf.dense(read))
    return _gguf.model(read, "qwen3", [layer] * _gguf.layer_count(read))


def to_gguf(config: LMConfig) -> dict[str, Any]:
    """The same as GGUF metadata."""
    return _gguf.dense_to_gguf(config, "qwen3")


def gguf_names(config: LMConfig) -> Names:
    """Tensors, rows in our order."""
    return _gguf.names(config, permuted=False)


FAMILY = Family(
    name="qwen3",
    hf=("Qwen3ForCausalLM",),
    gguf=("qwen3",),
    from_hf=from_hf,
    to_hf=to_hf,
    hf_names=_hf.names,
    from_gguf=from_gguf,
    to_gguf=to_gguf,
    gguf_names=gguf_names,
    gguf_extra=_gguf.extra,
)
