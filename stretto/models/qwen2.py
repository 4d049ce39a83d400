"""Qwen2 and Qwen2.5 (arXiv 2407.10671): the Llama skeleton with biases on q, k and v.

Rotary order is the same in checkpoints and GGUF files. Sliding windows for a part of the layers are refused.
"""

from stretto.models.family import Family, Kind
from stretto.models.parts import attention, dense
from stretto.models.parts.outer import OUTER, context
from stretto.models.table import changed
from stretto.models.ways import fixed

FAMILY = Family(
    name="qwen2",
    hf={"Qwen2ForCausalLM": "qwen2"},
    gguf=("qwen2",),
    kinds={
        "layer": Kind(
            mixer=attention.PART.having({"qkv_bias": fixed(True), "window": (fixed(None), fixed(None))}),
            channel=dense.PART,
        )
    },
    outer=(attention.EVERY_LAYER_SEES_ALL, attention.NO_WINDOW_IS_ON, *changed(OUTER, {"context": context(32768)})),
)
