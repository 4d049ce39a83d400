"""The table of the gated MLP."""

from collections.abc import Iterator

from stretto.channels.dense import Dense
from stretto.models.table import Key, Part, Row, Source, linear
from stretto.models.ways import count, fixed, held, same


def tensors(c: Dense.Config) -> Iterator[Row]:
    """Gate, up and down as three matrices."""
    yield from linear("down.down", Source(name="down_proj"), Source(name="ffn_down"))
    for s in ("gate", "up"):
        yield from linear(f"gate_up.{s}", Source(name=f"{s}_proj"), Source(name=f"ffn_{s}"))


def fused_tensors(c: Dense.Config) -> Iterator[Row]:
    """Gate and up are one matrix of a checkpoint (Granite 4)."""
    yield from linear("down.down", Source(name="output_linear"), Source(name="ffn_down"))
    for s, first in (("gate", 0), ("up", c.d_hidden)):
        fused = Source(name="input_linear", rows=(first, c.d_hidden))
        yield from linear(f"gate_up.{s}", fused, Source(name=f"ffn_{s}"))


def tensors_fused_in_both(c: Dense.Config) -> Iterator[Row]:
    """Gate and up are one matrix in both formats (Phi-3)."""
    yield from linear("down.down", Source(name="down_proj"), Source(name="ffn_down"))
    for s, first in (("gate", 0), ("up", c.d_hidden)):
        rows = first, c.d_hidden
        yield from linear(f"gate_up.{s}", Source(name="gate_up_proj", rows=rows), Source(name="ffn_up", rows=rows))


PART = Part(
    config=Dense.Config,
    keys=(
        Key("d_hidden", count("intermediate_size"), same("feed_forward_length")),
        Key("activation", fixed("silu"), fixed("silu")),
        Key("bias", fixed(False), held("ffn_down.bias")),
    ),
    tensors=tensors,
    module="mlp",
)
