"""Llama and its direct relatives: SmolLM2, Llama 2/3, Mistral (arXiv 2307.09288, 2310.06825).

RMSNorm, grouped-query attention with rotary embeddings, SwiGLU; biases by config. Mistral adds a sliding window. GGUF
files of this family store the rows of q and k in interleaved rotary order, and Llama 3's stretched frequencies as a
tensor.
"""

from typing import Any

from stretto.models import _gguf, _hf
from stretto.models._common import only_layer, refuse_to_write
from stretto.models.family import Family, Names, Reader
from stretto.models.lm import Layer, LMConfig

_MISTRAL_WINDOW = 4096  # what an absent key means; null means no window


def from_hf(read: Reader) -> LMConfig:
    """config.json of LlamaForCausalLM or MistralForCausalLM."""
    read.expect("layer_types", ["full_attention"] * _hf.layer_count(read))
    bias = read.flag("attention_bias", False)
    layer = Layer(
        mixer=_hf.attention(read, qkv_bias=bias, out_bias=bias, window=_window(read)),
        channel=_hf.dense(read, bias=read.flag("mlp_bias", False)),
    )
    return _hf.model(read, "llama", [layer] * _hf.layer_count(read))


def _window(read: Reader) -> int | None:
    """Mistral's sliding window. A file without `architectures` says by `model_type` what it is."""
    announced = (read.get("architectures", None) or [read.get("model_type", None)])[0]
    if announced not in ("MistralForCausalLM", "mistral"):
        return None
    has_window = "sliding_window" not in read.config or read.get("sliding_window", None) is not None
    return read.count("sliding_window", _MISTRAL_WINDOW) if has_window else None


def to_hf(config: LMConfig) -> dict[str, Any]:
    """The same as a config.json."""
    mixer, channel = only_layer(config)
    window = mixer.window
    if mixer.qkv_bias != mixer.out_bias or (window is not None and (mixer.qkv_bias or channel.bias)):
        refuse_to_write("biases on some projections only", "LlamaForCausalLM")
    if mixer.scale is not None:
        refuse_to_write(f"attention scale {mixer.scale}", "LlamaForCausalLM")
    names = ("MistralForCausalLM", "mistral") if window is not None else ("LlamaForCausalLM", "llama")
    return {
        **_hf.model_to_hf(config, *names),
        **_hf.attention_to_hf(mixer),
        "intermediate_size": channel.d_hidden,
        **({"sliding_window": window} if window is not None else {}),
        **({"attention_bias": True} if mixer.qkv_bias else {}),
        **({"mlp_bias": True} if channel.bias else {}),
    }


def from_gguf(read: Reader) -> LMConfig:
    """GGUF metadata of architecture `llama`."""
    layer = Layer(mixer=_gguf.attention(read), channel=_gguf.dense(read))
    return _gguf.model(read, "llama", [layer] * _gguf.layer_count(read))


def to_gguf(config: LMConfig) -> dict[str, Any]:
    """The same as GGUF metadata."""
    return _gguf.dense_to_gguf(config, "llama")


def gguf_names(config: LMConfig) -> Names:
    """Tensors, the rows of q and k in interleaved rotary order."""
    return _gguf.names(config, permuted=True)


FAMILY = Family(
    name="llama",
    hf=("LlamaForCausalLM", "MistralForCausalLM"),
    gguf=("llama",),
    from_hf=from_hf,
    to_hf=to_hf,
    hf_names=_hf.names,
    from_gguf=from_gguf,
    to_gguf=to_gguf,
    gguf_names=gguf_names,
    gguf_extra=_gguf.extra,
)
