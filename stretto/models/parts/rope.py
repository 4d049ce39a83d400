"""How config.json and GGUF files spell a rotary embedding."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from stretto.core.errors import ModelFileError
from stretto.kernels.rope import Rope
from stretto.models._keys import GGUF_ROPE_KEYS, HF_ROPE_KEYS
from stretto.models.lm import Layer
from stretto.models.reader import Reader
from stretto.models.table import Known, Way

_KINDS = ("default", "linear", "llama3", "yarn")
_ORIGINAL = "original_max_position_embeddings"


def rope_of(layers: Sequence[Layer]) -> Rope | None:
    """The rotary embedding of the first mixer that has one."""
    ropes = (getattr(layer.mixer, "rope", None) for layer in layers)
    return next((rope for rope in ropes if rope is not None), None)


def stretched(rope: Rope | None, context: int) -> int:
    """The longest text of a model whose file says it was trained with `context` tokens.

    Linear scaling puts `factor` positions where there was one; of YaRN and llama3, the file names the length before
    they stretched it. Model cards ask for YaRN beside an unchanged length (Qwen).
    """
    if rope is None or rope.scaling in ("default", "divisors"):
        return context
    if rope.scaling == "linear":
        return round(rope.factor * context)
    return max(context, round(rope.factor * rope.original_context))


def trained(rope: Rope | None, longest: int) -> int:
    """What a file says of a model with this longest text: the inverse of `stretched`."""
    return round(longest / rope.factor) if rope is not None and rope.scaling == "linear" else longest


def hf_rope(read: Reader, head_dim: int, part: float | None = None, *, base: float = 10_000.0) -> Rope:
    """The rotary embedding of a config.json, in the old spelling (`rope_theta`, `rope_scaling`) or the new one
    (`rope_parameters`). part: how much of a head is turned where the file does not say, None if that is always all.
    base: where it does not say."""
    old, new = read.get("rope_scaling", {}) or {}, read.get("rope_parameters", {})
    for key, value in (("rope_scaling", old), ("rope_parameters", new)):
        if not isinstance(value, dict) or any(isinstance(v, dict) for v in value.values()):
            raise ModelFileError(
                f"{read.where}: {key} = {value!r} is not supported", why="one set of values for all layers is expected"
            )
    outside = {key: read.get(key, None) for key in ("partial_rotary_factor", _ORIGINAL)}
    outside["rope_theta"] = read.get("rope_theta", base)
    # Model cards say to add `rope_scaling`: it goes on top of what a newer file says of the same embedding.
    kept = {key: value for key, value in new.items() if key != "rope_type"} if old else new
    spec = Reader({**outside, **_said(kept), **_said(old)}, f"{read.where}, rotary embedding")
    if part is not None:
        factor = spec.number("partial_rotary_factor", part)
        if not 0 < factor <= 1:
            spec.refuse("partial_rotary_factor", factor, "it must be a part of a head")
        head_dim = int(head_dim * factor)
        for key in ("mrope_section", "mrope_interleaved"):  # which of three positions turns a pair; in text they agree
            spec.get(key, None)
    found = _rope_of(read, spec, head_dim)
    spec.refuse_unread(HF_ROPE_KEYS)
    return found


def hf_rope_of_kind(read: Reader, head_dim: int, kind: str, *, base_key: str, base: float) -> Rope:
    """The same where kinds of layers have embeddings of their own: `rope_parameters` by kind, or in the old spelling a
    key for each base and a `rope_scaling` for the kind whose base is `rope_theta`. kind: as `layer_types` names it."""
    each = read.get("rope_parameters", {})
    if not isinstance(each, dict) or not all(isinstance(own, dict) for own in each.values()):
        raise ModelFileError(
            f"{read.where}: rope_parameters = {each!r} is not supported", why="a set of values per kind is expected"
        )
    old = (read.get("rope_scaling", {}) or {}) if base_key == "rope_theta" else {}
    values = {"rope_theta": read.get(base_key, base), **_said(each.get(kind, {})), **_said(old)}
    spec = Reader(values, f"{read.where}, rotary embedding of {kind}")
    found = _rope_of(read, spec, head_dim)
    spec.refuse_unread(HF_ROPE_KEYS)
    return found


def _said(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _rope_of(read: Reader, spec: Reader, head_dim: int) -> Rope:
    dim = _even(read, head_dim)
    base, kind = spec.number("rope_theta"), spec.get("rope_type", spec.get("type", "default"))
    if kind == "default":
        return Rope(dim=dim, base=base)
    if kind == "linear":
        return Rope(dim=dim, base=base, scaling="linear", factor=spec.number("factor"))
    if kind == "llama3":
        return Rope(
            dim=dim,
            base=base,
            scaling="llama3",
            factor=spec.number("factor"),
            original_context=spec.count(_ORIGINAL, read.get("max_position_embeddings", None)),
            low_freq_factor=spec.number("low_freq_factor"),
            high_freq_factor=spec.number("high_freq_factor"),
        )
    if kind == "yarn":
        spec.expect("truncate", True)
        context = read.get("max_position_embeddings", None)
        original = spec.count(_ORIGINAL, context)
        factor = spec.number("factor", context / original if context else None)
        return Rope(
            dim=dim,
            base=base,
            scaling="yarn",
            factor=factor,
            original_context=original,
            beta_fast=spec.number("beta_fast", 32.0),
            beta_slow=spec.number("beta_slow", 1.0),
            attention_factor=_attention_factor(spec, factor),
        )
    raise ModelFileError(f"{read.where}: rope scaling {kind!r} is not supported", why=f"supported: {', '.join(_KINDS)}")


def _attention_factor(spec: Reader, factor: float) -> float | None:
    """What multiplies cos and sin, where the file says it, in one number or in the two of DeepSeek."""
    if spec.get("attention_factor", None) is not None:
        return spec.number("attention_factor")
    above, below = spec.number("mscale", 0.0), spec.number("mscale_all_dim", 0.0)
    if not above or not below or factor <= 1:
        return None
    return (0.1 * above * math.log(factor) + 1) / (0.1 * below * math.log(factor) + 1)


def _even(read: Reader, head_dim: int) -> int:
    if head_dim % 2:
        raise ModelFileError(f"{read.where}: a head of {head_dim} entries cannot be rotated in pairs")
    return head_dim


def rope_to_hf(rope: Rope) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, the spelling that every reader knows."""
    rope = _named(rope)
    written: dict[str, Any] = {"rope_theta": rope.base, "rope_scaling": None}
    if rope.scaling == "default":
        return written
    scaling: dict[str, Any] = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling != "linear":
        scaling[_ORIGINAL] = rope.original_context
    if rope.scaling == "llama3":
        scaling |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    if rope.scaling == "yarn":
        scaling |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow}
        if rope.attention_factor is not None:
            scaling["attention_factor"] = rope.attention_factor
    return written | {"rope_scaling": scaling}


