"""Gemma 3, the language model (arXiv 2503.19786): five layers with a sliding window to one that sees all.

    h0 = sqrt(d_model) * embed
    h += norm(f(norm(h)))        f: attention, then a gated MLP with tanh-GELU

Norms multiply by 1 + w, those of queries and keys too; checkpoints hold w, GGUF files the sum. Layers with a window
rotate with a base of their own. Scores are divided by the root of `query_pre_attn_scalar`, for which GGUF has no key.
"""

from collections.abc import Iterator
from dataclasses import replace

from stretto.mixers.attention import Attention
from stretto.models.block import Wiring
from stretto.models.family import Family
from stretto.models.parts import attention, gemma
from stretto.models.parts.rope import ROPE_OF_ALL, ROPE_OF_WINDOWS
from stretto.models.skeleton import GGUF_SKELETON, HF_SKELETON
from stretto.models.table import Row
from stretto.models.ways import count, plus_one

_LARGE = 62  # layers of the 27B model


def _tensors(c: Attention.Config) -> Iterator[Row]:
    for found in attention.tensors(c):
        yield replace(found, hf=plus_one(found.hf.name)) if found.ours.endswith("_norm") else found


FAMILY = Family(
    name="gemma3",
    hf={"Gemma3ForCausalLM": "gemma3_text"},
    gguf=("gemma3",),
    kinds=gemma.kinds(
        {"rope": ROPE_OF_ALL, "qk_norm": attention.QK_NORM}, {"rope": ROPE_OF_WINDOWS}, _LARGE, tensors=_tensors
    ),
    wiring=Wiring(norms="sandwich"),
    pattern=gemma.patterns(6),
    # files say how long texts are after stretching, unlike elsewhere
    outer=gemma.outer(_LARGE, {"context": (count("max_position_embeddings", 131072), count("context_length"))}),
    hf_skeleton=replace(HF_SKELETON, channel_norm="pre_feedforward_layernorm"),
    gguf_skeleton=replace(GGUF_SKELETON, plus_one=True),
    tiny={
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 5,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 100000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
)
