"""Qwen3.5, dense: three layers of Gated DeltaNet to one of gated attention, each with a gated MLP.

Norm weights are stored minus one in checkpoints, and rotary embeddings turn the first quarter of every head. Its
sections for images (`mrope_section`) agree wherever text stands, so that they are plain rotary embeddings. Layers that
predict further tokens (MTP) are not used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stretto.models.family import Family
from stretto.models.parts import dense, gated_attention, gated_delta
from stretto.models.parts.outer import OUTER, context
from stretto.models.reader import MAX_LAYERS, Reader
from stretto.models.skeleton import GGUF_SKELETON, HF_SKELETON, Pattern, named_kinds
from stretto.models.table import changed

MTP = "mtp."


def every(read: Reader, layers: int) -> list[str]:
    """Every so many-th layer is attention."""
    interval = read.count("full_attention_interval", 4)
    return ["linear" if i % interval else "attention" for i in range(1, layers + 1)]


def _kinds(read: Reader) -> list[str]:
    layers, ahead = read.count("block_count", most=MAX_LAYERS), read.get("nextn_predict_layers", 0)
    if not isinstance(ahead, int) or not 0 <= ahead < layers:
        read.refuse("nextn_predict_layers", ahead, f"it must be less than {layers}")
    kinds = every(read, layers)
    recurrent = read.get("attention.recurrent_layers", None)
    if recurrent is not None:
        if not isinstance(recurrent, list) or len(recurrent) != layers:
            read.refuse("attention.recurrent_layers", recurrent, f"it must say of {layers} layers what they are")
        kinds = ["linear" if value else "attention" for value in recurrent]
    return kinds[: layers - ahead]


def _write_kinds(kinds: Sequence[str], keys: Mapping[str, Any]) -> dict[str, Any]:
    interval = [*kinds, "attention"].index("attention") + 1
    if all((kind == "attention") == (i % interval == 0) for i, kind in enumerate(kinds, 1)):
        return {"full_attention_interval": interval}
    return {"attention.recurrent_layers": [kind == "linear" for kind in kinds]}


FAMILY = Family(
    name="qwen3_5",
    hf={"Qwen3_5ForCausalLM": "qwen3_5_text"},
    gguf=("qwen35",),
    mixers={"linear": gated_delta.PART, "attention": gated_attention.PART},
    channel=dense.PART,
    pattern={
        "hf": named_kinds({"linear": ("linear_attention",), "attention": ("full_attention",)}, every),
        "gguf": Pattern(_kinds, _write_kinds),
    },
    outer=changed(OUTER, {"context": context(32768)}),
    hf_skeleton=replace(HF_SKELETON, centred=True),
    gguf_skeleton=replace(GGUF_SKELETON, channel_norm="post_attention_norm"),
    tiny={
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
    ignore_under=(MTP,),
)
