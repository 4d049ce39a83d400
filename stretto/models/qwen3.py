"""Qwen3, dense (arXiv 2505.09388): the Llama skeleton with RMSNorm over every query and key head.

Heads are 128 wide whatever the model width. Rotary order is the same in checkpoints and GGUF files. Sliding windows
for a part of the layers are refused.
"""

from stretto.models.family import Family, Kind
from stretto.models.parts import attention, dense
from stretto.models.parts.outer import OUTER, context
from stretto.models.table import changed
from stretto.models.ways import fixed

FAMILY = Family(
    name="qwen3",
    hf={"Qwen3ForCausalLM": "qwen3"},
    gguf=("qwen3",),
    kinds={
        "layer": Kind(
            mixer=attention.PART.having(
                {
                    "head_dim": attention.head_dim(128),
                    "window": (fixed(None), fixed(None)),
                    "qk_norm": attention.QK_NORM,
                    **attention.BIASES,
                }
            ),
            channel=dense.PART,
        )
    },
    tiny={"head_dim": 8},
    outer=(attention.EVERY_LAYER_SEES_ALL, attention.NO_WINDOW_IS_ON, *changed(OUTER, {"context": context(32768)})),
)
