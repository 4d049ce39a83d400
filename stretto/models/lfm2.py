"""LFM2, dense (arXiv 2511.23404): layers of gated short convolution or attention, each with a gated MLP.

Queries and keys are normalised per head. Old files say which layers are attention by their numbers, and give a width of
the MLP that is cut to two thirds and rounded up (`block_auto_adjust_ff_dim`). The norm before the head is named as one
of the embedding.
"""

from collections.abc import Iterator
from dataclasses import replace

from stretto.channels.dense import Dense
from stretto.mixers.attention import Attention
from stretto.models.family import Family, Kind
from stretto.models.parts import attention, dense, gated_conv
from stretto.models.parts.outer import OUTER, context
from stretto.models.parts.rope import ROPE, hf_rope
from stretto.models.patterns import by_key_heads, named_kinds
from stretto.models.reader import Reader
from stretto.models.skeleton import GGUF_SKELETON, HF_SKELETON
from stretto.models.table import Known, Row, Source, Way, changed, linear, row
from stretto.models.ways import number, same

_LISTED = "full_attn_idxs"


def _by_number(read: Reader, layers: int) -> list[str]:
    """Without a list, every layer is attention."""
    listed = read.get(_LISTED, list(range(layers)))
    if not isinstance(listed, list) or not all(isinstance(i, int) and 0 <= i < layers for i in listed):
        read.refuse(_LISTED, listed, f"it must be numbers of {layers} layers")
    return ["attention" if i in listed else "conv" for i in range(layers)]


def _attention_tensors(c: Attention.Config) -> Iterator[Row]:
    for found in attention.tensors(c):
        if found.ours.startswith("qkv."):
            yield found
    yield from linear("out.o", Source(name="out_proj"), Source(name="attn_output"))
    for s in "qk":
        yield row(f"{s}_norm", f"{s}_layernorm.weight", f"attn_{s}_norm.weight")


def _channel_tensors(c: Dense.Config) -> Iterator[Row]:
    theirs = {"gate": "w1", "up": "w3", "down": "w2"}
    for found in dense.tensors(c):
        part, ending = found.ours.split(".")[1], found.hf.name.rpartition(".")[2]
        yield replace(found, hf=Source(name=f"{theirs[part]}.{ending}"))


def _width(read: Reader, known: Known) -> int:
    width = read.count("intermediate_size", 12288)
    width = read.count("block_ff_dim", width)
    if not read.flag("block_auto_adjust_ff_dim", True):
        return width
    width, factor = 2 * width // 3, read.get("block_ffn_dim_multiplier", 1.0)
    if factor is None:
        return width
    multiple = read.count("block_multiple_of", 256)
    return -(-int(read.number("block_ffn_dim_multiplier", 1.0) * width) // multiple) * multiple


_WIDTH = Way(_width, lambda value, config: {"intermediate_size": value, "block_auto_adjust_ff_dim": False})
_TIED = Way(
    lambda read, known: read.flag("tie_embedding", read.flag("tie_word_embeddings", True)),
    lambda value, config: {"tie_word_embeddings": value},
)

_CHANNEL = dense.PART.having(
    {"d_hidden": (_WIDTH, same("feed_forward_length"))}, module="feed_forward", tensors=_channel_tensors
)

FAMILY = Family(
    name="lfm2",
    hf={"Lfm2ForCausalLM": "lfm2"},
    gguf=("lfm2",),
    kinds={
        "conv": Kind(mixer=gated_conv.PART, channel=_CHANNEL),
        "attention": Kind(
            mixer=attention.PART.having(
                {
                    "rope": replace(
                        ROPE[0], read=lambda read, known: hf_rope(read, known["head_dim"], base=1_000_000.0)
                    ),
                    "qk_norm": attention.QK_NORM,
                },
                tensors=_attention_tensors,
            ),
            channel=_CHANNEL,
        ),
    },
    pattern={
        "hf": named_kinds({"conv": ("conv",), "attention": ("full_attention",)}, _by_number),
        "gguf": by_key_heads("attention", "conv"),
    },
    outer=changed(OUTER, {"norm_eps": number("norm_eps", 1e-5), "context": context(128000), "tie_embeddings": _TIED}),
    hf_skeleton=replace(HF_SKELETON, norm="model.embedding_norm", mixer_norm="operator_norm", channel_norm="ffn_norm"),
    gguf_skeleton=replace(GGUF_SKELETON, norm="token_embd_norm"),
    tiny={"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4, "block_multiple_of": 8},
    also={"hf": {"num_attention_heads": 1}, "gguf": {"attention.head_count": 0}},
)
