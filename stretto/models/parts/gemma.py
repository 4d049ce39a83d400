"""What Gemma 2 and 3 spell alike: layers with and without a window, the divisor of scores, the factor of embeddings."""

from collections.abc import Mapping, Sequence
from typing import Any

from stretto.mixers.attention import Attention
from stretto.models.family import Kind
from stretto.models.lm import LMConfig
from stretto.models.parts import attention, dense
from stretto.models.parts.outer import OUTER
from stretto.models.patterns import Pattern, every, named_kinds
from stretto.models.reader import MAX_LAYERS, Reader
from stretto.models.table import Format, Key, Known, Way, Ways, changed, refuse_to_write
from stretto.models.ways import check, count, fixed, flag, nothing

_PATTERN, _GGUF_PATTERN = "sliding_window_pattern", "attention.sliding_window_pattern"


def patterns(interval: int) -> Mapping[Format, Pattern]:
    """Every `interval`-th layer sees all, the others have a window, unless a file says otherwise."""

    def named(read: Reader) -> Sequence[str]:
        """Old files say how often, and newer ones may say so beside the list, which counts."""
        often = read.count(_PATTERN, interval)
        words = {"sliding": ("sliding_attention",), "full": ("full_attention",)}
        return named_kinds(words, lambda read, layers: every(often, "full", "sliding", layers)).read(read)

    def listed(read: Reader) -> Sequence[str]:
        layers, said = read.count("block_count", most=MAX_LAYERS), read.get(_GGUF_PATTERN, interval)
        if not isinstance(said, list):
            return every(read.count(_GGUF_PATTERN, interval), "full", "sliding", layers)
        if len(said) != layers or not all(isinstance(one, bool) for one in said):
            read.refuse(_GGUF_PATTERN, said, f"it must say of {layers} layers whether they have a window")
        return ["sliding" if one else "full" for one in said]

    def name(kinds: Sequence[str], keys: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"layer_types": [f"{kind}_attention" for kind in kinds]}

    def list_(kinds: Sequence[str], keys: Mapping[str, Any]) -> Mapping[str, Any]:
        often = [*kinds, "full"].index("full") + 1
        if every(often, "full", "sliding", len(kinds)) == list(kinds):
            return {_GGUF_PATTERN: often}
        return {_GGUF_PATTERN: [kind == "sliding" for kind in kinds]}

    return {"hf": Pattern(named, name), "gguf": Pattern(listed, list_)}


def kinds(ways: Ways, of_windows: Ways, large: int, **others: Any) -> dict[str, Kind]:
    """Layers that see all, and with a window.

    ways: of the attention of both; of_windows: of the latter, besides those. others: fields of the parts. large: how
    many layers the model has whose scores are divided by another root than that of the head width, which ggml knows
    without a key.
    """
    both: dict[str, Any] = {
        "head_dim": attention.head_dim(256),
        "scale": (
            Way(_read_scale, _write_scale),
            Way(lambda read, known: _read_gguf_scale(read, known, large), nothing),
        ),
        "window": (fixed(None), fixed(None)),
        **attention.BIASES,
        **ways,
    }
    window = {"window": (count("sliding_window", 4096), count("attention.sliding_window"))}
    full = attention.PART.having(both, fits=lambda config: config.window is None, **others)
    sliding = full.having(window | dict(of_windows), fits=lambda config: config.window is not None)
    channel = dense.PART.having({"activation": (fixed("gelu_tanh"), fixed("gelu_tanh"))})
    return {"full": Kind(mixer=full, channel=channel), "sliding": Kind(mixer=sliding, channel=channel)}


def outer(large: int, ways: Ways) -> tuple[Key, ...]:
    """The keys around the layers; ways: of a family's own."""
    activation = check("gelu_pytorch_tanh", key="hidden_activation", write="gelu_pytorch_tanh")
    return (
        Key("", activation, fixed(None)),
        Key("", check("gelu_pytorch_tanh", "gelu", key="hidden_act"), fixed(None)),  # beside the other, nobody reads it
        Key("", fixed(None), Way(lambda read, known: None, lambda value, config: _check_gguf_scales(config, large))),
        *changed(
            OUTER[1:],
            {
                "norm": (fixed("rms_plus_one"), fixed("rms_plus_one")),
                "tie_embeddings": flag("tie_word_embeddings", True),
                "embedding_multiplier": (_MULTIPLIER, _MULTIPLIER),
                **ways,
            },
        ),
    )


def _write_multiplier(value: float, config: LMConfig) -> dict[str, Any]:
    if value != config.d_model**0.5:
        refuse_to_write(f"embedding_multiplier = {value}", config.family)
    return {}


_MULTIPLIER = Way(lambda read, known: known["d_model"] ** 0.5, _write_multiplier)


def _read_scale(read: Reader, known: Known) -> float | None:
    scalar = read.count("query_pre_attn_scalar", 256)
    return None if scalar == known["head_dim"] else float(scalar**-0.5)


def _write_scale(scale: float | None, config: Attention.Config) -> dict[str, Any]:
    return {"query_pre_attn_scalar": config.head_dim if scale is None else round(scale**-2)}


def _read_gguf_scale(read: Reader, known: Known, large: int) -> float | None:
    return _gguf_scale(read.count("block_count", most=MAX_LAYERS), known["d_model"], known["num_heads"], large)


def _gguf_scale(layers: int, d_model: int, num_heads: int, large: int) -> float | None:
    return float((d_model // num_heads) ** -0.5) if layers == large else None


def _check_gguf_scales(config: LMConfig, large: int) -> dict[str, Any]:
    for layer in config.layers:
        mixer: Any = layer.mixer
        if mixer.scale != _gguf_scale(len(config.layers), config.d_model, mixer.num_heads, large):
            refuse_to_write(f"scale = {mixer.scale}", f"GGUF ({config.family})")
    return {}