def _named(rope: Rope) -> Rope:
    """Divisors as the llama3 rule that made them."""
    if rope.scaling != "divisors":
        return rope
    # Every published Llama 3 was stretched from 8192 tokens with these bounds; only the factor differs.
    factor = max(rope.divisors)
    guess = Rope(dim=rope.dim, base=rope.base, scaling="llama3", factor=factor, original_context=8192)
    if torch.allclose(guess.frequencies(), rope.frequencies(), rtol=1e-5, atol=0):
        return guess
    raise ModelFileError(
        "the frequency divisors of this file (rope_freqs) have no config.json spelling",
        why=f"they are not those of Llama 3 for a factor of {factor:g}",
        try_="--to gguf",
    )


def gguf_rope(read: Reader, head_dim: int, *, part: bool = False) -> Rope:
    """Rotary keys of a GGUF file; `read` has the architecture as its prefix. part: a part of a head may be turned, and
    pairs may be shared out to the three positions of an image, which agree in text."""
    if part:
        read.get("rope.dimension_sections", None)
        head_dim = read.count("rope.dimension_count", head_dim, most=head_dim)
    read.refuse_unread(GGUF_ROPE_KEYS)
    read.expect("rope.dimension_count", head_dim)
    dim, base = _even(read, head_dim), read.number("rope.freq_base", 10000.0)
    kind, factor = _gguf_scaling(read)
    divisors = tuple(read.config.get("stretto.rope_divisors", ()))
    if divisors and kind != "none":
        read.refuse("rope.scaling.type", kind, "the file also divides frequencies (rope_freqs)")
    if divisors:
        if len(divisors) != dim // 2 or min(divisors) <= 0:
            raise ModelFileError(f"{read.where}: rope_freqs does not fit {dim} rotated entries")
        return Rope(dim=dim, base=base, scaling="divisors", divisors=divisors)
    if kind == "none":
        return Rope(dim=dim, base=base)
    if kind == "linear":
        return Rope(dim=dim, base=base, scaling="linear", factor=factor)
    return Rope(
        dim=dim,
        base=base,
        scaling="yarn",
        factor=factor,
        original_context=read.count("rope.scaling.original_context_length", read.count("context_length")),
        beta_fast=read.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=read.number("rope.scaling.yarn_beta_slow", 1.0),
    )


def _gguf_scaling(read: Reader) -> tuple[str, float]:
    """Kind (none, linear or yarn) and factor. As ggml's loader: without a kind a factor is linear, `scale_linear` is
    the factor of old files, and 0 means that nothing is scaled."""
    read.expect("rope.scaling.type", "none", "linear", "yarn")
    kind, old = read.get("rope.scaling.type", "linear"), read.number("rope.scale_linear", 0.0)
    factor = read.number("rope.scaling.factor", old)
    if factor < 0:
        read.refuse("rope.scaling.factor", factor, "positions cannot be scaled by a negative number")
    return ("none", 1.0) if kind == "none" or factor in (0.0, 1.0) else (kind, factor)


