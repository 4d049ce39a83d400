"""Granite 4, dense: layers of Mamba-2 or attention, each with a gated MLP, and the four multipliers of Granite.

    h0 = embedding_multiplier * embed
    h += residual_multiplier * f(norm(h))        f: mixer, then MLP
    logits = head(norm(h)) / logits_scaling

Attention scores are scaled by attention_multiplier; positions are rotated only if the file says so. Mixtures of
experts are refused. GGUF files store the rows of q and k in interleaved order, say by the number of key heads of a
layer what it is, and call a model without Mamba layers `granite`.
"""

from stretto.models.family import Family, Kind
from stretto.models.lm import LMConfig
from stretto.models.parts import attention, dense, mamba2
from stretto.models.parts.outer import MULTIPLIERS, OUTER, TINY_MULTIPLIERS
from stretto.models.parts.rope import OPTIONAL_ROPE
from stretto.models.patterns import by_key_heads, named_kinds
from stretto.models.reader import Reader
from stretto.models.table import Format, Key, Known, Way, changed
from stretto.models.ways import count, fixed


def announce(form: Format, config: LMConfig) -> str:
    """In GGUF files, Granite 3 has the same layers of attention."""
    has_mamba = any(type(layer.mixer) is mamba2.PART.config for layer in config.layers)
    return "GraniteMoeHybridForCausalLM" if form == "hf" else "granitehybrid" if has_mamba else "granite"


def _no_experts(read: Reader, known: Known) -> None:
    read.need("num_local_experts")  # absent, it would mean eight
    read.expect("num_local_experts", 0)
    read.expect("position_embedding_type", "rope", "nope")


_NO_EXPERTS = Way(_no_experts, lambda value, config: {"num_local_experts": 0, "num_experts_per_tok": 0})


_CHANNEL = dense.PART.having(
    {"d_hidden": count("shared_intermediate_size")}, module="shared_mlp", tensors=dense.fused_tensors
)

FAMILY = Family(
    name="granite_hybrid",
    hf={"GraniteMoeHybridForCausalLM": "granitemoehybrid"},
    gguf=("granitehybrid",),
    kinds={
        "mamba": Kind(mixer=mamba2.HYBRID, channel=_CHANNEL),
        "attention": Kind(
            mixer=attention.PART.having(
                {"rope": OPTIONAL_ROPE, "scale": attention.MULTIPLIER, **attention.BIASES},
                tensors=attention.interleaved_tensors,
            ),
            channel=_CHANNEL,
        ),
    },
    pattern={
        "hf": named_kinds({"mamba": ("mamba", "linear_attention"), "attention": ("attention", "full_attention")}),
        "gguf": by_key_heads("attention", "mamba"),
    },
    outer=(Key("", _NO_EXPERTS, fixed(None)), *changed(OUTER, MULTIPLIERS)),
    tiny=TINY_MULTIPLIERS
    | {
        "num_hidden_layers": 4,
        "layer_types": ["linear_attention", "full_attention"] * 2,
        "num_local_experts": 0,
        "shared_intermediate_size": 40,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 16,
        "mamba_n_groups": 1,
        "mamba_chunk_size": 16,
        "rms_norm_eps": 1e-5,
        "position_embedding_type": None,
    },
    also={
        # a kind of layer that the model lacks gets one head: defaults might not divide
        "hf": {"num_attention_heads": 1, "mamba_n_heads": 1, "position_embedding_type": "nope"},
        "gguf": {"logit_scale": 1.0, "attention.head_count": 0, "rope.scaling.finetuned": False},
    },
    announce=announce,
)
