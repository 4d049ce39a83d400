"""Qwen2 and Qwen2.5 (arXiv 2407.10671): the Llama skeleton with biases on q, k and v.

Rotary order is the same in checkpoints and GGUF files. Sliding windows for a part of the layers are refused.
"""

from typing import Any

from stretto.models import _gguf, _hf
from stretto.models._common import only_layer
from stretto.models.family import Family, Names, Reader
from stretto.models.lm import Layer, LMConfig


def from_hf(read: Reader) -> LMConfig:
    """config.json of Qwen2ForCausalLM."""
    _hf.full_attention(read)
    layer = Layer(mixer=_hf.attention(read, qkv_bias=True), channel=_hf.dense(read))
    return _hf.model(read, "qwen2", [layer] * _hf.layer_count(read), context=32768)


def to_hf(config: LMConfig) -> dict[str, Any]:
    """The same as a config.json."""
    mixer, channel = only_layer(config)
    return {
        **_hf.model_to_hf(config, "Qwen2ForCausalLM", "qwen2"),
        **_hf.attention_to_hf(mixer),
        "intermediate_size": channel.d_hidden,
        "use_sliding_window": False,
    }


def from_gguf(read: Reader) -> LMConfig:
    """GGUF metadata of architecture `qwen2`."""
    read.expect("attention.sliding_window", 0)
    layer = Layer(mixer=_gguf.attention(read), channel=_gguf.dense(read))
    return _gguf.model(read, "qwen2", [layer] * _gguf.layer_count(read))


def to_gguf(config: LMConfig) -> dict[str, Any]:
    """The same as GGUF metadata."""
    return _gguf.dense_to_gguf(config, "qwen2")


def gguf_names(config: LMConfig) -> Names:
    """Tensors, rows in our order."""
    return _gguf.names(config, permuted=False)


FAMILY = Family(
    name="qwen2",
    hf=("Qwen2ForCausalLM",),
    gguf=("qwen2",),
    from_hf=from_hf,
    to_hf=to_hf,
    hf_names=_hf.names,
    from_gguf=from_gguf,
    to_gguf=to_gguf,
    gguf_names=gguf_names,
    gguf_extra=_gguf.extra,
)
