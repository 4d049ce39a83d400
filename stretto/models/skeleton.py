"""The names of the tensors around the parts of a model, in each file format."""

from collections.abc import Iterator
from dataclasses import dataclass

from stretto.models.lm import Layer, LMConfig
from stretto.models.table import Source
from stretto.models.ways import minus_one


@dataclass(frozen=True, kw_only=True, slots=True)
class Skeleton:
    """The names of the tensors around mixers and channels: embedding, last norm, head, a layer (`{}`: its number) and
    the norms in it, before a part and (`post`) behind it. plus_one: norm weights are stored as what multiplies, where
    our models hold one less."""

    embed: str = "model.embed_tokens"
    norm: str = "model.norm"
    head: str = "lm_head"
    block: str = "model.layers.{}"
    mixer_norm: str = "input_layernorm"
    channel_norm: str = "post_attention_layernorm"
    mixer_post_norm: str = "post_attention_layernorm"
    channel_post_norm: str = "post_feedforward_layernorm"
    plus_one: bool = False

    def norm_source(self, name: str) -> Source:
        """The weight of a norm."""
        return minus_one(f"{name}.weight") if self.plus_one else Source(name=f"{name}.weight")

    def names(self, config: LMConfig) -> dict[str, Source]:
        """Everything but mixers and channels."""
        found = {"embed.embed": Source(name=f"{self.embed}.weight"), "norm.weight": self.norm_source(self.norm)}
        if not config.tie_embeddings:
            found["head.head"] = Source(name=f"{self.head}.weight")
        for i, layer in enumerate(config.layers):
            theirs = self.block.format(i)
            for ours in self._norms(layer):
                found[f"blocks.{i}.{ours}.weight"] = self.norm_source(f"{theirs}.{getattr(self, ours)}")
        return found

    def _norms(self, layer: Layer) -> Iterator[str]:
        for part, held in (("mixer", layer.mixer), ("channel", layer.channel)):
            if held is not None and layer.wiring.reads_normed:
                yield f"{part}_norm"
            if held is not None and layer.wiring.adds_normed:
                yield f"{part}_post_norm"


HF_SKELETON = Skeleton()
GGUF_SKELETON = Skeleton(
    embed="token_embd",
    norm="output_norm",
    head="output",
    block="blk.{}",
    mixer_norm="attn_norm",
    channel_norm="ffn_norm",
    mixer_post_norm="post_attention_norm",
    channel_post_norm="post_ffw_norm",
)
