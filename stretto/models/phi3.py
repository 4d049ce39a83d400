"""Phi-3 and Phi-4 (arXiv 2404.14219, 2412.08905): the Llama skeleton with fused matrices, and a window in some.

q, k and v are one matrix, gate and up another, in checkpoints and GGUF files. Models whose positions are stretched by
lists of factors (longrope, which old files call su or yarn) are refused.
"""

from dataclasses import replace

from stretto.kernels.rope import Rope
from stretto.models.family import Family, Kind
from stretto.models.parts import attention, dense
from stretto.models.parts.outer import OUTER, context
from stretto.models.parts.rope import ROPE
from stretto.models.reader import Reader
from stretto.models.table import Known, Way, changed
from stretto.models.ways import number


def _plain_rope(read: Reader, known: Known) -> Rope:
    for key in ("rope_scaling", "rope_parameters"):
        values = read.get(key, None) or {}
        kind = values.get("rope_type", values.get("type", "default"))
        if kind != "default":
            read.refuse(key, kind, "positions stretched by lists of factors are not supported")
    found: Rope = ROPE[0].read(read, known)
    return found


def _window(read: Reader, known: Known) -> int | None:
    return None if read.get("sliding_window", None) is None else read.count("sliding_window")


_WINDOW = Way(_window, lambda value, config: {} if value is None else {"sliding_window": value})

FAMILY = Family(
    name="phi3",
    hf={"Phi3ForCausalLM": "phi3"},
    gguf=("phi3",),
    kinds={
        "layer": Kind(
            mixer=attention.PART.having(
                {"rope": replace(ROPE[0], read=_plain_rope), "window": _WINDOW}, tensors=attention.fused_tensors
            ),
            channel=dense.PART.having({}, tensors=dense.tensors_fused_in_both),
        )
    },
    outer=changed(OUTER, {"norm_eps": number("rms_norm_eps", 1e-5), "context": context(4096)}),
    tiny={"sliding_window": 5},
)
