"""`Family`: how one foreign architecture is read and written. One small file per family declares one.

A declaration names the architecture in both formats, the parts of its layers, how kinds of layers alternate, and what
is spelled in a way of its own. Keys and tensors stand in the tables of the parts (`parts/`); the readers and writers
here are derived from them. A key that changes the result and that no row read is refused by name (`_keys.py`).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from torch import Tensor

from stretto.core.errors import ModelFileError
from stretto.models._keys import GGUF_KEYS, HF_KEYS
from stretto.models.block import Wiring
from stretto.models.lm import Layer, LMConfig
from stretto.models.parts.outer import OUTER
from stretto.models.parts.rope import rope_extra, rope_of
from stretto.models.patterns import Pattern, alike
from stretto.models.reader import Config, Reader
from stretto.models.skeleton import GGUF_SKELETON, HF_SKELETON, Skeleton
from stretto.models.table import Format, Key, Known, Names, Part, read_keys, refuse_to_write, write_keys

TINY: Mapping[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
"""A config.json of a model that takes milliseconds, as far as most families agree on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """The tables of a layer of some kind: of its mixer, of its channel, or of both."""

    mixer: Part | None = None
    channel: Part | None = None

    @property
    def parts(self) -> Iterator[tuple[Literal["mixer", "channel"], Part]]:
        """What it has of the two, as layers name it."""
        if self.mixer is not None:
            yield "mixer", self.mixer
        if self.channel is not None:
            yield "channel", self.channel

    def holds(self, layer: Layer) -> bool:
        """Whether a layer is of this kind."""
        pairs = (self.mixer, layer.mixer), (self.channel, layer.channel)
        return all((held is None) if part is None else part.holds(held) for part, held in pairs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One architecture family.

    hf: architectures of config.json -> their `model_type`. gguf: names in GGUF files. A model is written as the first
    of them, or as `announce` says. ignore, ignore_under: endings and beginnings of tensors that are not needed.
    kinds: of layers, by name; `layer` where there is one. wiring: of every layer. pattern: by format, how files say
    which kind each layer is. outer: the keys around the layers.
    inside: the key of config.json with the language model's, where a model can do more than text.
    tiny: what the config.json of the model that law tests run has besides `TINY`.
    also: by format, keys that are written beside those of the tables, and before them.

    GGUF metadata reach `from_gguf` with one key of ours, `stretto.tensors`: name -> shape, because GGUF leaves to the
    tensor list whether there are biases or a head of its own. Frequency divisors arrive as `stretto.rope_divisors`.
    """

    name: str
    hf: Mapping[str, str]
    gguf: tuple[str, ...]
    kinds: Mapping[str, Kind]
    wiring: Wiring = field(default_factory=Wiring)
    pattern: Mapping[Format, Pattern] = field(
        default_factory=lambda: {"hf": alike("num_hidden_layers"), "gguf": alike("block_count")}
    )
    outer: tuple[Key, ...] = OUTER
    hf_skeleton: Skeleton = HF_SKELETON
    gguf_skeleton: Skeleton = GGUF_SKELETON
    also: Mapping[Format, Mapping[str, Any]] = field(default_factory=dict)
    tiny: Mapping[str, Any] = field(default_factory=dict)
    announce: Callable[[Format, LMConfig], str] | None = None
    inside: str | None = None
    ignore_under: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ("rotary_emb.inv_freq", "attn_rot_embd", "attn_rot_embd.weight", "rope_freqs.weight")

    def read_hf(self, config: Config) -> LMConfig:
        """A config.json. Raises ModelFileError for every key that changes the result and is not supported."""
        read = Reader(config, "config.json") if self.inside is None else self._inner(config, self.inside)
        found = self.from_hf(read)
        read.refuse_unread(HF_KEYS)
        return found

    def read_gguf(self, metadata: Config) -> LMConfig:
        """GGUF metadata with the keys of ours. Errors as those of `read_hf`."""
        arch = metadata["general.architecture"]
        read = Reader(metadata, "GGUF metadata", prefix=f"{arch}.", single=True)
        found = self.from_gguf(read)
        read.refuse_unread(GGUF_KEYS)
        return found

    def _inner(self, config: Config, key: str) -> Reader:
        """The config of the language model in that of a larger one, which says by itself whether the head is tied."""
        inner = Reader(config, "config.json").need(key)
        if not isinstance(inner, Mapping):
            raise ModelFileError(f"config.json: {key} is {inner!r}, and no set of values")
        tied = {name: config[name] for name in ("tie_word_embeddings",) if name in config}
        return Reader({**inner, **tied}, f"config.json, {key}")

    def from_hf(self, read: Reader) -> LMConfig:
        """The model of a config.json; unread keys are the caller's concern."""
        return self._read("hf", read)

    def from_gguf(self, read: Reader) -> LMConfig:
        """The model of GGUF metadata; unread keys are the caller's concern."""
        return self._read("gguf", read)

    def to_hf(self, config: LMConfig) -> dict[str, Any]:
        """The model as a config.json. Raises ModelFileError for what its keys cannot say."""
        architecture = self._announced("hf", config)
        return {
            "architectures": [architecture],
            "model_type": self.hf[architecture],
            **self._write("hf", config, architecture),
        }

    def to_gguf(self, config: LMConfig) -> dict[str, Any]:
        """The same as GGUF metadata."""
        arch = self._announced("gguf", config)
        keys = self._write("gguf", config, f"GGUF ({arch})")
        return {"general.architecture": arch, **{f"{arch}.{key}": value for key, value in keys.items()}}

    def hf_names(self, config: LMConfig) -> Names:
        """Our tensors in a checkpoint."""
        return self._names("hf", config, self.hf_skeleton)

    def gguf_names(self, config: LMConfig) -> Names:
        """Our tensors in a GGUF file."""
        return self._names("gguf", config, self.gguf_skeleton)

    def gguf_extra(self, config: LMConfig) -> dict[str, Tensor]:
        """Tensors that a GGUF file holds in place of keys: stretched frequencies that no key can say (llama3)."""
        return rope_extra(rope_of(config.layers))

    def _announced(self, form: Format, config: LMConfig) -> str:
        return self.announce(form, config) if self.announce else next(iter(self.hf if form == "hf" else self.gguf))

    def _read(self, form: Format, read: Reader) -> LMConfig:
        at = next(i for i, key in enumerate(self.outer) if key.field == "layers")
        known = read_keys(self.outer[:at], form, read, {"family": self.name})
        known["layers"] = self._layers(form, read, known)
        known = read_keys(self.outer[at:], form, read, known)
        return LMConfig(**{f.name: known[f.name] for f in fields(LMConfig) if f.name in known})

    def _layers(self, form: Format, read: Reader, known: Known) -> tuple[Layer, ...]:
        kinds = self.pattern[form].read(read)
        made: dict[str, Layer] = {}
        for block, kind in enumerate(kinds):
            if kind not in made:
                here = {**known, "block": block}
                parts: dict[str, Any] = {name: part.read(form, read, here) for name, part in self.kinds[kind].parts}
                made[kind] = Layer(**parts, wiring=self.wiring)
        return tuple(made[kind] for kind in kinds)

    def _write(self, form: Format, config: LMConfig, where: str) -> dict[str, Any]:
        kinds = [self._kind(layer, where) for layer in config.layers]
        first = {kind: config.layers[kinds.index(kind)] for kind in dict.fromkeys(kinds)}
        if any(layer != first[kind] for kind, layer in zip(kinds, config.layers, strict=True)):
            refuse_to_write("layers of one kind that differ", where)
        keys: dict[str, Any] = {}
        write_keys(self.outer, form, config, where, keys)
        for kind, layer in first.items():
            for name, part in self.kinds[kind].parts:
                write_keys(part.keys, form, getattr(layer, name), where, keys)
        return {**self.also.get(form, {}), **keys, **self.pattern[form].write(kinds, keys)}

    def _kind(self, layer: Layer, where: str) -> str:
        name = next((name for name, kind in self.kinds.items() if kind.holds(layer)), None)
        if name is None:
            held = [type(part).__qualname__ for part in (layer.mixer, layer.channel) if part is not None]
            refuse_to_write(f"a layer of {' and '.join(held)}", where)
        if layer.wiring != self.wiring:
            refuse_to_write(f"a layer with {layer.wiring}", where)
        return name

    def _names(self, form: Format, config: LMConfig, skeleton: Skeleton) -> Names:
        found = skeleton.names(config)
        for i, layer in enumerate(config.layers):
            theirs = skeleton.block.format(i)
            for slot, part in self.kinds[self._kind(layer, self.name)].parts:
                before = f"{theirs}.{part.module}." if form == "hf" else f"{theirs}."
                for row in part.tensors(getattr(layer, slot)):
                    source = row.hf if form == "hf" else row.gguf
                    found[f"blocks.{i}.{slot}.{row.ours}"] = replace(source, name=before + source.name)
        return found