def rope_to_gguf(rope: Rope) -> dict[str, Any]:
    """`rope.*` keys without the architecture; llama3 scaling goes into `rope_extra`."""
    keys: dict[str, Any] = {"rope.dimension_count": rope.dim, "rope.freq_base": float(rope.base)}
    if rope.scaling not in ("linear", "yarn"):
        return keys
    keys |= {"rope.scaling.type": rope.scaling, "rope.scaling.factor": float(rope.factor)}
    if rope.scaling == "yarn":
        if rope.magnitude != replace(rope, attention_factor=None).magnitude:
            raise ModelFileError(
                f"yarn with attention_factor = {rope.attention_factor} cannot be written to GGUF", try_="--to hf"
            )
        keys["rope.scaling.original_context_length"] = rope.original_context
        if (rope.beta_fast, rope.beta_slow) != (32.0, 1.0):
            keys |= {"rope.scaling.yarn_beta_fast": rope.beta_fast, "rope.scaling.yarn_beta_slow": rope.beta_slow}
    return keys


def rope_extra(rope: Rope | None) -> dict[str, Tensor]:
    """`rope_freqs.weight`: what the frequencies are divided by (llama3)."""
    if rope is None or rope.scaling not in ("llama3", "divisors"):
        return {}
    return {"rope_freqs.weight": Rope(dim=rope.dim, base=rope.base).frequencies() / rope.frequencies()}


# Ways of the field `rope` of a mixer ----------------------------------------------------------------------------------


def _is_there(rope: Rope | None) -> bool:
    return rope is not None


ROPE = (
    Way(lambda read, known: hf_rope(read, known["head_dim"]), lambda rope, config: rope_to_hf(rope), _is_there),
    Way(lambda read, known: gguf_rope(read, known["head_dim"]), lambda rope, config: rope_to_gguf(rope), _is_there),
)
"""Positions are always rotated: in config.json and in GGUF metadata."""


_SECTIONS = [11, 11, 10, 0]  # of the 32 turned pairs of Qwen3.5; readers of text only want the key


def rope_of_a_part(part: float) -> tuple[Way, Way]:
    """The first entries of a head are turned; part: how much of it where config.json does not say."""

    def write(rope: Rope, config: Any) -> dict[str, Any]:
        factor = rope.dim / config.head_dim
        if int(factor * config.head_dim) < rope.dim:  # readers cut the product
            factor = math.nextafter(factor, 1)
        return {**rope_to_hf(rope), "partial_rotary_factor": factor}

    return (
        Way(lambda read, known: hf_rope(read, known["head_dim"], part), write, _is_there),
        Way(
            lambda read, known: gguf_rope(read, known["head_dim"], part=True),
            lambda rope, config: {**rope_to_gguf(rope), "rope.dimension_sections": _SECTIONS},
            _is_there,
        ),
    )


def _plain(rope: Rope | None) -> bool:
    return rope is not None and rope.scaling == "default"


_SWA = "rope.freq_base_swa"


def _gguf_rope_of_windows(read: Reader, known: Known) -> Rope:
    base = read.number(_SWA, 0.0) or 10000.0
    read.expect("rope.dimension_count", known["head_dim"])
    read.refuse_unread(GGUF_ROPE_KEYS)
    return Rope(dim=_even(read, known["head_dim"]), base=base)


def _gguf_rope_beside_windows(read: Reader, known: Known) -> Rope:
    read.get(_SWA, None)
    return gguf_rope(read, known["head_dim"])


ROPE_OF_ALL = (
    Way(
        lambda read, known: hf_rope_of_kind(
            read, known["head_dim"], "full_attention", base_key="rope_theta", base=1_000_000.0
        ),
        lambda rope, config: rope_to_hf(rope),
        _is_there,
    ),
    Way(_gguf_rope_beside_windows, lambda rope, config: rope_to_gguf(rope), _is_there),
)
ROPE_OF_WINDOWS = (
    Way(
        lambda read, known: hf_rope_of_kind(
            read, known["head_dim"], "sliding_attention", base_key="rope_local_base_freq", base=10_000.0
        ),
        lambda rope, config: {"rope_local_base_freq": rope.base},
        _plain,
    ),
    Way(_gguf_rope_of_windows, lambda rope, config: {_SWA: float(rope.base)}, _plain),
)
"""Gemma 3: layers that see all and layers with a window have embeddings of their own; only the former are stretched."""


def _if_positioned(read: Reader, known: Known) -> Rope | None:
    return hf_rope(read, known["head_dim"]) if read.get("position_embedding_type", None) == "rope" else None


def _if_finetuned(read: Reader, known: Known) -> Rope | None:
    return gguf_rope(read, known["head_dim"]) if read.flag("rope.scaling.finetuned", True) else None


OPTIONAL_ROPE = (
    Way(
        _if_positioned,
        lambda rope, config: {"position_embedding_type": "rope", **rope_to_hf(rope)} if rope is not None else {},
    ),
    Way(
        _if_finetuned,
        lambda rope, config: {"rope.scaling.finetuned": True, **rope_to_gguf(rope)} if rope is not None else {},
    ),
)
"""Files say whether positions are rotated at all; Granite's `also` says no, unless a layer says yes."""
