"""The table of gated attention, in the spelling of Qwen3.5."""

from collections.abc import Iterator

import torch
from torch import Tensor

from stretto.mixers.gated_attention import GatedAttention
from stretto.models.parts.attention import BIASES, HEADS, head_dim
from stretto.models.parts.rope import rope_of_a_part
from stretto.models.table import Key, Part, Row, Source, changed, linear
from stretto.models.ways import check, fixed, held, known_as, minus_one


def queries_first(num_heads: int, head_dim: int) -> Tensor:
    """`Source.order` of q and its gate: files store them head by head."""
    return torch.arange(2 * num_heads * head_dim).view(num_heads, 2, head_dim).transpose(0, 1).reshape(-1)


def tensors(c: GatedAttention.Config) -> Iterator[Row]:
    """Norm weights are w in checkpoints and 1 + w in GGUF files."""
    order = queries_first(c.num_heads, c.head_dim)
    yield from linear("qkv.qz", Source(name="q_proj", order=order), Source(name="attn_q", order=order))
    for s in "kv":
        yield from linear(f"qkv.{s}", Source(name=f"{s}_proj"), Source(name=f"attn_{s}"))
    yield from linear("out.o", Source(name="o_proj"), Source(name="attn_output"))
    for s in "qk":
        yield Row(f"{s}_norm", Source(name=f"{s}_norm.weight"), minus_one(f"attn_{s}_norm.weight"))


PART = Part(
    config=GatedAttention.Config,
    keys=(
        *changed(HEADS, {"head_dim": head_dim(256)}),
        Key("", check(True, key="attn_output_gate"), fixed(None)),
        Key("rope", *rope_of_a_part(0.25)),
        Key("eps", known_as("norm_eps"), known_as("norm_eps")),
        Key("qkv_bias", BIASES["qkv_bias"], held("attn_q.bias")),
        Key("out_bias", BIASES["out_bias"], held("attn_output.bias")),
    ),
    tensors=tensors,
    module="self_attn",
    shown=("num_heads", "num_kv_heads", "head_dim"),
)
