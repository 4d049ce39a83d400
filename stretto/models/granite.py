"""Granite 3, dense: the Llama skeleton with four multipliers (muP): embeddings, residuals, attention scores, logits.

GGUF files store the rows of q and k in interleaved rotary order, and may say that positions are not rotated.
"""

from stretto.models.family import Family, Kind
from stretto.models.parts import attention, dense
from stretto.models.parts.outer import MULTIPLIERS, OUTER, TINY_MULTIPLIERS
from stretto.models.parts.rope import OPTIONAL_ROPE, ROPE
from stretto.models.table import changed
from stretto.models.ways import flag

FAMILY = Family(
    name="granite",
    hf={"GraniteForCausalLM": "granite"},
    gguf=("granite",),
    kinds={
        "layer": Kind(
            mixer=attention.PART.having(
                {"rope": (ROPE[0], OPTIONAL_ROPE[1]), "scale": attention.MULTIPLIER, **attention.BIASES},
                tensors=attention.interleaved_tensors,
            ),
            channel=dense.PART.having({"bias": flag("mlp_bias", False)}),
        )
    },
    outer=changed(OUTER, MULTIPLIERS),
    tiny=TINY_MULTIPLIERS,
    also={"gguf": {"logit_scale": 1.0, "rope.scaling.finetuned": False}},
)
