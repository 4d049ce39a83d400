"""The table of Gated DeltaNet, in the spelling of Qwen3.5.

GGUF files order value heads so that neighbours have different key heads (`GatedDelta.Config.tiled`), and so do we: the
columns of the last matrix go with the heads, and in a block of GGUF's wider codecs there are two of them. Checkpoints
order them by the key head that they share; their numbers stand alone and can be moved. GGUF files hold A itself in
place of its logarithm.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from stretto.mixers.gated_delta import GatedDelta
from stretto.models.reader import Reader
from stretto.models.table import Key, Known, Part, Row, Source, Way, row
from stretto.models.ways import count, divisor, fixed, known_as, log_of_minus, minus_exp


def grouped(c: GatedDelta.Config, width: int) -> Tensor:
    """`Source.order` of value heads of `width` rows that lie by key heads: our head j * G + g is head g * H/G + j."""
    heads = torch.arange(c.num_v_heads * width).view(c.num_k_heads, -1, width)
    return heads.transpose(0, 1).reshape(-1)


def tensors(c: GatedDelta.Config) -> Iterator[Row]:
    """q, k and v are one matrix in both formats."""
    heads, values = grouped(c, 1), grouped(c, c.head_v_dim)
    for s, first, num_rows in (("q", 0, c.d_key), ("k", c.d_key, c.d_key), ("v", 2 * c.d_key, c.d_value)):
        yield Row(
            f"in_proj.{s}",
            Source(name="in_proj_qkv.weight", rows=(first, num_rows), order=values if s == "v" else None),
            Source(name="attn_qkv.weight", rows=(first, num_rows)),
        )
    for s, theirs, order in (("z", "attn_gate", values), ("b", "ssm_beta", heads), ("a", "ssm_alpha", heads)):
        yield Row(f"in_proj.{s}", Source(name=f"in_proj_{s}.weight", order=order), Source(name=f"{theirs}.weight"))
    channels = torch.cat([torch.arange(2 * c.d_key), 2 * c.d_key + values])
    conv = Source(name="conv1d.weight", shape=(c.d_conv, 1, c.conv_width), order=channels)
    yield Row("conv_weight", conv, Source(name="ssm_conv1d.weight"))
    yield Row("A_log", Source(name="A_log", order=heads), Source(name="ssm_a", load=log_of_minus, save=minus_exp))
    yield Row("dt_bias", Source(name="dt_bias", order=heads), Source(name="ssm_dt.bias"))
    yield row("norm_weight", "norm.weight", "ssm_norm.weight")
    yield Row("out_proj.out", Source(name="out_proj.weight", columns=values), Source(name="ssm_out.weight"))


def _share_inner_size(read: Reader, known: Known) -> int:
    return read.divide(read.count("ssm.inner_size"), "ssm.time_step_rank", known["num_v_heads"])


_HEAD_V_DIM = Way(_share_inner_size, lambda value, config: {"ssm.inner_size": config.d_value})

PART = Part(
    config=GatedDelta.Config,
    keys=(
        Key("num_v_heads", count("linear_num_value_heads", 32), count("ssm.time_step_rank")),
        Key(
            "num_k_heads",
            divisor("linear_num_key_heads", "num_v_heads", 16),
            divisor("ssm.group_count", "num_v_heads"),
        ),
        Key("head_k_dim", count("linear_key_head_dim", 128), count("ssm.state_size")),
        Key("head_v_dim", count("linear_value_head_dim", 128), _HEAD_V_DIM),
        Key("conv_width", count("linear_conv_kernel_dim", 4), count("ssm.conv_kernel")),
        Key("allow_neg_eigval", fixed(False), fixed(False)),
        Key("eps", known_as("norm_eps"), known_as("norm_eps")),
        Key("tiled", fixed(True), fixed(True)),
    ),
    tensors=tensors,
    module="linear_attn",
)
