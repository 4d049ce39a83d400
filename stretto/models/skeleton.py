"""What stands around the parts of a model: the names of its other tensors, and which kind each layer is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stretto.models.lm import LMConfig
from stretto.models.reader import MAX_LAYERS, Reader
from stretto.models.table import Source
from stretto.models.ways import plus_one


@dataclass(frozen=True, kw_only=True, slots=True)
class Skeleton:
    """The names of the tensors around mixers and channels: embedding, last norm, head, a layer (`{}`: its number) and
    the norms in it. centred: norm weights are stored minus one."""

    embed: str = "model.embed_tokens"
    norm: str = "model.norm"
    head: str = "lm_head"
    block: str = "model.layers.{}"
    mixer_norm: str = "input_layernorm"
    channel_norm: str = "post_attention_layernorm"
    centred: bool = False

    def norm_source(self, name: str) -> Source:
        """The weight of a norm."""
        return plus_one(f"{name}.weight") if self.centred else Source(name=f"{name}.weight")

    def names(self, config: LMConfig) -> dict[str, Source]:
        """Everything but mixers and channels."""
        found = {"embed.embed": Source(name=f"{self.embed}.weight"), "norm.weight": self.norm_source(self.norm)}
        if not config.tie_embeddings:
            found["head.head"] = Source(name=f"{self.head}.weight")
        for i, layer in enumerate(config.layers):
            theirs = self.block.format(i)
            found[f"blocks.{i}.mixer_norm.weight"] = self.norm_source(f"{theirs}.{self.mixer_norm}")
            if layer.channel is not None:
                found[f"blocks.{i}.channel_norm.weight"] = self.norm_source(f"{theirs}.{self.channel_norm}")
        return found


HF_SKELETON = Skeleton()
GGUF_SKELETON = Skeleton(
    embed="token_embd",
    norm="output_norm",
    head="output",
    block="blk.{}",
    mixer_norm="attn_norm",
    channel_norm="ffn_norm",
)


@dataclass(frozen=True, slots=True)
class Pattern:
    """How a format says which kind each layer is.

    read(reader) gives a kind per layer. write(kinds, keys) gives the keys that say so; keys: all others.
    """

    read: Callable[[Reader], Sequence[str]]
    write: Callable[[Sequence[str], Mapping[str, Any]], Mapping[str, Any]]


def alike(key: str) -> Pattern:
    """All layers are of the one kind `layer`; key: their number."""
    return Pattern(lambda read: ["layer"] * read.count(key, most=MAX_LAYERS), lambda kinds, keys: {})


def named_kinds(
    words: Mapping[str, tuple[str, ...]], missing: Callable[[Reader, int], list[str]] | None = None
) -> Pattern:
    """`layer_types` of config.json, in old files `layers_block_type`. words: kind -> what files call it, the first of
    which is written. missing(reader, layers): kinds where the file does not say; default: the first kind."""

    def read(read: Reader) -> list[str]:
        layers = read.count("num_hidden_layers", most=MAX_LAYERS)
        kind_of = {word: kind for kind, names in words.items() for word in names}
        key = "layer_types" if read.get("layer_types", None) is not None else "layers_block_type"
        found = read.get(key, None)
        if found is None:
            return missing(read, layers) if missing else [next(iter(words))] * layers
        if not isinstance(found, list) or len(found) != layers or not all(word in kind_of for word in found):
            read.refuse(key, found, f"it must name {layers} layers: {', '.join(kind_of)}")
        return [kind_of[word] for word in found]

    return Pattern(read, lambda kinds, keys: {"layer_types": [words[kind][0] for kind in kinds]})
