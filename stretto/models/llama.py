"""Llama and its direct relatives: SmolLM2, Llama 2/3, Mistral (arXiv 2307.09288, 2310.06825).

RMSNorm, grouped-query attention with rotary embeddings, SwiGLU; biases by config. Mistral adds a sliding window. GGUF
files of this family store the rows of q and k in interleaved rotary order, and Llama 3's stretched frequencies as a
tensor.
"""

from typing import Any

from stretto.models.family import Family, Kind
from stretto.models.lm import LMConfig
from stretto.models.parts import attention, dense
from stretto.models.parts.outer import OUTER
from stretto.models.table import Format, refuse_to_write
from stretto.models.ways import flag


def announce(form: Format, config: LMConfig) -> str:
    """Windows are Mistral's, which has no biases."""
    first: Any = config.layers[0]
    if form == "gguf" or first.mixer.window is None:
        return "llama" if form == "gguf" else "LlamaForCausalLM"
    if first.mixer.qkv_bias or first.mixer.out_bias or first.channel.bias:
        refuse_to_write("a window beside biases", "MistralForCausalLM")
    return "MistralForCausalLM"


FAMILY = Family(
    name="llama",
    hf={"LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral"},
    gguf=("llama",),
    kinds={
        "layer": Kind(
            mixer=attention.PART.having(
                {"window": attention.MISTRAL_WINDOW, **attention.BIASES}, tensors=attention.interleaved_tensors
            ),
            channel=dense.PART.having({"bias": flag("mlp_bias", False)}),
        )
    },
    outer=(attention.EVERY_LAYER_SEES_ALL, *OUTER),
    announce=announce,
)
