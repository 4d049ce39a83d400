"""The table of the gated short convolution, in the spelling of LFM2."""

from collections.abc import Iterator

from stretto.mixers.gated_conv import GatedConv
from stretto.models.table import Key, Part, Row, Source, linear
from stretto.models.ways import count, flag, held


def tensors(c: GatedConv.Config) -> Iterator[Row]:
    """Both gates and the input are one matrix in both formats."""
    for number, s in enumerate("bcx"):
        rows = number * c.d_model, c.d_model
        theirs = Source(name="in_proj", rows=rows), Source(name="shortconv.in_proj", rows=rows)
        yield from linear(f"in_proj.{s}", *theirs)
    yield Row(
        "conv_weight",
        Source(name="conv.weight", shape=(c.d_model, 1, c.width)),
        Source(name="shortconv.conv.weight"),
    )
    yield Row("conv_bias", Source(name="conv.bias"), Source(name="shortconv.conv.bias"))
    yield from linear("out_proj.out", Source(name="out_proj"), Source(name="shortconv.out_proj"))


PART = Part(
    config=GatedConv.Config,
    keys=(
        Key("width", count("conv_L_cache", 3), count("shortconv.l_cache")),
        Key("bias", flag("conv_bias", False), held("shortconv.conv.bias")),
    ),
    tensors=tensors,
    module="conv",
    shown=("width",),
)
