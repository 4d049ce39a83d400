"""Which kind each layer of a model is, and how files say so."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stretto.models.reader import MAX_LAYERS, Reader
from stretto.models.ways import per_layer


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


def by_key_heads(attention: str, other: str) -> Pattern:
    """GGUF files of hybrids: a number of key heads per layer, 0 where a layer is `other`."""
    key = "attention.head_count_kv"

    def write(kinds: Sequence[str], keys: Mapping[str, Any]) -> dict[str, Any]:
        return {key: [keys[key] if kind == attention else 0 for kind in kinds]} if other in kinds else {}

    return Pattern(lambda read: [attention if heads else other for heads in per_layer(read, key)], write)


def by_interval(attention: str, other: str, default: int = 4) -> Pattern:
    """GGUF files of Qwen3.5: every so many-th layer is attention, or a list says which are not. Layers at the end that
    predict further tokens (`nextn_predict_layers`) are none of the model's."""

    def read(read: Reader) -> list[str]:
        layers, ahead = read.count("block_count", most=MAX_LAYERS), read.get("nextn_predict_layers", 0)
        if not isinstance(ahead, int) or not 0 <= ahead < layers:
            read.refuse("nextn_predict_layers", ahead, f"it must be less than {layers}")
        interval, listed = read.count(_INTERVAL, default), read.get(_LISTED, None)
        if listed is None:
            return every(interval, attention, other, layers)[: layers - ahead]
        if not isinstance(listed, list) or len(listed) != layers:
            read.refuse(_LISTED, listed, f"it must say of {layers} layers what they are")
        return [other if value else attention for value in listed][: layers - ahead]

    def write(kinds: Sequence[str], keys: Mapping[str, Any]) -> dict[str, Any]:
        interval = [*kinds, attention].index(attention) + 1
        if every(interval, attention, other, len(kinds)) == list(kinds):
            return {_INTERVAL: interval}
        return {_LISTED: [kind == other for kind in kinds]}

    return Pattern(read, write)


_INTERVAL, _LISTED = "full_attention_interval", "attention.recurrent_layers"


def every(interval: int, attention: str, other: str, layers: int) -> list[str]:
    """Every `interval`-th layer is attention."""
    return [other if i % interval else attention for i in range(1, layers + 1)]
