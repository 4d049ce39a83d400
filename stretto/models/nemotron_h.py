"""Nemotron-H (arXiv 2504.03624): every layer is Mamba-2, attention without positions, or an MLP of squared ReLU.

GGUF files say by the numbers of a layer what it is: key heads, or a width of the MLP, or neither. Time steps are
limited as `time_step_limit` says, which in published files is not at all; transformers 5.24 does not read it and lets
none be below `time_step_min`. Mixtures of experts are refused; layers that predict further tokens (MTP) are not used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from stretto.models.family import Family, Kind
from stretto.models.parts import attention, mamba2, relu2
from stretto.models.parts.outer import OUTER, context
from stretto.models.patterns import Pattern
from stretto.models.reader import Reader
from stretto.models.skeleton import GGUF_SKELETON, Skeleton
from stretto.models.table import Key, Known, Way, changed
from stretto.models.ways import count, divisor, fixed, nothing, number, per_layer

_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp"}
_WORDS = {"linear_attention": "mamba", "mamba": "mamba", "full_attention": "attention", "attention": "attention"}
_WORDS |= {"mlp": "mlp"}
_WRITTEN = {"mamba": "linear_attention", "attention": "full_attention", "mlp": "mlp"}
_KEY_HEADS, _WIDTH = "attention.head_count_kv", "feed_forward_length"


def _named(read: Reader) -> list[str]:
    """A list of words, or in old files a string of letters."""
    said = read.get("layers_block_type", read.get("layer_types", None))
    key, words = "layers_block_type", _WORDS
    letters = read.get("hybrid_override_pattern", None)
    if said is None:
        said, key, words = letters, "hybrid_override_pattern", _LETTERS
    if not isinstance(said, list | str) or not said or not all(word in words for word in said):
        read.refuse(key, said, f"it must say of every layer what it is: {', '.join(words)}")
    read.expect("num_hidden_layers", len(said))
    return [words[word] for word in said]


def _numbered(read: Reader) -> list[str]:
    heads, widths = per_layer(read, _KEY_HEADS), per_layer(read, _WIDTH)
    return ["attention" if h else "mlp" if w else "mamba" for h, w in zip(heads, widths, strict=True)]


def _list_numbers(kinds: Sequence[str], keys: Mapping[str, Any]) -> dict[str, Any]:
    return {
        _KEY_HEADS: [keys.get(_KEY_HEADS, 0) if kind == "attention" else 0 for kind in kinds],
        _WIDTH: [keys.get(_WIDTH, 0) if kind == "mlp" else 0 for kind in kinds],
    }


def _dense_and_plain(read: Reader, known: Known) -> None:
    """Experts that no layer has do not matter; old names would win over those that are read here."""
    for key in ("n_routed_experts", "n_shared_experts", "num_local_experts", "moe_latent_size", "time_step_min"):
        read.get(key, None)
    for key in ("mamba_n_groups", "mamba_d_conv", "mamba_conv_bias", "mamba_dt_limit"):
        read.expect(key)
    read.expect("mlp_hidden_act", "relu2")
    read.expect("mamba_hidden_act", "silu", "swish")


_NO_POSITIONS = fixed(None), fixed(None)
_GROUPS = divisor("n_groups", "num_heads", 8), count("ssm.group_count", 1)

FAMILY = Family(
    name="nemotron_h",
    hf={"NemotronHForCausalLM": "nemotron_h"},
    gguf=("nemotron_h",),
    kinds={
        "mamba": Kind(
            mixer=mamba2.PART.having(
                {
                    "num_heads": count("mamba_num_heads", 128),
                    "head_dim": count("mamba_head_dim", 64),
                    "num_groups": _GROUPS,
                    "d_state": count("ssm_state_size", 128),
                }
            )
        ),
        "attention": Kind(
            mixer=attention.PART.having(
                {"head_dim": attention.head_dim(128), "rope": _NO_POSITIONS, "window": _NO_POSITIONS}, module="mixer"
            )
        ),
        "mlp": Kind(channel=relu2.PART),
    },
    pattern={
        "hf": Pattern(_named, lambda kinds, keys: {"layers_block_type": [_WRITTEN[kind] for kind in kinds]}),
        "gguf": Pattern(_numbered, _list_numbers),
    },
    outer=(
        Key("", Way(_dense_and_plain, nothing), fixed(None)),
        *changed(OUTER[1:], {"norm_eps": number("layer_norm_epsilon", 1e-5), "context": context(4096)}),
    ),
    hf_skeleton=Skeleton(
        embed="backbone.embeddings",
        norm="backbone.norm_f",
        block="backbone.layers.{}",
        mixer_norm="norm",
        channel_norm="norm",
    ),
    gguf_skeleton=replace(GGUF_SKELETON, channel_norm="attn_norm"),
    ignore_under=("mtp.",),
    also={"hf": {"num_attention_heads": 1}, "gguf": {"attention.head_count": 0}},
    tiny={
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp", "linear_attention"],
        "num_hidden_layers": 5,
        "head_dim": 8,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 16,
        "n_groups": 2,
        "chunk_size": 16,
        "time_step_min": 1e-30,  # transformers limits by it
    },
)
