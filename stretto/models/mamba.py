"""Mamba language models (arXiv 2312.00752), and Falcon Mamba (2410.05355): every layer is one Mamba mixer.

Falcon Mamba normalises what the time steps and the state are computed from. GGUF files say so by a flag, and mean the
epsilon of the other norms.
"""

from typing import Any

from stretto.models.family import Family, Kind
from stretto.models.lm import LMConfig
from stretto.models.parts import mamba
from stretto.models.parts.outer import OUTER
from stretto.models.skeleton import Skeleton
from stretto.models.table import Format, Key, Way, changed, refuse_to_write
from stretto.models.ways import count, fixed, flag, number

_CONTEXT = fixed(1 << 20)  # a recurrence has no longest sequence; this is what GGUF writers put there


def announce(form: Format, config: LMConfig) -> str:
    """GGUF files call both by one name."""
    mixer: Any = config.layers[0].mixer
    return "mamba" if form == "gguf" else "MambaForCausalLM" if mixer.inner_norm is None else "FalconMambaForCausalLM"


def _one_eps(value: None, config: LMConfig) -> dict[str, Any]:
    for layer in config.layers:
        mixer: Any = layer.mixer
        if mixer.inner_norm not in (None, config.norm_eps):
            refuse_to_write(f"mixer_rms_eps = {mixer.inner_norm} beside {config.norm_eps}", "GGUF (mamba)")
    return {}


FAMILY = Family(
    name="mamba",
    hf={"MambaForCausalLM": "mamba", "FalconMambaForCausalLM": "falcon_mamba"},
    gguf=("mamba",),
    kinds={"layer": Kind(mixer=mamba.PART)},
    outer=(
        Key("", fixed(None), Way(lambda read, known: None, _one_eps)),
        *changed(
            OUTER,
            {
                "norm_eps": number("layer_norm_epsilon", 1e-5),
                "context": (_CONTEXT, count("context_length")),
                "tie_embeddings": flag("tie_word_embeddings", True),
            },
        ),
    ),
    announce=announce,
    hf_skeleton=Skeleton(
        embed="backbone.embeddings", norm="backbone.norm_f", block="backbone.layers.{}", mixer_norm="norm"
    ),
    tiny={"intermediate_size": 64, "state_size": 5, "time_step_rank": 3, "expand": 2},
    also={"gguf": {"attention.head_count": 0, "feed_forward_length": 0}},  # readers want the two zeros
)
