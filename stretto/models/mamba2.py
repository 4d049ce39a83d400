"""Mamba-2 language models (arXiv 2405.21060): every layer is one Mamba-2 mixer, without an MLP."""

from stretto.models.family import Family, Kind
from stretto.models.parts import mamba2
from stretto.models.parts.outer import OUTER
from stretto.models.skeleton import Skeleton
from stretto.models.table import Key, changed
from stretto.models.ways import check, count, fixed, number

_CONTEXT = fixed(1 << 20)  # a recurrence has no longest sequence; this is what GGUF writers put there
_EPS = number("layer_norm_epsilon", 1e-5)

FAMILY = Family(
    name="mamba2",
    hf={"Mamba2ForCausalLM": "mamba2"},
    gguf=("mamba2",),
    kinds={"layer": Kind(mixer=mamba2.PART)},
    outer=(
        Key("", check(True, key="rms_norm"), fixed(None)),
        *changed(OUTER, {"norm_eps": _EPS, "context": (_CONTEXT, count("context_length"))}),
    ),
    hf_skeleton=Skeleton(
        embed="backbone.embeddings", norm="backbone.norm_f", block="backbone.layers.{}", mixer_norm="norm"
    ),
    tiny={"num_heads": 8, "head_dim": 8, "state_size": 16, "n_groups": 2, "expand": 2, "chunk_size": 16},
    also={"gguf": {"attention.head_count": 0, "feed_forward_length": 0}},  # readers want the two zeros
)
