"""What families share in every file format."""

from collections.abc import Sequence
from typing import NoReturn

from torch import Tensor

from stretto.channels.dense import Dense
from stretto.core.errors import ModelFileError
from stretto.kernels.rope import Rope
from stretto.mixers.attention import Attention
from stretto.mixers.mamba2 import Mamba2
from stretto.models.family import Source
from stretto.models.lm import Layer, LMConfig

Found = dict[str, Source]


def only_layer(config: LMConfig) -> tuple[Attention.Config, Dense.Config]:
    """Mixer and channel of a model whose layers are all the same attention and dense MLP."""
    layer = config.layers[0]
    assert isinstance(layer.mixer, Attention.Config) and isinstance(layer.channel, Dense.Config)
    return layer.mixer, layer.channel


def rope_of(layers: Sequence[Layer]) -> Rope | None:
    """The rotary embedding of the first attention layer, where there is one."""
    mixers = (layer.mixer for layer in layers)
    return next((mixer.rope for mixer in mixers if isinstance(mixer, Attention.Config)), None)


def refuse_to_write(what: str, where: str) -> NoReturn:
    """Raise ModelFileError: a format or architecture has no way to say something."""
    raise ModelFileError(f"{what} cannot be written to {where}", why="it has no key for it")


def linear(ours: str, theirs: str, rows: tuple[int, int] | None = None, order: Tensor | None = None) -> Found:
    """Weight and, where there is one, bias of one segment."""
    return {
        ours: Source(name=f"{theirs}.weight", rows=rows, order=order),
        f"{ours}.bias": Source(name=f"{theirs}.bias", rows=rows, order=order),
    }


def outer_names(config: LMConfig, embed: str, norm: str, head: str) -> Found:
    """Embeddings, last norm and head."""
    names = {"embed.embed": Source(name=f"{embed}.weight"), "norm.weight": Source(name=f"{norm}.weight")}
    return names if config.tie_embeddings else names | {"head.head": Source(name=f"{head}.weight")}


def norm_names(block: str, theirs: str, mixer: str, channel: str | None = None) -> Found:
    """The norms of a layer."""
    names = {f"{block}.mixer_norm.weight": Source(name=f"{theirs}.{mixer}.weight")}
    if channel is not None:
        names[f"{block}.channel_norm.weight"] = Source(name=f"{theirs}.{channel}.weight")
    return names


def mamba_projections(mixer: Mamba2.Config, ours: str, inward: str, outward: str) -> Found:
    """The two projections of a Mamba-2 mixer; the first one is fused in every format."""
    names, first = linear(f"{ours}.out_proj.out", outward), 0
    for s, rows in (("z", mixer.d_inner), ("xBC", mixer.d_conv), ("dt", mixer.num_heads)):
        names |= linear(f"{ours}.in_proj.{s}", inward, (first, rows))
        first += rows
    return names
