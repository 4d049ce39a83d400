"""The table of the MLP with squared ReLU, in the spelling of Nemotron-H."""

from collections.abc import Iterator

from stretto.channels.relu2 import ReLU2
from stretto.models.table import Key, Part, Row, Source, linear
from stretto.models.ways import count, flag, held, same


def tensors(c: ReLU2.Config) -> Iterator[Row]:
    """Two matrices."""
    for s in ("up", "down"):
        yield from linear(f"{s}.{s}", Source(name=f"{s}_proj"), Source(name=f"ffn_{s}"))


PART = Part(
    config=ReLU2.Config,
    keys=(
        Key("d_hidden", count("intermediate_size"), same("feed_forward_length")),
        Key("bias", flag("mlp_bias", False), held("ffn_down.bias")),
    ),
    tensors=tensors,
    module="mixer",
)
