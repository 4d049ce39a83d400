"""The table of a model around its layers: sizes, context, tied head, the multipliers of Granite."""

from typing import Any

from stretto.models.parts.rope import rope_of, stretched, trained
from stretto.models.reader import Reader
from stretto.models.table import Key, Known, Way
from stretto.models.ways import check, count, fixed, flag, held, number, positive, tensors_of


def context(default: int) -> Way:
    """The longest text in config.json; default: where it does not say."""
    return _context("max_position_embeddings", default)


def _context(key: str, default: int | None = None) -> Way:
    def read(read: Reader, known: Known) -> int:
        return stretched(rope_of(known["layers"]), read.count(key, default))

    def write(value: int, config: Any) -> dict[str, Any]:
        return {key: trained(rope_of(config.layers), value)}

    return Way(read, write)


def _layers(key: str) -> Way:
    """How many there are; what they are is the family's (`Family.pattern`)."""
    return Way(lambda read, known: known["layers"], lambda layers, config: {key: len(layers)})


def _not(way: Way) -> Way:
    return Way(lambda read, known: not way.read(read, known), way.write)


_VOCAB = Way(lambda read, known: tensors_of(read)["token_embd.weight"][0], lambda value, config: {"vocab_size": value})

OUTER = (
    Key("", check("silu", "swish", key="hidden_act", write="silu"), fixed(None)),
    Key("d_model", count("hidden_size"), count("embedding_length")),
    Key("norm_eps", number("rms_norm_eps", 1e-6), number("attention.layer_norm_rms_epsilon")),
    Key("norm", fixed("rms"), fixed("rms")),
    Key("layers", _layers("num_hidden_layers"), _layers("block_count")),
    Key("vocab_size", count("vocab_size"), _VOCAB),
    Key("context", context(2048), _context("context_length")),
    Key("tie_embeddings", flag("tie_word_embeddings", False), _not(held("output.weight", block=False))),
    Key("embedding_multiplier", fixed(1.0), fixed(1.0)),
    Key("residual_multiplier", fixed(1.0), fixed(1.0)),
    Key("logits_divider", fixed(1.0), fixed(1.0)),
    Key("logits_softcap", fixed(None), fixed(None)),
)

MULTIPLIERS = {
    "embedding_multiplier": (number("embedding_multiplier", 1.0), positive("embedding_scale", none=1.0)),
    "residual_multiplier": (number("residual_multiplier", 1.0), positive("residual_scale", none=1.0)),
    "logits_divider": (number("logits_scaling", 1.0), positive("logit_scale", none=1.0)),
}
"""The ways of what Granite multiplies by."""
TINY_MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 2.5,
    "attention_multiplier": 0.11,
}
"""Those of the models of law tests (`Family.tiny`); at 1, one that is left out would hide."""
