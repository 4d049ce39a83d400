"""OLMo 2 (arXiv 2501.00656): the Llama skeleton with norms behind every part in place of before it.

    h += norm(f(h))        f: attention, then a gated MLP

Queries and keys are normalised over all heads at once. Rotary order is the same in checkpoints and GGUF files. Models
with sliding windows (OLMo 3) are refused.
"""

from stretto.models.block import Wiring
from stretto.models.family import Family, Kind
from stretto.models.parts import attention, dense
from stretto.models.parts.outer import OUTER
from stretto.models.table import changed
from stretto.models.ways import fixed, number

_ALL = fixed(True), fixed(True)

FAMILY = Family(
    name="olmo2",
    hf={"Olmo2ForCausalLM": "olmo2"},
    gguf=("olmo2",),
    kinds={
        "layer": Kind(
            mixer=attention.PART.having(
                {
                    "window": (fixed(None), fixed(None)),
                    "qk_norm": attention.QK_NORM,
                    "norm_of_all": _ALL,
                    **attention.BIASES,
                }
            ),
            channel=dense.PART,
        )
    },
    wiring=Wiring(norms="output"),
    outer=changed(OUTER, {"norm_eps": number("rms_norm_eps", 1e-5)}),
)
