"""Qwen3.5, dense: three layers of Gated DeltaNet to one of gated attention, each with a gated MLP.

Norms multiply by 1 + w; checkpoints hold w, GGUF files the sum. Rotary embeddings turn the first quarter of every head.
Its sections for images (`mrope_section`) agree wherever text stands, so that they are plain rotary embeddings. Layers
that predict further tokens (MTP) are not used.
"""

from dataclasses import replace

from stretto.models.family import Family, Kind
from stretto.models.parts import dense, gated_attention, gated_delta
from stretto.models.parts.outer import OUTER, context
from stretto.models.patterns import by_interval, every, named_kinds
from stretto.models.reader import Reader
from stretto.models.skeleton import GGUF_SKELETON
from stretto.models.table import changed
from stretto.models.ways import fixed

MTP = "mtp."


def _where_none_are_named(read: Reader, layers: int) -> list[str]:
    return every(read.count("full_attention_interval", 4), "attention", "linear", layers)


FAMILY = Family(
    name="qwen3_5",
    hf={"Qwen3_5ForCausalLM": "qwen3_5_text"},
    gguf=("qwen35",),
    kinds={
        "linear": Kind(mixer=gated_delta.PART, channel=dense.PART),
        "attention": Kind(mixer=gated_attention.PART, channel=dense.PART),
    },
    pattern={
        "hf": named_kinds({"linear": ("linear_attention",), "attention": ("full_attention",)}, _where_none_are_named),
        "gguf": by_interval("attention", "linear"),
    },
    outer=changed(OUTER, {"context": context(32768), "norm": (fixed("rms_plus_one"), fixed("rms_plus_one"))}),
    gguf_skeleton=replace(GGUF_SKELETON, channel_norm="post_attention_norm", plus_one=True),
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
